"""What a segment says of itself: key-value metadata in its Parquet footer.

Every key begins with ``nap_stream.``; every value is text. DuckDB shows them with
``parquet_kv_metadata``, pyarrow with ``pyarrow.parquet.read_metadata(path).metadata``.

    topic, partition            whose chain
    base_offset, end_offset     the segment covers [base_offset, end_offset)
    schema_version              version of the columns (`nap_stream.scored_log.format.SCHEMAS`)
    model_fingerprint, calibration_fingerprint
    rows, scored_rows           rows, and those with status ok
    min_event_time_ms, max_event_time_ms   of all rows; absent without rows
    writer_id, created_time_ms  who published it, and when
    rows_sha256                 digest of the rows (`nap_stream.scored_log.segment.rows_sha256`)
    previous_sha256             digest of the previous segment, or of the genesis marker's file
    topic_id                    the topic's id; absent where the broker has none
    gap                         why offsets are missing; absent in ordinary segments
    merged                      in a compacted file, the footers of the segments that it merged

The chain is hashed by values, not by bytes of files: a file's bytes do not survive compaction, and
to hash them a whole file must be read. A segment's digest is that of all the keys above but
``merged`` (`segment_sha256`), so that it covers the rows and all segments before.

A compacted file counts in the chain as the segments that it merged, which are all of its own
version. They may be of several models and calibrations: its own fingerprints are theirs, each once,
with commas between. ``merged`` is a JSON array of their keys and values, in order and without
spaces, compressed with zlib and in base64. ``previous_sha256`` is given for the first of them
alone: for the others it is the digest of the one before, which is computed. So a change of any of
them shows in the digest that the segment after the file names.

Times are milliseconds since the epoch, UTC; digests are lower-case hexadecimal.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import (
    EARLIEST_TIME_MS,
    LATEST_TIME_MS,
    SCHEMA_VERSION,
    parse_version,
)

PREFIX = "nap_stream."
MERGED = "merged"
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_FLAT_OBJECT = re.compile(rf"\{{{_STRING}:{_STRING}(?:,{_STRING}:{_STRING}){{0,31}}\}}")
MAX_MERGED_BYTES = 128 * 2**20
"""Of the uncompressed array: about 200,000 segments."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEYS: dict[str, type] = {
    "topic": str,
    "partition": int,
    "base_offset": int,
    "end_offset": int,
    "schema_version": int,
    "model_fingerprint": str,
    "calibration_fingerprint": str,
    "rows": int,
    "scored_rows": int,
    "min_event_time_ms": int,
    "max_event_time_ms": int,
    "writer_id": str,
    "created_time_ms": int,
    "previous_sha256": str,
    "rows_sha256": str,
    "topic_id": str,
    "gap": str,
}
"""The keys in the order in which they are written, without prefix, and what their texts mean."""
_OPTIONAL = {"min_event_time_ms", "max_event_time_ms", "gap", "topic_id"}


@dataclass(frozen=True, slots=True)
class SegmentFooter:
    """The footer record of one segment; the module's docstring says what each field holds."""

    partition: TopicPartition
    base_offset: int
    end_offset: int
    model_fingerprint: str
    calibration_fingerprint: str
    rows: int
    scored_rows: int
    min_event_time_ms: int | None
    max_event_time_ms: int | None
    writer_id: str
    created_time_ms: int
    previous_sha256: str
    rows_sha256: str
    gap: str | None = None
    topic_id: str | None = None
    schema_version: int = SCHEMA_VERSION
    merged: "tuple[SegmentFooter, ...]" = ()

    @property
    def parts(self) -> "tuple[SegmentFooter, ...]":
        """The footers that the chain is made of: the merged ones, or this one."""
        return self.merged or (self,)

    def __post_init__(self) -> None:
        if not 0 <= self.base_offset < self.end_offset:
            raise ValueError(f"not an offset range: [{self.base_offset}, {self.end_offset})")
        if not 0 <= self.scored_rows <= self.rows:
            raise ValueError(f"{self.scored_rows} scored rows of {self.rows}")
        if self.gap is not None and self.rows:
            raise ValueError(f"a declared gap with {self.rows} rows")
        for digest in (self.previous_sha256, self.rows_sha256):
            if not _SHA256.fullmatch(digest):
                raise ValueError(f"not a SHA-256 digest: {digest!r}")
        if not EARLIEST_TIME_MS <= self.created_time_ms <= LATEST_TIME_MS:
            raise ValueError(f"not a time in years 1 to 9999: {self.created_time_ms} ms")
        self._check_event_times()

    def _check_event_times(self) -> None:
        low, high = self.min_event_time_ms, self.max_event_time_ms
        if (low is None or high is None) != (self.rows == 0) or (low is None) != (high is None):
            raise ValueError(f"event times {low} to {high} with {self.rows} rows")
        if low is not None and high is not None and low > high:
            raise ValueError(f"event times run backwards: {low} to {high}")


def segment_sha256(footer: SegmentFooter) -> str:
    """The digest of a segment, which the next one names.

    It is taken of the JSON of `own_values`: keys sorted, ASCII, without spaces.

    Of a compacted file, give one of its `parts`.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.

    Raises:
        ValueError: It is of a compacted file, which has the digest of its last part.
    """
    if footer.merged:
        raise ValueError(f"a compacted file has no digest of its own: {footer}")
    text = json.dumps(own_values(footer), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def own_values(footer: SegmentFooter) -> dict[str, str]:
    """The footer's keys without prefix, and their values as text; all but ``merged``."""
    placed = {"topic": footer.partition.topic, "partition": footer.partition.partition}
    values = {name: placed[name] if name in placed else getattr(footer, name) for name in _KEYS}
    return {name: str(value) for name, value in values.items() if value is not None}


def parse_values(values: Mapping[str, str]) -> SegmentFooter:
    """Read the keys and values of `own_values` back, strictly.

    Raises:
        ValueError: A key is missing, unknown or malformed, the values contradict each other, or
            the schema version is not one that this program reads.
    """
    if "schema_version" not in values:
        raise ValueError("no schema_version: nap-stream has not written this file")
    parse_version(values["schema_version"])
    missing = sorted(_KEYS.keys() - _OPTIONAL - values.keys())
    unknown = sorted(values.keys() - _KEYS.keys())
    if missing or unknown:
        raise ValueError(f"missing keys {missing}, unknown keys {unknown}")
    found: dict[str, Any] = dict.fromkeys(_OPTIONAL) | {
        name: _integer(values, name) if _KEYS[name] is int else values[name] for name in values
    }
    return SegmentFooter(TopicPartition(found.pop("topic"), found.pop("partition")), **found)


def _integer(values: Mapping[str, str], name: str) -> int:
    if not _INTEGER.fullmatch(values[name]):
        raise ValueError(f"{name} is not an integer: {values[name]!r}")
    return int(values[name])


def may_merge(earlier: SegmentFooter, later: SegmentFooter) -> bool:
    """Whether two segments follow each other, and one file's footer can speak for both.

    Segments of two versions stay apart. A segment's digest is of the columns of its version, so
    that a file has to hold exactly those for its parts to be hashed as they stand in it. Were
    version 3 widened with nulls, `verify` would have to take columns out again before it hashes,
    and a value put into them later would be in no digest of the chain.
    """
    return (
        earlier.partition == later.partition
        and earlier.schema_version == later.schema_version
        and later.base_offset == earlier.end_offset
        and earlier.topic_id in {None, later.topic_id}
        and not (earlier.merged or later.merged)
        and later.previous_sha256 == segment_sha256(earlier)
    )


def merged_slots(parts: Iterable[SegmentFooter]) -> set[tuple[int, str]]:
    """Where merged segments stand in the chain: base offset and digest of the predecessor."""
    return {(part.base_offset, part.previous_sha256) for part in parts}


def merged_footer(
    parts: Sequence[SegmentFooter], *, rows_sha256: str, writer_id: str, created_time_ms: int
) -> SegmentFooter:
    """The footer of a compacted file.

    ``parts`` are the footers of the segments that it merges, in order, none of a compacted file;
    ``rows_sha256`` is the digest of all its rows.

    Raises:
        ValueError: They do not follow each other, or may not stand in one file.
    """
    for earlier, later in pairwise(parts):
        if not may_merge(earlier, later):
            raise ValueError(f"segments {earlier.base_offset}, {later.base_offset} do not merge")
    first, last = parts[0], parts[-1]
    lows = [part.min_event_time_ms for part in parts if part.min_event_time_ms is not None]
    highs = [part.max_event_time_ms for part in parts if part.max_event_time_ms is not None]
    return replace(
        first,
        end_offset=last.end_offset,
        model_fingerprint=_each_once(part.model_fingerprint for part in parts),
        calibration_fingerprint=_each_once(part.calibration_fingerprint for part in parts),
        rows=sum(part.rows for part in parts),
        scored_rows=sum(part.scored_rows for part in parts),
        min_event_time_ms=min(lows, default=None),
        max_event_time_ms=max(highs, default=None),
        writer_id=writer_id,
        created_time_ms=created_time_ms,
        rows_sha256=rows_sha256,
        topic_id=last.topic_id,
        gap=None,
        merged=tuple(parts),
    )


def _each_once(texts: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(texts))


def check_merged(footer: SegmentFooter) -> None:
    """Refuse a compacted file's footer that contradicts those that it merged.

    Raises:
        ValueError: What differs.
    """
    told = merged_footer(
        footer.merged,
        rows_sha256=footer.rows_sha256,
        writer_id=footer.writer_id,
        created_time_ms=footer.created_time_ms,
    )
    names = [field.name for field in fields(footer)]
    differing = [name for name in names if getattr(told, name) != getattr(footer, name)]
    if differing:
        raise ValueError(f"it contradicts the footers that it merged in {', '.join(differing)}")


def to_metadata(footer: SegmentFooter) -> dict[str, str]:
    """The footer as Parquet key-value metadata."""
    values = own_values(footer)
    if footer.merged:
        values[MERGED] = pack_footers(footer.merged)
    return {PREFIX + name: value for name, value in values.items()}


def from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> SegmentFooter:
    """Read a footer back, strictly.

    ``metadata`` is as pyarrow gives it, ``where`` the file, for errors.

    Raises:
        ChainBrokenError: A key is missing, unknown or malformed, the values contradict each
            other, or the schema version is not one that this program reads.
    """
    with _typed_errors(where):
        values = _own_keys(metadata)
        merged = values.pop(MERGED, None)
        footer = parse_values(values)
        if merged is not None:
            footer = replace(footer, merged=tuple(unpack_footers(merged)))
            check_merged(footer)
        return footer


def span_from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> SegmentFooter:
    """Read a footer without the footers that its file has merged, which can be many.

    Raises:
        ChainBrokenError: As `from_metadata`.
    """
    with _typed_errors(where):
        values = _own_keys(metadata)
        values.pop(MERGED, None)
        return parse_values(values)


@contextmanager
def _typed_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, zlib.error) as error:
        raise ChainBrokenError(
            f"the segment's footer is not valid: {error}",
            where,
            "Run `nap-stream verify`; restore the file from a backup",
        ) from error


def _own_keys(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    prefix = PREFIX.encode()
    return {
        key.removeprefix(prefix).decode("utf-8"): value.decode("utf-8")
        for key, value in (metadata or {}).items()
        if key.startswith(prefix)
    }


def pack_footers(parts: Sequence[SegmentFooter]) -> str:
    """Footers of segments that follow each other, as ``merged`` has them."""
    return base64.b64encode(zlib.compress(footers_text(parts).encode("ascii"), 9)).decode("ascii")


def footers_text(parts: Sequence[SegmentFooter]) -> str:
    """What `pack_footers` packs: its own text depends on the zlib that made it."""
    trees = [own_values(part) for part in parts]
    for tree in trees[1:]:
        del tree["previous_sha256"]
    return json.dumps(trees, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def unpack_footers(text: str) -> Iterator[SegmentFooter]:
    """The footers that `pack_footers` packed, one at a time, strictly.

    Raises:
        ValueError: They are not, or are more than `MAX_MERGED_BYTES`.
        zlib.error: Likewise.
    """
    return parse_footers(unpacked_text(text))


def unpacked_text(packed: str) -> str:
    """The text of `footers_text` that `pack_footers` packed.

    Raises:
        ValueError, zlib.error: As `unpack_footers`.
    """
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(packed, validate=True), MAX_MERGED_BYTES)
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError(f"{MERGED} is no zlib stream of at most {MAX_MERGED_BYTES} bytes")
    return content.decode("ascii")


def parse_footers(text: str) -> Iterator[SegmentFooter]:
    """The footers of `footers_text`, one at a time, strictly.

    Raises:
        ValueError: They are not.
    """
    previous: str | None = None
    for values in _flat_objects(text):
        if previous is not None:
            values["previous_sha256"] = previous
        part = parse_values(values)
        previous = segment_sha256(part)
        yield part


def _flat_objects(text: str) -> Iterator[dict[str, str]]:
    """The objects of a JSON array, one at a time: a hostile file's array could fill the memory."""
    position, expected = 0, "["
    while text[position : position + 1] == expected:
        match = _FLAT_OBJECT.match(text, position + 1)
        if match is None:
            break
        yield json.loads(match[0])
        position, expected = match.end(), ","
    if position == 0 or text[position:] != "]":
        raise ValueError(f"{MERGED} is no array of footers")
