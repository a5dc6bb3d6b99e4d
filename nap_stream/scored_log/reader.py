"""Reading the log in its folder, also while writers write.

What a reader sees of a partition is always a prefix of its chain. Paths are relative to the
root. Everything here raises `LogRootError` where the root is no folder, and `ChainBrokenError`
where a segment cannot be read.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nap_stream.errors import LogRootError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.filters import SCAN_SCHEMA, Query, to_expression
from nap_stream.scored_log.footer import SegmentFooter, from_metadata
from nap_stream.scored_log.layout import (
    parse_partition_folder,
    parse_segment_name,
    parse_topic_folder,
    partition_folder,
    segment_path,
    topic_folder,
)
from nap_stream.scored_log.os_errors import names_in
from nap_stream.scored_log.segment import unreadable
from nap_stream.scored_log.versions import with_columns


@contextlib.contextmanager
def _typed_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise unreadable(where, error) from error


def require_root(root: Path) -> None:
    """Refuse a root that is no folder.

    Raises:
        LogRootError: There is no such folder.
    """
    if not root.is_dir():
        raise LogRootError(
            "there is no scored log: no such folder", str(root), "Name the folder of log.root"
        )


def partitions(root: Path, topic: str | None = None) -> tuple[TopicPartition, ...]:
    """The partitions that have a folder in the log, in order; those of one topic if given.

    Raises:
        ConfigError: The topic cannot be the name of one.
    """
    require_root(root)
    wanted = names_in(root) if topic is None else [topic_folder(topic)]
    return tuple(
        sorted(
            TopicPartition(found, number)
            for name in wanted
            if (found := parse_topic_folder(name)) is not None
            for child in names_in(root / name)
            if (number := parse_partition_folder(child)) is not None
        )
    )


def _bases(root: Path, partition: TopicPartition) -> list[int]:
    names = names_in(root / partition_folder(partition))
    return [base for name in names if (base := parse_segment_name(name)) is not None]


def segments(root: Path, partition: TopicPartition) -> tuple[str, ...]:
    """Paths of a partition's segments, in order of their base offsets.

    A single listing made while writers link may hold a segment and miss the one before it. The
    second listing has all that came before the newest segment of the first.
    """
    seen = _bases(root, partition)
    newest = max(seen, default=-1)
    bases = sorted(base for base in _bases(root, partition) if base <= newest)
    return tuple(segment_path(partition, base) for base in bases)


def read_footer(root: Path, path: str) -> SegmentFooter:
    """The footer record of a segment.

    Raises:
        ChainBrokenError: The file cannot be read or its footer is not valid.
    """
    with _typed_errors(path):
        metadata = pq.read_metadata(root / path)
    return from_metadata(metadata.metadata, path)


def tail(root: Path, partition: TopicPartition, records: int) -> tuple[str, ...]:
    """Paths of the newest segments whose scored rows number at least ``records``, in order.

    All segments, where the chain has fewer; none for 0.
    """
    chosen: list[str] = []
    found = 0
    for path in reversed(segments(root, partition)):
        if found >= records:
            break
        chosen.append(path)
        found += read_footer(root, path).scored_rows
    return tuple(reversed(chosen))


def _matching_files(root: Path, query: Query) -> list[str]:
    return [
        path
        for partition in partitions(root, query.topic)
        if not query.partitions or partition.partition in query.partitions
        for path in segments(root, partition)
    ]


def _dataset(root: Path, paths: Sequence[str]) -> Any:
    return ds.dataset(
        [str(root / path) for path in paths],
        schema=SCAN_SCHEMA,
        format="parquet",
        partitioning=ds.partitioning(
            pa.schema([SCAN_SCHEMA.field("topic"), SCAN_SCHEMA.field("partition")]), flavor="hive"
        ),
        partition_base_dir=str(root),
    )


def scan(
    root: Path, query: Query, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows that pass the filters, batch by batch, in order of (topic, partition, offset, index).

    Row groups whose statistics rule them out are not read; memory does not grow with the log.

    Args:
        root: The log's root.
        query: The filters.
        columns: Names of columns of `SCAN_SCHEMA`; None for all.

    Yields:
        Non-empty batches with those columns of `SCAN_SCHEMA`, null where the version that wrote
        a segment had none.

    Raises:
        ConfigError: The topic cannot be the name of one.
    """
    paths = _matching_files(root, query)
    if not paths:
        return
    with _typed_errors(str(root)):
        dataset = _dataset(root, paths)
        batches = dataset.to_batches(
            columns=None if columns is None else list(columns), filter=to_expression(query)
        )
        yield from (batch for batch in batches if batch.num_rows)


def read_table(root: Path, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One segment's rows, with columns of `nap_stream.scored_log.schema.SCHEMA` only.

    A column that the segment's version has not is null. Page checksums are verified.

    Args:
        root: The log's root.
        path: The segment, relative to the root.
        columns: Names of columns, in the order wanted; None for all.

    Raises:
        ChainBrokenError: Also where the file lacks a column that every version has.
    """
    with _typed_errors(path), pq.ParquetFile(root / path, page_checksum_verification=True) as file:
        table = file.read(columns=None if columns is None else list(columns))
        return with_columns(table, columns)
