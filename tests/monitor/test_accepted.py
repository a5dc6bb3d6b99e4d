"""A coordinator whose calibration holds a baseline: what it tells, shows, learns of and leaves."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import jsonschema
import pytest
from rich.console import Console

from nap_stream.clock import ManualClock
from nap_stream.drift.records import CalibrationFacts
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import Journal
from nap_stream.monitor.status import status_text
from nap_stream.records import Acceptance, SegmentSummary
from nap_stream.scored_log.acceptances import (
    LOOK_EVERY_S,
    AcceptanceReader,
    write_acceptance,
)
from tests.support.alert_sinks import FlakySink
from tests.support.baselines import BASELINE_MS, BLOCK_MS, USUAL, cameras, with_baseline
from tests.support.memory_store import MemoryStore
from tests.support.schemas import alert_schema
from tests.support.summaries import FACTS, Row, partition, report, segments, settings
from tests.support.summary_log import SummaryList
from tests.support.waiting import PATIENCE_S

FACTS_OF = with_baseline()
BAD = "camera-2"
TURNS_MS = BASELINE_MS + 10 * BLOCK_MS
END_MS = TURNS_MS + 40 * BLOCK_MS
SETTINGS = settings(drift={"keys": {"by": "key"}}, alerts={"repeat_interval_s": 100.0})
SIZE = 50


def chain() -> list[SegmentSummary]:
    """A camera turns bad, and stays so."""
    rows: list[Row] = [
        *cameras(BASELINE_MS, TURNS_MS, seed=1),
        *cameras(TURNS_MS, END_MS, {**USUAL, BAD: 0.8}, seed=2),
    ]
    return segments(0, rows, [SIZE] * (len(rows) // SIZE))


CHAIN = chain()


@contextmanager
def running(
    store: MemoryStore,
    sink: FlakySink,
    clock: ManualClock,
    log: SummaryList | None = None,
    facts: CalibrationFacts = FACTS_OF,
) -> Iterator[Coordinator]:
    coordinator = Coordinator(
        SETTINGS,
        facts,
        [sink],
        summaries=log or SummaryList(),
        checkpoints=CheckpointStore(store, "ood-fraction", "images"),
        journal=Journal(store, SETTINGS, clock),
        clock=clock,
        acceptances=AcceptanceReader(store, "images", clock),
    )
    coordinator.start()
    try:
        yield coordinator
    finally:
        coordinator.close()


def accept(store: MemoryStore, effective_ms: int, topic: str = "images") -> Acceptance:
    given = Acceptance(0, topic, BAD, TURNS_MS, effective_ms, 5, "Ann", "line 2 was retooled")
    return write_acceptance(store, given)


def reasons(sink: FlakySink) -> list[tuple[str | None, str]]:
    data = [alert.event["data"] for alert in sink.alerts]
    return [(each["key"], each["reason"]) for each in data if each["key"] is not None]


def number_at(time_ms: int) -> int:
    """Which segment of the chain holds a time."""
    return (time_ms - BASELINE_MS) // SIZE


def value(coordinator: Coordinator, name: str, **labels: str) -> float | None:
    return coordinator.metrics.registry.get_sample_value(f"nap_stream_{name}", labels)


def test_an_acceptance_of_a_monitor_at_work_ends_the_alert() -> None:
    store, sink, clock = MemoryStore(), FlakySink(), ManualClock()
    made_at, effective_ms = number_at(END_MS - 15 * BLOCK_MS), END_MS - 10 * BLOCK_MS
    with running(store, sink, clock) as coordinator:
        for number, each in enumerate(CHAIN):
            if number == made_at:
                assert reasons(sink) == [(BAD, "began")]
                assert value(coordinator, "keys_firing") == 1
                accept(store, effective_ms, "another-topic")
                made = accept(store, effective_ms)
                clock.advance(LOOK_EVERY_S)
            coordinator.submit(each)
            coordinator.tick()
        coordinator.flush(5)
        assert reasons(sink) == [(BAD, "began"), (BAD, "accepted")]
        for alert in sink.alerts:
            jsonschema.validate(json.loads(json.dumps(alert.event)), alert_schema())
        (ended,) = (
            alert.event["data"]
            for alert in sink.alerts
            if alert.event["data"]["reason"] == "accepted"
        )
        assert (ended["acceptance"]["number"], ended["acceptance"]["by"]) == (made.number, "Ann")
        assert ended["summary"].startswith("Accepted after")
        # The stream has its own alert, which the camera is no longer part of.
        status = coordinator.status()
        assert status.alerts_fired - status.alerts_resolved in {0, 1}
        assert status.alerts_resolved >= 1
        assert (value(coordinator, "keys_firing"), value(coordinator, "keys_new")) == (0, 1)
        assert value(coordinator, "changes_accepted") == 1


def test_what_decides_is_shown() -> None:
    with running(MemoryStore(), FlakySink(), ManualClock()) as coordinator:
        for each in CHAIN:
            coordinator.submit(each)
        coordinator.report(report())
        coordinator.tick()
        for monitor, decides in (("blocks", 1), ("records", 0)):
            assert value(coordinator, "deciding_monitor", monitor=monitor) == decides
        assert value(coordinator, "detector_active", detector="blocks") == 1
        assert value(coordinator, "block_seconds") == BLOCK_MS / 1000
        assert value(coordinator, "blocks_judged_until_seconds") == (END_MS - BLOCK_MS) / 1000
        low, change, high = (
            value(coordinator, "month_ood_fraction_change", bound=bound)
            for bound in ("low", "estimate", "high")
        )
        assert low is not None
        assert change is not None
        assert high is not None
        assert 0 < low < change < high
        words = coordinator.status().decides
        assert words is not None
        assert "against the baseline of 1970-01-01T00:00Z" in words
        assert "1970-01: " in words
        assert "points from the baseline" in words
        with urllib.request.urlopen(
            coordinator.metrics_url.replace("/metrics", "/healthz"), timeout=PATIENCE_S
        ) as answer:
            health = json.load(answer)
    assert health["decides"] == words
    console = Console(width=400)
    with console.capture() as shown:
        console.print(status_text(coordinator.status()))
    assert words in shown.get()


def test_single_records_are_shown_as_what_decides_without_a_baseline() -> None:
    with running(MemoryStore(), FlakySink(), ManualClock(), facts=FACTS) as coordinator:
        coordinator.submit(CHAIN[0])
        coordinator.tick()
        assert coordinator.status().decides is None
        assert value(coordinator, "deciding_monitor", monitor="records") == 1
        assert value(coordinator, "deciding_monitor", monitor="blocks") == 0


@pytest.mark.parametrize("stop", [20, number_at(END_MS - 12 * BLOCK_MS), len(CHAIN) - 2])
def test_one_that_takes_over_goes_on_with_what_was_accepted(stop: int) -> None:
    effective_ms = END_MS - 10 * BLOCK_MS
    stories = []
    for stops in ((), (stop,)):
        store, sink, clock, log = MemoryStore(), FlakySink(), ManualClock(), SummaryList()
        accept(store, effective_ms)
        begin = 0
        for end in (*stops, len(CHAIN)):
            with running(store, sink, clock, log) as coordinator:
                for each in CHAIN[begin:end]:
                    log.durable.append(each)
                    coordinator.submit(each)
                    coordinator.tick()
                if end == len(CHAIN):
                    coordinator.flush(5)
            begin = end
        stories.append([(alert.id, alert.event["data"]["reason"]) for alert in sink.alerts])
    assert stories[0] == stories[1]
    assert "accepted" in {reason for _, reason in stories[0]}
    assert log.partitions() == (partition(0),)
