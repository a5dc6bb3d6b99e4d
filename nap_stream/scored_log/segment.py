"""Compacted files: one file of rows that counts in the chain as the segments that it merged.

A footer as key-value metadata of a Parquet file, and back.

The key ``nap_stream.merged`` of a compacted file is a JSON array of the merged footers' keys and
values, in order and without spaces, compressed with zlib and in base64. ``previous_sha256`` stands
in the first of them alone: each other one names the digest of the one before it, which is computed.
So a change of any of them shows in the digest that the segment after the file names.

A segment's file: records and footer to Parquet bytes, and the footer back.

An open segment: its footer, its parts, its rows. It shows one version of the file to the end.
"""

import base64
import contextlib
import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError
from nap_stream.records import ScoredRecord, Status
from nap_stream.scored_log.footer import (
    PREFIX,
    SegmentFooter,
    own_values,
    parse_values,
    segment_sha256,
)
from nap_stream.scored_log.format import (
    DICTIONARY_COLUMNS,
    SCHEMA,
    parse_segment_path,
    storable_time_ms,
)
from nap_stream.scored_log.stores.base import SegmentStore

_SHARED = ("partition", "model_fingerprint", "calibration_fingerprint")


def may_merge(earlier: SegmentFooter, later: SegmentFooter) -> bool:
    """Whether two segments follow each other, and one file's footer can speak for both."""
    return (
        all(getattr(earlier, name) == getattr(later, name) for name in _SHARED)
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

    Args:
        parts: Footers of the segments that it merges, in order; none of a compacted file.
        rows_sha256: Digest of all its rows.
        writer_id: Who compacts.
        created_time_ms: Now, since the epoch, UTC.

    Raises:
        ValueError: They do not follow each other, or may not stand in one file.
    """
    for earlier, later in pairwise(parts):
        if not may_merge(earlier, later):
            raise ValueError(f"segments {earlier.base_offset}, {later.base_offset} do not merge")
    first, last = parts[0], parts[-1]
    lows = [part.min_event_time_ms for part in parts if part.min_event_time_ms is not None]
    highs = [part.max_event_time_ms for part in parts if part.max_event_time_ms is not None]
    return dataclasses.replace(
        first,
        end_offset=last.end_offset,
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
    names = [field.name for field in dataclasses.fields(footer)]
    differing = [name for name in names if getattr(told, name) != getattr(footer, name)]
    if differing:
        raise ValueError(f"it contradicts the footers that it merged in {', '.join(differing)}")


MERGED = "merged"
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_FLAT_OBJECT = re.compile(rf"\{{{_STRING}:{_STRING}(?:,{_STRING}:{_STRING}){{0,31}}\}}")
MAX_MERGED_BYTES = 128 * 2**20
"""Of the uncompressed array: about 200,000 segments."""


def to_metadata(footer: SegmentFooter) -> dict[str, str]:
    """The footer as Parquet key-value metadata."""
    values = own_values(footer)
    if footer.merged:
        values[MERGED] = _encode_merged(footer.merged)
    return {PREFIX + name: value for name, value in values.items()}


def from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> SegmentFooter:
    """Read a footer back, strictly.

    Args:
        metadata: The file's key-value metadata, as pyarrow gives it.
        where: The file, for errors.

    Raises:
        ChainBrokenError: A key is missing, unknown or malformed, the values contradict each
            other, or the schema version is not one that this program reads.
    """
    with _typed_errors(where):
        values = _own_keys(metadata or {})
        merged = values.pop(MERGED, None)
        footer = parse_values(values)
        if merged is not None:
            footer = replace(footer, merged=tuple(_decode_merged(merged)))
            check_merged(footer)
        return footer


def span_from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> SegmentFooter:
    """Read a footer without the footers that its file has merged, which can be many.

    Raises:
        ChainBrokenError: As `from_metadata`.
    """
    with _typed_errors(where):
        values = _own_keys(metadata or {})
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


def _own_keys(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    prefix = PREFIX.encode()
    return {
        key.removeprefix(prefix).decode("utf-8"): value.decode("utf-8")
        for key, value in metadata.items()
        if key.startswith(prefix)
    }


def _encode_merged(parts: Sequence[SegmentFooter]) -> str:
    trees = [own_values(part) for part in parts]
    for tree in trees[1:]:
        del tree["previous_sha256"]
    text = json.dumps(trees, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


def _decode_merged(text: str) -> Iterator[SegmentFooter]:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(text, validate=True), MAX_MERGED_BYTES)
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError(f"{MERGED} is no zlib stream of at most {MAX_MERGED_BYTES} bytes")
    previous: str | None = None
    for values in _flat_objects(content.decode("ascii")):
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


ROW_GROUP_ROWS = 32_768
"""Rows of a row group: what a reader holds in memory, and can leave out, of a compacted file."""


def event_time_range(records: Sequence[ScoredRecord]) -> tuple[int | None, int | None]:
    """Smallest and largest event time as stored, milliseconds UTC; None without records."""
    times = [storable_time_ms(record.origin.event_time_ms) for record in records]
    return (min(times), max(times)) if times else (None, None)


def count_scored(records: Sequence[ScoredRecord]) -> int:
    """How many records have scores."""
    return sum(record.status is Status.OK for record in records)


def encode_segment(footer: SegmentFooter, table: pa.Table) -> bytes:
    """A segment as the bytes of its file.

    Pages are checksummed and compressed with zstd; columns whose values repeat are
    dictionary-encoded.

    Args:
        footer: What the file says of itself.
        table: Its rows, with exactly `nap_stream.scored_log.format.SCHEMA`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(to_metadata(footer)),
        sink,
        compression="zstd",
        use_dictionary=DICTIONARY_COLUMNS,
        write_page_checksum=True,
        row_group_size=ROW_GROUP_ROWS,
    )
    return bytes(sink.getvalue())


def decode_footer(file: BinaryIO | pa.NativeFile, where: str) -> SegmentFooter:
    """The footer of a segment's file.

    Args:
        file: The open file.
        where: Its path, for errors.

    Raises:
        ChainBrokenError: It is not a Parquet file, or its footer is not valid.
    """
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(where, error) from error
    return from_metadata(metadata.metadata, where)


def unreadable(where: str, error: Exception) -> ChainBrokenError:
    """The error for a segment that no Parquet reader can read."""
    return ChainBrokenError(
        f"the segment cannot be read: {error}",
        where,
        "Run `nap-stream verify`; restore the file from a backup",
    )


SMALL_BYTES = 2**20
"""A file up to this size is read in one go; a larger one only where rows are wanted."""

_BATCH_ROWS = 65_536


@contextlib.contextmanager
def typed_errors(path: str) -> Iterator[None]:
    """Raise ChainBrokenError, naming the file, for what a Parquet reader raises within."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """An open segment. Only valid within `open_segment`.

    ``footer`` is without the footers that a compacted file has merged: see `parts`.
    """

    path: str
    footer: SegmentFooter
    source: Any
    metadata: Any
    size_bytes: int

    def whole_footer(self) -> SegmentFooter:
        """The footer with those that the file has merged.

        Raises:
            ChainBrokenError: They contradict each other.
        """
        return from_metadata(self.metadata.metadata, self.path)

    def parts(self) -> tuple[SegmentFooter, ...]:
        """The footers that the chain is made of: this file's own, or those that it merged.

        Raises:
            ChainBrokenError: They contradict each other.
        """
        return self.whole_footer().parts

    def rows_of_parts(self) -> Iterator[tuple[SegmentFooter, pa.Table]]:
        """Each part with its rows, of which a few row groups are held at a time.

        Page checksums are verified; whether the rows are those of their digest is not.

        Raises:
            ChainBrokenError: The rows cannot be read, or have not the log's columns.
        """
        with (
            typed_errors(self.path),
            pq.ParquetFile(
                self.source, metadata=self.metadata, page_checksum_verification=True
            ) as file,
        ):
            if not file.schema_arrow.equals(SCHEMA):
                raise pa.ArrowInvalid("its columns are not those of the log")
            yield from divide(self.parts(), file.iter_batches(_BATCH_ROWS), SCHEMA)

    def batches(
        self,
        columns: Sequence[str],
        *,
        start: int = 0,
        expression: Any | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows at or after an offset, in order, without the row groups that cannot have any.

        Args:
            columns: Names of columns of `SCHEMA`, at least one, each once.
            start: The first offset whose rows are wanted.
            expression: An Arrow expression that rows must meet; None for all.

        Yields:
            Non-empty batches with those columns.

        Raises:
            ChainBrokenError: The rows cannot be read.
        """
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        if start > self.footer.base_offset:
            later = pc.field("offset") >= start
            expression = later if expression is None else later & expression
        with typed_errors(self.path):
            found = self._all(schema) if expression is None else self._chosen(schema, expression)
            yield from (batch for batch in found if batch.num_rows)

    def _all(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.source, metadata=self.metadata) as file:
            batches = file.iter_batches(
                _BATCH_ROWS, columns=schema.names, use_threads=self.is_large
            )
            for batch in batches:
                yield _with_schema(batch, schema)

    def _chosen(self, schema: pa.Schema, expression: Any) -> Iterator[pa.RecordBatch]:
        fragment = ds.ParquetFileFormat().make_fragment(self.source)
        batches = fragment.to_batches(
            schema=SCHEMA,
            columns=schema.names,
            filter=expression,
            batch_size=_BATCH_ROWS,
            use_threads=self.is_large,
        )
        for batch in batches:
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    @property
    def is_large(self) -> bool:
        """Whether it is worth while to read no more of the file than needed."""
        return self.size_bytes > SMALL_BYTES or self.metadata.num_row_groups > 1


def divide(
    parts: Sequence[SegmentFooter], batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[tuple[SegmentFooter, pa.Table]]:
    """Give each part of a file its rows.

    Args:
        parts: Footers that follow each other.
        batches: Their rows, in order; read no further than needed.
        schema: Of the batches.

    Yields:
        A footer and the next rows, as many as it says; fewer where there are not so many.
    """
    source, held = iter(batches), schema.empty_table()
    for part in parts:
        while held.num_rows < part.rows and (batch := next(source, None)) is not None:
            held = pa.concat_tables([held, pa.Table.from_batches([batch], schema)])
        yield part, held.slice(0, part.rows)
        held = held.slice(part.rows)


@contextlib.contextmanager
def open_segment(store: SegmentStore, path: str) -> Iterator[SegmentFile | None]:
    """Open a segment; None where its file is gone.

    Raises:
        ChainBrokenError: It is no Parquet file, its footer is not valid or contradicts its name.
        ScoredLogError: The store cannot be read.
    """
    file = store.open(path)
    if file is None:
        yield None
        return
    with file:
        with typed_errors(path):
            content = file.read(SMALL_BYTES + 1)
            is_small = len(content) <= SMALL_BYTES
            source = pa.BufferReader(content) if is_small else pa.PythonFile(file, mode="r")
            size_bytes = source.size()
            metadata = pq.read_metadata(source)
        footer = span_from_metadata(metadata.metadata, path)
        check_name(path, footer)
        yield SegmentFile(path, footer, source, metadata, size_bytes)


def check_name(path: str, footer: SegmentFooter) -> None:
    """Refuse a footer that is of another place.

    Raises:
        ChainBrokenError: It contradicts the file's path.
    """
    if parse_segment_path(path) != (footer.partition, footer.base_offset):
        raise ChainBrokenError(
            f"the footer says {footer.partition}@{footer.base_offset}",
            path,
            "A segment was moved or renamed; run `nap-stream verify`",
        )


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    missing = sorted(set(schema.names) - set(batch.schema.names))
    if missing:
        raise pa.ArrowInvalid(f"columns are missing: {', '.join(missing)}")
    columns = [batch.column(field.name) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
