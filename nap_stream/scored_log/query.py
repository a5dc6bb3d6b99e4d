"""Questions to the log: rows that pass filters, and their counts by hour, class, status, partition.

Auditors without nap-stream ask the same of the plain folder, in DuckDB for instance:

    SELECT class_name, count(*), avg(is_ood::int)
    FROM read_parquet('<root>/**/*.parquet', hive_partitioning = true, union_by_name = true)
    GROUP BY class_name
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.scored_log.filters import SCAN_SCHEMA, Query
from nap_stream.scored_log.reader import scan
from nap_stream.scored_log.store import SegmentStore

__all__ = ["SCAN_SCHEMA", "GroupBy", "Query", "aggregate", "run_query", "scan"]

_COUNTS = ("rows", "scored", "ood")
_COUNTED_ROWS = 65_536


class GroupBy(StrEnum):
    """What to count by. Hours are of event time, UTC."""

    HOUR = "hour"
    CLASS = "class"
    STATUS = "status"
    PARTITION = "partition"


_SOURCE_COLUMNS: dict[GroupBy, tuple[str, ...]] = {
    GroupBy.HOUR: ("event_time",),
    GroupBy.CLASS: ("class_id", "class_name"),
    GroupBy.STATUS: ("status",),
    GroupBy.PARTITION: ("topic", "partition"),
}


def run_query(store: SegmentStore, query: Query, *, limit: int | None = None) -> pa.Table:
    """Rows that pass the filters, in order of (topic, partition, offset, index).

    All of them are held in memory; `scan` gives them batch by batch.

    Args:
        store: Where the log lies.
        query: The filters.
        limit: The most rows to return. Ask for one more than is shown to know if it was cut.

    Returns:
        A table with `SCAN_SCHEMA`: topic, partition, then the columns of the files.

    Raises:
        LogRootError: There is no log at the root.
        ChainBrokenError: A segment cannot be read.
        ConfigError: The topic cannot be the name of one.
    """
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in scan(store, query):
        taken = batch if limit is None else batch.slice(0, limit - rows)
        batches.append(taken)
        rows += taken.num_rows
        if rows == limit:
            break
    return pa.Table.from_batches(batches, schema=SCAN_SCHEMA)


def aggregate(store: SegmentStore, query: Query, by: GroupBy) -> pa.Table:
    """Count the rows that pass the filters.

    Args:
        store: Where the log lies.
        query: The filters.
        by: What to group by.

    Returns:
        One row a group, ordered by its keys: ``hour`` (timestamp, UTC), ``class_id`` and
        ``class_name`` (null for rows without scores), ``status``, or ``topic`` and
        ``partition``; then ``rows``, ``scored`` (rows with scores), ``ood`` (those of them that
        are flagged), int64, and ``ood_fraction`` = ood / scored, null where scored is 0.

    Raises:
        LogRootError: There is no log at the root.
        ChainBrokenError: A segment cannot be read.
        ConfigError: The topic cannot be the name of one.
    """
    columns = [*_SOURCE_COLUMNS[by], "is_ood"]
    merged = _no_counts(by)
    for rows in _gathered(scan(store, query, columns)):
        merged = _merge(pa.concat_tables([merged, _counts(rows, by)]))
    keys = [name for name in merged.column_names if name not in _COUNTS]
    ordered = merged.sort_by([(name, "ascending") for name in keys])
    return ordered.append_column("ood_fraction", _fraction(ordered))


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of a useful size: segments, and so batches, can be small and many."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _COUNTED_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _keys(rows: pa.Table, by: GroupBy) -> dict[str, Any]:
    if by is GroupBy.HOUR:
        return {"hour": pc.floor_temporal(rows.column("event_time"), unit="hour")}
    return {name: rows.column(name) for name in _SOURCE_COLUMNS[by]}


def _counts(rows: pa.Table, by: GroupBy) -> pa.Table:
    flags = rows.column("is_ood")
    columns = {
        **_keys(rows, by),
        "rows": pa.repeat(pa.scalar(1, pa.int64()), rows.num_rows),
        "scored": pc.is_valid(flags).cast(pa.int64()),
        "ood": pc.fill_null(flags, fill_value=False).cast(pa.int64()),
    }
    return _merge(pa.table(columns))


def _no_counts(by: GroupBy) -> pa.Table:
    names = [*_SOURCE_COLUMNS[by], "is_ood"]
    schema = pa.schema([SCAN_SCHEMA.field(name) for name in names])
    return _counts(schema.empty_table(), by)


def _merge(counts: pa.Table) -> pa.Table:
    keys = [name for name in counts.column_names if name not in _COUNTS]
    summed = counts.group_by(keys).aggregate([(name, "sum") for name in _COUNTS])
    return summed.select([*keys, *(f"{name}_sum" for name in _COUNTS)]).rename_columns(
        [*keys, *_COUNTS]
    )


def _fraction(counts: pa.Table) -> Any:
    scored = counts.column("scored").cast(pa.float64())
    known = pc.if_else(pc.greater(scored, 0.0), scored, pa.scalar(None, pa.float64()))
    return pc.divide(counts.column("ood").cast(pa.float64()), known)
