"""Signed checkpoints: where all chains of the log ended at a time, signed.

    <root>/_checkpoints/2026-01-31T12-00-00.000Z.note

Each is a note (`nap_stream.scored_log.proof.note`), created exclusively and never changed. The
digest of a chain depends on all before it, so whoever has the note and the public key can prove
later that nothing up to there was changed or cut off. Keep copies where who can write to the log
cannot: those in its own folder can be removed with what they witness.

The text of a note, of which each line ends with a newline:

    nap-stream scored log checkpoint v1
    log <id>                           which log it is of: the id in its _log.json
    time 2026-01-31T12:00:00.000Z
    previous <digest>                  SHA-256 of the note before it, zeros where there was none
    chains 4
    chain %2Fevents 0 0 12 <digest>    the chain of events, of which there are 12
    chain cars 0 0 30 <digest>         topic, partition, start, end (the next offset), SHA-256
    unread cars 1                      a chain that could not be read then
    changed cars 2 0 30 <digest>       what the key had signed of a chain, which no longer has it

Topics are percent-encoded, but for letters, digits and ``_.-~``. The drift monitor's own
checkpoints, in ``_monitors``, are something else: its state, unsigned, which nobody proves by.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote

import structlog
from cryptography.x509 import Certificate

from nap_stream.errors import ConfigError, ProofError, ScoredLogError, UnknownKeyError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import chain_end, chain_start
from nap_stream.scored_log.events import event_sha256, events_end
from nap_stream.scored_log.proof import timestamps
from nap_stream.scored_log.proof.note import MAX_NOTE_BYTES, PublicKey, Signer, open_note
from nap_stream.scored_log.read import partitions
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.compared import still_ends
from nap_stream.scored_log.verify.report import ChainHead
from nap_stream.text import rfc3339

FOLDER = "_checkpoints"
SUFFIX = ".note"
ORIGIN = "nap-stream scored log checkpoint v1"
LOG_FILE = "_log.json"
"""Says which log this is. Created exclusively with the first checkpoint, and never changed."""
NONE_BEFORE = "0" * 64
READ_THREADS = 16
"""Notes wait for the disk or the network."""
EVENTS = TopicPartition("/events", 0)
"""The chain of events, by a name that no topic can have."""
ATTEMPTS = 100
"""Others may take the name of so many milliseconds while one is written."""
MAX_KEPT_BYTES = 2**28
"""Of a file that holds the messages of a topic."""
_BEGIN = re.compile(rb"^(?=" + ORIGIN.encode() + rb"\n)", re.MULTILINE)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LOG_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LOG = '{{"format": "nap-stream log", "version": 1, "id": "{}"}}\n'


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """Where chains ended at ``time_ms``, by the signer's clock, and those that were unreadable.

    ``changed`` are ends that were signed before and that their chains have no longer: such a chain
    is not among ``heads``. ``log_id`` is empty where nothing of the log was signed yet, and
    ``previous`` not yet told, before `write_checkpoint`.
    """

    time_ms: int
    heads: tuple[ChainHead, ...]
    unread: tuple[TopicPartition, ...] = ()
    changed: tuple[ChainHead, ...] = ()
    log_id: str = ""
    previous: str = NONE_BEFORE


@dataclass(frozen=True, slots=True)
class Signed:
    """What a key has signed of a log: its id, and the last end of each chain that was sound.

    ``last`` is the path of the newest note, and its digest.
    """

    log_id: str = ""
    heads: Mapping[TopicPartition, ChainHead] = field(default_factory=dict)
    last: tuple[str, str] | None = None

    def is_gone(self, store: SegmentStore) -> bool:
        """Whether the newest note is no longer there, or is another one.

        Raises:
            ScoredLogError: It cannot be read.
        """
        return self.last is not None and _digest(store.read(self.last[0]) or b"") != self.last[1]


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A file in the place of a checkpoint, and the labels of the given keys that have signed it.

    ``checkpoint`` is None where none has. ``problem`` says so, or which other keys have, whose
    signatures count for nothing. ``is_damaged`` says that it is none by any key, or that its time
    stamp is not valid. ``stamped_ms`` is when a given TSA saw it; None where none has, or none is
    given. ``kept`` is the file that was kept elsewhere in which it is; None for the log's own.
    """

    source: str
    checkpoint: SignedCheckpoint | None
    signers: tuple[str, ...]
    problem: str
    is_damaged: bool = False
    stamped_ms: int | None = None
    kept: str | None = None
    sha256: str = ""


def stamp_path(path: str) -> str:
    """Where the time stamp of a checkpoint lies."""
    return path.removesuffix(SUFFIX) + timestamps.SUFFIX


def events_head(store: SegmentStore) -> tuple[ChainHead, ...]:
    """The end of the chain of events, where there is one: how many, and the last one's digest."""
    end = events_end(store)
    return () if end is None else (ChainHead(EVENTS, 0, end[0] + 1, end[1]),)


def log_id(store: SegmentStore) -> str | None:
    """Which log this is; None where it has no checkpoints yet.

    Raises:
        ScoredLogError: The file that says so cannot be read, or is not as nap-stream writes it.
    """
    content = _limited(store, LOG_FILE, MAX_NOTE_BYTES)
    if content is None:
        return None
    found = _LOG_ID.search(content.decode("ascii", "replace"))
    if found is None or _LOG.format(found[0]).encode() != content:
        where = f"{store.root}/{LOG_FILE}"
        raise ScoredLogError("it does not say which log this is", where, "Restore it")
    return found[0]


def _known_id(store: SegmentStore, signed: str) -> str:
    """The id of a log, which gets one where none was ever signed."""
    found = log_id(store)
    if not signed and found is None:
        store.prepare("")
        store.create(LOG_FILE, _LOG.format(secrets.token_hex(16)).encode())
        found = log_id(store)
    if found is None or signed not in {"", found}:
        raise ScoredLogError(
            f"it says that this is the log {found}, and the log {signed} was signed here",
            f"{store.root}/{LOG_FILE}",
            "Restore it; for another log, choose another root",
        )
    return found


def last_signed(store: SegmentStore, key: PublicKey) -> Signed:
    """What a key has signed of this log, as the log's folder has it.

    Raises:
        ScoredLogError: The folder cannot be listed.
    """
    signed = Signed()
    heads: dict[TopicPartition, ChainHead] = {}
    for path in reversed(_note_paths(store)):
        found = _read_note(store, path, [key])
        if found.checkpoint is None:
            continue
        for head in (*found.checkpoint.heads, *found.checkpoint.changed):
            heads.setdefault(head.partition, head)
        if signed.last is None:
            signed = Signed(found.checkpoint.log_id, heads, (path, found.sha256))
        # A chain that could not be read has its last end in an earlier one.
        if not found.checkpoint.unread:
            break
    return signed


def take_checkpoint(
    store: SegmentStore, now_ms: int, signed: Signed | None = None
) -> SignedCheckpoint:
    """Read where all chains of the log end, and whether they still have the ends that were signed.

    Raises:
        ScoredLogError: The log cannot be listed. A chain that cannot be read is ``unread``.
    """
    known = Signed() if signed is None else signed
    heads, unread, changed = list[ChainHead](), list[TopicPartition](), list[ChainHead]()
    for chain in dict.fromkeys([EVENTS, *partitions(store), *known.heads]):
        before = known.heads.get(chain)
        try:
            head = _head(store, chain, before)
            if before is not None and not _has(store, head, before):
                changed.append(before)
            elif head is not None:
                heads.append(head)
        except ScoredLogError as error:
            structlog.get_logger().error("chain_not_signed", chain=str(chain), cause=str(error))
            unread.append(chain)
    return SignedCheckpoint(now_ms, tuple(heads), tuple(unread), tuple(changed), known.log_id)


def _head(store: SegmentStore, chain: TopicPartition, before: ChainHead | None) -> ChainHead | None:
    if chain == EVENTS:
        return next(iter(events_head(store)), None)
    start = chain_start(store, chain)
    # A hint saves listing the chain.
    end = chain_end(store, chain, None if before is None else before.end_offset)
    if start is None or end is None:
        return None
    return ChainHead(chain, start.offset, end.offset, end.previous_sha256)


def _has(store: SegmentStore, head: ChainHead | None, before: ChainHead) -> bool:
    """Whether a chain still has an end that was signed."""
    if head is None or head.end_offset <= before.end_offset:
        return head is not None and head.sha256 == before.sha256
    if before.partition == EVENTS:
        return event_sha256(store, before.end_offset - 1) == before.sha256
    return still_ends(store, before)


def changed_words(head: ChainHead) -> str:
    """What is wrong with a chain that has no longer what was signed of it."""
    return f"it was signed until {head.end_offset} with the digest {head.sha256}, which is gone"


def encode_checkpoint(checkpoint: SignedCheckpoint) -> str:
    """The text that is signed; see the module's docstring."""
    lines = [f"chain {_end(head)}" for head in checkpoint.heads]
    lines += [f"unread {_place(partition)}" for partition in checkpoint.unread]
    lines += [f"changed {_end(head)}" for head in checkpoint.changed]
    head = [
        ORIGIN,
        f"log {checkpoint.log_id}",
        f"time {rfc3339(checkpoint.time_ms)}",
        f"previous {checkpoint.previous}",
        f"chains {len(lines)}",
    ]
    return "".join(f"{line}\n" for line in [*head, *lines])


def _end(head: ChainHead) -> str:
    return f"{_place(head.partition)} {head.start_offset} {head.end_offset} {head.sha256}"


def _place(partition: TopicPartition) -> str:
    return f"{quote(partition.topic, safe='')} {partition.partition}"


def decode_checkpoint(text: str) -> SignedCheckpoint:
    """Read the text of a note whose signature was checked.

    Raises:
        ValueError: It is not what `encode_checkpoint` writes.
    """
    origin, *rest = text.split("\n")
    if origin != ORIGIN:
        raise ValueError(f"it begins with {origin[:100]!r}, not with {ORIGIN!r}")
    log, time, previous, _, *lines = rest
    heads, unread, changed = list[ChainHead](), list[TopicPartition](), list[ChainHead]()
    for line in filter(None, lines):
        kind, topic, number, *end = line.split(" ")
        where = TopicPartition(unquote(topic), int(number))
        if kind == "unread":
            unread.append(where)
        else:
            first, last, sha256 = end
            ends = heads if kind == "chain" else changed
            ends.append(ChainHead(where, int(first), int(last), sha256))
    found = SignedCheckpoint(
        round(datetime.fromisoformat(time.removeprefix("time ")).timestamp() * 1000),
        *(tuple(heads), tuple(unread), tuple(changed)),
        log_id=log.removeprefix("log "),
        previous=previous.removeprefix("previous "),
    )
    named = [*(head.partition for head in (*heads, *changed)), *unread]
    is_sound = len(set(named)) == len(named) and all(
        0 <= head.start_offset <= head.end_offset and _SHA256.fullmatch(head.sha256)
        for head in (*heads, *changed)
    )
    is_placed = _LOG_ID.fullmatch(found.log_id) and _SHA256.fullmatch(found.previous)
    # What says the same in other words is not what nap-stream has written.
    if not is_sound or not is_placed or encode_checkpoint(found) != text:
        raise ValueError("its lines are not those of a checkpoint")
    return found


def write_checkpoint(
    store: SegmentStore, checkpoint: SignedCheckpoint, signer: Signer, signed: Signed | None = None
) -> tuple[Signed, bytes]:
    """Sign a checkpoint and create its file; give what is signed now, and the note.

    The note names the one before it: the newest in the folder, or that of ``signed``, where it is
    gone. Where another one has the name of its time, its time is a millisecond later.

    Raises:
        ScoredLogError: It could not be made durable, or the log is another than was signed.
    """
    before = Signed() if signed is None else signed
    of_log = _known_id(store, checkpoint.log_id)
    if before.last is not None and before.is_gone(store):
        previous = before.last[1]
    else:
        previous = _newest_digest(store)
    store.prepare(FOLDER)
    for later in range(ATTEMPTS):
        numbered = replace(
            checkpoint, time_ms=checkpoint.time_ms + later, log_id=of_log, previous=previous
        )
        note = signer.sign(encode_checkpoint(numbered))
        path = f"{FOLDER}/{rfc3339(numbered.time_ms).replace(':', '-')}{SUFFIX}"
        if store.create(path, note):
            heads = {**before.heads, **{head.partition: head for head in checkpoint.heads}}
            return Signed(of_log, heads, (path, _digest(note))), note
    raise ScoredLogError("the names of its time are taken", f"{store.root}/{FOLDER}", "Try again")


def _newest_digest(store: SegmentStore) -> str:
    for path in reversed(_note_paths(store)):
        try:
            content = _limited(store, path, MAX_NOTE_BYTES)
        except ScoredLogError:
            continue
        if content is not None:
            return _digest(content)
    return NONE_BEFORE


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _note_paths(store: SegmentStore) -> list[str]:
    return [f"{FOLDER}/{name}" for name in sorted(store.names(FOLDER)) if name.endswith(SUFFIX)]


def read_checkpoints(
    store: SegmentStore,
    keys: Sequence[PublicKey],
    files: Iterable[Path],
    roots: Sequence[Certificate] = (),
) -> Iterator[FoundCheckpoint]:
    """What is in the log's folder of checkpoints, and in files that were kept elsewhere.

    A file that was kept elsewhere may hold several, one after another, as read from a topic.
    The time stamps beside them are verified where there are certificates of TSAs, ``roots``.

    Raises:
        ConfigError: A file that was kept elsewhere cannot be read.
        ScoredLogError: The folder cannot be listed.
    """
    paths, names = _note_paths(store), store.names(FOLDER)
    with ThreadPoolExecutor(READ_THREADS, "checkpoints") as pool:
        for start in range(0, len(paths), 4 * READ_THREADS):
            some = paths[start : start + 4 * READ_THREADS]
            yield from pool.map(lambda path: _read_note(store, path, keys, roots), some)
    for name in sorted(names):
        path = f"{FOLDER}/{name.removesuffix(timestamps.SUFFIX)}{SUFFIX}"
        if name.endswith(timestamps.SUFFIX) and path not in paths:
            problem = "a time stamp, and its checkpoint is not there: it was removed"
            yield FoundCheckpoint(f"{FOLDER}/{name}", None, (), problem, is_damaged=True)
    for file in files:
        yield from _kept(file, keys, roots)


def _read_note(
    store: SegmentStore,
    path: str,
    keys: Sequence[PublicKey],
    roots: Sequence[Certificate] = (),
) -> FoundCheckpoint:
    """A note of the log's own folder. What cannot be read is damaged: the others are read."""
    try:
        content = _limited(store, path, MAX_NOTE_BYTES)
        token = _limited(store, stamp_path(path), timestamps.MAX_BYTES) if roots else None
    except ScoredLogError as error:
        return FoundCheckpoint(path, None, (), f"cannot be read: {error.problem}", is_damaged=True)
    if content is None:
        return FoundCheckpoint(path, None, (), "cannot be read: it is no file", is_damaged=True)
    return _checked(content, token, keys, roots, path)


def _kept(
    file: Path, keys: Sequence[PublicKey], roots: Sequence[Certificate]
) -> Iterator[FoundCheckpoint]:
    place = LocalStore(file.parent)
    try:
        content = _limited(place, file.name, MAX_KEPT_BYTES)
        token = _limited(place, stamp_path(file.name), timestamps.MAX_BYTES) if roots else None
    except ScoredLogError as error:
        raise ConfigError(f"cannot be read: {error.problem}", f"--checkpoint {file}") from error
    if content is None:
        raise ConfigError("no such file", f"--checkpoint {file}")
    notes = _notes(content)
    for number, note in enumerate(notes, 1):
        source = f"{file}, note {number}" if len(notes) > 1 else str(file)
        found = _checked(note, token if len(notes) == 1 else None, keys, roots, source)
        yield replace(found, kept=str(file))


def _notes(content: bytes) -> list[bytes]:
    """The notes that stand in a file one after another, blank lines between or not."""
    parts = [part for part in _BEGIN.split(content) if part.strip()]
    return [part.rstrip(b"\n") + b"\n" for part in parts or [content]]


def _limited(store: SegmentStore, path: str, size: int) -> bytes | None:
    """The beginning of a file, which shows where it is too long; None where it is missing."""
    file = store.open(path)
    if file is None:
        return None
    with file:
        return file.read(size + 1)


def _checked(
    content: bytes,
    token: bytes | None,
    keys: Sequence[PublicKey],
    roots: Sequence[Certificate],
    source: str,
) -> FoundCheckpoint:
    found = FoundCheckpoint(source, None, (), "", sha256=_digest(content))
    try:
        note = open_note(content, keys, source)
        checkpoint = decode_checkpoint(note.text)
    except UnknownKeyError as error:
        return replace(found, problem=error.problem)
    except ProofError as error:
        return replace(found, problem=error.problem, is_damaged=True)
    except ValueError as error:
        return replace(found, problem=str(error), is_damaged=True)
    others = f"signed by {', '.join(note.unknown)} too, which no given key is"
    found = replace(
        found,
        checkpoint=checkpoint,
        signers=note.signers,
        problem=others if note.unknown else "",
    )
    try:
        stamped_ms = None if token is None else timestamps.timestamp_ms(token, content, roots)
    except ProofError as error:
        return replace(found, problem=error.problem, is_damaged=True)
    return replace(found, stamped_ms=stamped_ms)
