"""Where alerts go: what every sink does, how all are opened, and a queue for each of them."""

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.alert.webhook import WebhookAlertSink
from nap_stream.clock import Clock, Deadline
from nap_stream.errors import AlertRefusedError
from nap_stream.metrics import Metrics
from nap_stream.settings.schema import Settings
from nap_stream.tracing import Tracing

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
FIELDS = ("severity", "reason", "topic", "key", "summary", "onset", "runbook_url")
"""What a line shows of an event's data, where the event has it."""


class AlertSink(Protocol):
    """Where alerts are delivered. One thread publishes at a time; any may close."""

    @property
    def name(self) -> str:
        """What logs and metrics call it: kafka, log or webhook."""

    def publish(self, alert: AlertEvent) -> None:
        """Deliver an alert, in order, and return when it is delivered.

        Raises:
            BrokerError: Kafka did not take it.
            AlertRefusedError: The destination will never take this one.
            AlertDeliveryError: Another destination did not take it.
        """

    def delivered(self) -> frozenset[str]:
        """Ids of the events that the destination has lately received.

        They let a coordinator that stands in for another neither repeat nor forget. Empty where
        the destination cannot tell.

        Raises:
            BrokerError: Kafka could not be asked.
        """

    def close(self) -> None:
        """Release connections. Safe to call twice."""


class LogAlertSink:
    """One structured line, ``alert``, for each alert. Publishing never fails."""

    name = "log"

    def publish(self, alert: AlertEvent) -> None:
        """Write the line: a warning, but for what is resolved."""
        data = alert.event.get("data") or {}
        shown = {name: data[name] for name in FIELDS if data.get(name) is not None}
        monitor = data.get("monitor") or alert.key
        line = {"monitor": monitor, "state": alert.state, **shown, "id": alert.id}
        log = structlog.get_logger()
        # A log that cannot be written has nobody to tell it to, and the alert has other ways.
        with suppress(OSError, ValueError):
            (log.info if alert.state == "resolved" else log.warning)("alert", **line)

    def delivered(self) -> frozenset[str]:
        """Nothing: a log cannot be asked."""
        return frozenset()

    def close(self) -> None:
        """Nothing to release."""


def open_sinks(settings: Settings, clock: Clock) -> tuple[AlertSink, ...]:
    """Open the sinks of alerts that the settings name: Kafka's first, which there always is.

    Raises:
        BrokerError: The broker cannot be reached, or refuses.
        ConfigError: The webhook's certificates cannot be read.
    """
    alerts = settings.alerts
    sinks: list[AlertSink] = [KafkaAlertSink(settings.kafka, alerts.topic, clock)]
    try:
        if alerts.log:
            sinks.append(LogAlertSink())
        if alerts.webhook is not None:
            sinks.append(WebhookAlertSink(alerts, alerts.webhook, clock))
    except BaseException:
        for sink in sinks:
            sink.close()
        raise
    return tuple(sinks)


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
            cause = str(error) or type(error).__name__
            retry_in_s, self._backoff_s = self._backoff_s, min(2 * self._backoff_s, BACKOFF_MAX_S)
            self._retry_at_s = self._clock.monotonic() + retry_in_s
            # Last: whoever sees that it failed may count on when it is tried again.
            self.failure = cause
            log.warning("alert_not_delivered", cause=cause, retry_in_s=retry_in_s)
            return False
        self._answered()
        self._metrics.alerts_published.labels(self.name, alert.state).inc()
        log.info("alert_published")
        return True

    def _answered(self) -> None:
        self.failure, self._backoff_s, self._retry_at_s = None, BACKOFF_INITIAL_S, 0.0


class TracedSink:
    """A sink whose deliveries are traced."""

    def __init__(self, sink: AlertSink, tracing: Tracing) -> None:
        self._sink, self._tracing = sink, tracing
        self.delivered, self.close = sink.delivered, sink.close

    @property
    def name(self) -> str:
        """As `AlertSink.name`."""
        return self._sink.name

    def publish(self, alert: AlertEvent) -> None:
        """As `AlertSink.publish`."""
        with self._tracing.alert(alert.event, self.name):
            self._sink.publish(alert)


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


class _Deliverer(threading.Thread):
    """Delivers what an outbox has, from its construction on."""

    def __init__(self, outbox: AlertOutbox) -> None:
        # A daemon: an attempt that does not end must not keep the program from ending.
        super().__init__(name=f"alerts-{outbox.name}", daemon=True)
        self._outbox = outbox
        self._woken, self._stopping = threading.Event(), False
        self.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def run(self) -> None:
        while not self._stopping:
            self._woken.wait(LOOK_AGAIN_S if len(self._outbox) else None)
            self._woken.clear()
            if not self._stopping:
                self._outbox.deliver()
