"""What the detectors are set to: the settings and the calibration put together.

The drift monitor: merges summaries of segments and judges the stream, and each key of it.

The alerts do not depend on the number of workers, on how rows were cut into segments or on the
order in which summaries of different partitions arrive: each partition's summaries are taken in
order of offset, each offset once, and panes are closed by the minimum of the partitions'
watermarks. What does depend on time is which partition is idle; a record that comes late because
its partition was taken for idle is counted as late.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from nap_stream.clock import Clock
from nap_stream.core.alert_state import AlertState, Firing, Severity, step
from nap_stream.core.detection import DetectionPlan, plan_detection, window_firing_limit
from nap_stream.core.offset_ledger import OffsetLedger
from nap_stream.core.panes import ClosedPane, PaneBuffer
from nap_stream.core.tails import TAIL_EVENTS
from nap_stream.drift.detectors import StreamDetectors
from nap_stream.drift.evidence import Evidence, Span
from nap_stream.drift.key_alerts import KeyAlerts, KeyChange
from nap_stream.drift.records import CalibrationFacts, DriftAlert, DriftSnapshot, DriftUpdate
from nap_stream.errors import ConfigError
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.settings.schema import DriftSettings, Settings


def detection_plan(settings: DriftSettings, calibration: CalibrationFacts) -> DetectionPlan:
    """Share the promise of the settings out among the detectors.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """
    tails = zip(TAIL_EVENTS, calibration.tail_laws, strict=True)
    plan = plan_detection(
        run_length=settings.run_length,
        confidence=settings.confidence,
        window_records=settings.window_records,
        resolve_probability=settings.resolve_probability,
        flag_laws=calibration.flag_rate_laws,
        tail_laws=[(event, laws) for event, laws in tails if laws],
        groups=calibration.groups,
        with_keys=settings.keys is not None,
        calibration_fingerprint=calibration.fingerprint,
    )
    if window_firing_limit(plan, settings.window_records) > settings.window_records:
        raise ConfigError(
            f"a window of {settings.window_records} records can never fire at a run length of "
            f"{settings.run_length:g} records between false alarms",
            "drift.window_records",
            "Make the window larger",
        )
    return plan


@dataclass(slots=True)
class KnownPartition:
    """How far a partition has been taken, and when it was last heard of."""

    heard_s: float
    ledger: OffsetLedger[SegmentSummary] = field(default_factory=OffsetLedger)
    watermark_ms: int | None = None


class DriftMonitor:
    """All detectors over a stream of summaries.

    A partition's watermark is the largest event time that it has brought. The monitor's is the
    minimum over partitions that are not idle, or the maximum where all are. A record that is
    behind its partition's watermark, or whose pane is closed, counts in the oldest pane that
    is open to it, so that none is ignored.

    Args:
        plan: What the detectors are set to.
        settings: Panes, idle time, keys, and what alerts show.
        clock: Tells idle partitions.
    """

    def __init__(self, plan: DetectionPlan, settings: Settings, clock: Clock) -> None:
        self.plan, self.settings = plan, settings
        drift, alerts = settings.drift, settings.alerts
        self._drift, self._alerts, self.clock = drift, alerts, clock
        one_per_pane = drift.keys is not None and drift.keys.one_per_pane
        self.buffer = PaneBuffer(drift.pane_ms, one_per_pane=one_per_pane)
        self.detectors = StreamDetectors(plan, drift.pane_ms)
        self.key_alerts = None if drift.keys is None else KeyAlerts(plan, drift.keys, alerts)
        self.evidence = Evidence(alerts.examples, alerts.contributors)
        self.known: dict[TopicPartition, KnownPartition] = {}
        self.firing: Firing | None = None
        self.implausible_timestamps = 0

    def take_over(self, other: "DriftMonitor") -> None:
        """Go on where another monitor of the same plan and settings is; it is not used again."""
        self.buffer, self.detectors = other.buffer, other.detectors
        self.key_alerts, self.evidence = other.key_alerts, other.evidence
        self.known, self.firing = other.known, other.firing
        self.implausible_timestamps = other.implausible_timestamps

    def hold(self, partition: TopicPartition) -> None:
        """Expect more of a partition: it is not idle now, and holds the watermark back."""
        now_s = self.clock.monotonic()
        self.known.setdefault(partition, KnownPartition(now_s)).heard_s = now_s

    def release(self, partition: TopicPartition) -> None:
        """Expect nothing more of a partition: it no longer holds the watermark back."""
        self.known[partition].heard_s = -math.inf

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that have been named."""
        return tuple(self.known)

    def end(self, partition: TopicPartition) -> int | None:
        """Give the offset before which all of a partition has been taken; None if none has."""
        known = self.known.get(partition)
        return known.ledger.end if known else None

    def add(self, summary: SegmentSummary) -> DriftUpdate:
        """Take a summary. One that was taken before changes nothing."""
        self.hold(summary.partition)
        partition = self.known[summary.partition]
        accepted = partition.ledger.add(summary.base_offset, summary.end_offset, summary)
        return self._accept(partition, accepted)

    def holes(self) -> tuple[OffsetRange, ...]:
        """Give the first missing offsets of each partition; what lies beyond waits for them."""
        return tuple(
            OffsetRange(name, *partition.ledger.hole)
            for name, partition in self.known.items()
            if partition.ledger.hole
        )

    def skip_hole(self, partition: TopicPartition) -> DriftUpdate:
        """Go on without the first missing offsets of a partition."""
        known = self.known[partition]
        return self._accept(known, known.ledger.skip_hole())

    def advance(self) -> DriftUpdate:
        """Close what idle partitions no longer hold back."""
        return DriftUpdate(alerts=self._judge(self.buffer.close(self.watermark_ms())))

    def flush(self) -> DriftUpdate:
        """Close every pane: the input has ended."""
        return DriftUpdate(alerts=self._judge(self.buffer.close_all()))

    def watermark_ms(self) -> int | None:
        """No record with an earlier event time is expected; None while nothing is known."""
        now_s, idle_s = self.clock.monotonic(), self._drift.idle_partition_s
        active = [p.watermark_ms for p in self.known.values() if now_s - p.heard_s < idle_s]
        told = [mark for mark in active if mark is not None]
        if active:
            return min(told) if len(told) == len(active) else None
        return self.newest_ms()

    def newest_ms(self) -> int | None:
        """The largest event time that any partition has brought; None while nothing is known."""
        marks = [p.watermark_ms for p in self.known.values() if p.watermark_ms is not None]
        return max(marks, default=None)

    def snapshot(self) -> DriftSnapshot:
        """Say where the monitor stands."""
        window, limits = self.detectors.window, self.detectors.limits
        keys = self.key_alerts
        return DriftSnapshot(
            state=AlertState.INACTIVE if self.firing is None else AlertState.FIRING,
            severity=None if self.firing is None else self.firing.severity,
            window_records=window.records if window else 0,
            window_flagged=window.flagged if window else 0,
            firing_limit=None if limits is None else limits.firing,
            readings=self.detectors.readings(),
            open_panes=len(self.buffer),
            late_records=self.buffer.late_records,
            implausible_timestamps=self.implausible_timestamps,
            duplicates=sum(p.ledger.duplicates for p in self.known.values()),
            watermark_ms=self.watermark_ms(),
            partition_watermarks_ms={
                name: known.watermark_ms
                for name, known in self.known.items()
                if known.watermark_ms is not None
            },
            keys=0 if keys is None else len(keys.monitors),
            keys_active=0 if keys is None else keys.monitors.active_count,
            keys_firing=0 if keys is None else len(keys.firing),
            keys_forgotten=0 if keys is None else keys.monitors.evicted,
        )

    def _accept(self, partition: KnownPartition, accepted: list[SegmentSummary]) -> DriftUpdate:
        for summary in accepted:
            self._count(partition, summary)
        return DriftUpdate(tuple(accepted), self.advance().alerts)

    def _count(self, partition: KnownPartition, summary: SegmentSummary) -> None:
        marks = [m for m in (partition.watermark_ms, self.buffer.closed_until_ms) if m is not None]
        earliest = max(marks) - max(marks) % self._drift.pane_ms if marks else None
        self.evidence.add(summary, earliest)
        self.buffer.add(summary.panes, summary.partition.partition, partition.watermark_ms)
        self.implausible_timestamps += summary.implausible_timestamps
        if summary.max_event_time_ms is not None:
            known_ms = partition.watermark_ms
            newest_ms = summary.max_event_time_ms
            partition.watermark_ms = newest_ms if known_ms is None else max(newest_ms, known_ms)

    def _judge(self, panes: list[ClosedPane]) -> tuple[DriftAlert, ...]:
        alerts = [alert for pane in panes for alert in self._judge_pane(pane)]
        if panes and (window := self.detectors.window) is not None:
            self.evidence.forget_before(window.start_ms)
        return tuple(alerts)

    def _judge_pane(self, pane: ClosedPane) -> Iterator[DriftAlert]:
        end_ms = pane.start_ms + self._drift.pane_ms
        self.detectors.push(pane)
        self.evidence.close(pane)
        key_changes = [] if self.key_alerts is None else self.key_alerts.push(pane, end_ms)
        yield from self._judge_stream(end_ms)
        for each in key_changes:
            yield self._key_alert(each, end_ms)

    def _judge_stream(self, end_ms: int) -> Iterator[DriftAlert]:
        detectors = self.detectors
        is_critical = detectors.fraction >= self._alerts.critical_fraction
        active = detectors.active
        if self.firing is None and not active:
            return
        self.firing, change = step(
            self.firing,
            active,
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=detectors.onset_ms(),
            now_ms=end_ms,
            repeat_interval_ms=round(self._alerts.repeat_interval_s * 1000),
        )
        if change is None:
            return
        window, limits, keys = detectors.window, detectors.limits, self.key_alerts
        span = Span(end_ms if window is None else window.start_ms, end_ms)
        yield DriftAlert(
            key=None,
            change=change,
            time_ms=end_ms,
            window=window,
            firing_limit=None if limits is None else limits.firing,
            resolve_limit=None if limits is None else limits.resolving,
            since=detectors.since(),
            readings=detectors.readings(),
            tail=detectors.tail(),
            offsets=self.evidence.offsets(span),
            examples=self.evidence.examples(span),
            keys=self.evidence.key_contributions(span),
            classes=self.evidence.class_contributions(span),
            firing_keys=0 if keys is None else keys.monitors.active_count,
        )

    def _key_alert(self, found: KeyChange, end_ms: int) -> DriftAlert:
        assert self.key_alerts is not None
        window, limits = self.detectors.window, self.detectors.limits
        # Not from before the window: what is known of that depends on when panes were closed.
        earliest_ms = end_ms - 1 if window is None else window.start_ms
        span = Span(max(found.change.alert.onset_ms, earliest_ms), end_ms, found.key)
        return DriftAlert(
            key=found.key,
            change=found.change,
            time_ms=end_ms,
            window=window,
            firing_limit=None if limits is None else limits.firing,
            resolve_limit=None if limits is None else limits.resolving,
            since=found.since,
            readings=(found.reading,),
            offsets=self.evidence.offsets(span),
            examples=self.evidence.examples(span),
            firing_keys=self.key_alerts.monitors.active_count,
        )
