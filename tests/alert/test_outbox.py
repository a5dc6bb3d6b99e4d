"""How alerts reach one sink."""

import threading

from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.sinks import AlertOutbox
from nap_stream.clock import Deadline, ManualClock, SystemClock
from nap_stream.errors import AlertRefusedError, BrokerUnavailableError
from nap_stream.metrics import Metrics
from tests.support.alert_sinks import FlakySink
from tests.support.waiting import PATIENCE_S, wait_until


def alert(number: int) -> AlertEvent:
    state = "firing" if number % 2 == 0 else "resolved"
    return AlertEvent("monitor", {"id": str(number), "type": f"io.nap-stream.drift.{state}"})


def ids(sink: FlakySink) -> list[str]:
    return [each.event["id"] for each in sink.alerts]


def test_delivers_in_order() -> None:
    sink, metrics = FlakySink(), Metrics("1")
    outbox = AlertOutbox(sink, metrics, ManualClock())
    for number in range(3):
        outbox.put(alert(number))
    value = metrics.registry.get_sample_value
    assert value("nap_stream_alerts_undelivered", {"sink": "memory"}) == 3
    assert outbox.pending() == tuple(alert(number) for number in range(3))
    outbox.deliver()
    assert ids(sink) == ["0", "1", "2"]
    assert len(outbox) == 0
    published = {
        state: value("nap_stream_alerts_published_total", {"sink": "memory", "state": state})
        for state in ("firing", "resolved", "gap")
    }
    assert published == {"firing": 2, "resolved": 1, "gap": 0}
    assert value("nap_stream_alerts_undelivered", {"sink": "memory"}) == 0


def test_what_fails_is_kept_and_tried_again_with_backoff() -> None:
    sink, metrics, clock = FlakySink(failures=3), Metrics("1"), ManualClock()
    outbox = AlertOutbox(sink, metrics, clock)
    outbox.put(alert(0))
    outbox.deliver()
    assert outbox.failure == "localhost:9092: no broker answers. Start it"
    outbox.put(alert(1))
    attempts = []
    for _ in range(8):
        outbox.deliver()
        attempts.append(sink.attempts)
        clock.advance(1)
    # 1 s, 2 s and 4 s after the failures before.
    assert attempts == [1, 2, 2, 3, 3, 3, 3, 5]
    assert ids(sink) == ["0", "1"]
    assert outbox.failure is None
    failures = metrics.registry.get_sample_value(
        "nap_stream_alert_failures_total", {"sink": "memory"}
    )
    assert failures == 3


def test_who_sees_that_it_failed_may_count_on_when_it_is_tried_again() -> None:
    """Another thread sees it as soon as it is said."""
    sink, clock = FlakySink(failures=1), ManualClock()

    class Watched(AlertOutbox):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "failure" and value is not None:
                clock.advance(1)

    outbox = Watched(sink, Metrics("1"), clock)
    outbox.put(alert(0))
    outbox.deliver()
    outbox.deliver()
    assert ids(sink) == ["0"]


def test_a_fault_of_the_sink_ends_nothing() -> None:
    class Broken(FlakySink):
        def publish(self, alert: AlertEvent) -> None:
            raise RuntimeError(f"bug at {alert.key}")

    outbox = AlertOutbox(Broken(), Metrics("1"), ManualClock())
    outbox.put(alert(0))
    outbox.deliver()
    assert outbox.failure == "bug at monitor"
    assert len(outbox) == 1


def test_an_alert_that_the_sink_will_never_take_is_in_the_log_and_holds_nothing_up() -> None:
    class Choosy(FlakySink):
        def publish(self, alert: AlertEvent) -> None:
            if alert.id == "1":
                raise AlertRefusedError("answered 422", "alerts.webhook", "Ask who runs it")
            super().publish(alert)

    sink, metrics = Choosy(), Metrics("1")
    outbox = AlertOutbox(sink, metrics, ManualClock())
    for number in range(3):
        outbox.put(alert(number))
    with capture_logs() as logs:
        outbox.deliver()
    assert ids(sink) == ["0", "2"]
    assert (len(outbox), outbox.failure) == (0, None)
    lost = [entry for entry in logs if entry["event"] == "alert_lost"]
    assert [(entry["event_tree"], entry["log_level"]) for entry in lost] == [
        (alert(1).event, "error")
    ]
    assert "answered 422" in lost[0]["cause"]
    value = metrics.registry.get_sample_value
    assert value("nap_stream_alerts_refused_total", {"sink": "memory"}) == 1
    assert value("nap_stream_alert_failures_total", {"sink": "memory"}) == 0
    assert value("nap_stream_alerts_undelivered", {"sink": "memory"}) == 0


def test_what_the_sink_has_is_left_out_once_it_was_asked() -> None:
    sink = FlakySink()
    sink.alerts.append(alert(0))
    outbox = AlertOutbox(sink, Metrics("1"), ManualClock())
    outbox.read_back()
    for number in range(2):
        outbox.put(alert(number))
    outbox.deliver()
    assert ids(sink) == ["0", "1"]


def test_a_sink_that_cannot_be_asked_gets_everything() -> None:
    class Forgetful(FlakySink):
        def delivered(self) -> frozenset[str]:
            raise BrokerUnavailableError("no broker answers")

    sink = Forgetful()
    outbox = AlertOutbox(sink, Metrics("1"), ManualClock())
    with capture_logs() as logs:
        outbox.read_back()
    outbox.put(alert(0))
    outbox.deliver()
    assert ids(sink) == ["0"]
    assert [(entry["event"], entry["sink"]) for entry in logs] == [
        ("alerts_not_read_back", "memory")
    ]


def test_close_while_an_alert_is_delivered_loses_no_other_without_a_word() -> None:
    class Closed(FlakySink):
        def publish(self, alert: AlertEvent) -> None:
            super().publish(alert)
            outbox._waiting.popleft()  # what `close` does first, on another thread

    outbox = AlertOutbox(Closed(), Metrics("1"), ManualClock())
    outbox.put(alert(0))
    outbox.put(alert(1))
    outbox._publish_next()
    assert outbox.pending() == (alert(1),)


def test_drain_tries_until_it_is_done() -> None:
    sink, clock = FlakySink(failures=1), SystemClock()
    outbox = AlertOutbox(sink, Metrics("1"), clock)
    outbox.put(alert(0))
    outbox.drain(Deadline(clock, PATIENCE_S))
    assert ids(sink) == ["0"]


def test_drain_tries_once_without_any_time_left() -> None:
    sink, clock = FlakySink(failures=100), ManualClock()
    outbox = AlertOutbox(sink, Metrics("1"), clock)
    outbox.put(alert(0))
    outbox.deliver()
    outbox.drain(Deadline(clock, 0))
    # It waits for a second for that attempt, and this machine may stand still for longer.
    wait_until(lambda: sink.attempts >= 2, "the last attempt")
    assert sink.attempts == 2


def test_what_was_never_delivered_is_in_the_log() -> None:
    sink = FlakySink(failures=100)
    outbox = AlertOutbox(sink, Metrics("1"), ManualClock())
    outbox.put(alert(0))
    with capture_logs() as logs:
        outbox.close()
    left = [(entry["event"], entry["event_tree"]["id"]) for entry in logs]
    assert left == [("alert_left_undelivered", "0")]
    assert sink.closed == 1


def test_alerts_that_pile_up_are_said_each_time_that_they_have_doubled() -> None:
    sink, clock = FlakySink(failures=1), ManualClock()
    outbox = AlertOutbox(sink, Metrics("1"), clock)

    def pile_up(count: int) -> list[int]:
        with capture_logs() as logs:
            for number in range(count):
                outbox.put(alert(number))
                outbox.deliver()
        return [entry["waiting"] for entry in logs if entry["event"] == "alerts_pile_up"]

    assert pile_up(50) == [10, 20, 40]
    clock.advance(1)
    outbox.deliver()
    assert len(sink.alerts) == 50
    sink.failures = 1
    clock.advance(1)
    assert pile_up(12) == [10]


def test_one_thread_delivers_and_no_other_waits() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(FlakySink):
        def publish(self, alert: AlertEvent) -> None:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            super().publish(alert)

    sink = Slow()
    outbox = AlertOutbox(sink, Metrics("1"), ManualClock())
    outbox.put(alert(0))
    thread = threading.Thread(target=outbox.deliver)
    thread.start()
    try:
        assert entered.wait(PATIENCE_S)
        outbox.put(alert(1))
        outbox.deliver()
        assert ids(sink) == []
    finally:
        go_on.set()
        thread.join()
    assert ids(sink) == ["0", "1"]


def test_a_sink_that_does_not_answer_does_not_hold_up_the_end() -> None:
    go_on = threading.Event()

    class Silent(FlakySink):
        def publish(self, alert: AlertEvent) -> None:
            go_on.wait(PATIENCE_S)
            super().publish(alert)

        def close(self) -> None:
            super().close()
            go_on.set()

    sink, clock = Silent(), SystemClock()
    outbox = AlertOutbox(sink, Metrics("1"), clock)
    outbox.put(alert(0))
    started_s = clock.monotonic()
    with capture_logs() as logs:
        outbox.drain(Deadline(clock, 1.5))
        waited_s = clock.monotonic() - started_s
        outbox.close()
        wait_until(lambda: ids(sink) == ["0"], "the attempt that was left behind to end")
    assert waited_s >= 1.4
    assert "alert_left_undelivered" in [entry["event"] for entry in logs]
