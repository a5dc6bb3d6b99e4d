"""Summaries of segments for the drift monitor: from records in hand, or from the file.

Both give the same summary, so that a monitor that starts anew finds what it would have known.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from nap_stream.core.windows import panes_of
from nap_stream.records import (
    Example,
    PublishedSegment,
    ScoredRecord,
    SegmentSummary,
    Status,
    TopicPartition,
)
from nap_stream.scored_log.schema import SCHEMA, storable_text, storable_time_ms
from nap_stream.scored_log.segment_file import divide
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.walk import walk

_COLUMNS = ["offset", "index", "event_time", "status", "class_name", "ood_p_value", "is_ood"]
_SCHEMA = pa.schema([SCHEMA.field(name) for name in _COLUMNS])


@dataclass(frozen=True, slots=True)
class _Row:
    offset: int
    index: int
    event_time_ms: int
    status: Status
    class_name: str
    ood_p_value: float
    is_ood: bool


@dataclass(frozen=True, slots=True)
class _Span:
    partition: TopicPartition
    base_offset: int
    end_offset: int
    path: str
    gap: str | None


def _rows_of_records(records: Sequence[ScoredRecord]) -> Iterator[_Row]:
    for record in records:
        scores = record.scores
        yield _Row(
            record.origin.offset,
            record.origin.index,
            storable_time_ms(record.origin.event_time_ms),
            record.status,
            storable_text(scores.class_name) if scores else "",
            float(scores.ood_p_value) if scores else 1.0,
            bool(scores.is_ood) if scores else False,
        )


def _rows_of_table(table: pa.Table) -> Iterator[_Row]:
    times = table.column("event_time").cast(pa.int64())
    for row in table.set_column(2, "event_time", times).to_pylist():
        scored = row["status"] == Status.OK
        yield _Row(
            row["offset"],
            row["index"],
            row["event_time"],
            Status(row["status"]),
            row["class_name"] if scored else "",
            row["ood_p_value"] if scored else 1.0,
            row["is_ood"] if scored else False,
        )


def _examples(span: _Span, rows: Sequence[_Row], count: int) -> tuple[Example, ...]:
    flagged = [row for row in rows if row.is_ood]
    flagged.sort(key=lambda row: (row.ood_p_value, row.offset, row.index))
    return tuple(
        Example(
            partition=span.partition,
            offset=row.offset,
            index=row.index,
            event_time_ms=row.event_time_ms,
            class_name=row.class_name,
            ood_p_value=row.ood_p_value,
            segment=span.path,
        )
        for row in flagged[:count]
    )


def _summary(span: _Span, rows: Sequence[_Row], pane_ms: int, example_count: int) -> SegmentSummary:
    scored = [row for row in rows if row.status is Status.OK]
    return SegmentSummary(
        partition=span.partition,
        base_offset=span.base_offset,
        end_offset=span.end_offset,
        rows_by_status=dict(Counter(row.status for row in rows)),
        panes=panes_of(
            (row.event_time_ms for row in scored), (row.is_ood for row in scored), pane_ms
        ),
        max_event_time_ms=max((row.event_time_ms for row in rows), default=None),
        path=span.path,
        examples=_examples(span, rows, example_count),
        gap=span.gap,
    )


def summarise(
    published: PublishedSegment,
    records: Sequence[ScoredRecord],
    *,
    pane_ms: int,
    example_count: int,
    gap: str | None = None,
) -> SegmentSummary:
    """Summarise a segment from the records that were published in it.

    Args:
        published: What `ScoredLog.publish` returned.
        records: The records that were given to it.
        pane_ms: Width of the event-time panes, milliseconds.
        example_count: How many flagged records to name at most: those with the smallest p-values,
            the earlier one of equals.
        gap: The reason that was given to ``publish``.
    """
    span = _Span(
        published.partition,
        published.base_offset,
        published.position.offset,
        published.path,
        gap,
    )
    return _summary(span, tuple(_rows_of_records(records)), pane_ms, example_count)


def summarise_chain(
    store: SegmentStore,
    partition: TopicPartition,
    start: int,
    end: int,
    *,
    pane_ms: int,
    example_count: int,
) -> Iterator[SegmentSummary]:
    """Summarise segments from their files; the same as `summarise` of their records.

    Of a compacted file each segment that it merged is summarised by itself. ``path`` is the file
    where a segment stands now.

    Args:
        store: Where the log lies.
        partition: Whose chain.
        start: The first segment's base offset, or 0.
        end: Segments that begin here or after are left out.
        pane_ms: Width of the event-time panes, milliseconds.
        example_count: How many flagged records of a segment to name at most.

    Raises:
        ChainBrokenError: A file cannot be read or its footer is not valid.
        ScoredLogError: The store cannot be read.
    """
    for file, wanted in walk(store, partition, start):
        if file.footer.base_offset >= end:
            return
        parts = [part for part in file.parts() if wanted <= part.base_offset < end]
        first = parts[0].base_offset if parts else end
        for part, rows in divide(parts, file.batches(_COLUMNS, start=first), _SCHEMA):
            span = _Span(partition, part.base_offset, part.end_offset, file.path, part.gap)
            yield _summary(span, tuple(_rows_of_table(rows)), pane_ms, example_count)
