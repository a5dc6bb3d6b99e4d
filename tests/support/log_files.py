"""Single files of a scored log as tests look at them, and a log in memory."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.records import TopicPartition
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import SCHEMA, parse_segment_name, partition_folder
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import parts_backwards
from nap_stream.scored_log.segment import read_footer as footer_at
from nap_stream.scored_log.segment import typed_errors
from nap_stream.scored_log.stores import SegmentStore
from tests.support.memory_store import MemoryStore


def read_footer(store: SegmentStore, path: str) -> SegmentFooter:
    """The footer record of a segment.

    Raises:
        ChainBrokenError: The file cannot be read, or its footer is not valid.
    """
    footer = footer_at(store, path)
    assert footer is not None, path
    return footer


def read_table(store: SegmentStore, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file's rows, without metadata; page checksums are verified.

    Raises:
        ChainBrokenError: The file cannot be read.
    """
    file = store.open(path)
    assert file is not None, path
    with file, typed_errors(path), pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        table = parquet.read(columns=None if columns is None else list(columns))
        schema = SCHEMA if columns is None else pa.schema([SCHEMA.field(n) for n in columns])
        return pa.Table.from_arrays([table.column(n) for n in schema.names], schema=schema)


def run_query(store: SegmentStore, query: Query, *, limit: int | None = None) -> pa.Table:
    """Rows that pass the filters, in the order of `scan`; at most ``limit`` of them."""
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in scan(store, query):
        taken = batch if limit is None else batch.slice(0, limit - rows)
        batches.append(taken)
        rows += taken.num_rows
        if rows == limit:
            break
    return pa.Table.from_batches(batches, schema=SCAN_SCHEMA)


def tail(store: SegmentStore, partition: TopicPartition, records: int) -> int | None:
    """Where the newest segments begin whose scored rows number at least ``records``.

    The chain's first offset where it has fewer rows; None without segments, and for 0 records.
    """
    start, found = None, 0
    parts = parts_backwards(store, partition)
    while found < records and (part := next(parts, None)) is not None:
        start, found = part.base_offset, found + part.scored_rows
    return start


def paths_in(store: MemoryStore, partition: TopicPartition) -> tuple[str, ...]:
    """Paths of a partition's segments, in order of their base offsets."""
    folder = partition_folder(partition)
    names = sorted(name for name in store.names(folder) if parse_segment_name(name) is not None)
    return tuple(f"{folder}/{name}" for name in names)


def footers_in(store: MemoryStore, partition: TopicPartition) -> tuple[SegmentFooter, ...]:
    """Footers of a partition's segments, in order."""
    return tuple(read_footer(store, path) for path in paths_in(store, partition))


def rows_in(store: MemoryStore, partition: TopicPartition) -> pa.Table:
    """All rows of a partition, in order, with the log's schema."""
    tables = [read_table(store, path) for path in paths_in(store, partition)]
    plain = [table.replace_schema_metadata(None) for table in tables]
    return pa.concat_tables([SCHEMA.empty_table(), *plain])
