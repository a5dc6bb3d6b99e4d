"""The drift monitor: merges summaries of segments, and judges the stream and each key of it.

The alerts do not depend on the number of workers, on how rows were cut into segments or on the
order in which summaries of different partitions arrive: each partition's summaries are taken in
order of offset, each offset once, and panes are closed by the minimum of the partitions'
watermarks. What does depend on time is which partition is idle; a record that comes late because
its partition was taken for idle is counted as late.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import structlog
from safetensors import SafetensorError

from nap_stream.clock import Clock
from nap_stream.core.alert_state import AlertState, Change, Firing, Severity, step
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.hidden_keys import Stored
from nap_stream.core.panes import NO_KEY, ClosedPane, PaneBuffer
from nap_stream.core.sequential import (
    BET_COUNT,
    LARGEST_BET,
    QUIET_CUSUM,
    RESOLVE_RATIO,
    SMALLEST_BET,
)
from nap_stream.core.tails import EDGES
from nap_stream.drift.block_alerts import BlockAlerts, BlockWatch
from nap_stream.drift.detectors import StreamDetectors, with_prefix
from nap_stream.drift.evidence import Span, WindowEvidence
from nap_stream.drift.key_alerts import KeyAlerts, KeyAlertsState
from nap_stream.drift.partitions import KnownPartition, Partitions
from nap_stream.drift.records import (
    Decision,
    DetectorReading,
    DriftAlert,
    DriftSnapshot,
    DriftUpdate,
    FiringKey,
    UnscoredAlert,
    Verdict,
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
from nap_stream.records import STATUSES, Acceptance, SegmentSummary, TopicPartition
from nap_stream.settings.schema import Settings

_VERSION = 1
_LATE = "it takes effect with the next pane; a replay takes it into account earlier"
_BLOCKS_VERSION = 1
"""Of how blocks are judged: another state means another."""
_DETECTORS = "detectors."
_KEYS = "keys."
_UNSCORED = "unscored."
_BLOCKS = "blocks."


class _KeyCounts(NamedTuple):
    known: int
    active: int
    firing: Mapping[str, FiringKey]
    forgotten: int


class DriftMonitor:
    """All detectors over a stream of summaries.

    ``partitions`` are those that have been named. A record that is behind its partition's
    watermark, or whose pane is closed, counts in the oldest pane that is open to it, so that none
    is ignored.

    The clock tells idle partitions. The monitor goes on from the state of another one with the
    same plan and settings, if given. With a ``watch``, blocks decide, and the detectors of single
    records are shown beside.

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
        *,
        watch: BlockWatch | None = None,
    ) -> None:
        self.plan, self.settings, self._clock, self._watch = plan, settings, clock, watch
        self._drift, self._alerts = drift, alerts = settings.drift, settings.alerts
        self._buffer = PaneBuffer(drift.pane_ms, one_per_pane=drift.one_per_pane)
        self.partitions = Partitions(clock, drift.idle_partition_s)
        self._firing: Firing | None = None
        self._implausible_timestamps = 0
        detectors, evidence, keys = None, None, None
        if state is not None:
            document, parts = state.document, open_parts(state)
            self._buffer.restore(
                parts, document.closed_until_ms, document.late_records, open_images(state)
            )
            self.partitions.restore(document.partitions)
            self._firing = document.firing
            self._implausible_timestamps = document.untimely_records
            detectors, evidence = with_prefix(state.arrays, _DETECTORS), document.evidence
            keys = None if drift.keys is None or watch is not None else _keys_state(state)
        self._detectors = StreamDetectors(plan, drift.pane_ms, detectors)
        self._evidence = WindowEvidence(alerts.examples, alerts.contributors, evidence)
        self._keys = None
        if drift.keys is not None and watch is None:
            self._keys = KeyAlerts(plan, drift.keys, alerts, keys)
        self._unscored = None if drift.unscored is None else _unscored_watch(settings, state)
        self._blocks = None if watch is None else _block_alerts(watch, settings, state)
        self._acceptances: dict[int, Acceptance] = {}

    def state(self) -> MonitorState:
        """Give all that it knows, but for summaries beyond a hole: they are in the log."""
        keys = None if self._keys is None else self._keys.state()
        unscored = None if self._unscored is None else self._unscored.state()
        blocks = None if self._blocks is None else self._blocks.state()
        parts = self._buffer.open_parts()
        document = StateDocument(
            identity=self._identity(),
            partitions=self.partitions.state(),
            closed_until_ms=self._buffer.closed_until_ms,
            late_records=self._buffer.late_records,
            untimely_records=self._implausible_timestamps,
            firing=self._firing,
            open=[(start, number, len(counts), counts.keys) for start, number, counts in parts],
            evidence=self._evidence.state(),
            keys=None if keys is None else keys.keys,
            keys_firing=None if keys is None else list(keys.firing),
            statuses=STATUSES,
            unscored=None if unscored is None else unscored[0],
            blocks=None if blocks is None else blocks[0],
        )
        arrays = {f"{_DETECTORS}{name}": a for name, a in self._detectors.state().items()}
        arrays |= arrays_of_open(self._buffer)
        if keys is not None:
            arrays |= {f"{_KEYS}{name}": a for name, a in keys.arrays.items()}
        if unscored is not None:
            arrays |= {f"{_UNSCORED}{name}": a for name, a in unscored[1].items()}
        if blocks is not None:
            arrays |= {f"{_BLOCKS}{name}": a for name, a in blocks[1].items()}
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
        """Begin anew, or from a state. A damaged one raises as in `__init__`, changing nothing.

        What was accepted stays known.
        """
        known, watch = self._acceptances, self._watch
        anew = DriftMonitor(self.plan, self.settings, self._clock, state, watch=watch)
        vars(self).update(vars(anew) | {"_acceptances": known})

    def accept(self, acceptances: Iterable[Acceptance]) -> None:
        """Know of acceptances: each counts once, with the first pane that ends as it takes effect.

        Where single records decide there is nothing that could begin anew: they change nothing.
        """
        new = {each.number: each for each in acceptances if each.number not in self._acceptances}
        self._acceptances |= new
        until_ms, blocks = self.judged_until_ms, self._blocks
        if until_ms is None or blocks is None:
            return
        for each in new.values():
            if each.effective_ms <= until_ms and blocks.is_new(each):
                structlog.get_logger().warning(
                    "acceptance_late", number=each.number, key=each.key, cause=_LATE
                )

    def add(self, summary: SegmentSummary) -> DriftUpdate:
        """Take a summary. One that was taken before changes nothing."""
        self.partitions.hold(summary.partition)
        known = self.partitions[summary.partition]
        accepted = known.ledger.add(summary.base_offset, summary.end_offset, summary)
        return self._accept(known, accepted)

    def skip_hole(self, partition: TopicPartition) -> DriftUpdate:
        """Go on without the first missing offsets of a partition."""
        known = self.partitions[partition]
        return self._accept(known, known.ledger.skip_hole())

    def advance(self) -> DriftUpdate:
        """Close the panes that idle partitions no longer hold back."""
        return self._judge_panes(self._buffer.close(self.partitions.watermark_ms()))

    def flush(self) -> DriftUpdate:
        """Close every pane: the input has ended."""
        return self._judge_panes(self._buffer.close_all())

    @property
    def judged_until_ms(self) -> int | None:
        """The end of the newest pane that was judged; None before the first."""
        return self._buffer.closed_until_ms

    def snapshot(self) -> DriftSnapshot:
        """Say where the monitor stands."""
        window, limits, keys = self._detectors.window, self._detectors.limits, self._key_counts()
        unscored, blocks = self._unscored, self._blocks
        firing = None if unscored is None else unscored.firing
        return DriftSnapshot(
            state=AlertState.INACTIVE if self._firing is None else AlertState.FIRING,
            severity=None if self._firing is None else self._firing.severity,
            window_records=0 if window is None else window.records,
            window_flagged=0 if window is None else window.flagged,
            firing_limit=None if limits is None else limits.firing,
            readings=self._detectors.readings() if blocks is None else self._beside(None),
            open_panes=len(self._buffer),
            late_records=self._buffer.late_records,
            implausible_timestamps=self._implausible_timestamps,
            duplicates=self.partitions.duplicates,
            watermark_ms=self.partitions.watermark_ms(),
            partition_watermarks_ms=self.partitions.watermarks(),
            keys=keys.known,
            keys_active=keys.active,
            keys_firing=len(keys.firing),
            keys_forgotten=keys.forgotten,
            window_end_ms=None if window is None else window.end_ms,
            unscored=None if unscored is None else unscored.share,
            unscored_reading=None if unscored is None else unscored.reading,
            unscored_since_ms=None if firing is None else firing.since_ms,
            blocks=None if blocks is None else blocks.snapshot(),
            firing_keys=tuple(keys.firing.values()),
        )

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
        end_ms = pane.start_ms + self._drift.pane_ms
        self._evidence.close(pane)
        of_keys = self._push_keys(pane, end_ms)
        if (change := self._step(end_ms)) is not None:
            yield self._alert(self._of_stream(change), end_ms)
        for decision in of_keys:
            yield self._alert(decision, end_ms)

    def _push_keys(self, pane: ClosedPane, end_ms: int) -> list[Decision]:
        if self._blocks is None:
            return [] if self._keys is None else self._keys.push(pane, end_ms)
        return self._blocks.push(pane, end_ms, self._acceptances.values())

    def _step(self, end_ms: int) -> Change | None:
        detectors = self._detectors
        found = None if self._blocks is None else self._blocks.verdict(NO_KEY)
        if found is None:
            active = detectors.active
        else:
            active = (BlockAlerts.detector,) if found.active else ()
        if self._firing is None and not active:
            return None
        share = detectors.fraction if found is None else found.since.share
        is_critical = share >= self._alerts.critical_fraction
        self._firing, change = step(
            self._firing,
            active,
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=detectors.onset_ms() if found is None else found.since.start_ms,
            now_ms=end_ms,
            repeat_interval_ms=round(self._alerts.repeat_interval_s * 1000),
        )
        return change

    def _of_stream(self, change: Change) -> Decision:
        if self._blocks is not None:
            return Decision(None, change, self._blocks.verdict(NO_KEY))
        found, is_active = self._detectors, bool(self._detectors.active)
        return Decision(None, change, Verdict(is_active, found.since(), found.readings()))

    def _beside(self, key: str | None) -> tuple[DetectorReading, ...]:
        """Where the detectors of single records stand that do not decide: those of the stream.

        Those of keys are left out then, as both together would take more than 1 KiB a key.
        """
        is_shown = self._blocks is not None and key is None
        found = self._detectors.readings() if is_shown else ()
        return tuple(replace(each, deciding=False) for each in found)

    def _alert(self, decision: Decision, end_ms: int) -> DriftAlert:
        key, change, is_stream = decision.key, decision.change, decision.key is None
        verdict = decision.verdict
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
            since=verdict.since,
            readings=(*verdict.readings, *self._beside(key)),
            tail=self._detectors.tail() if is_stream else None,
            offsets=evidence.offsets(span),
            examples=evidence.examples(span),
            keys=evidence.key_contributions(span) if is_stream else (),
            classes=evidence.class_contributions(span) if is_stream else (),
            firing_keys=self._key_counts().active,
            unscored=None if self._unscored is None else self._unscored.share,
            block=verdict.block,
            acceptance=decision.acceptance,
        )

    def _key_counts(self) -> _KeyCounts:
        """How many keys there are, for whatever decides."""
        if self._drift.keys is None:
            return _KeyCounts(0, 0, {}, 0)
        if (blocks := self._blocks) is not None:
            monitors = blocks.monitors
            counts = len(monitors), blocks.keys_active, blocks.firing, monitors.evicted
            return _KeyCounts(*counts)
        assert self._keys is not None
        of_records, firing = self._keys.monitors, self._keys.firing
        return _KeyCounts(len(of_records), of_records.active_count, firing, of_records.evicted)

    def _identity(self) -> str:
        tree = {
            "version": _VERSION,
            "plan": asdict(self.plan),
            "statistics": [EDGES, BET_COUNT, SMALLEST_BET, LARGEST_BET, RESOLVE_RATIO, QUIET_CUSUM],
            "pane_ms": self._drift.pane_ms,
            "keys": None if self._drift.keys is None else self._drift.keys.model_dump(),
            "topic": self.settings.kafka.topic,
            **self._hidden_keys(),
            # The plan names the calibration, and with it the baseline. Where single records
            # decide, the identity is that of before there were blocks.
            **(
                {}
                if self._watch is None
                else {"blocks": [_BLOCKS_VERSION, self._watch.plan.run_time_ms]}
            ),
        }
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    def _hidden_keys(self) -> dict[str, object]:
        """How keys are stored, where not in clear: a state of before shows what is hidden now."""
        stored = self.settings.log.keys
        how = {"key": stored.key, "headers": stored.headers}
        is_clear = {stored.key, *stored.headers.values()} <= {Stored.CLEAR}
        return {} if self._drift.keys is None or is_clear else {"stored": how}


def _block_alerts(watch: BlockWatch, settings: Settings, state: MonitorState | None) -> BlockAlerts:
    if state is None:
        return BlockAlerts(watch, settings.drift, settings.alerts)
    if state.document.blocks is None:
        raise ValueError("the state holds no blocks")
    arrays = with_prefix(state.arrays, _BLOCKS)
    return BlockAlerts(watch, settings.drift, settings.alerts, state.document.blocks, arrays)


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
