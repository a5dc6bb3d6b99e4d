"""All alerts again, from the scored log or a part of it: for audits, and to try other settings."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from nap_stream.alert.event import AlertEvent, gap_event
from nap_stream.alert.unscored import event_of
from nap_stream.clock import ManualClock, Progress
from nap_stream.core.tails import EDGES
from nap_stream.drift.block_alerts import block_watch
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import CalibrationFacts, DriftUpdate
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.scored_log.acceptances import AcceptanceReader
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.read import stream_partitions, walk
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import LAST_OFFSET, in_event_time, summarise_chain, summary_shape
from nap_stream.settings.schema import Settings


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
class PartitionRange:
    """The offsets from which a partition's records lie in a span, and what the footers say of them.

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


def find_range(
    store: SegmentStore, partition: TopicPartition, span: EventSpan, calibration_fingerprint: str
) -> PartitionRange | None:
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
    return None if start is None else PartitionRange(partition, start, records, tuple(foreign))


def within(
    summaries: Iterable[SegmentSummary], span: EventSpan, pane_ms: int
) -> Iterator[SegmentSummary]:
    """Cut a partition's summaries to a span, and end where it has passed.

    Within a partition a record's time is the largest event time up to it, as for the monitor:
    what comes late, behind a record of the span, lies within, and nothing that comes after the
    span's end. The summaries come in order of offset; ``pane_ms`` is the width of their panes.
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

    def cut(starts: NDArray[np.int64]) -> tuple[int, int]:
        placed = starts if earliest_ms is None else np.maximum(starts, earliest_ms)
        return tuple(np.searchsorted(placed, (span.start_ms, span.end_ms)).tolist())

    panes, images = summary.panes, summary.images
    of_panes, of_images = cut(panes.start_ms), cut(images.start_ms)
    if of_panes == (0, len(panes)) and of_images == (0, len(images)):
        return summary
    return replace(
        summary,
        panes=panes.part(*of_panes),
        images=images.part(*of_images),
        unscored=tuple(each for each in summary.unscored if is_within(each.start_ms)),
        flagged_classes=tuple(each for each in summary.flagged_classes if is_within(each.start_ms)),
        examples=tuple(each for each in summary.examples if is_within(each.event_time_ms)),
    )


SHOWN_RANGES = 5
"""How many ranges of missing offsets are named."""


@dataclass(frozen=True, slots=True)
class MissingOffsets:
    """Offsets that no segment has, though a later one of their partition was judged.

    ``offsets`` of them in ``ranges`` ranges; ``first`` are the first `SHOWN_RANGES` that were met.
    """

    ranges: int = 0
    offsets: int = 0
    first: tuple[OffsetRange, ...] = ()

    def plus(self, hole: OffsetRange) -> "MissingOffsets":
        """Count one more."""
        return MissingOffsets(
            self.ranges + 1,
            self.offsets + hole.end - hole.start,
            (*self.first, hole)[:SHOWN_RANGES],
        )


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What was replayed.

    ``records`` are scored ones, ``unscored`` images have no scores. ``alerts`` counts events by the
    last part of their type. Of the records, ``late`` came after their pane was closed; at least
    ``contradicting`` are flagged although their p-value is above the calibration's alpha, or the
    other way round; ``foreign`` were judged by another calibration. ``missing`` is what the log
    lacks.
    """

    partitions: int
    segments: int
    records: int
    unscored: int
    alerts: Mapping[str, int]
    late: int
    contradicting: int
    foreign: int
    missing: MissingOffsets


def replay(
    store: SegmentStore,
    settings: Settings,
    calibration: CalibrationFacts,
    *,
    span: EventSpan,
    on_alert: Callable[[AlertEvent], None],
    advance: Progress,
) -> ReplayReport:
    """Judge the log of the settings' topic anew, from an empty window, and flush at the end.

    Partitions are read side by side in event time, so that memory stays bounded. No partition is
    idle until its chain has ended: what came late to a monitor at work is not late here. Where
    nothing was late, and the monitor began where the log does, the alerts have the same ids.
    Missing offsets are given up at once: what a chain lacks when it is read in order does not come
    later. Where blocks decide, the acceptances of the log count as they did for the monitor.
    ``on_alert`` is told of each alert, in order.

    Raises:
        ConfigError: The window is too small to fire.
        LogRootError: There is no log, or it has no partition of the topic.
        ScoredLogError: The log cannot be read.
    """
    plan = detection_plan(settings.drift, calibration)
    watch = block_watch(settings.drift, calibration)
    # The clock stands still: only the log's own times count.
    monitor = DriftMonitor(plan, settings, ManualClock(), watch=watch)
    if watch is not None:
        monitor.accept(AcceptanceReader(store, settings.kafka.topic, ManualClock()).read())
    names = stream_partitions(store, settings.kafka.topic, settings.reads)
    found = (find_range(store, name, span, calibration.fingerprint) for name in names)
    ranges = {part.partition: part for part in found if part is not None}
    shape, program = summary_shape(settings), version("nap-stream")
    chains = {
        name: within(
            summarise_chain(store, name, part.start, LAST_OFFSET, shape), span, shape.pane_ms
        )
        for name, part in ranges.items()
    }
    counters = _Counters(calibration.alpha, ranges)

    def tell(update: DriftUpdate) -> None:
        for summary in update.accepted:
            counters.count(summary)
        events = [gap_event(s, settings, program) for s in update.accepted if s.gap is not None]
        events += [
            event_of(alert, plan, settings, calibration, program) for alert in update.decided
        ]
        for event in events:
            counters.alerts[event.state] += 1
            on_alert(event)

    total = sum(part.records for part in ranges.values())
    for partition in chains:
        monitor.partitions.hold(partition)
    for partition, summary in in_event_time(chains):
        if summary is None:
            monitor.partitions.release(partition)
            tell(monitor.advance())
        else:
            tell(monitor.add(summary))
            for hole in monitor.partitions.holes():
                counters.missing = counters.missing.plus(hole)
                tell(monitor.skip_hole(hole.partition))
            advance(counters.records, max(total, counters.records))
    tell(monitor.flush())
    return ReplayReport(
        partitions=len(chains),
        segments=counters.segments,
        records=counters.records,
        unscored=counters.unscored,
        alerts=dict(counters.alerts),
        late=monitor.snapshot().late_records,
        contradicting=counters.contradicting,
        foreign=counters.foreign,
        missing=counters.missing,
    )


class _Counters:
    """What has been judged so far, and what was missing."""

    def __init__(self, alpha: float, ranges: Mapping[TopicPartition, PartitionRange]) -> None:
        self._alpha, self._ranges = alpha, ranges
        self.segments = self.records = self.unscored = 0
        self.contradicting = self.foreign = 0
        self.missing = MissingOffsets()
        self.alerts = Counter[str]()

    def count(self, summary: SegmentSummary) -> None:
        records = int(summary.panes.records.sum())
        self.segments += 1
        self.records += records
        self.unscored += int(summary.images.images.sum()) - records
        if self._ranges[summary.partition].is_foreign(summary.base_offset):
            self.foreign += records
        self.contradicting += contradicting_flags(summary, self._alpha)


def contradicting_flags(summary: SegmentSummary, alpha: float) -> int:
    """Count records that are flagged against their p-value: at least so many.

    A summary counts p-values by bin, and shows those of a few flagged records. So nothing is known
    of the others whose p-value lies in the same bin as alpha.
    """
    bins, flagged = summary.panes.bins.sum(axis=0), int(summary.panes.flagged.sum())
    must = int(sum(n for n, upper in zip(bins, (*EDGES, 1.0), strict=True) if upper <= alpha))
    may = int(sum(n for n, lower in zip(bins, (0.0, *EDGES), strict=True) if lower < alpha))
    seen = sum(example.ood_p_value > alpha for example in summary.examples)
    return max(must - flagged, flagged - may, seen, 0)
