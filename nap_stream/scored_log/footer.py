"""What the chain of segments is hashed by: values, not bytes of files.

A file's bytes do not survive compaction, and to hash them a whole file must be read. So a
segment's footer holds a digest of its rows, and the next segment names the digest of that
footer. An auditor recomputes both from any Parquet reader.

What a segment says of itself: key-value metadata in its Parquet footer.

Every key begins with ``nap_stream.``; every value is text. DuckDB shows them with
``parquet_kv_metadata``, pyarrow with ``pyarrow.parquet.read_metadata(path).metadata``.

    topic, partition            whose chain
    base_offset, end_offset     the segment covers [base_offset, end_offset)
    schema_version              version of the columns
    model_fingerprint, calibration_fingerprint
    rows, scored_rows           rows, and those with status ok
    min_event_time_ms, max_event_time_ms   of all rows; absent without rows
    writer_id, created_time_ms  who published it, and when
    rows_sha256                 digest of the rows (`nap_stream.scored_log.footer.rows_sha256`)
    previous_sha256             digest of the previous segment, or of the genesis marker's file
    topic_id                    the topic's id; absent where the broker has none
    gap                         why offsets are missing; absent in ordinary segments
    merged                      in a compacted file, the footers of the segments that it merged
                                (`nap_stream.scored_log.segment`); absent in ordinary segments

A segment's digest is that of all these keys and values
(`nap_stream.scored_log.footer.metadata_sha256`), so that it covers the rows and all segments
before. A compacted file counts in the chain as the segments that it merged.

Times are milliseconds since the epoch, UTC; digests are lower-case hexadecimal.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import (
    EARLIEST_TIME_MS,
    LATEST_TIME_MS,
    SCHEMA_VERSION,
    check_version,
)


def rows_sha256(table: pa.Table) -> str:
    """Digest of rows, the same however Parquet encodes them.

    Hashed are, column by column: the name in UTF-8 and a zero byte, then the values (`_feed`).
    All integers are 8 bytes, signed, little-endian.

    Args:
        table: Rows with the columns of their version, in its order. May be empty.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        _feed(digest, table.column(name).combine_chunks())
    return digest.hexdigest()


def metadata_sha256(metadata: Mapping[str, str]) -> str:
    """Digest of a footer's own keys and values: of their JSON, sorted, ASCII, without spaces.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.
    """
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _feed(digest: Any, values: pa.Array) -> None:
    """Hash the count, a byte a value (1, or 0 for null), then the values, 0 or empty for null.

    Numbers, booleans and times (milliseconds) are 8 bytes each, text and bytes their lengths and
    then all of them joined, lists their lengths and then their elements' values, structs their
    fields as if they were columns.
    """
    digest.update(np.int64(len(values)).astype("<i8").tobytes())
    digest.update(values.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes())
    kind = values.type
    if pa.types.is_struct(kind):
        for field, child in zip(kind, values.flatten(), strict=True):
            digest.update(field.name.encode() + b"\0")
            _feed(digest, child)
    elif pa.types.is_list(kind):
        digest.update(_lengths(pc.list_value_length(values)))
        _feed(digest, values.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        digest.update(_lengths(pc.binary_length(values)))
        digest.update(_joined(values))
    elif pa.types.is_float64(kind):
        digest.update(pc.fill_null(values, 0.0).to_numpy().astype("<f8").tobytes())
    else:
        digest.update(pc.fill_null(_as_int64(values), 0).to_numpy().astype("<i8").tobytes())


def _as_int64(values: pa.Array) -> pa.Array:
    return (values.cast(pa.uint8()) if values.type == pa.bool_() else values).cast(pa.int64())


def _lengths(lengths: pa.Array) -> bytes:
    filled: Any = pc.fill_null(lengths.cast(pa.int64()), 0).to_numpy()
    return bytes(filled.astype("<i8").tobytes())


def _joined(values: pa.Array) -> bytes:
    """The bytes of all values, one after another."""
    present = values.drop_null()
    if not len(present):
        return b""
    _, offsets, data = present.buffers()
    ends = np.frombuffer(offsets, np.int32)[present.offset : present.offset + len(present) + 1]
    return bytes(data[int(ends[0]) : int(ends[-1])]) if data is not None else b""


PREFIX = "nap_stream."

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_OPTIONAL = {"min_event_time_ms", "max_event_time_ms", "gap", "topic_id"}
_REQUIRED = {
    "topic",
    "partition",
    "base_offset",
    "end_offset",
    "schema_version",
    "model_fingerprint",
    "calibration_fingerprint",
    "rows",
    "scored_rows",
    "writer_id",
    "created_time_ms",
    "previous_sha256",
    "rows_sha256",
}


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

    Args:
        footer: Of a segment; of a compacted file, give one of its `parts`.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.

    Raises:
        ValueError: It is of a compacted file, which has the digest of its last part.
    """
    if footer.merged:
        raise ValueError(f"no segment that has a digest by itself: {footer}")
    return metadata_sha256(own_values(footer))


def own_values(footer: SegmentFooter) -> dict[str, str]:
    """The footer's keys without prefix, and their values as text; all but ``merged``."""
    values: dict[str, object] = {
        "topic": footer.partition.topic,
        "partition": footer.partition.partition,
        "base_offset": footer.base_offset,
        "end_offset": footer.end_offset,
        "schema_version": SCHEMA_VERSION,
        "model_fingerprint": footer.model_fingerprint,
        "calibration_fingerprint": footer.calibration_fingerprint,
        "rows": footer.rows,
        "scored_rows": footer.scored_rows,
        "min_event_time_ms": footer.min_event_time_ms,
        "max_event_time_ms": footer.max_event_time_ms,
        "writer_id": footer.writer_id,
        "created_time_ms": footer.created_time_ms,
        "previous_sha256": footer.previous_sha256,
        "rows_sha256": footer.rows_sha256,
        "topic_id": footer.topic_id,
        "gap": footer.gap,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def parse_values(values: Mapping[str, str]) -> SegmentFooter:
    """Read the keys and values of `own_values` back, strictly.

    Raises:
        ValueError: A key is missing, unknown or malformed, the values contradict each other, or
            the schema version is not one that this program reads.
    """
    check_schema_version(values)
    _check_keys(values)
    return _parse(values)


def check_schema_version(values: Mapping[str, str]) -> None:
    """Refuse what an unknown version has written.

    Raises:
        ValueError: The version is missing or not one that this program reads.
    """
    if "schema_version" not in values:
        raise ValueError("no schema_version: nap-stream has not written this file")
    check_version(values["schema_version"])


def _check_keys(values: Mapping[str, str]) -> None:
    missing = sorted(_REQUIRED - values.keys())
    unknown = sorted(values.keys() - _REQUIRED - _OPTIONAL)
    if missing or unknown:
        raise ValueError(f"missing keys {missing}, unknown keys {unknown}")


def _integer(values: Mapping[str, str], name: str) -> int:
    if not _INTEGER.fullmatch(values[name]):
        raise ValueError(f"{name} is not an integer: {values[name]!r}")
    return int(values[name])


def _parse(values: Mapping[str, str]) -> SegmentFooter:
    low, high = (
        _integer(values, name) if name in values else None
        for name in ("min_event_time_ms", "max_event_time_ms")
    )
    return SegmentFooter(
        partition=TopicPartition(values["topic"], _integer(values, "partition")),
        base_offset=_integer(values, "base_offset"),
        end_offset=_integer(values, "end_offset"),
        model_fingerprint=values["model_fingerprint"],
        calibration_fingerprint=values["calibration_fingerprint"],
        rows=_integer(values, "rows"),
        scored_rows=_integer(values, "scored_rows"),
        min_event_time_ms=low,
        max_event_time_ms=high,
        writer_id=values["writer_id"],
        created_time_ms=_integer(values, "created_time_ms"),
        previous_sha256=values["previous_sha256"],
        rows_sha256=values["rows_sha256"],
        topic_id=values.get("topic_id"),
        gap=values.get("gap"),
    )
