"""The drift monitor: merges summaries of segments and judges the rolling window.

The verdicts do not depend on the number of workers or on the order in which summaries of
different partitions arrive: each partition's summaries are taken in order of offset, each
offset once, and panes are closed by the minimum of the partitions' watermarks.
"""

from dataclasses import dataclass, field

from nap_stream.clock import Clock
from nap_stream.core.alert_state import AlertState, step
from nap_stream.core.offset_ledger import OffsetLedger
from nap_stream.core.windows import Pane, RollingWindow, WindowState, merge_panes
from nap_stream.drift.evidence import Evidence
from nap_stream.drift.limits import window_limits
from nap_stream.records import (
    CalibrationFacts,
    DriftVerdict,
    OffsetRange,
    SegmentSummary,
    TopicPartition,
)
from nap_stream.settings import DriftSettings

MAX_CLOCK_SKEW_MS = 60_000
"""An event time further ahead of the clock counts as now: no camera's clock stops the monitor."""


@dataclass(frozen=True, slots=True)
class DriftUpdate:
    """What came of a call: summaries taken for the first time, and verdicts, both in order."""

    accepted: tuple[SegmentSummary, ...] = ()
    verdicts: tuple[DriftVerdict, ...] = ()


@dataclass(frozen=True, slots=True)
class DriftSnapshot:
    """The monitor now. ``firing_limit`` is a count, null until the window is full.

    ``late_records`` and ``future_records`` were counted in another pane than their event
    time's: in a later one that was still open, or in that of the clock.
    """

    state: AlertState
    window_records: int
    window_flagged: int
    firing_limit: int | None
    open_panes: int
    late_records: int
    future_records: int
    duplicates: int

    @property
    def fraction(self) -> float | None:
        """The OOD fraction of the window, full or not; None while it is empty."""
        return self.window_flagged / self.window_records if self.window_records else None

    @property
    def bound(self) -> float | None:
        """The OOD fraction that fires; None until the window is full."""
        return None if self.firing_limit is None else self.firing_limit / self.window_records


@dataclass(slots=True)
class _Partition:
    heard_s: float
    ledger: OffsetLedger[SegmentSummary] = field(default_factory=OffsetLedger)
    watermark_ms: int | None = None


class DriftMonitor:
    """Rolling OOD fraction against the beta-binomial bound, as a pure function of its input.

    A partition's watermark is the largest event time that it has brought. The monitor's is the
    minimum over partitions that are not idle, or the maximum where all are. A record that is
    behind its partition's watermark, or whose pane is closed, counts in the oldest pane that
    is open to it, so that none is ignored.

    Args:
        settings: Window, probabilities and idle time.
        calibration: Gives the laws of the flag rate.
        examples: How many records a transition shows as evidence.
        clock: Tells idle partitions and event times that lie in the future.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """

    def __init__(
        self,
        settings: DriftSettings,
        calibration: CalibrationFacts,
        *,
        examples: int,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._limits = window_limits(settings, calibration)
        self._window = RollingWindow(settings.window_records, settings.pane_ms)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._evidence = Evidence(examples)
        self._state = AlertState.INACTIVE
        self._late_records = 0
        self._future_records = 0

    def hold(self, partition: TopicPartition) -> None:
        """Expect more of a partition: it is not idle now, and holds the watermark back."""
        now_s = self._clock.monotonic()
        self._partitions.setdefault(partition, _Partition(now_s)).heard_s = now_s

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that have been named."""
        return tuple(self._partitions)

    def end(self, partition: TopicPartition) -> int | None:
        """Give the offset before which all of a partition has been taken; None if none has."""
        known = self._partitions.get(partition)
        return known.ledger.end if known else None

    def add(self, summary: SegmentSummary) -> DriftUpdate:
        """Take a summary. One that was taken before changes nothing."""
        self.hold(summary.partition)
        partition = self._partitions[summary.partition]
        accepted = partition.ledger.add(summary.base_offset, summary.end_offset, summary)
        return self._accept(partition, accepted)

    def holes(self) -> tuple[OffsetRange, ...]:
        """Give the first missing offsets of each partition; what lies beyond waits for them."""
        return tuple(
            OffsetRange(name, *partition.ledger.hole)
            for name, partition in self._partitions.items()
            if partition.ledger.hole
        )

    def skip_hole(self, partition: TopicPartition) -> DriftUpdate:
        """Go on without the first missing offsets of a partition."""
        known = self._partitions[partition]
        return self._accept(known, known.ledger.skip_hole())

    def advance(self) -> DriftUpdate:
        """Close what idle partitions no longer hold back."""
        return DriftUpdate(verdicts=self._judge(self._window.close(self._watermark())))

    def flush(self) -> DriftUpdate:
        """Close every pane: the input has ended."""
        return DriftUpdate(verdicts=self._judge(self._window.close_all()))

    def snapshot(self) -> DriftSnapshot:
        """Say where the monitor stands."""
        window = self._window.state
        records = window.records if window else 0
        full = records >= self._settings.window_records
        return DriftSnapshot(
            state=self._state,
            window_records=records,
            window_flagged=window.flagged if window else 0,
            firing_limit=self._limits(records)[0] if full else None,
            open_panes=self._window.open_panes,
            late_records=self._late_records,
            future_records=self._future_records,
            duplicates=sum(p.ledger.duplicates for p in self._partitions.values()),
        )

    def _accept(self, partition: _Partition, accepted: list[SegmentSummary]) -> DriftUpdate:
        for summary in accepted:
            self._count(partition, summary)
        return DriftUpdate(tuple(accepted), self.advance().verdicts)

    def _count(self, partition: _Partition, summary: SegmentSummary) -> None:
        now_ms = self._clock.now_ms()
        bounds = (partition.watermark_ms, self._window.closed_until_ms)
        earliest_ms = max((bound for bound in bounds if bound is not None), default=None)

        def credible(time_ms: int) -> int:
            return time_ms if time_ms <= now_ms + MAX_CLOCK_SKEW_MS else now_ms

        def place(time_ms: int) -> int:
            placed = credible(time_ms)
            placed = placed if earliest_ms is None else max(placed, earliest_ms)
            return placed - placed % self._settings.pane_ms

        panes = merge_panes(Pane(place(p.start_ms), p.records, p.flagged) for p in summary.panes)
        self._window.add(panes)
        for pane in summary.panes:
            moved = place(pane.start_ms) - pane.start_ms
            self._late_records += pane.records if moved > 0 else 0
            self._future_records += pane.records if moved <= -self._settings.pane_ms else 0
        self._evidence.add(summary, panes, place)
        if summary.max_event_time_ms is not None:
            newest_ms = credible(summary.max_event_time_ms)
            known_ms = partition.watermark_ms
            partition.watermark_ms = newest_ms if known_ms is None else max(newest_ms, known_ms)

    def _watermark(self) -> int | None:
        now_s, idle_s = self._clock.monotonic(), self._settings.idle_partition_s
        active = [p.watermark_ms for p in self._partitions.values() if now_s - p.heard_s < idle_s]
        known = [mark for mark in active if mark is not None]
        if active:
            return min(known) if len(known) == len(active) else None
        marks = [p.watermark_ms for p in self._partitions.values() if p.watermark_ms is not None]
        return max(marks, default=None)

    def _judge(self, states: list[WindowState]) -> tuple[DriftVerdict, ...]:
        full = [state for state in states if state.records >= self._settings.window_records]
        verdicts = tuple(self._verdict(window) for window in full)
        if states:
            self._evidence.forget_before(states[-1].start_ms)
        return verdicts

    def _verdict(self, window: WindowState) -> DriftVerdict:
        firing_limit, resolve_limit = self._limits(window.records)
        self._state, transition = step(self._state, window.flagged, firing_limit, resolve_limit)
        return DriftVerdict(
            window_start_ms=window.start_ms,
            window_end_ms=window.end_ms,
            records=window.records,
            flagged=window.flagged,
            firing_limit=firing_limit,
            resolve_limit=resolve_limit,
            state=self._state,
            transition=transition,
            offsets=self._evidence.offsets(window) if transition else (),
            examples=self._evidence.examples(window) if transition else (),
        )
