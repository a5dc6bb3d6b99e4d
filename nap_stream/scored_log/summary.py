"""Summaries of segments for the drift monitor: from records in hand, or from the file.

Both give the same summary, so that a monitor that starts anew finds what it would have known.

Event times come from producers, whose clocks may be wrong. One that lies more than
`MAX_CLOCK_SKEW_MS` ahead of the time when its message was read, or more than `MAX_AGE_MS` before
it, counts as that time, so that no clock stops the monitor for good; one that lags by less holds
its panes back by as much. Both times stand in the row, so that the log alone tells.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nap_stream.core.keys import key_text
from nap_stream.core.panes import NO_KEY, count_panes
from nap_stream.errors import ChainBrokenError
from nap_stream.records import (
    Example,
    FlaggedClass,
    PublishedSegment,
    ScoredRecord,
    SegmentSummary,
    TopicPartition,
)
from nap_stream.scored_log.segment_file import divide
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.summary_rows import (
    SummaryRows,
    rows_of_records,
    rows_of_table,
    rows_schema,
)
from nap_stream.scored_log.walk import walk
from nap_stream.settings import KeySettings, Settings

MAX_CLOCK_SKEW_MS = 60_000
"""How far an event time may be ahead of the time when its message was read."""
MAX_AGE_MS = 7 * 86_400_000
"""How far it may be behind that: as long as Kafka keeps messages, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class SummaryShape:
    """What a summary holds.

    ``pane_ms`` is the width of the event-time panes in milliseconds. ``example_count`` is how many
    flagged records to name at most: those with the smallest p-values, the earlier one of equals.
    ``keys`` says what is counted by key; null for nothing.
    """

    pane_ms: int
    example_count: int
    keys: KeySettings | None = None

    @property
    def key_by(self) -> str | None:
        """See `KeySettings`; None where keys are not told apart."""
        return None if self.keys is None else self.keys.by


def summary_shape(settings: Settings) -> SummaryShape:
    """Give what the drift monitor of these settings needs."""
    return SummaryShape(settings.drift.pane_ms, settings.alerts.examples, settings.drift.keys)


def summarise(
    published: PublishedSegment,
    records: Sequence[ScoredRecord],
    shape: SummaryShape,
    gap: str | None = None,
) -> SegmentSummary:
    """Summarise a segment from the records that were published in it.

    Args:
        published: What `ScoredLog.publish` returned.
        records: The records that were given to it.
        shape: What to hold.
        gap: The reason that was given to ``publish``.
    """
    span = _Span(
        published.partition,
        published.base_offset,
        published.position.offset,
        published.path,
        gap,
    )
    return _summary(span, rows_of_records(records, shape.key_by), shape)


def summarise_chain(
    store: SegmentStore, partition: TopicPartition, start: int, end: int, shape: SummaryShape
) -> Iterator[SegmentSummary]:
    """Summarise segments from their files; the same as `summarise` of their records.

    Of a compacted file each segment that it merged is summarised by itself. ``path`` is the file
    where a segment stands now.

    Args:
        store: Where the log lies.
        partition: Whose chain.
        start: The first segment's base offset, or 0.
        end: Segments that begin here or after are left out.
        shape: What to hold.

    Raises:
        ChainBrokenError: A file cannot be read, its footer is not valid, or its rows have a
            status that is unknown or lack scores.
        ScoredLogError: The store cannot be read.
    """
    schema = rows_schema(shape.key_by)
    for file, wanted in walk(store, partition, start):
        if file.footer.base_offset >= end:
            return
        parts = [part for part in file.parts() if wanted <= part.base_offset < end]
        first = parts[0].base_offset if parts else end
        for part, rows in divide(parts, file.batches(schema.names, start=first), schema):
            span = _Span(partition, part.base_offset, part.end_offset, file.path, part.gap)
            yield _summary(span, _rows_of_part(span, rows, shape), shape)


def credible_times(rows: SummaryRows) -> NDArray[np.int64]:
    """Give the event times, int64 (N,), or the ingest times where those cannot be true."""
    age = rows.ingest_time_ms - rows.event_time_ms
    is_credible = (age >= -MAX_CLOCK_SKEW_MS) & (age <= MAX_AGE_MS)
    return np.where(is_credible, rows.event_time_ms, rows.ingest_time_ms)


@dataclass(frozen=True, slots=True)
class _Span:
    partition: TopicPartition
    base_offset: int
    end_offset: int
    path: str
    gap: str | None


def _rows_of_part(span: _Span, rows: pa.Table, shape: SummaryShape) -> SummaryRows:
    try:
        return rows_of_table(rows, shape.key_by)
    except ValueError as error:
        raise ChainBrokenError(
            f"segment [{span.base_offset}, {span.end_offset}) cannot be summarised: {error}",
            span.path,
            "Use the version of nap-stream that wrote it, or a newer one; `nap-stream verify "
            "--deep` says whether it was changed since",
        ) from error


def _summary(span: _Span, rows: SummaryRows, shape: SummaryShape) -> SegmentSummary:
    times = credible_times(rows)
    # Over all rows, as the partition's watermark is: a row without scores moves it too, and
    # where a segment ends must not matter.
    newest = np.maximum.accumulate(times)
    placed = newest[rows.is_scored]
    keys, key = _scored_keys(rows)
    return SegmentSummary(
        partition=span.partition,
        base_offset=span.base_offset,
        end_offset=span.end_offset,
        rows_by_status=dict(rows.rows_by_status),
        panes=count_panes(
            placed,
            rows.p_value,
            rows.is_ood,
            pane_ms=shape.pane_ms,
            keys=keys,
            key=key,
            one_per_pane=shape.keys is not None and shape.keys.one_per_pane,
        ),
        max_event_time_ms=int(newest[-1]) if len(newest) else None,
        path=span.path,
        flagged_classes=_flagged_classes(rows, placed - placed % shape.pane_ms),
        examples=_examples(span, rows, times, (keys, key), shape.example_count),
        untimely_records=int((times != rows.event_time_ms).sum()),
        gap=span.gap,
    )


def _scored_keys(rows: SummaryRows) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """The keys of the scored rows as text, ascending, and the index of each row's."""
    if rows.keys is None or rows.key is None:
        return (NO_KEY,), None
    numbers, key = np.unique(rows.key[rows.is_scored], return_inverse=True)
    texts = [key_text(rows.keys[number]) for number in numbers.tolist()]
    keys = tuple(sorted(set(texts)))
    slots = {text: slot for slot, text in enumerate(keys)}
    slot = np.array([slots[text] for text in texts], dtype=np.int64)
    return keys, slot[key]


def _flagged_classes(rows: SummaryRows, starts_ms: NDArray[np.int64]) -> tuple[FlaggedClass, ...]:
    starts = starts_ms[rows.is_ood].tolist()
    counts = Counter(zip(starts, rows.flagged_class, strict=True))
    return tuple(FlaggedClass(*pane, count) for pane, count in sorted(counts.items()))


def _examples(
    span: _Span,
    rows: SummaryRows,
    times_ms: NDArray[np.int64],
    keys: tuple[tuple[str, ...], NDArray[np.int64] | None],
    count: int,
) -> tuple[Example, ...]:
    names, key = keys
    # Stable, so that the earlier one of equals comes first.
    order = np.argsort(rows.p_value[rows.is_ood], kind="stable")[:count]
    scored = np.flatnonzero(rows.is_ood)[order]
    row = np.flatnonzero(rows.is_scored)[scored]
    slots = [0] * len(order) if key is None else key[scored].tolist()
    return tuple(
        Example(span.partition, offset, index, time_ms, names[slot], class_name, p, span.path)
        for offset, index, time_ms, slot, class_name, p in zip(
            rows.offset[row].tolist(),
            rows.index[row].tolist(),
            times_ms[row].tolist(),
            slots,
            (rows.flagged_class[number] for number in order.tolist()),
            rows.p_value[scored].tolist(),
            strict=True,
        )
    )
