"""A segment's file: records and footer to Parquet bytes, and back; the digest of its rows."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError
from nap_stream.scored_log.footer import (
    SegmentFooter,
    from_metadata,
    span_from_metadata,
    to_metadata,
)
from nap_stream.scored_log.format import (
    DICTIONARY_COLUMNS,
    SCHEMA,
    SCHEMAS,
    STATISTICS_COLUMNS,
    parse_segment_path,
)
from nap_stream.scored_log.stores import SegmentStore

ROW_GROUP_ROWS = 32_768
"""Rows of a row group: what a reader holds in memory, and can leave out, of a compacted file."""
SMALL_BYTES = 2**20
"""A file up to this size is read in one go; a larger one only where rows are wanted."""
_BATCH_ROWS = 65_536


def event_time_range(rows: pa.Table) -> tuple[int | None, int | None]:
    """Smallest and largest event time of rows, milliseconds UTC; None without rows."""
    ends = pc.min_max(rows.column("event_time").cast(pa.int64())).as_py()
    return ends["min"], ends["max"]


def encode_segment(footer: SegmentFooter, table: pa.Table) -> bytes:
    """A segment as the bytes of its file.

    Pages are checksummed and compressed with zstd; columns whose values repeat are
    dictionary-encoded.

    The table has exactly the columns of the footer's version in `format.SCHEMAS`.
    """
    return encode_rows(table, to_metadata(footer))


def encode_rows(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """A table as Parquet, as `encode_segment` writes it, under any metadata."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=DICTIONARY_COLUMNS,
        write_page_checksum=True,
        write_statistics=STATISTICS_COLUMNS,
        # Arrow's own schema would repeat the footer and every column's description.
        store_schema=False,
    ) as writer:
        writer.add_key_value_metadata(metadata)
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return bytes(sink.getvalue())


def rows_sha256(table: pa.Table) -> str:
    """Digest of rows, the same however Parquet encodes them.

    Hashed are, column by column: the name in UTF-8 and a zero byte, then the values (`_feed`).
    All integers are 8 bytes, signed, little-endian.

    The columns are those of a version of the log, in its order. There may be no rows.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        _feed(digest, table.column(name).combine_chunks())
    return digest.hexdigest()


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
        whole = (values.cast(pa.uint8()) if kind == pa.bool_() else values).cast(pa.int64())
        digest.update(pc.fill_null(whole, 0).to_numpy().astype("<i8").tobytes())


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


@contextlib.contextmanager
def typed_errors(path: str) -> Iterator[None]:
    """Raise ChainBrokenError, naming the file, for what a Parquet reader raises within."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ChainBrokenError(
            f"the segment cannot be read: {error}",
            path,
            "Run `nap-stream verify`; restore the file from a backup",
        ) from error


def read_footer(store: SegmentStore, path: str) -> SegmentFooter | None:
    """The footer of a segment, with those that it has merged; None where its file is gone.

    Raises:
        ChainBrokenError: It is not a Parquet file, or its footer is not valid.
        ScoredLogError: The store cannot be read.
    """
    file = store.open(path)
    if file is None:
        return None
    with file, typed_errors(path):
        metadata = pq.read_metadata(file)
    return from_metadata(metadata.metadata, path)


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """An open segment. Only valid within `open_segment`, or while its file is open.

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

        Page checksums are verified; whether the rows are those of their digest is not. The
        columns are those of the file's version.

        Raises:
            ChainBrokenError: The rows cannot be read, or do not have the log's columns.
        """
        schema = SCHEMAS[self.footer.schema_version]
        with (
            typed_errors(self.path),
            pq.ParquetFile(
                self.source, metadata=self.metadata, page_checksum_verification=True
            ) as file,
        ):
            if not file.schema_arrow.equals(schema):
                raise pa.ArrowInvalid("its columns are not those of the log")
            yield from divide(self.parts(), file.iter_batches(_BATCH_ROWS), schema)

    def batches(self, columns: Sequence[str], *, start: int = 0) -> Iterator[pa.RecordBatch]:
        """Rows at or after an offset, in order, without the row groups that cannot have any.

        ``columns`` are names of `SCHEMA`, at least one, each once; those that the file's version
        lacks are null.

        Yields:
            Non-empty batches with those columns.

        Raises:
            ChainBrokenError: The rows cannot be read.
        """
        stored = SCHEMAS[self.footer.schema_version]
        is_cut = start > self.footer.base_offset
        # How many rows there are shows only in columns that are stored.
        names = [name for name in columns if name in stored.names]
        if is_cut or not names:
            names = list(dict.fromkeys([*names, "offset"]))
        schema = pa.schema([stored.field(name) for name in names])
        wanted = pa.schema([SCHEMA.field(name) for name in columns])
        with (
            typed_errors(self.path),
            pq.ParquetFile(self.source, metadata=self.metadata) as file,
        ):
            groups = range(file.num_row_groups)
            for batch in file.iter_batches(
                _BATCH_ROWS,
                row_groups=[g for g in groups if not is_cut or self._reaches(g, start)],
                columns=names,
                use_threads=self.is_large,
            ):
                rows = _with_schema(batch, schema)
                if is_cut:
                    rows = rows.filter(pc.greater_equal(rows.column("offset"), start))
                if rows.num_rows:
                    yield _with_columns(rows, wanted)

    def _reaches(self, group: int, start: int) -> bool:
        """Whether a row group can have an offset so great, as far as its statistics tell."""
        columns = self.metadata.row_group(group)
        place = self.metadata.schema.names.index("offset")
        ends = columns.column(place).statistics
        return ends is None or not ends.has_min_max or bool(ends.max >= start)

    @property
    def is_large(self) -> bool:
        """Whether it is worth while to read no more of the file than needed."""
        return self.size_bytes > SMALL_BYTES or self.metadata.num_row_groups > 1


def divide(
    parts: Sequence[SegmentFooter], batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[tuple[SegmentFooter, pa.Table]]:
    """Give each part of a file its rows.

    ``parts`` follow each other; ``batches`` are their rows, in order, read no further than needed.

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
        ChainBrokenError: As `read_segment`.
        ScoredLogError: The store cannot be read.
    """
    file = store.open(path)
    if file is None:
        yield None
        return
    with file:
        yield read_segment(file, path)


def read_segment(file: BinaryIO, path: str) -> SegmentFile:
    """Begin to read a segment that is to stand at ``path``; only valid while the file is open.

    Raises:
        ChainBrokenError: It is no Parquet file, its footer is not valid or contradicts its name.
    """
    with typed_errors(path):
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        is_small = size_bytes <= SMALL_BYTES
        source = pa.BufferReader(file.read()) if is_small else pa.PythonFile(file, mode="r")
        metadata = pq.read_metadata(source)
    footer = span_from_metadata(metadata.metadata, path)
    check_name(path, footer)
    return SegmentFile(path, footer, source, metadata, size_bytes)


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


def _with_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of a schema, null where an earlier version of the log does not have them."""
    if batch.schema.names == schema.names:
        return batch
    columns = [
        batch.column(field.name)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
