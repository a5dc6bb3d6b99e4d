"""Alerts from the drift monitor to the sinks: a checkpoint first, then a queue for each sink."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

import structlog

from nap_stream.alert.event import AlertEvent, alert_event, gap_event
from nap_stream.alert.sinks import AlertSink
from nap_stream.clock import Clock, Deadline
from nap_stream.core.alert_state import Reason, Transition
from nap_stream.core.detection import DetectionPlan
from nap_stream.drift.records import CalibrationFacts, DriftAlert
from nap_stream.errors import AlertRefusedError
from nap_stream.metrics import Metrics
from nap_stream.monitor.checkpoint import Checkpoint, CheckpointStore
from nap_stream.records import SegmentSummary
from nap_stream.settings.schema import Settings

CHECKPOINT_EVERY_S = 30.0
"""While nothing is decided. The log's segments of so long are read again after a crash."""

BACKOFF_INITIAL_S = 1.0
BACKOFF_MAX_S = 30.0
LAST_ATTEMPT_S = 1.0
"""For the attempt that is made after the deadline, too."""
PILE_UP = 10
"""So many alerts that wait are worth a word in the log, and each time that they have doubled."""
LOOK_AGAIN_S = 1.0
"""How soon a sink's own thread looks whether its patience is over."""
CLOSE_S = 5.0
"""How long `close` waits, of the machine's time, for an attempt that a thread is in."""


@dataclass(frozen=True, slots=True)
class MonitorSnapshot:
    """The drift monitor's state for a checkpoint. ``revision`` differs after every change."""

    revision: int
    content: bytes


class AlertDispatcher:
    """Sends an alert once a checkpoint has it, so that what was sent stays decided.

    A verdict can depend on what the log does not tell: which partition was idle, which offsets
    were given up. Once an alert of it is out, whoever takes over must go on from there. Where the
    checkpoint cannot be written the alert goes out all the same, and the next write is due later.

    Of the drift monitor it knows the state alone, as bytes. One thread at a time may `decide`, and
    one at a time may ask `needs_state` and `send`; these two may be different ones. ``outboxes``
    deliver what was let out; ``reasons`` counts the alerts that were decided here.
    """

    def __init__(
        self,
        plan: DetectionPlan,
        settings: Settings,
        calibration: CalibrationFacts,
        sinks: Sequence[AlertSink],
        checkpoints: CheckpointStore,
        *,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._plan, self._settings, self._calibration = plan, settings, calibration
        self._version = version("nap-stream")
        self._checkpoints, self._metrics, self._clock = checkpoints, metrics, clock
        self.outboxes = Outboxes(sinks, metrics, clock)
        self._lock = threading.Lock()
        self._decided: list[AlertEvent] = []
        self._restored: frozenset[str] = frozenset()
        self._kept: tuple[int, tuple[str, ...]] | None = None
        self._due_s = clock.monotonic() + CHECKPOINT_EVERY_S
        self.reasons = Counter[Reason]()

    def __len__(self) -> int:
        """How many alerts wait, here or for the sink for which the most do."""
        with self._lock:
            return len(self._decided) + len(self.outboxes)

    def restore(self) -> bytes | None:
        """Queue what the last checkpoint has on its way; give its state of the monitor, if any.

        Its alerts go to the sinks also where the state does not fit: they were decided, whatever
        the settings and the calibration are now. They are not decided again. What a sink says that
        it has received does not go there again.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        self.outboxes.read_back()
        self._checkpoints.remove_leftovers(self._clock.now_ms())
        checkpoint = self._checkpoints.read()
        if checkpoint is None:
            return None
        for event in checkpoint.pending:
            self.outboxes.put(event)
        self._restored = frozenset(event.id for event in checkpoint.pending)
        return checkpoint.monitor

    def decide(self, accepted: Iterable[SegmentSummary], alerts: Iterable[DriftAlert]) -> None:
        """Take what is to go out with the next `send`: declared gaps, and what the monitor decided.

        ``accepted`` are summaries that it has taken for the first time.
        """
        for summary in accepted:
            if summary.gap is not None:
                self._hold(gap_event(summary, self._settings, self._version))
        for alert in alerts:
            event = alert_event(alert, self._plan, self._settings, self._calibration, self._version)
            if self._hold(event):
                self.reasons[alert.change.reason] += 1
                self._log(alert, event)

    def decided(self) -> tuple[AlertEvent, ...]:
        """What `send` has not let out, in order."""
        with self._lock:
            return tuple(self._decided)

    def needs_state(self, revision: int, decided: Sequence[AlertEvent], *, at_once: bool) -> bool:
        """Whether a checkpoint is due that would say something new: with alerts to send, it is.

        ``at_once`` does not wait until `CHECKPOINT_EVERY_S` are over.
        """
        is_due = at_once or bool(decided) or self._clock.monotonic() >= self._due_s
        return is_due and (revision, _ids(self._pending(decided))) != self._kept

    def send(self, decided: Sequence[AlertEvent], state: MonitorSnapshot | None) -> None:
        """Write a checkpoint with the state, where one is due, then let out what was decided.

        ``decided`` is what `decided` gave when the state was taken: both are of one moment.
        """
        if state is not None:
            self._keep(state, self._pending(decided))
        with self._lock:
            del self._decided[: len(decided)]
            for event in decided:
                self.outboxes.put(event)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that could not be made or written. The next one is due later."""
        self._kept, self._due_s = None, self._clock.monotonic() + CHECKPOINT_EVERY_S
        self._metrics.checkpoint_failures.inc()

    def _hold(self, event: AlertEvent) -> bool:
        """Hold an event for `send`; False where the checkpoint had it on its way already."""
        if event.id in self._restored:
            return False
        with self._lock:
            self._decided.append(event)
        return True

    def _pending(self, decided: Sequence[AlertEvent]) -> tuple[AlertEvent, ...]:
        return (*self.outboxes.pending(), *decided)

    def _keep(self, state: MonitorSnapshot, pending: tuple[AlertEvent, ...]) -> None:
        self._due_s = self._clock.monotonic() + CHECKPOINT_EVERY_S
        try:
            self._checkpoints.write(Checkpoint(state.content, pending))
        except Exception as error:  # noqa: BLE001 - not even a full disk may keep alerts back
            structlog.get_logger().warning(
                "checkpoint_not_written", file=self._checkpoints.path, cause=str(error)
            )
            self.checkpoint_failed()
            return
        self._kept = (state.revision, _ids(pending))
        self._metrics.last_checkpoint.set(self._clock.now_ms() / 1000)

    def _log(self, alert: DriftAlert, event: AlertEvent) -> None:
        log, is_firing = structlog.get_logger(), alert.change.transition is Transition.FIRING
        (log.warning if is_firing else log.info)(
            "drift_alert",
            monitor=self._settings.alerts.monitor,
            key=alert.key,
            state=alert.change.transition.value,
            reason=alert.change.reason.value,
            severity=alert.change.alert.severity.value,
            summary=event.event["data"]["summary"],
            id=event.id,
        )


def _ids(events: Iterable[AlertEvent]) -> tuple[str, ...]:
    return tuple(event.id for event in events)


class AlertOutbox:
    """Delivers alerts to one sink in order; what cannot be delivered is kept and tried again.

    There is no bound: alerts are a few kilobytes and rare, and none may be lost. One that the sink
    will never take is given up, with the whole event in the log, so that the next ones get there.

    Safe for several threads: one delivers at a time, and `put` does not wait for it. ``failure``
    says why the last attempt failed; it is None where it did not.
    """

    def __init__(self, sink: AlertSink, metrics: Metrics, clock: Clock) -> None:
        self._sink, self._metrics, self._clock = sink, metrics, clock
        metrics.add_sink(sink.name)
        self.name = sink.name
        self.failure: str | None = None
        self._received: frozenset[str] = frozenset()
        self._delivering = threading.Lock()
        self._waiting: deque[AlertEvent] = deque()
        self._backoff_s = BACKOFF_INITIAL_S
        self._retry_at_s = 0.0
        self._pile_up = PILE_UP

    def __len__(self) -> int:
        return len(self._waiting)

    def pending(self) -> tuple[AlertEvent, ...]:
        """The alerts that wait, the first one next."""
        return tuple(self._waiting.copy())

    def read_back(self) -> None:
        """Ask the sink what it has received, for `put` to leave out.

        Where it cannot be asked, nothing is left out: better twice than never.
        """
        try:
            self._received = self._sink.delivered()
        except Exception as error:  # noqa: BLE001 - a sink's fault must not end the monitor
            self._log().warning("alerts_not_read_back", cause=str(error) or type(error).__name__)

    def put(self, alert: AlertEvent) -> None:
        """Queue an alert behind those that wait, unless `read_back` has found its id."""
        if alert.id in self._received:
            return
        self._waiting.append(alert)
        waiting = len(self._waiting)
        self._show_waiting()
        if waiting >= self._pile_up:
            self._pile_up *= 2
            self._log().warning("alerts_pile_up", waiting=waiting, cause=self.failure)

    def deliver(self) -> None:
        """Deliver what waits, unless another thread does or a failure asks for patience."""
        if self._clock.monotonic() >= self._retry_at_s:
            self._deliver_now()

    def drain(self, deadline: Deadline) -> None:
        """Deliver all that waits by the deadline; try at least once.

        An attempt that the sink does not answer in time is left behind.
        """
        pause = threading.Event()
        while True:
            attempt = threading.Thread(target=self._deliver_now, name="last-alerts", daemon=True)
            attempt.start()
            attempt.join(max(LAST_ATTEMPT_S, deadline.remaining_s()))
            if attempt.is_alive() or not self._waiting or deadline.expired():
                return
            pause.wait(min(BACKOFF_INITIAL_S, deadline.remaining_s()))

    def close(self) -> None:
        """Log what was not delivered, and close the sink. Safe to call twice.

        The next run takes it from the checkpoint; the log has it whole, should there be none.
        """
        while self._waiting:
            alert = self._waiting.popleft()
            self._log().error("alert_left_undelivered", event_tree=dict(alert.event))
        self._sink.close()

    def _deliver_now(self) -> None:
        if not self._delivering.acquire(blocking=False):
            return
        try:
            while self._publish_next():
                pass
            if not self._waiting:
                self._pile_up = PILE_UP
        finally:
            self._delivering.release()

    def _publish_next(self) -> bool:
        try:
            alert = self._waiting[0]
        except IndexError:
            return False
        if not self._publish(alert):
            return False
        # `close` may have given it up meanwhile, and must not lose the next one without a word.
        with suppress(ValueError):
            self._waiting.remove(alert)
        self._show_waiting()
        return True

    def _log(self) -> structlog.typing.FilteringBoundLogger:
        # Anew each time: a live status line changes where the log goes.
        log: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(sink=self.name)
        return log

    def _show_waiting(self) -> None:
        self._metrics.alerts_undelivered.labels(self.name).set(len(self._waiting))

    def _publish(self, alert: AlertEvent) -> bool:
        """Try once; return whether the sink is done with it."""
        log = self._log().bind(monitor=alert.key, id=alert.id, state=alert.state)
        try:
            self._sink.publish(alert)
        except AlertRefusedError as error:
            self._answered()
            self._metrics.alerts_refused.labels(self.name).inc()
            self._log().error("alert_lost", cause=str(error), event_tree=dict(alert.event))
            return True
        except Exception as error:  # noqa: BLE001 - a sink's fault must not end the monitor
            self._metrics.alert_failures.labels(self.name).inc()
            self.failure = str(error) or type(error).__name__
            self._retry_at_s = self._clock.monotonic() + self._backoff_s
            log.warning("alert_not_delivered", cause=self.failure, retry_in_s=self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
            return False
        self._answered()
        self._metrics.alerts_published.labels(self.name, alert.state).inc()
        log.info("alert_published")
        return True

    def _answered(self) -> None:
        self.failure, self._backoff_s, self._retry_at_s = None, BACKOFF_INITIAL_S, 0.0


class Outboxes:
    """Delivers each alert to every sink.

    The first sink's are delivered by whoever calls `deliver`; those of every other by a thread of
    its own, from `put` on, so that one that is slow or down holds up neither callers nor others.
    There is at least one sink; `close` closes them.
    """

    def __init__(self, sinks: Sequence[AlertSink], metrics: Metrics, clock: Clock) -> None:
        self._all = tuple(AlertOutbox(sink, metrics, clock) for sink in sinks)
        self._first = self._all[0]
        self._noting = threading.Lock()
        self._on_their_way: dict[str, AlertEvent] = {}
        self._deliverers = [_Deliverer(outbox) for outbox in self._all[1:]]

    def __len__(self) -> int:
        """How many alerts wait for the sink for which the most do."""
        return max(map(len, self._all))

    @property
    def failure(self) -> str | None:
        """Which sinks' last attempts failed, and why; None where none did."""
        failures = [(outbox.name, outbox.failure) for outbox in self._all]
        return "; ".join(f"{name}: {why}" for name, why in failures if why is not None) or None

    def pending(self) -> tuple[AlertEvent, ...]:
        """The alerts that wait for any sink, each once, in the order of `put`."""
        with self._noting:
            waiting = {alert.id for outbox in self._all for alert in outbox.pending()}
            for name in self._on_their_way.keys() - waiting:
                del self._on_their_way[name]
            return tuple(self._on_their_way.values())

    def read_back(self) -> None:
        """Ask each sink what it has received: `put` then leaves those ids out for that sink."""
        for outbox in self._all:
            outbox.read_back()

    def put(self, alert: AlertEvent) -> None:
        """Queue an alert for every sink."""
        with self._noting:
            self._on_their_way[alert.id] = alert
            for outbox in self._all:
                outbox.put(alert)
        self._wake()

    def deliver(self) -> None:
        """Deliver what waits for the first sink, and have the other sinks' threads look."""
        self._wake()
        self._first.deliver()

    def drain(self, deadline: Deadline) -> None:
        """Deliver all that waits by the deadline, to all sinks at once; try each at least once."""
        threads = [
            threading.Thread(target=outbox.drain, args=(deadline,), name=f"drain-{outbox.name}")
            for outbox in self._all
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Log what was not delivered, and close the sinks. Safe to call twice."""
        for deliverer in self._deliverers:
            deliverer.stop()
        for outbox in self._all:
            outbox.close()
        for deliverer in self._deliverers:
            deliverer.join(CLOSE_S)

    def _wake(self) -> None:
        for deliverer in self._deliverers:
            deliverer.wake()


class _Deliverer:
    """A thread that delivers what an outbox has."""

    def __init__(self, outbox: AlertOutbox) -> None:
        self._outbox = outbox
        self._woken, self._stopping = threading.Event(), False
        # A daemon: an attempt that does not end must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=f"alerts-{outbox.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait(LOOK_AGAIN_S if len(self._outbox) else None)
            self._woken.clear()
            if not self._stopping:
                self._outbox.deliver()
