"""The part of a scored log that lies within a span of event time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from nap_stream.records import SegmentSummary, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.walk import walk


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

    ``foreign_records`` are scored records that another calibration has judged.
    """

    partition: TopicPartition
    start: int
    records: int
    foreign_records: int


def find_stretch(
    store: SegmentStore, partition: TopicPartition, span: EventSpan, calibration_fingerprint: str
) -> Stretch | None:
    """Find where a partition's part of a span begins; None where it has none. Reads footers.

    Raises:
        ScoredLogError: The log cannot be read.
    """
    start, records, foreign = None, 0, 0
    for footer in _footers(store, partition):
        if start is None and _is_before(footer, span):
            continue
        start = footer.base_offset if start is None else start
        if footer.min_event_time_ms is not None and footer.min_event_time_ms >= span.end_ms:
            continue
        records += footer.scored_rows
        is_foreign = footer.calibration_fingerprint != calibration_fingerprint
        foreign += footer.scored_rows if is_foreign else 0
    return None if start is None else Stretch(partition, start, records, foreign)


def within(summaries: Iterator[SegmentSummary], span: EventSpan) -> Iterator[SegmentSummary]:
    """Cut a partition's summaries to a span, and end where it has passed.

    Within a partition a record's time is the largest event time up to it, so nothing that comes
    after the span's end lies within.
    """
    for summary in summaries:
        yield _cut(summary, span)
        if summary.max_event_time_ms is not None and summary.max_event_time_ms >= span.end_ms:
            return


def _footers(store: SegmentStore, partition: TopicPartition) -> Iterator[SegmentFooter]:
    for file, wanted in walk(store, partition):
        yield from (part for part in file.parts() if part.base_offset >= wanted)


def _is_before(footer: SegmentFooter, span: EventSpan) -> bool:
    newest = footer.max_event_time_ms
    # A declared gap has no time: it belongs to what comes after it.
    return span.since_ms is not None and (newest is None or newest < span.since_ms)


def _cut(summary: SegmentSummary, span: EventSpan) -> SegmentSummary:
    starts = summary.panes.start_ms
    first = int(np.searchsorted(starts, span.start_ms, side="left"))
    last = int(np.searchsorted(starts, span.end_ms, side="left"))
    if (first, last) == (0, len(starts)):
        return summary
    return replace(
        summary,
        panes=summary.panes.part(first, last),
        flagged_classes=tuple(
            each for each in summary.flagged_classes if span.start_ms <= each.start_ms < span.end_ms
        ),
        examples=tuple(
            each for each in summary.examples if span.start_ms <= each.event_time_ms < span.end_ms
        ),
    )
