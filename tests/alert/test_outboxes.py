"""Several sinks, of which none waits for another."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.sinks import Outboxes
from nap_stream.alert.webhook import WebhookAlertSink
from nap_stream.clock import Deadline, ManualClock, SystemClock
from nap_stream.metrics import Metrics
from nap_stream.settings.alerts import AlertSettings, WebhookSettings
from tests.support.alert_sinks import FlakySink
from tests.support.http_receiver import HttpReceiver
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until


def alert(number: int) -> AlertEvent:
    return AlertEvent("monitor", {"id": str(number), "type": "io.nap-stream.drift.firing"})


def ids(sink: FlakySink) -> list[str]:
    return [each.id for each in sink.alerts]


class StuckSink(FlakySink):
    """Takes an alert only when ``go_on`` is set; closing sets it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def publish(self, alert: AlertEvent) -> None:
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S)
        super().publish(alert)

    def close(self) -> None:
        super().close()
        self.go_on.set()


@contextmanager
def opened(*sinks: FlakySink, metrics: Metrics | None = None) -> Iterator[Outboxes]:
    outboxes = Outboxes(sinks, metrics or Metrics("1"), ManualClock())
    try:
        yield outboxes
    finally:
        outboxes.close()
    # `close` waits for some seconds alone, and this machine may be slow.
    deliverers = outboxes._deliverers
    wait_until(lambda: not any(thread.is_alive() for thread in deliverers), "the sinks' threads")


def test_every_sink_gets_every_alert_in_order() -> None:
    first, second, third = (FlakySink(name=name) for name in ("kafka", "log", "webhook"))
    metrics = Metrics("1")
    with opened(first, second, third, metrics=metrics) as outboxes:
        for number in range(5):
            outboxes.put(alert(number))
        outboxes.deliver()
        assert ids(first) == list("01234")
        wait_until(lambda: len(outboxes) == 0, "the other sinks")

    assert ids(second) == ids(third) == list("01234")
    for name in ("kafka", "log", "webhook"):
        labels = {"sink": name, "state": "firing"}
        value = metrics.registry.get_sample_value("nap_stream_alerts_published_total", labels)
        assert value == 5


def test_a_stuck_sink_delays_neither_the_others_nor_the_caller() -> None:
    first, stuck, third = FlakySink(name="kafka"), StuckSink("webhook"), FlakySink(name="log")
    with opened(first, stuck, third) as outboxes:
        outboxes.put(alert(0))
        assert stuck.entered.wait(PATIENCE_S)
        outboxes.put(alert(1))
        outboxes.deliver()
        assert ids(first) == ["0", "1"]
        wait_until(lambda: ids(third) == ["0", "1"], "the sink beside the stuck one")
        assert ids(stuck) == []
        assert len(outboxes) == 2
        assert [each.id for each in outboxes.pending()] == ["0", "1"]
        stuck.go_on.set()
        wait_until(lambda: ids(stuck) == ["0", "1"], "the stuck sink")
        wait_until(lambda: outboxes.pending() == (), "none on its way")


def test_a_stuck_first_sink_delays_only_who_delivers_to_it() -> None:
    stuck, second = StuckSink("kafka"), FlakySink(name="log")
    with opened(stuck, second) as outboxes:
        outboxes.put(alert(0))
        thread = threading.Thread(target=outboxes.deliver)
        thread.start()
        assert stuck.entered.wait(PATIENCE_S)
        outboxes.put(alert(1))
        wait_until(lambda: ids(second) == ["0", "1"], "the other sink")
        assert [each.id for each in outboxes.pending()] == ["0", "1"]
        stuck.go_on.set()
        thread.join()


def test_what_waits_for_any_sink_is_pending_once_and_in_order() -> None:
    first, stuck = FlakySink(failures=1, name="kafka"), StuckSink("webhook")
    first.alerts.append(alert(1))
    with opened(first, stuck) as outboxes:
        outboxes.read_back()
        for number in range(3):
            outboxes.put(alert(number))
        assert stuck.entered.wait(PATIENCE_S)
        outboxes.deliver()
        assert [each.id for each in outboxes.pending()] == ["0", "1", "2"]
        stuck.go_on.set()
        wait_until(lambda: ids(stuck) == ["0", "1", "2"], "the stuck sink")
        wait_until(lambda: len(outboxes.pending()) == 2, "those of the first sink alone")
        assert [each.id for each in outboxes.pending()] == ["0", "2"]


def test_failures_name_their_sinks() -> None:
    first, second = FlakySink(failures=1, name="kafka"), FlakySink(failures=1, name="webhook")
    with opened(first, second) as outboxes:
        assert outboxes.failure is None
        outboxes.put(alert(0))
        outboxes.deliver()
        wait_until(lambda: second.attempts == 1 and ";" in (outboxes.failure or ""), "both")
        why = "localhost:9092: no broker answers. Start it"
        assert outboxes.failure == f"kafka: {why}; webhook: {why}"


def test_what_failed_is_tried_again_without_being_asked() -> None:
    first, second = FlakySink(name="kafka"), FlakySink(failures=1, name="webhook")
    clock = ManualClock()
    outboxes = Outboxes([first, second], Metrics("1"), clock)
    try:
        outboxes.put(alert(0))
        wait_until(lambda: outboxes.failure is not None, "the failure")
        clock.advance(1)
        wait_until(lambda: ids(second) == ["0"], "the next attempt")
    finally:
        outboxes.close()


def test_each_sink_is_left_out_by_what_it_has_itself() -> None:
    first, second = FlakySink(name="kafka"), FlakySink(name="webhook")
    first.alerts.append(alert(0))
    with opened(first, second) as outboxes:
        outboxes.read_back()
        outboxes.put(alert(0))
        outboxes.put(alert(1))
        outboxes.deliver()
        wait_until(lambda: len(outboxes) == 0, "the other sink")

    assert ids(first) == ["0", "1"]
    assert ids(second) == ["0", "1"]


def test_drain_goes_to_all_at_once() -> None:
    stuck = StuckSink("kafka")

    class Releasing(FlakySink):
        def publish(self, alert: AlertEvent) -> None:
            super().publish(alert)
            stuck.go_on.set()

    # Its own thread waits for a clock that stands still: only `drain` tries it again.
    second, clock = Releasing(failures=1, name="webhook"), ManualClock()
    outboxes = Outboxes([stuck, second], Metrics("1"), clock)
    try:
        outboxes.put(alert(0))
        wait_until(lambda: outboxes.failure is not None, "the failure")
        outboxes.drain(Deadline(clock, PATIENCE_S))
    finally:
        outboxes.close()
    assert ids(stuck) == ids(second) == ["0"]


def test_drain_keeps_to_its_deadline() -> None:
    stuck, second = StuckSink("kafka"), FlakySink(name="webhook")
    clock = SystemClock()
    outboxes = Outboxes([stuck, second], Metrics("1"), clock)
    with capture_logs() as logs:
        outboxes.put(alert(0))
        # By its own thread, so that `close` has nothing to give up but what is stuck.
        wait_until(lambda: ids(second) == ["0"], "the sink beside the stuck one")
        outboxes.drain(Deadline(clock, 0.1))
        outboxes.close()
        wait_until(lambda: ids(stuck) == ["0"], "the attempt that was left behind")
    assert ids(second) == ["0"]
    left = [entry["sink"] for entry in logs if entry["event"] == "alert_left_undelivered"]
    assert left == ["kafka"]
    assert (stuck.closed, second.closed) == (1, 1)


def test_close_twice_and_with_a_sink_in_its_attempt() -> None:
    first, stuck = FlakySink(name="kafka"), StuckSink("webhook")
    outboxes = Outboxes([first, stuck], Metrics("1"), ManualClock())
    outboxes.put(alert(0))
    assert stuck.entered.wait(PATIENCE_S)
    outboxes.close()
    outboxes.close()
    assert first.closed == 2


def test_a_webhook_that_is_down_holds_nothing_up() -> None:
    receiver = HttpReceiver()
    receiver.port = free_port()
    clock, first = ManualClock(), FlakySink(name="kafka")
    settings = WebhookSettings(url=receiver.url, timeout_s=PATIENCE_S)
    webhook = WebhookAlertSink(AlertSettings(), settings, clock)
    outboxes = Outboxes([first, webhook], Metrics("1"), clock)
    try:
        outboxes.put(alert(0))
        outboxes.deliver()
        assert ids(first) == ["0"]
        wait_until(lambda: "webhook" in (outboxes.failure or ""), "the webhook's failure")
        with receiver.listening():
            clock.advance(1)
            outboxes.put(alert(1))
            outboxes.deliver()
            wait_until(lambda: len(outboxes) == 0, "the webhook to be back")
    finally:
        outboxes.close()
    sent = [request.tree[0]["annotations"]["id"] for request in receiver.requests]
    assert sent == ["0", "1"]
