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
    nothing was, and the monitor began where the log does, the alerts have the same ids. Missing
    offsets are given up at once: what a chain lacks when it is read in order does not come later.

    Args:
        store: Where the log lies.
        settings: Name the topic, and say when it has drifted.
        calibration: What flags are judged by.
        span: The event times that are judged.
        on_alert: Told of each alert, in order.
        advance: See `Advance`.

    Raises:
        ConfigError: The window is too small to fire.
        LogRootError: There is no log, or it has no partition of the topic.
        ScoredLogError: The log cannot be read.
    """
    plan = detection_plan(settings.drift, calibration)
    # It stands still: only the log's own times count.
    monitor = DriftMonitor(plan, settings, ManualClock())
    stretches = _stretches(store, settings, calibration, span)
    shape, program = summary_shape(settings), version("nap-stream")
    chains = {
        name: within(
            summarise_chain(store, name, stretch.start, LAST_OFFSET, shape), span, shape.pane_ms
        )
        for name, stretch in stretches.items()
    }
    tally = _Tally(calibration.alpha, stretches)

    def tell(update: DriftUpdate) -> None:
        for summary in update.accepted:
            tally.take(summary)
        events = [gap_event(s, settings, program) for s in update.accepted if s.gap is not None]
        events += [alert_event(a, plan, settings, calibration, program) for a in update.alerts]
        for event in events:
            tally.alerts[event.state] += 1
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
                tally.missing = tally.missing.plus(hole)
                tell(monitor.skip_hole(hole.partition))
            advance(tally.records, max(total, tally.records))
    tell(monitor.flush())
    return ReplayReport(
        partitions=len(chains),
        segments=tally.segments,
        records=tally.records,
        alerts=dict(tally.alerts),
        late=monitor.snapshot().late_records,
        contradicting=tally.contradicting,
        foreign=tally.foreign,
        missing=tally.missing,
    )


def _stretches(
    store: SegmentStore, settings: Settings, calibration: CalibrationFacts, span: EventSpan
) -> dict[TopicPartition, Stretch]:
    found = [
        find_stretch(store, partition, span, calibration.fingerprint)
        for partition in topic_partitions(store, settings.kafka.topic)
    ]
    return {stretch.partition: stretch for stretch in found if stretch is not None}


class _Tally:
    """What has been judged so far, and what was missing."""

    def __init__(self, alpha: float, stretches: Mapping[TopicPartition, Stretch]) -> None:
        self._alpha, self._stretches = alpha, stretches
        self.segments = self.records = self.contradicting = self.foreign = 0
        self.missing = MissingOffsets()
        self.alerts = Counter[str]()

    def take(self, summary: SegmentSummary) -> None:
        records = int(summary.panes.records.sum())
        self.segments += 1
        self.records += records
        if self._stretches[summary.partition].is_foreign(summary.base_offset):
            self.foreign += records
        self.contradicting += contradicting_flags(summary, self._alpha)


def contradicting_flags(summary: SegmentSummary, alpha: float) -> int:
    """Count records that are flagged against their p-value: at least so many.

    A summary has p-values by bin, and a few of flagged records: those that lie within alpha's own
    bin cannot be told.
    """
    bins = summary.panes.bins.sum(axis=0)
    flagged = int(summary.panes.flagged.sum())
    uppers = (*EDGES, 1.0)
    must = int(sum(n for n, upper in zip(bins, uppers, strict=True) if upper <= alpha))
    lowers = (0.0, *EDGES)
    may = int(sum(n for n, lower in zip(bins, lowers, strict=True) if lower < alpha))
    seen = sum(example.ood_p_value > alpha for example in summary.examples)
    return max(must - flagged, flagged - may, seen, 0)
