"""The drift monitor: merges summaries of segments, and judges the stream and each key of it.

The alerts do not depend on the number of workers, on how rows were cut into segments or on the
order in which summaries of different partitions arrive: each partition's summaries are taken in
order of offset, each offset once, and panes are closed by the minimum of the partitions'
watermarks. What does depend on time is which partition is idle; a record that comes late because
its partition was taken for idle is counted as late.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Generic, TypeVar

import structlog
from safetensors import SafetensorError

from nap_stream.clock import Clock
from nap_stream.core.alert_state import AlertState, Change, Firing, Severity, step
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.panes import ClosedPane, PaneBuffer
from nap_stream.core.sequential import (
    BET_COUNT,
    LARGEST_BET,
    QUIET_CUSUM,
    RESOLVE_RATIO,
    SMALLEST_BET,
)
from nap_stream.core.tails import EDGES
from nap_stream.drift.detectors import (
    KeyAlerts,
    KeyAlertsState,
    StreamDetectors,
    with_prefix,
)
from nap_stream.drift.evidence import Span, WindowEvidence
from nap_stream.drift.records import (
    Decision,
    DriftAlert,
    DriftSnapshot,
    DriftUpdate,
    UnscoredAlert,
)
from nap_stream.drift.state import (
    MonitorState,
    StateDocument,
    arrays_of_open,
    decode_state,
    encode_state,
    open_images,
    open_parts,
)
from nap_stream.drift.unscored import UnscoredWatch
from nap_stream.records import STATUSES, OffsetRange, SegmentSummary, TopicPartition
from nap_stream.settings.schema import Settings

Item = TypeVar("Item")


class OffsetLedger(Generic[Item]):
    """Puts items that cover offset ranges of one partition in order, each range once.

    It holds a covered stretch without holes, and what came beyond it.

    The first range fixes where the covered stretch starts. Ranges come from a chain of
    segments, so two different ones overlap only if segments were compacted in between. ``end`` is
    where the covered stretch of an earlier ledger ended; None for a new one.
    """

    def __init__(self, end: int | None = None) -> None:
        self._end = end
        self._waiting: dict[int, tuple[int, Item]] = {}
        self._known_end = end or 0
        self.duplicates = 0

    @property
    def end(self) -> int | None:
        """Where the covered stretch ends (exclusive); None before the first range."""
        return self._end

    @property
    def hole(self) -> tuple[int, int] | None:
        """The first missing range ``[start, end)`` below a range that is known to exist."""
        if self._end is None or self._known_end <= self._end:
            return None
        return self._end, min(self._waiting, default=self._known_end)

    def add(self, base: int, end: int, item: Item) -> list[Item]:
        """Take the range ``[base, end)``.

        A range that is covered or waiting already is a duplicate. One that starts within the
        covered stretch and ends beyond it cannot be divided: its rest becomes a hole.

        Returns:
            The items that are now next in order of offset, without a hole before them.
        """
        if self._end is None:
            self._end = base
        if end <= self._end or end <= self._waiting.get(base, (0, item))[0]:
            self.duplicates += 1
            return []
        self._known_end = max(self._known_end, end)
        if base < self._end:
            return []
        self._waiting[base] = (end, item)
        return self._take()

    def skip_hole(self) -> list[Item]:
        """Take the first hole for lost.

        Returns:
            The items that are now next in order of offset; empty where there is no hole.
        """
        if (hole := self.hole) is None:
            return []
        self._end = hole[1]
        return self._take()

    def _take(self) -> list[Item]:
        """Move on over waiting ranges; drop those that the covered stretch has overtaken."""
        items = []
        while self._waiting and (base := min(self._waiting)) <= (self._end or 0):
            end, item = self._waiting.pop(base)
            if base == self._end:
                self._end = end
                items.append(item)
        return items


_VERSION = 1
_DETECTORS = "detectors."
_KEYS = "keys."
_UNSCORED = "unscored."


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

    The clock tells idle partitions. The monitor goes on from the state of another one with the
    same plan and settings, if given.

    Raises:
        ValueError: The parts of the state do not belong together.
        KeyError: It lacks an array.
    """

    def __init__(
        self,
        plan: DetectionPlan,
        settings: Settings,
        clock: Clock,
        state: MonitorState | None = None,
    ) -> None:
        self.plan, self.settings, self._clock = plan, settings, clock
        self._drift, self._alerts = drift, alerts = settings.drift, settings.alerts
        self._buffer = PaneBuffer(drift.pane_ms, one_per_pane=drift.one_per_pane)
        self._known: dict[TopicPartition, KnownPartition] = {}
        self._firing: Firing | None = None
        self._implausible_timestamps = 0
        detectors, evidence, keys = None, None, None
        if state is not None:
            document, now_s = state.document, clock.monotonic()
            parts = open_parts(state)
            self._buffer.restore(
                parts, document.closed_until_ms, document.late_records, open_images(state)
            )
            for topic, number, end, watermark_ms in document.partitions:
                known = KnownPartition(now_s, OffsetLedger(end), watermark_ms)
                self._known[TopicPartition(topic, number)] = known
            self._firing = document.firing
            self._implausible_timestamps = document.untimely_records
            detectors, evidence = with_prefix(state.arrays, _DETECTORS), document.evidence
            keys = None if drift.keys is None else _keys_state(state)
        self._detectors = StreamDetectors(plan, drift.pane_ms, detectors)
        self._evidence = WindowEvidence(alerts.examples, alerts.contributors, evidence)
        self._keys = None if drift.keys is None else KeyAlerts(plan, drift.keys, alerts, keys)
        self._unscored = None if drift.unscored is None else _unscored_watch(settings, state)

    def state(self) -> MonitorState:
        """Give all that it knows, but for summaries beyond a hole: they are in the log."""
        keys = None if self._keys is None else self._keys.state()
        unscored = None if self._unscored is None else self._unscored.state()
        parts = self._buffer.open_parts()
        document = StateDocument(
            identity=self._identity(),
            partitions=[
                (name.topic, name.partition, known.ledger.end, known.watermark_ms)
                for name, known in self._known.items()
            ],
            closed_until_ms=self._buffer.closed_until_ms,
            late_records=self._buffer.late_records,
            untimely_records=self._implausible_timestamps,
            firing=self._firing,
            open=[(start, number, len(counts), counts.keys) for start, number, counts in parts],
            evidence=self._evidence.state(),
            keys=None if keys is None else keys.keys,
            keys_firing=None if keys is None else keys.firing,
            statuses=STATUSES,
            unscored=None if unscored is None else unscored[0],
        )
        arrays = {f"{_DETECTORS}{name}": a for name, a in self._detectors.state().items()}
        arrays |= arrays_of_open(self._buffer)
        if keys is not None:
            arrays |= {f"{_KEYS}{name}": a for name, a in keys.arrays.items()}
        if unscored is not None:
            arrays |= {f"{_UNSCORED}{name}": a for name, a in unscored[1].items()}
        return MonitorState(document, arrays)

    def dump(self) -> bytes:
        """Give the state, exact to the bit."""
        return encode_state(self.state())

    def restore(self, content: bytes) -> bool:
        """Take up where the monitor was that gave this `dump`. Nothing in it is executed.

        Returns:
            False where the content was made with other settings or another calibration, or cannot
            be read, which the log tells. The monitor is as before then.
        """
        try:
            state = decode_state(content, self._identity())
            if state is None:
                structlog.get_logger().info("checkpoint_of_other_settings")
                return False
            self.reset(state)
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            structlog.get_logger().warning("checkpoint_unreadable", cause=repr(error))
            return False
        return True

    def reset(self, state: MonitorState | None = None) -> None:
        """Begin anew, or from a state. A damaged one raises as in `__init__`, changing nothing."""
        vars(self).update(vars(DriftMonitor(self.plan, self.settings, self._clock, state)))

    def hold(self, partition: TopicPartition) -> None:
        """Expect more of a partition: it is not idle now, and holds the watermark back."""
        now_s, known = self._clock.monotonic(), self._known.get(partition)
        if known is None:
            self._known[partition] = KnownPartition(now_s)
        else:
            known.heard_s = now_s

    def release(self, partition: TopicPartition) -> None:
        """Expect nothing more of a partition: it no longer holds the watermark back."""
        self._known[partition].heard_s = -math.inf

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that have been named."""
        return tuple(self._known)

    def end(self, partition: TopicPartition) -> int | None:
        """Give the offset before which all of a partition has been taken; None if none has."""
        known = self._known.get(partition)
        return known.ledger.end if known else None

    def add(self, summary: SegmentSummary) -> DriftUpdate:
        """Take a summary. One that was taken before changes nothing."""
        self.hold(summary.partition)
        known = self._known[summary.partition]
        accepted = known.ledger.add(summary.base_offset, summary.end_offset, summary)
        return self._accept(known, accepted)

    def holes(self) -> tuple[OffsetRange, ...]:
        """Give the first missing offsets of each partition; what lies beyond waits for them."""
        return tuple(
            OffsetRange(name, *known.ledger.hole)
            for name, known in self._known.items()
            if known.ledger.hole
        )

    def skip_hole(self, partition: TopicPartition) -> DriftUpdate:
        """Go on without the first missing offsets of a partition."""
        known = self._known[partition]
        return self._accept(known, known.ledger.skip_hole())

    def advance(self) -> DriftUpdate:
        """Close the panes that idle partitions no longer hold back."""
        return self._judge_panes(self._buffer.close(self.watermark_ms()))

    def flush(self) -> DriftUpdate:
        """Close every pane: the input has ended."""
        return self._judge_panes(self._buffer.close_all())

    @property
    def judged_until_ms(self) -> int | None:
        """The end of the newest pane that was judged; None before the first."""
        return self._buffer.closed_until_ms

    def watermark_ms(self) -> int | None:
        """No record with an earlier event time is expected; None while nothing is known."""
        now_s, idle_s = self._clock.monotonic(), self._drift.idle_partition_s
        active = [p.watermark_ms for p in self._known.values() if now_s - p.heard_s < idle_s]
        told = [mark for mark in active if mark is not None]
        if active:
            return min(told) if len(told) == len(active) else None
        return self.newest_ms()

    def newest_ms(self) -> int | None:
        """The largest event time that any partition has brought; None while nothing is known."""
        return max(self._watermarks().values(), default=None)

    def snapshot(self) -> DriftSnapshot:
        """Say where the monitor stands."""
        window, limits, keys = self._detectors.window, self._detectors.limits, self._keys
        unscored = self._unscored
        firing = None if unscored is None else unscored.firing
        return DriftSnapshot(
            state=AlertState.INACTIVE if self._firing is None else AlertState.FIRING,
            severity=None if self._firing is None else self._firing.severity,
            window_records=0 if window is None else window.records,
            window_flagged=0 if window is None else window.flagged,
            firing_limit=None if limits is None else limits.firing,
            readings=self._detectors.readings(),
            open_panes=len(self._buffer),
            late_records=self._buffer.late_records,
            implausible_timestamps=self._implausible_timestamps,
            duplicates=sum(known.ledger.duplicates for known in self._known.values()),
            watermark_ms=self.watermark_ms(),
            partition_watermarks_ms=self._watermarks(),
            keys=0 if keys is None else len(keys.monitors),
            keys_active=0 if keys is None else keys.monitors.active_count,
            keys_firing=0 if keys is None else len(keys.firing),
            keys_forgotten=0 if keys is None else keys.monitors.evicted,
            window_end_ms=None if window is None else window.end_ms,
            unscored=None if unscored is None else unscored.share,
            unscored_reading=None if unscored is None else unscored.reading,
            unscored_since_ms=None if firing is None else firing.since_ms,
        )

    def _watermarks(self) -> dict[TopicPartition, int]:
        marks = ((name, known.watermark_ms) for name, known in self._known.items())
        return {name: mark for name, mark in marks if mark is not None}

    def _accept(self, known: KnownPartition, accepted: Sequence[SegmentSummary]) -> DriftUpdate:
        for summary in accepted:
            self._count(known, summary)
        return replace(self.advance(), accepted=tuple(accepted))

    def _count(self, known: KnownPartition, summary: SegmentSummary) -> None:
        marks = [m for m in (known.watermark_ms, self._buffer.closed_until_ms) if m is not None]
        earliest = max(marks) - max(marks) % self._drift.pane_ms if marks else None
        self._evidence.add(summary, earliest)
        if self._unscored is not None:
            self._unscored.add(summary, earliest)
        number = summary.partition.partition
        self._buffer.add(summary.panes, number, known.watermark_ms, summary.images)
        self._implausible_timestamps += summary.implausible_timestamps
        newest = [m for m in (known.watermark_ms, summary.max_event_time_ms) if m is not None]
        known.watermark_ms = max(newest, default=None)

    def _judge_panes(self, panes: Sequence[ClosedPane]) -> DriftUpdate:
        alerts: list[DriftAlert] = []
        unscored: list[UnscoredAlert] = []
        for pane in panes:
            if pane.records:
                self._detectors.push(pane)
            # Before any alert of drift, which shows how many of the images were scored.
            if self._unscored is not None:
                found = self._unscored.push(pane, self._detectors.window)
                unscored += [] if found is None else [found]
            if pane.records:
                alerts += self._judge(pane)
        if panes and (window := self._detectors.window) is not None:
            self._evidence.forget_before(window.start_ms)
        return DriftUpdate(alerts=tuple(alerts), unscored=tuple(unscored))

    def _judge(self, pane: ClosedPane) -> Iterator[DriftAlert]:
        end_ms, detectors = pane.start_ms + self._drift.pane_ms, self._detectors
        self._evidence.close(pane)
        of_keys = [] if self._keys is None else self._keys.push(pane, end_ms)
        if (change := self._step(end_ms)) is not None:
            decision = Decision(None, change, detectors.since(), detectors.readings())
            yield self._alert(decision, end_ms)
        for decision in of_keys:
            yield self._alert(decision, end_ms)

    def _step(self, end_ms: int) -> Change | None:
        active = self._detectors.active
        if self._firing is None and not active:
            return None
        is_critical = self._detectors.fraction >= self._alerts.critical_fraction
        self._firing, change = step(
            self._firing,
            active,
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=self._detectors.onset_ms(),
            now_ms=end_ms,
            repeat_interval_ms=round(self._alerts.repeat_interval_s * 1000),
        )
        return change

    def _alert(self, decision: Decision, end_ms: int) -> DriftAlert:
        key, change, is_stream = decision.key, decision.change, decision.key is None
        window, limits, evidence = self._detectors.window, self._detectors.limits, self._evidence
        assert window is not None
        # Not from before the window: what is known of that depends on when panes were closed.
        start_ms = window.start_ms if is_stream else max(change.alert.onset_ms, window.start_ms)
        span = Span(start_ms, end_ms, key)
        return DriftAlert(
            key=key,
            change=change,
            time_ms=end_ms,
            window=window,
            firing_limit=None if limits is None else limits.firing,
            resolve_limit=None if limits is None else limits.resolving,
            since=decision.since,
            readings=decision.readings,
            tail=self._detectors.tail() if is_stream else None,
            offsets=evidence.offsets(span),
            examples=evidence.examples(span),
            keys=evidence.key_contributions(span) if is_stream else (),
            classes=evidence.class_contributions(span) if is_stream else (),
            firing_keys=0 if self._keys is None else self._keys.monitors.active_count,
            unscored=None if self._unscored is None else self._unscored.share,
        )

    def _identity(self) -> str:
        tree = {
            "version": _VERSION,
            "plan": asdict(self.plan),
            "statistics": [EDGES, BET_COUNT, SMALLEST_BET, LARGEST_BET, RESOLVE_RATIO, QUIET_CUSUM],
            "pane_ms": self._drift.pane_ms,
            "keys": None if self._drift.keys is None else self._drift.keys.model_dump(),
            "topic": self.settings.kafka.topic,
        }
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _keys_state(state: MonitorState) -> KeyAlertsState:
    keys, firing = state.document.keys, state.document.keys_firing
    if keys is None or firing is None:
        raise ValueError("the state holds no keys")
    return KeyAlertsState(firing, keys, with_prefix(state.arrays, _KEYS))


def _unscored_watch(settings: Settings, state: MonitorState | None) -> UnscoredWatch:
    """The watch of a state, or a new one where the state has none of the same settings."""
    new = UnscoredWatch(settings.drift, settings.alerts)
    document = None if state is None else state.document.unscored
    if state is None or document is None or document.identity != new.identity():
        return new
    arrays = with_prefix(state.arrays, _UNSCORED)
    return UnscoredWatch(settings.drift, settings.alerts, document, arrays)
