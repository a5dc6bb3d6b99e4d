"""Reading the log, also while writers write and while compaction exchanges files.

What a reader sees of a partition is always a prefix of its chain, each row once. Paths are
relative to the root. Everything here raises `LogRootError` where there is no log at the root, and
`ChainBrokenError` where a segment cannot be read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError, LogRootError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.filters import (
    SCAN_SCHEMA,
    Query,
    filter_columns,
    may_have_rows,
    to_expression,
)
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.layout import (
    parse_partition_folder,
    parse_topic_folder,
    segment_path,
    topic_folder,
)
from nap_stream.scored_log.local_store import LocalStore
from nap_stream.scored_log.segment import decode_footer, unreadable
from nap_stream.scored_log.segment_file import typed_errors
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.versions import with_columns
from nap_stream.scored_log.walk import complete_bases, parts_backwards, walk

_KEYS = ("topic", "partition")
_FILTERED_BATCHES = 64
_FILTERED_ROWS = 16_384


def require_root(store: SegmentStore) -> None:
    """Refuse a root that is no folder. On an object store every prefix is one.

    Raises:
        LogRootError: There is no such folder.
    """
    if isinstance(store, LocalStore) and not Path(store.root).is_dir():
        raise LogRootError(
            "there is no scored log: no such folder", store.root, "Name the folder of log.root"
        )


def partitions(store: SegmentStore, topic: str | None = None) -> tuple[TopicPartition, ...]:
    """The partitions that have a folder in the log, in order; those of one topic if given.

    Raises:
        ConfigError: The topic cannot be the name of one.
    """
    require_root(store)
    wanted = store.names("") if topic is None else [topic_folder(topic)]
    return tuple(
        sorted(
            TopicPartition(found, number)
            for name in wanted
            if (found := parse_topic_folder(name)) is not None
            for child in store.names(name)
            if (number := parse_partition_folder(child)) is not None
        )
    )


def segments(store: SegmentStore, partition: TopicPartition) -> tuple[str, ...]:
    """Paths of a partition's segments, in order of their base offsets, as they lie there.

    While a compaction exchanges files, or after one that was interrupted, a segment may stand
    in a compacted file before it as well; `scan` knows.
    """
    return tuple(segment_path(partition, base) for base in complete_bases(store, partition))


def read_footer(store: SegmentStore, path: str) -> SegmentFooter:
    """The footer record of a segment.

    Raises:
        ChainBrokenError: The file is missing, cannot be read, or its footer is not valid.
    """
    file = store.open(path)
    if file is None:
        raise _gone(path)
    with file:
        return decode_footer(file, path)


def tail(store: SegmentStore, partition: TopicPartition, records: int) -> int | None:
    """Where the newest segments begin whose scored rows number at least ``records``.

    Returns:
        The base offset of the first of them; the chain's first where it has fewer rows; None
        where there are no segments, and for 0 records.
    """
    start, found = None, 0
    parts = parts_backwards(store, partition)
    while found < records and (part := next(parts, None)) is not None:
        start, found = part.base_offset, found + part.scored_rows
    return start


def scan(
    store: SegmentStore, query: Query, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows that pass the filters, batch by batch, in order of (topic, partition, offset, index).

    Row groups whose statistics rule them out are not read; one file is open at a time, and
    memory does not grow with the log. Of each partition the scan ends with the segment that was
    the newest when it came to that partition.

    Args:
        store: Where the log lies.
        query: The filters.
        columns: Names of columns of `SCAN_SCHEMA`; None for all.

    Yields:
        Non-empty batches with those columns of `SCAN_SCHEMA`, null where the version that wrote
        a segment had none.

    Raises:
        ConfigError: The topic cannot be the name of one.
    """
    names = SCAN_SCHEMA.names if columns is None else list(columns)
    schema = pa.schema([SCAN_SCHEMA.field(name) for name in names])
    stored = tuple(name for name in names if name not in _KEYS) or ("offset",)
    for partition in partitions(store, query.topic):
        if not query.partitions or partition.partition in query.partitions:
            for batch in _partition_rows(store, partition, query, stored):
                yield _with_keys(batch, partition, schema)


def _partition_rows(
    store: SegmentStore, partition: TopicPartition, query: Query, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """One partition's rows that pass. Small files are filtered together: that costs as much."""
    expression = to_expression(query)
    looked_at = tuple(dict.fromkeys((*columns, *filter_columns(query))))
    small: list[pa.RecordBatch] = []
    for file, start in walk(store, partition):
        if not may_have_rows(query, file.footer):
            continue
        if expression is None:
            yield from file.batches(columns, start=start)
        elif not file.is_large:
            small += file.batches(looked_at, start=start)
        if small and (file.is_large or _is_enough(small)):
            yield from _passing(small, columns, expression)
            small = []
        if expression is not None and file.is_large:
            yield from file.batches(columns, start=start, expression=expression)
    if small:
        yield from _passing(small, columns, expression)


def _is_enough(batches: Sequence[pa.RecordBatch]) -> bool:
    rows = sum(batch.num_rows for batch in batches)
    return len(batches) >= _FILTERED_BATCHES or rows >= _FILTERED_ROWS


def _passing(
    batches: Sequence[pa.RecordBatch], columns: Sequence[str], expression: Any
) -> Iterator[pa.RecordBatch]:
    rows = ds.dataset(pa.Table.from_batches(batches))
    found = rows.to_batches(columns=list(columns), filter=expression, use_threads=False)
    yield from (batch for batch in found if batch.num_rows)


def _with_keys(
    batch: pa.RecordBatch, partition: TopicPartition, schema: pa.Schema
) -> pa.RecordBatch:
    keys = {"topic": partition.topic, "partition": partition.partition}
    columns = [
        pa.repeat(pa.scalar(keys[field.name], field.type), batch.num_rows)
        if field.name in keys
        else batch.column(field.name)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def read_table(store: SegmentStore, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file's rows, with columns of `nap_stream.scored_log.schema.SCHEMA` only.

    A column that the segment's version has not is null. Page checksums are verified.

    Args:
        store: Where the log lies.
        path: The segment, relative to the root.
        columns: Names of columns, in the order wanted; None for all.

    Raises:
        ChainBrokenError: Also where the file is missing or lacks a column that every version has.
    """
    file = store.open(path)
    if file is None:
        raise _gone(path)
    with file, typed_errors(path), pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        table = parquet.read(columns=None if columns is None else list(columns))
        return with_columns(table, columns)


def _gone(path: str) -> ChainBrokenError:
    return unreadable(path, FileNotFoundError("no such file"))
