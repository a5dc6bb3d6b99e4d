"""The part of a scored log that lies within a span of event time."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.read import walk
from nap_stream.scored_log.stores.base import SegmentStore


@dataclass(frozen=True, slots=True)
class EventSpan:
    """Event times in ``[since_ms, until_ms)``, milliseconds since the epoch; null for no limit.

    Whole panes: one that ``since_ms`` or ``until_ms`` cuts belongs to the span it begins in.
    """

    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def start_ms(self) -> float:
        """``since_ms``, or minus infinity."""
        return -math.inf if self.since_ms is None else self.since_ms

    @property
    def end_ms(self) -> float:
        """``until_ms``, or infinity."""
        return math.inf if self.until_ms is None else self.until_ms


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a partition's part begins, and what its segments hold, as their footers say.

    ``records`` are scored ones: about as many lie within. ``foreign`` are the runs of segments
    that another calibration has judged, in order.
    """

    partition: TopicPartition
    start: int
    records: int
    foreign: tuple[OffsetRange, ...]

    def is_foreign(self, offset: int) -> bool:
        """Whether another calibration has judged the segment that begins at an offset."""
        return any(run.start <= offset < run.end for run in self.foreign)


def find_stretch(
    store: SegmentStore, partition: TopicPartition, span: EventSpan, calibration_fingerprint: str
) -> Stretch | None:
    """Find where a partition's part of a span begins; None where it has none. Reads footers.

    Raises:
        ScoredLogError: The log cannot be read.
    """
    start, records = None, 0
    foreign: list[OffsetRange] = []
    for footer in _footers(store, partition):
        if start is None and _is_before(footer, span):
            continue
        start = footer.base_offset if start is None else start
        if footer.calibration_fingerprint != calibration_fingerprint:
            _extend(foreign, footer)
        if footer.min_event_time_ms is None or footer.min_event_time_ms < span.end_ms:
            records += footer.scored_rows
    return None if start is None else Stretch(partition, start, records, tuple(foreign))


def within(
    summaries: Iterable[SegmentSummary], span: EventSpan, pane_ms: int
) -> Iterator[SegmentSummary]:
    """Cut a partition's summaries to a span, and end where it has passed.

    Within a partition a record's time is the largest event time up to it, as for the monitor:
    what comes late, behind a record of the span, lies within, and nothing that comes after the
    span's end.

    Args:
        summaries: In order of offset.
        span: What is wanted.
        pane_ms: Width of their panes in milliseconds.
    """
    earliest_ms: int | None = None
    for summary in summaries:
        yield _cut(summary, span, earliest_ms)
        newest_ms = summary.max_event_time_ms
        if newest_ms is not None:
            pane_start_ms = newest_ms - newest_ms % pane_ms
            earliest_ms = pane_start_ms if earliest_ms is None else max(earliest_ms, pane_start_ms)
        # Not before the pane that the end cuts is over: it belongs to the span as a whole.
        if earliest_ms is not None and earliest_ms >= span.end_ms:
            return


def _footers(store: SegmentStore, partition: TopicPartition) -> Iterator[SegmentFooter]:
    for file, wanted in walk(store, partition):
        yield from (part for part in file.parts() if part.base_offset >= wanted)


def _extend(runs: list[OffsetRange], footer: SegmentFooter) -> None:
    """Add a segment to the last run, where it follows that."""
    start = footer.base_offset
    if runs and runs[-1].end == start:
        start = runs.pop().start
    runs.append(OffsetRange(footer.partition, start, footer.end_offset))


def _is_before(footer: SegmentFooter, span: EventSpan) -> bool:
    """Whether all of a segment's records were counted before the span.

    One with an event time that cannot be true was counted when it was read, which no footer
    tells: not after the segment was published.
    """
    newest_ms = footer.created_time_ms
    if footer.max_event_time_ms is not None:
        newest_ms = max(newest_ms, footer.max_event_time_ms)
    return newest_ms < span.start_ms


def _cut(summary: SegmentSummary, span: EventSpan, earliest_ms: int | None) -> SegmentSummary:
    """Cut a summary to a span. ``earliest_ms`` is the start of the partition's newest pane."""

    def is_within(pane_start_ms: int) -> bool:
        placed_ms = pane_start_ms if earliest_ms is None else max(pane_start_ms, earliest_ms)
        return span.start_ms <= placed_ms < span.end_ms

    starts = summary.panes.start_ms
    if earliest_ms is not None:
        starts = np.maximum(starts, earliest_ms)
    first = int(np.searchsorted(starts, span.start_ms, side="left"))
    last = int(np.searchsorted(starts, span.end_ms, side="left"))
    if (first, last) == (0, len(starts)):
        return summary
    return replace(
        summary,
        panes=summary.panes.part(first, last),
        flagged_classes=tuple(each for each in summary.flagged_classes if is_within(each.start_ms)),
        examples=tuple(each for each in summary.examples if is_within(each.event_time_ms)),
    )
