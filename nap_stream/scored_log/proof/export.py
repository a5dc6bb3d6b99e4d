"""Rows of the log to give away, signed with where they are from.

    <folder>/rows.parquet     rows as `nap_stream.scored_log.query.scan` gives them
    <folder>/manifest.note    a signed note: `ORIGIN`, and a JSON object with the keys of `Manifest`

The manifest is written last: a folder without it is no export.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from nap_stream.errors import ChainBrokenError, ConfigError, ProofError
from nap_stream.files import sync_folder, write_durably
from nap_stream.records import TopicPartition
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.output import OutputFormat, bytes_as_text, write_batches
from nap_stream.scored_log.proof.checkpoint import EVENTS, take_checkpoint
from nap_stream.scored_log.proof.note import MAX_NOTE_BYTES, PublicKey, Signer, open_note
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.seals import told_pruned
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import listed

ORIGIN = "nap-stream export v1"
ROWS, MANIFEST = "rows.parquet", "manifest.note"


@dataclass(frozen=True, slots=True)
class ExportedChain:
    """Where a chain that was asked ended, and its digest there; and how many rows are of it."""

    topic: str
    partition: int
    start_offset: int
    end_offset: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export holds, by the signer's word.

    ``filter`` has what was asked for, by the names of `Query`. Rows behind the ends of ``chains``
    are not in it. ``unread`` are files and chains whose rows are missing, and why, and ``pruned``
    says who removed rows that the filter reaches. ``sha256`` is of the file of rows, in hex.
    """

    program_version: str
    log: str
    created_time_ms: int
    filter: dict[str, Any]
    chains: tuple[ExportedChain, ...]
    unread: dict[str, str]
    rows: int
    rows_by_status: dict[str, int]
    sha256: str
    pruned: tuple[str, ...] = ()


def write_export(
    store: SegmentStore, query: Query, folder: Path, signer: Signer, *, version: str, now_ms: int
) -> Manifest:
    """Write the rows that pass, and the signed manifest of them.

    ``folder`` must not be there, or be empty.

    Raises:
        ConfigError: The folder has files, or cannot be written.
        ScoredLogError: The store cannot be read.
    """
    rows = _Rows(store, query, now_ms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError("the folder is not empty", str(folder), "Name a new one")
        with (folder / ROWS).open("x+b") as file:
            write_batches(SCAN_SCHEMA, rows.batches(), OutputFormat.PARQUET, file)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = Manifest(
            program_version=version,
            log=store.root,
            created_time_ms=now_ms,
            filter=_filter(query),
            chains=tuple(rows.chains),
            unread=rows.unread | {error.where: error.problem for error in rows.errors},
            rows=rows.statuses.total(),
            rows_by_status=dict(sorted(rows.statuses.items())),
            sha256=sha256,
            pruned=tuple(rows.pruned()),
        )
        text = json.dumps(asdict(manifest), indent=2)
        write_durably(folder / MANIFEST, signer.sign(f"{ORIGIN}\n{text}\n"))
        sync_folder(folder)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", str(folder)) from error
    return manifest


class _Rows:
    """The rows that pass, up to where the chains ended at first; counts them as they go by."""

    def __init__(self, store: SegmentStore, query: Query, now_ms: int) -> None:
        self._store, self._query = store, query
        self._taken = take_checkpoint(store, now_ms)
        self.unread = {
            str(each): "its end cannot be read" for each in self._taken.unread if self._asked(each)
        }
        self.errors: list[ChainBrokenError] = []
        self.chains: list[ExportedChain] = []
        self.statuses = Counter[str]()

    def _asked(self, chain: TopicPartition) -> bool:
        asked = self._query
        is_topic = asked.topic in {None, chain.topic} and chain != EVENTS
        return is_topic and (not asked.partitions or chain.partition in asked.partitions)

    def pruned(self) -> list[str]:
        """What is said of rows that were asked for and are pruned."""
        asked = self._query
        chains = [head.partition for head in self._taken.heads if self._asked(head.partition)]
        return told_pruned(self._store, chains, asked.since_ms, asked.until_ms, asked.offsets)

    def batches(self) -> Iterator[pa.RecordBatch]:
        first, last = self._query.offsets or (0, 2**63 - 2)
        for head in self._taken.heads:
            chain, before = head.partition, self.statuses.total()
            if not self._asked(chain):
                continue
            only = replace(
                self._query,
                topic=chain.topic,
                partitions=(chain.partition,),
                offsets=(first, min(last, head.end_offset - 1)),
            )
            for batch in scan(self._store, only, unread=self.errors):
                self.statuses.update(batch["status"].to_pylist())
                yield batch
            end = (head.start_offset, head.end_offset, head.sha256)
            rows = self.statuses.total() - before
            self.chains.append(ExportedChain(chain.topic, chain.partition, *end, rows))


def _filter(query: Query) -> dict[str, Any]:
    """What is asked for, without what is not; bytes as `bytes_as_text` has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return bytes_as_text(value) if isinstance(value, bytes) else value

    names = [field.name for field in fields(query) if field.name != "hashes"]
    asked = {name: getattr(query, name) for name in names}
    if query.hashes:
        # What is hidden in the log stays hidden in what is given away.
        hashed = dict(query.hashes)
        asked["keys"] = tuple(hashed.get(key, key) for key in query.keys)
        asked["headers"] = tuple(
            (name, value if value is None else hashed.get(value, value))
            for name, value in query.headers
        )
    return {name: plain(value) for name, value in asked.items() if value not in (None, ())}


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """A manifest, and the labels of the known and of the unknown keys that have signed it."""

    manifest: Manifest
    signers: tuple[str, ...]
    unknown: tuple[str, ...]


def verify_export(folder: Path, keys: Sequence[PublicKey]) -> VerifiedExport:
    """Check an export by public keys alone: that its rows are the bytes that were signed.

    Raises:
        UnknownKeyError: Only other keys have signed the manifest.
        ProofError: The folder is no export, or does not hold what was signed.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
        if names != [MANIFEST, ROWS]:
            raise ProofError(
                f"expected {MANIFEST} and {ROWS}, it holds {listed(names) or 'nothing'}",
                str(folder),
                "Take the folder as it was given, without other files",
            )
        with (folder / MANIFEST).open("rb") as file:
            note = open_note(file.read(MAX_NOTE_BYTES + 1), keys, str(folder / MANIFEST))
        with (folder / ROWS).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ProofError(f"cannot be read: {error.strerror}", str(folder)) from error
    origin, _, body = note.text.partition("\n")
    try:
        if origin != ORIGIN:
            raise ValueError(f"it begins with {origin[:100]!r}, not with {ORIGIN!r}")  # noqa: TRY301
        manifest = TypeAdapter(Manifest).validate_json(body, strict=True)
    except ValueError as error:
        raise ProofError(f"not an export's manifest: {error}", str(folder / MANIFEST)) from error
    if sha256 != manifest.sha256:
        raise ProofError(
            f"its SHA-256 is {sha256}, and {manifest.sha256} was signed",
            str(folder / ROWS),
            "It was changed after it was exported: ask for another copy",
        )
    return VerifiedExport(manifest, note.signers, note.unknown)
