"""What a monitor decides of the past: only what still holds at its end is told.

From what the drift monitor decides to the sinks, by way of the checkpoint.
"""

import threading
from collections import Counter
from collections.abc import Sequence

import structlog

from nap_stream.alert.event import AlertEvent, alert_event, gap_event
from nap_stream.clock import Clock
from nap_stream.core.alert_state import Reason, Transition
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import CalibrationFacts, DriftAlert, DriftUpdate
from nap_stream.metrics import Metrics
from nap_stream.monitor.checkpoint import Checkpoint, CheckpointStore
from nap_stream.monitor.outbox import Outboxes


class Hindsight:
    """Holds back the alerts of panes that ended by a time, until all of those are judged.

    Some may be judged late: they wait for a partition that lags, or that brings nothing more.

    Args:
        until_ms: The end of the past, in milliseconds since the epoch.
    """

    def __init__(self, until_ms: int) -> None:
        self._until_ms = until_ms
        self._firing: dict[str | None, DriftAlert] = {}

    def sift(
        self, alerts: Sequence[DriftAlert], judged_until_ms: int | None
    ) -> tuple[DriftAlert, ...] | None:
        """Take alerts in order; give those to be told, or None while the past goes on.

        Args:
            alerts: What was decided since the last call.
            judged_until_ms: The end of the newest pane that was judged; None before the first.

        Returns:
            The newest alert of the stream and of each key that fires at the end of the past, and
            what came after. From then on this is of no more use.
        """
        past = [alert for alert in alerts if alert.time_ms <= self._until_ms]
        for alert in past:
            self._firing.pop(alert.key, None)
            if alert.change.transition is Transition.FIRING:
                self._firing[alert.key] = alert
        if judged_until_ms is None or judged_until_ms < self._until_ms:
            return None
        return (*self._firing.values(), *alerts[len(past) :])


CHECKPOINT_EVERY_S = 30.0
"""While nothing is decided. The log's segments of so long are read again after a crash."""


class AlertDesk:
    """Holds alerts back until a checkpoint has them, so that what was sent stays decided.

    A verdict can depend on what the log does not tell: which partition was idle, which offsets
    were given up. Once an alert of it is out, whoever takes over must go on from there. Where the
    checkpoint cannot be written the alert goes out all the same, and the next write is due later.

    Args:
        monitor: Used under ``lock`` alone.
        calibration: What flags are judged by.
        outboxes: Where alerts go.
        checkpoints: The monitor's own.
        metrics: Counts checkpoints that were not written.
        lock: The coordinator's own. The checkpoint is written without it.
        clock: Times the checkpoints.
        version: The program's.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        calibration: CalibrationFacts,
        outboxes: Outboxes,
        checkpoints: CheckpointStore,
        *,
        metrics: Metrics,
        lock: threading.RLock,
        clock: Clock,
        version: str,
    ) -> None:
        self._monitor, self._calibration, self._version = monitor, calibration, version
        self._outboxes, self._checkpoints = outboxes, checkpoints
        self._metrics, self._lock, self._clock = metrics, lock, clock
        self._settling = threading.Lock()
        self._decided: list[AlertEvent] = []
        self._restored: frozenset[str] = frozenset()
        self._hindsight: Hindsight | None = None
        self._changed = True
        self._kept_pending: tuple[str, ...] = ()
        self._due_s = clock.monotonic() + CHECKPOINT_EVERY_S
        self.reasons = Counter[Reason]()

    def __len__(self) -> int:
        """How many alerts wait, here or for the sink for which the most do."""
        return len(self._decided) + len(self._outboxes)

    def restore(self) -> bool:
        """Take up where the checkpoint says, if there is one that fits.

        Its alerts that were on their way go to the sinks also where it does not fit: they were
        decided, whatever the settings and the calibration are now.

        Returns:
            False where there is none: then the monitor is as before.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        self._checkpoints.remove_leftovers(self._clock.now_ms())
        checkpoint = self._checkpoints.read()
        if checkpoint is None:
            return False
        for event in checkpoint.pending:
            self._outboxes.put(event)
        self._restored = frozenset(event.id for event in checkpoint.pending)
        return self._monitor.restore(checkpoint.monitor)

    def look_back(self, hindsight: Hindsight, alerts: Sequence[DriftAlert]) -> None:
        """Tell what holds at the end of a past, once all of it is judged. Under the lock.

        No checkpoint is written before: with it whoever takes over would tell what is over.

        Args:
            hindsight: Sifts what is decided.
            alerts: What has been decided of that past.
        """
        self._hindsight = hindsight
        self.take(DriftUpdate(alerts=tuple(alerts)))

    def changed(self) -> None:
        """Note that the monitor is no longer as the checkpoint has it."""
        self._changed = True

    def hurry(self) -> None:
        """Note a change of which the next `settle` is to write a checkpoint."""
        self._changed, self._due_s = True, self._clock.monotonic()

    def take(self, update: DriftUpdate) -> None:
        """Take what the monitor has decided, and gaps that the log declares. Under the lock."""
        for summary in update.accepted:
            if summary.gap is not None:
                self._decide(gap_event(summary, self._monitor.settings, self._version))
        for alert in self._sifted(update.alerts):
            self._put(alert)
        self._changed |= bool(update.accepted or update.alerts)

    def settle(self, *, at_once: bool = False) -> None:
        """Write a checkpoint if one is due, then let out what was decided.

        Args:
            at_once: Write it wherever something has changed.
        """
        with self._settling:
            with self._lock:
                decided, pending = tuple(self._decided), self._outboxes.pending()
                is_due = decided or at_once or self._clock.monotonic() >= self._due_s
                checkpoint = self._checkpoint((*pending, *decided)) if is_due else None
            if checkpoint is not None:
                self._write(checkpoint)
            with self._lock:
                del self._decided[: len(decided)]
                for event in decided:
                    self._outboxes.put(event)

    def _sifted(self, alerts: tuple[DriftAlert, ...]) -> tuple[DriftAlert, ...]:
        if self._hindsight is None:
            return alerts
        told = self._hindsight.sift(alerts, self._monitor.judged_until_ms)
        if told is None:
            return ()
        self._hindsight = None
        return told

    def _put(self, alert: DriftAlert) -> None:
        settings, plan = self._monitor.settings, self._monitor.plan
        event = alert_event(alert, plan, settings, self._calibration, self._version)
        if not self._decide(event):
            return
        self.reasons[alert.change.reason] += 1
        log, is_firing = structlog.get_logger(), alert.change.transition is Transition.FIRING
        (log.warning if is_firing else log.info)(
            "drift_alert",
            monitor=settings.alerts.monitor,
            key=alert.key,
            state=alert.change.transition.value,
            reason=alert.change.reason.value,
            severity=alert.change.alert.severity.value,
            summary=event.event["data"]["summary"],
            id=event.id,
        )

    def _decide(self, event: AlertEvent) -> bool:
        """Queue what is to go out; False where the checkpoint had it on its way already."""
        if event.id in self._restored:
            return False
        self._decided.append(event)
        return True

    def _checkpoint(self, pending: tuple[AlertEvent, ...]) -> Checkpoint | None:
        """What there is to write; None where the last one says the same."""
        if self._hindsight is not None:
            return None
        if not self._changed and tuple(event.id for event in pending) == self._kept_pending:
            return None
        try:
            state = self._monitor.dump()
        except Exception:  # noqa: BLE001 - no defect of a checkpoint may keep alerts back
            structlog.get_logger().exception("checkpoint_not_made")
            self._failed()
            return None
        self._changed, self._due_s = False, self._clock.monotonic() + CHECKPOINT_EVERY_S
        return Checkpoint(state, pending)

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._checkpoints.write(checkpoint)
        except Exception as error:  # noqa: BLE001 - nor may a full disk
            structlog.get_logger().warning(
                "checkpoint_not_written", file=self._checkpoints.path, cause=str(error)
            )
            self._failed()
            return
        self._kept_pending = tuple(event.id for event in checkpoint.pending)
        self._metrics.last_checkpoint.set(self._clock.now_ms() / 1000)

    def _failed(self) -> None:
        with self._lock:
            self._changed, self._due_s = True, self._clock.monotonic() + CHECKPOINT_EVERY_S
        self._metrics.checkpoint_failures.inc()
