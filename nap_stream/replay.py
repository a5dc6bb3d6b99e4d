"""Recomputes all alerts from the scored log: for audits, and to try other settings on history."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from nap_stream.alert.event import AlertEvent, alert_event, gap_event
from nap_stream.clock import ManualClock
from nap_stream.core.tails import EDGES
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import CalibrationFacts, DriftUpdate
from nap_stream.monitor.summaries import LAST_OFFSET, in_event_time
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.scored_log.read import topic_partitions
from nap_stream.scored_log.stores.base import SegmentStore
from nap_stream.scored_log.summary import summarise_chain, summary_shape
from nap_stream.scored_log.time_range import EventSpan, Stretch, find_stretch, within
from nap_stream.settings.schema import Settings

Advance = Callable[[int, int | None], None]
"""Told how many records have been judged, of how many."""
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

    ``records`` are scored ones. ``alerts`` counts events by the last part of their type. Of the
    records, ``late`` came after their pane was closed; at least ``contradicting`` are flagged
    although their p-value is above the calibration's alpha, or the other way round; ``foreign``
    were judged by another calibration. ``missing`` is what the log lacks.
    """

    partitions: int
    segments: int
    records: int
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
    advance: Advance,
) -> ReplayReport:
    """Judge the log of the settings' topic anew, from an empty window, and flush at the end.

    Partitions are read side by side in event time, so that memory stays bounded. No partition is
    idle until its chain has ended: what came late to a monitor at work is not late here. Where
    nothing was late, and the monitor began where the log does, the alerts have the same ids.
    Missing offsets are given up at once: what a chain lacks when it is read in order does not come
    later. ``on_alert`` is told of each alert, in order.

    Raises:
        ConfigError: The window is too small to fire.
        LogRootError: There is no log, or it has no partition of the topic.
        ScoredLogError: The log cannot be read.
    """
    plan = detection_plan(settings.drift, calibration)
    # The clock stands still: only the log's own times count.
    monitor = DriftMonitor(plan, settings, ManualClock())
    names = topic_partitions(store, settings.kafka.topic)
    found = (find_stretch(store, name, span, calibration.fingerprint) for name in names)
    stretches = {stretch.partition: stretch for stretch in found if stretch is not None}
    shape, program = summary_shape(settings), version("nap-stream")
    chains = {
        name: within(
            summarise_chain(store, name, stretch.start, LAST_OFFSET, shape), span, shape.pane_ms
        )
        for name, stretch in stretches.items()
    }
    counters = _Counters(calibration.alpha, stretches)

    def tell(update: DriftUpdate) -> None:
        for summary in update.accepted:
            counters.count(summary)
        events = [gap_event(s, settings, program) for s in update.accepted if s.gap is not None]
        events += [alert_event(a, plan, settings, calibration, program) for a in update.alerts]
        for event in events:
            counters.alerts[event.state] += 1
            on_alert(event)

    total = sum(stretch.records for stretch in stretches.values())
    for partition in chains:
        monitor.hold(partition)
    for partition, summary in in_event_time(chains):
        if summary is None:
            monitor.release(partition)
            tell(monitor.advance())
        else:
            tell(monitor.add(summary))
            for hole in monitor.holes():
                counters.missing = counters.missing.plus(hole)
                tell(monitor.skip_hole(hole.partition))
            advance(counters.records, max(total, counters.records))
    tell(monitor.flush())
    return ReplayReport(
        partitions=len(chains),
        segments=counters.segments,
        records=counters.records,
        alerts=dict(counters.alerts),
        late=monitor.snapshot().late_records,
        contradicting=counters.contradicting,
        foreign=counters.foreign,
        missing=counters.missing,
    )


class _Counters:
    """What has been judged so far, and what was missing."""

    def __init__(self, alpha: float, stretches: Mapping[TopicPartition, Stretch]) -> None:
        self._alpha, self._stretches = alpha, stretches
        self.segments = self.records = self.contradicting = self.foreign = 0
        self.missing = MissingOffsets()
        self.alerts = Counter[str]()

    def count(self, summary: SegmentSummary) -> None:
        records = int(summary.panes.records.sum())
        self.segments += 1
        self.records += records
        if self._stretches[summary.partition].is_foreign(summary.base_offset):
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
