"""An open segment: its footer, its parts, its rows. It shows one version of the file to the end."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.layout import parse_segment_path
from nap_stream.scored_log.metadata import from_metadata, span_from_metadata
from nap_stream.scored_log.schema import SCHEMA
from nap_stream.scored_log.segment import unreadable
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.versions import SCHEMAS

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
            ChainBrokenError: The rows cannot be read, or have not the columns of their version.
        """
        schema = SCHEMAS[self.footer.schema_version]
        with (
            typed_errors(self.path),
            pq.ParquetFile(
                self.source, metadata=self.metadata, page_checksum_verification=True
            ) as file,
        ):
            if not file.schema_arrow.equals(schema):
                raise pa.ArrowInvalid("its columns are not those of its version")
            yield from divide(self.parts(), file.iter_batches(_BATCH_ROWS), schema)

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
            Non-empty batches with those columns, null where the file's version had none.

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
        present = set(SCHEMAS[self.footer.schema_version].names)
        names = [name for name in schema.names if name in present] or ["offset"]
        with pq.ParquetFile(self.source, metadata=self.metadata) as file:
            batches = file.iter_batches(_BATCH_ROWS, columns=names, use_threads=self.is_large)
            for batch in batches:
                yield _with_schema(batch, schema, present)

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


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema, present: set[str]) -> pa.RecordBatch:
    missing = sorted(set(schema.names) & present - set(batch.schema.names))
    if missing:
        raise pa.ArrowInvalid(f"columns are missing: {', '.join(missing)}")
    columns = [
        batch.column(field.name) if field.name in present else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
