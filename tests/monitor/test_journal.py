"""What a coordinator writes into the chain of events, and what it does where that cannot be."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import ManualClock
from nap_stream.errors import ScoredLogError, WorkerError, WorkerGaveUpError
from nap_stream.monitor.alerts import CHECKPOINT_EVERY_S, CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import (
    MAX_WAITING,
    RETRY_S,
    Journal,
    failed_words,
)
from nap_stream.scored_log.events import FOLDER, Event, alert_id, event_path, read_events
from nap_stream.scored_log.history import entries
from nap_stream.settings.load import masked_tree
from nap_stream.settings.schema import Settings
from tests.support.alert_sinks import FlakySink
from tests.support.memory_store import MemoryStore
from tests.support.summaries import FACTS, partition, report, segments, settings
from tests.support.summary_log import SummaryList
from tests.support.waiting import PATIENCE_S

NOW_MS = 1_000_000
DRIFT = segments(0, [(i, i >= 200 and i % 2 == 0) for i in range(400)], [25] * 16)


class Shaky(MemoryStore):
    """Whose creates fail while ``is_full``."""

    is_full = False

    def create(self, path: str, content: bytes) -> bool:
        if self.is_full:
            raise ScoredLogError("the disk is full", path, "Free space on it")
        return super().create(path, content)


@contextmanager
def running(
    store: MemoryStore,
    sink: FlakySink,
    clock: ManualClock,
    chosen: Settings | None = None,
) -> Iterator[Coordinator]:
    chosen = chosen or settings()
    coordinator = Coordinator(
        chosen,
        FACTS,
        [sink],
        summaries=SummaryList(),
        checkpoints=CheckpointStore(store, "ood-fraction", "images"),
        journal=Journal(store, chosen, clock),
        clock=clock,
    )
    coordinator.start()
    try:
        yield coordinator
    finally:
        coordinator.close()


def events(store: MemoryStore, kind: str | None = None) -> list[Event]:
    return [event for event in read_events(store) if kind in {None, event.kind}]


def told(alerts: list[AlertEvent]) -> list[str]:
    return [alert.id for alert in alerts]


class Auditor(FlakySink):
    """Looks, before it takes an alert, which ones the chain has."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self.store = store
        self.had: list[bool] = []

    def publish(self, alert: AlertEvent) -> None:
        self.had.append(alert.id in map(alert_id, read_events(self.store)))
        super().publish(alert)


def test_a_run_is_written_from_its_start_to_its_end() -> None:
    store, clock = MemoryStore(), ManualClock(NOW_MS)
    auditor = Auditor(store)
    with running(store, auditor, clock) as coordinator:
        for each in DRIFT:
            coordinator.submit(each)
        coordinator.tick()
        coordinator.flush(5)
        coordinator.stopped("stopped")
    start, *alerts, stop = events(store)
    assert (start.kind, start.topic, start.monitor) == ("run-started", "images", "ood-fraction")
    assert start.by.startswith("coordinator@")
    data = start.data
    assert set(data) == {
        *("version", "user", "settings", "settings_sha256", "model_fingerprint", "alpha"),
        *("calibration_fingerprint", "flag_rate", "window_records", "bound", "detectors"),
    }
    shown = json.dumps(masked_tree(settings()), sort_keys=True, separators=(",", ":"))
    assert data["settings"] == json.loads(shown)
    assert data["settings_sha256"] == hashlib.sha256(shown.encode()).hexdigest()
    assert (data["model_fingerprint"], data["alpha"], data["window_records"]) == (
        "f" * 64,
        0.05,
        40,
    )
    # Of 40 records, so many flags: the bound is what the alert says too.
    window = alerts[0].data["event"]["data"]["window"]
    assert data["bound"] == window["bound"] == window["firing_limit"] / 40
    assert data["detectors"] == [
        *("ood-window", "ood-sequential", "score-shift", "unscored-images")
    ]
    assert [event.data["event"] for event in alerts] == [alert.event for alert in auditor.alerts]
    assert len(alerts) >= 1
    assert all(auditor.had)
    assert stop.data == {"reason": "stopped", "rows_by_status": {"ok": 400}}
    assert (stop.kind, {event.by for event in events(store)}) == ("run-stopped", {start.by})


def test_what_is_left_out_stands_in_the_chain_once_for_each_reason() -> None:
    store, clock = MemoryStore(), ManualClock(NOW_MS)
    cut = "images/1: the broker has lost messages that were read"
    forbidden = {partition(0): "no right", partition(2): "no right"}
    with running(store, FlakySink(), clock) as coordinator:
        for number in range(10):
            told = {partition(1): cut} if number < 5 else {partition(1): cut, **forbidden}
            coordinator.report(report(number=number, left_out=told))
            coordinator.tick()
            clock.advance(1)
    found = events(store, "left-out")
    assert [event.data for event in found] == [
        {"partition": "images/1", "reason": cut},
        {"partition": "images/0", "reason": "no right"},
    ]
    assert [entry.what for entry in entries(found)] == [cut, "no right"]


def test_a_store_that_fails_holds_no_alert_back() -> None:
    store, sink, clock = Shaky(), FlakySink(), ManualClock(NOW_MS)
    with running(store, sink, clock) as coordinator:
        store.is_full = True
        for each in DRIFT:
            coordinator.submit(each)
        with capture_logs() as logs:
            coordinator.tick()
            coordinator.tick()
        assert sink.states == ["firing"]
        failures = [line for line in logs if line["event"] == "events_not_written"]
        assert len(failures) == 1, "it is left alone for a while"
        assert "1 events not written to the log: " in coordinator.health()[-1]
        assert "the disk is full" in coordinator.health()[-1]
        assert events(store, "alert") == []
        store.is_full = False
        clock.advance(RETRY_S)
        coordinator.tick()
        assert [alert_id(event) for event in events(store, "alert")] == told(sink.alerts)
        assert not any("events" in reason for reason in coordinator.health())


def test_what_could_not_be_written_is_left_to_the_next_run() -> None:
    store, sink, clock = Shaky(), FlakySink(), ManualClock(NOW_MS)
    with running(store, sink, clock) as coordinator:
        store.is_full = True
        for each in DRIFT:
            coordinator.submit(each)
        coordinator.tick()
        coordinator.flush(1, input_ended=False)
        coordinator.stopped("stopped")
    assert events(store, "alert") == []
    store.is_full = False
    # It cannot say what it has, and gets nothing twice all the same.
    again = FlakySink()
    log = SummaryList(DRIFT)
    chosen = settings()
    second = Coordinator(
        chosen,
        FACTS,
        [again],
        summaries=log,
        checkpoints=CheckpointStore(store, "ood-fraction", "images"),
        journal=Journal(store, chosen, clock),
        clock=clock,
    )
    second.start()
    second.tick()
    second.close()
    assert again.alerts == []
    assert [alert_id(event) for event in events(store, "alert")] == told(sink.alerts)
    kinds = [event.kind for event in events(store)]
    assert kinds[:2] == ["run-started", "run-started"], "the first one never said that it stopped"


def test_what_another_coordinator_has_written_is_not_written_again() -> None:
    """Two at once, of which one does not know yet that it was replaced."""
    store, clock = MemoryStore(), ManualClock(NOW_MS)
    sinks = FlakySink(), FlakySink()
    with (
        running(store, sinks[0], clock) as first,
        running(MemoryStore(), sinks[1], clock) as other,
    ):
        other._dispatcher._journal._store = store
        for each in DRIFT:
            for coordinator in (first, other):
                coordinator.submit(each)
                coordinator.tick()
    assert told(sinks[0].alerts) == told(sinks[1].alerts)
    assert [alert_id(event) for event in events(store, "alert")] == told(sinks[0].alerts)


def test_a_damaged_event_stops_no_monitor() -> None:
    store, sink, clock = MemoryStore(), FlakySink(), ManualClock(NOW_MS)
    store.create(event_path(0), b"\xff")
    store.create(event_path(3), b"{}")
    with running(store, sink, clock) as coordinator:
        for each in DRIFT:
            coordinator.submit(each)
        coordinator.tick()
        assert not any("events" in reason for reason in coordinator.health())
    found = list(read_events(store, defects=[]))
    assert [event.number for event in found] == [4, 5]
    assert [event.kind for event in found] == ["run-started", "alert"]


def secret_fields(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted names of all that is a secret."""
    for name, field in model.model_fields.items():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if part is SecretStr:
                yield ".".join((*above, name))
            elif isinstance(part, type) and issubclass(part, BaseModel):
                yield from secret_fields(part, (*above, name))


def test_no_secret_comes_into_an_event() -> None:
    chosen = settings(
        kafka={
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "monitor",
            "sasl_password": "hush-1",
            "oauth": {
                "token_endpoint": "https://idp.example/token",
                "client_id": "monitor",
                "client_secret": "hush-13",
            },
        },
        alerts={"webhook": {"url": "https://hooks.example/services/hush-2?token=hush-3"}},
        model={
            "kwargs": {
                "api_key": "hush-4",
                "hub": "https://me:hush-5@hub.example/",
                "eps": float("nan"),
            }
        },
        messages={
            "read": [{"confluent_avro": {"path": "image"}}],
            "registry": {"url": "https://registry", "username": "me", "password": "hush-6"},
        },
        log={"root": "log", "keys": {"key": "hashed", "secret": "hush-0123456789abcdef"}},
    )
    # Whoever adds one adds it here.
    assert set(secret_fields(Settings)) == {
        "kafka.oauth.client_secret",
        *("kafka.sasl_password", "messages.registry.password", "log.keys.secret"),
    }
    assert chosen.log.keys.secret is not None
    assert chosen.kafka.sasl_password is not None
    assert chosen.kafka.oauth is not None
    assert chosen.messages.registry is not None
    assert chosen.messages.registry.password is not None
    store = MemoryStore()
    with running(store, FlakySink(), ManualClock(NOW_MS), chosen) as coordinator:
        for each in DRIFT:
            coordinator.submit(each)
        coordinator.tick()
        coordinator.stopped(failed_words(ValueError("hush-7")))
        coordinator.stopped(failed_words(WorkerError("OSError: hush-8", "worker-0", "hush-9")))
        gave_up = WorkerGaveUpError("it failed twice", "worker-0", "Last cause: hush-10")
        gave_up.__cause__ = WorkerError("OSError: hush-11")
        gave_up.__cause__.__cause__ = OSError("hush-12")
        coordinator.stopped(failed_words(gave_up))
    for event in events(store):
        assert b"hush" not in (store.read(event_path(event.number)) or b"")
    assert events(store)[0].data["settings"]["model"]["kwargs"]["eps"] is None
    reasons = [event.data["reason"] for event in events(store, "run-stopped")]
    assert reasons == [
        "failed: ValueError",
        "failed: WorkerError",
        "failed: worker-0: it failed twice: WorkerGaveUpError: WorkerError: OSError",
    ]


@pytest.mark.parametrize("name", ["x\ny", "ü" * 200])
def test_any_name_of_a_monitor_can_be_written(name: str) -> None:
    store = MemoryStore()
    chosen = settings(alerts={"monitor": name})
    journal = Journal(store, chosen, ManualClock(NOW_MS))
    journal.stopped("one\ntwo" + "x" * 10_000, {})
    (event,) = events(store)
    assert event.monitor == name.replace("\n", " ")
    assert event.data["reason"].startswith("one two")
    assert journal.failure is None


def test_an_event_that_none_can_be_is_lost_aloud_and_holds_nothing_up() -> None:
    store = MemoryStore()
    journal = Journal(store, settings(), ManualClock(NOW_MS))
    odd: dict[str, Any] = {"id": "1", "type": "t", "data": float("nan")}
    with capture_logs() as logs:
        journal.tell([AlertEvent("m", odd), AlertEvent("m", {"id": "2", "type": "t"})])
        journal.write()
    assert [line["event"] for line in logs] == ["event_lost"]
    assert [alert_id(event) for event in events(store)] == ["2"]
    assert journal.failure is None
    assert journal.loss is not None
    assert journal.loss.startswith("1 events are not in the log, and never will be: ")
    assert "not a valid event" in journal.loss
    assert journal.lost == 1


def test_what_is_lost_is_counted_in_the_metrics() -> None:
    store, sink = MemoryStore(), FlakySink()
    odd: dict[str, Any] = {"id": "1", "type": "t", "data": float("nan")}
    with running(store, sink, ManualClock(NOW_MS)) as coordinator:
        coordinator._journal.tell([AlertEvent("m", odd)])
        for _ in range(2):
            coordinator.tick()
        value = coordinator.metrics.registry.get_sample_value("nap_stream_events_lost_total")
        assert value == 1
        assert any("never will be" in each for each in coordinator.status().degraded())


class Hanging(MemoryStore):
    """Where no event is created and nothing replaced while ``is_open`` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = threading.Event()
        self.is_open.set()

    def create(self, path: str, content: bytes) -> bool:
        if path.startswith(FOLDER):
            self.is_open.wait()
        return super().create(path, content)

    def replace(self, path: str, content: bytes) -> None:
        self.is_open.wait()
        super().replace(path, content)


def test_a_store_that_hangs_holds_no_alert_back() -> None:
    store, sink, clock = Hanging(), FlakySink(), ManualClock(NOW_MS)
    with running(store, sink, clock) as coordinator:
        journal, dispatcher = coordinator._journal, coordinator._dispatcher
        journal._patience_s = dispatcher._patience_s = 0.01
        store.is_open.clear()
        try:
            for each in DRIFT:
                coordinator.submit(each)
            coordinator.tick()
            assert sink.states == ["firing"]
            assert "1 events not written to the log: the store has not" in coordinator.health()[-1]
            assert coordinator.metrics.checkpoint_failures._value.get() == 1
            threads = (journal._writer, dispatcher._keeper)
            coordinator.tick()
            clock.advance(CHECKPOINT_EVERY_S)
            coordinator.tick()
            assert (journal._writer, dispatcher._keeper) == threads, "others are not started"
        finally:
            store.is_open.set()
        for thread in threads:
            assert thread is not None
            thread.join()
        assert store.read(dispatcher._checkpoints.path) is not None
        assert [alert_id(event) for event in events(store, "alert")] == told(sink.alerts)
        assert not any("events" in reason for reason in coordinator.health())


def test_what_waits_is_bounded_and_what_is_dropped_is_told() -> None:
    store, clock = Shaky(), ManualClock(NOW_MS)
    journal = Journal(store, settings(), clock)
    store.is_full = True
    alerts = [AlertEvent("m", {"id": f"{n}", "type": "t"}) for n in range(MAX_WAITING + 2)]
    journal.tell(alerts[:1])
    journal.write()
    with capture_logs() as logs:
        journal.tell(alerts[1:])
    assert [(line["event"], line["alert"]) for line in logs] == [
        ("event_lost", "0"),
        ("event_lost", "1"),
    ]
    assert journal.loss is not None
    assert "2 events are not in the log" in journal.loss
    assert "the disk is full" in journal.loss
    assert list(journal.unwritten()) == alerts[2:]
    store.is_full = False
    journal.write(at_once=True, wait_s=PATIENCE_S)
    assert [alert_id(event) for event in events(store)] == told(alerts[2:])


@pytest.mark.parametrize("left", [0, 2])
def test_a_chain_that_was_removed_is_not_begun_anew_silently(left: int) -> None:
    store, clock = MemoryStore(), ManualClock(NOW_MS)
    with running(store, FlakySink(), clock) as coordinator:
        for _ in range(3):
            coordinator.stopped("stopped")
        assert not coordinator.status().degraded()[1:]
        store.remove([event_path(number) for number in range(left, 4)])
        with capture_logs() as logs:
            coordinator.stopped("stopped")
        assert "events_removed" in [line["event"] for line in logs]
        told = f"event 3 was in the log and is gone: now {left} is next"
        assert told in coordinator.status().degraded()
        coordinator.stopped("stopped")
    assert [event.number for event in events(store)] == list(range(left + 2))
