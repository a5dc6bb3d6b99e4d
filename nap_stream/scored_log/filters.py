"""Which rows of the log are asked for."""

import functools
import operator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.records import Status
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.schema import SCHEMA, storable_time_ms

SCAN_SCHEMA = pa.schema(
    [pa.field("topic", pa.string()), pa.field("partition", pa.int32()), *SCHEMA]
)
"""The columns of a scan: those of the newest files after the hive keys of their folders."""


@dataclass(frozen=True, slots=True)
class Query:
    """Filters on the log's rows; a row must pass all that are given.

    ``since_ms`` and ``until_ms`` bound the event time, ``since_ms <= t < until_ms``, in
    milliseconds since the epoch, UTC. ``classes`` are names or, where all digits, also ids.
    ``min_p_value`` and ``max_p_value`` are inclusive. A row without scores passes no filter on
    classes, flag or p-value. Empty tuples and None do not filter.
    """

    topic: str | None = None
    partitions: tuple[int, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None
    classes: tuple[str, ...] = ()
    is_ood: bool | None = None
    min_p_value: float | None = None
    max_p_value: float | None = None
    statuses: tuple[Status, ...] = ()


def to_expression(query: Query) -> Any | None:
    """The filters on columns as an Arrow expression; None where there are none.

    Topic and partitions are not in it: they choose files.
    """
    conditions = [*_time_conditions(query), *_class_conditions(query), *_score_conditions(query)]
    if query.statuses:
        conditions.append(pc.field("status").isin([status.value for status in query.statuses]))
    return functools.reduce(operator.and_, conditions) if conditions else None


def filter_columns(query: Query) -> tuple[str, ...]:
    """The columns that `to_expression` looks at."""
    looked_at = {
        "event_time": query.since_ms is not None or query.until_ms is not None,
        "class_id": bool(query.classes),
        "class_name": bool(query.classes),
        "is_ood": query.is_ood is not None,
        "ood_p_value": query.min_p_value is not None or query.max_p_value is not None,
        "status": bool(query.statuses),
    }
    return tuple(name for name, is_looked_at in looked_at.items() if is_looked_at)


def may_have_rows(query: Query, footer: SegmentFooter) -> bool:
    """Whether a segment can have rows that pass, as far as its footer tells."""
    low, high = footer.min_event_time_ms, footer.max_event_time_ms
    if low is None or high is None:
        return False
    is_before = query.since_ms is not None and high < storable_time_ms(query.since_ms)
    is_after = query.until_ms is not None and low >= storable_time_ms(query.until_ms)
    return not (is_before or is_after)


def _time_conditions(query: Query) -> list[Any]:
    kind = SCHEMA.field("event_time").type
    conditions = []
    if query.since_ms is not None:
        since = pa.scalar(storable_time_ms(query.since_ms), type=kind)
        conditions.append(pc.field("event_time") >= since)
    if query.until_ms is not None:
        until = pa.scalar(storable_time_ms(query.until_ms), type=kind)
        conditions.append(pc.field("event_time") < until)
    return conditions


def _class_conditions(query: Query) -> list[Any]:
    if not query.classes:
        return []
    ids = [int(name) for name in query.classes if name.isascii() and name.isdigit()]
    by_name = pc.field("class_name").isin(list(query.classes))
    small = pa.array([number for number in ids if number < 2**63], type=pa.int64())
    return [by_name | pc.field("class_id").isin(small) if ids else by_name]


def _score_conditions(query: Query) -> list[Any]:
    conditions = []
    if query.is_ood is not None:
        conditions.append(pc.field("is_ood") == query.is_ood)
    if query.min_p_value is not None:
        conditions.append(pc.field("ood_p_value") >= query.min_p_value)
    if query.max_p_value is not None:
        conditions.append(pc.field("ood_p_value") <= query.max_p_value)
    return conditions
