"""Alerts on their way to a sink: kept, retried, in order."""

import threading
from collections import deque
from contextlib import suppress

import structlog

from nap_stream.alert.base import AlertEvent, AlertSink
from nap_stream.clock import Clock
from nap_stream.deadline import Deadline
from nap_stream.errors import AlertRefusedError
from nap_stream.metrics import Metrics

BACKOFF_INITIAL_S = 1.0
BACKOFF_MAX_S = 30.0
LAST_ATTEMPT_S = 1.0
"""For the attempt that is made after the deadline, too."""
PILE_UP = 10
"""So many alerts that wait are worth a word in the log, and each time that they have doubled."""


class AlertOutbox:
    """Delivers alerts to one sink in order; what cannot be delivered is kept and tried again.

    There is no bound: alerts are a few kilobytes and rare, and none may be lost. One that the sink
    will never take is given up, with the whole event in the log, so that the next ones get there.

    Safe for several threads: one delivers at a time, and `put` does not wait for it.

    Args:
        sink: Where alerts go.
        metrics: Counts deliveries and failures.
        clock: Times the backoff.
    """

    def __init__(self, sink: AlertSink, metrics: Metrics, clock: Clock) -> None:
        self._sink, self._metrics, self._clock = sink, metrics, clock
        metrics.add_sink(sink.name)
        self._delivered: frozenset[str] = frozenset()
        self._delivering = threading.Lock()
        self._waiting: deque[AlertEvent] = deque()
        self._backoff_s = BACKOFF_INITIAL_S
        self._retry_at_s = 0.0
        self._failure: str | None = None
        self._pile_up = PILE_UP

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def name(self) -> str:
        """The sink's."""
        return self._sink.name

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed; None where it did not."""
        return self._failure

    def pending(self) -> tuple[AlertEvent, ...]:
        """The alerts that wait, the first one next."""
        return tuple(self._waiting.copy())

    def read_back(self) -> None:
        """Ask the sink what it has received, for `put` to leave out.

        Where it cannot be asked, nothing is left out: better twice than never.
        """
        try:
            self._delivered = self._sink.delivered()
        except Exception as error:  # noqa: BLE001 - a sink's fault must not end the monitor
            self._log().warning("alerts_not_read_back", cause=str(error) or type(error).__name__)

    def put(self, alert: AlertEvent) -> None:
        """Queue an alert behind those that wait, unless `read_back` has found its id."""
        if alert.id in self._delivered:
            return
        self._waiting.append(alert)
        waiting = len(self._waiting)
        self._show_waiting()
        if waiting >= self._pile_up:
            self._pile_up *= 2
            self._log().warning("alerts_pile_up", waiting=waiting, cause=self._failure)

    def deliver(self) -> None:
        """Deliver what waits, unless another thread does or a failure asks for patience."""
        if self._clock.monotonic() < self._retry_at_s:
            return
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
        log: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(
            sink=self._sink.name
        )
        return log

    def _show_waiting(self) -> None:
        self._metrics.alerts_undelivered.labels(self._sink.name).set(len(self._waiting))

    def _publish(self, alert: AlertEvent) -> bool:
        """Try once; return whether the sink is done with it."""
        log = self._log().bind(monitor=alert.key, id=alert.id, state=alert.state)
        try:
            self._sink.publish(alert)
        except AlertRefusedError as error:
            self._give_up(alert, str(error))
            return True
        except Exception as error:  # noqa: BLE001 - a sink's fault must not end the monitor
            self._metrics.alert_failures.labels(self._sink.name).inc()
            self._failure = str(error) or type(error).__name__
            self._retry_at_s = self._clock.monotonic() + self._backoff_s
            log.warning("alert_not_delivered", cause=self._failure, retry_in_s=self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
            return False
        self._answered()
        self._metrics.alerts_published.labels(self._sink.name, alert.state).inc()
        log.info("alert_published")
        return True

    def _give_up(self, alert: AlertEvent, cause: str) -> None:
        self._answered()
        self._metrics.alerts_refused.labels(self._sink.name).inc()
        self._log().error("alert_lost", cause=cause, event_tree=dict(alert.event))

    def _answered(self) -> None:
        self._failure, self._backoff_s, self._retry_at_s = None, BACKOFF_INITIAL_S, 0.0
