"""Replay against monitors at work, on a real log."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import ManualClock
from nap_stream.errors import LogRootError
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import Journal
from nap_stream.records import PartitionProgress, SegmentSummary, Status, TopicPartition
from nap_stream.replay import SHOWN_RANGES, EventSpan, ReplayReport, contradicting_flags, replay
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import LogSummaries, summary_shape
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.schema import Settings
from tests.scored_log.builders import failed, make_version
from tests.support.alert_sinks import FlakySink
from tests.support.drifting_log import START_MS, STEP_MS, Publisher, drifting
from tests.support.log_files import paths_in
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import ScoredRecord
from tests.support.summaries import FACTS, Row, partition, report, settings, summary
from tests.support.summary_log import SummaryList

COUNT, DRIFT = 900, range(400, 600)
DAY_MS = 86_400_000
NAMES = tuple(partition(n) for n in range(3))
RECORDS = {name: drifting(name, COUNT, DRIFT) for name in NAMES}
SECTIONS: dict[str, Any] = {
    "drift": {"pane_ms": 100, "window_records": 150, "keys": {"max_firing": 3}},
    "alerts": {"repeat_interval_s": 2},
}


def monitor_settings(**drift: Any) -> Settings:
    return settings(**(SECTIONS | {"drift": SECTIONS["drift"] | drift}))


def published(
    store: SegmentStore, sizes: Sequence[Sequence[int]], fingerprint: str = FACTS.fingerprint
) -> list[list[SegmentSummary]]:
    """The log of all records; a partition's segments have the sizes that stand at its number."""
    publisher = Publisher(store, fingerprint, summary_shape(monitor_settings()))
    chains = [
        list(publisher.publish(name, RECORDS[name], sizes[name.partition % len(sizes)]))
        for name in NAMES
    ]
    chains[0].append(publisher.declare_gap(NAMES[0], COUNT + 10, "retention deleted them"))
    return chains


def lived(
    store: SegmentStore,
    sizes: Sequence[Sequence[int]],
    lives: int = 1,
    lost: Sequence[tuple[int, int]] = (),
    records: Mapping[TopicPartition, list[ScoredRecord]] = RECORDS,
) -> list[AlertEvent]:
    """The alerts of coordinators, of which each stands in for the one before.

    The segments ``lost``, each a partition and a number, are gone before anybody was told of them.
    """
    sink = FlakySink()
    publisher = Publisher(store, FACTS.fingerprint, summary_shape(monitor_settings()))
    chains = [
        publisher.publish(name, records[name], sizes[name.partition % len(sizes)]) for name in NAMES
    ]
    turns = [[next(chain, None) for chain in chains] for _ in range(COUNT)]
    told = [each for turn in turns for each in turn if each is not None]
    # Durable before it is told, as ever; here all of it is.
    told.append(publisher.declare_gap(NAMES[0], COUNT + 10, "retention deleted them"))
    gone = [turns[number][name] for name, number in lost]
    store.remove([each.path for each in gone if each is not None])
    told = [each for each in told if each not in gone]
    log = LogSummaries(store, monitor_settings(), FACTS.fingerprint)
    for number in range(lives):
        part = told[number * len(told) // lives : (number + 1) * len(told) // lives]
        one = Coordinator(
            monitor_settings(),
            FACTS,
            [sink],
            # The first one finds the log as it was before the run began.
            summaries=log if number else SummaryList(),
            checkpoints=CheckpointStore(store, "ood-fraction", "images"),
            journal=Journal(store, monitor_settings(), ManualClock()),
            clock=ManualClock(),
        )
        one.start()
        known = tuple(PartitionProgress(name, 0, 1, None) for name in NAMES)
        one.report(report(partitions=known))
        for each in part:
            one.submit(each)
            one.tick()
        if number == lives - 1:
            one.flush(5)
        one.close()
    return sink.alerts


def earlier(record: ScoredRecord, by_ms: int) -> ScoredRecord:
    times = record.origin.event_time_ms, record.origin.ingest_time_ms
    event_ms, ingest_ms = (time_ms - by_ms for time_ms in times)
    changed = replace(record.origin, event_time_ms=event_ms, ingest_time_ms=ingest_ms)
    return replace(record, origin=changed)


def replayed(
    store: SegmentStore, span: EventSpan | None = None, **drift: Any
) -> tuple[list[AlertEvent], ReplayReport]:
    alerts: list[AlertEvent] = []
    steps: list[tuple[int, int | None]] = []
    found = replay(
        store,
        monitor_settings(**drift),
        FACTS,
        span=span or EventSpan(),
        on_alert=alerts.append,
        advance=lambda done, total: steps.append((done, total)),
    )
    assert steps == sorted(steps)
    assert sum(found.alerts.values()) == len(alerts)
    return alerts, found


def ids(alerts: Sequence[AlertEvent], state: str | None = None) -> list[str]:
    return [alert.id for alert in alerts if (alert.state == "gap") == (state == "gap")]


@pytest.mark.parametrize("lives", [1, 3])
def test_replay_gives_the_alerts_of_the_run(tmp_path: Any, lives: int) -> None:
    store = LocalStore(tmp_path)
    live = lived(store, [(40,), (7, 100, 21), (63,)], lives)
    assert {alert.event["data"].get("reason") for alert in live} >= {"began", "ended"}
    again, found = replayed(store)
    assert ids(again) == ids(live)
    assert ids(again, "gap") == ids(live, "gap")
    assert len(ids(live, "gap")) == 1
    assert [a.event["data"] for a in again if a.state != "gap"] == [
        a.event["data"] for a in live if a.state != "gap"
    ]
    assert (found.partitions, found.records, found.late) == (3, 3 * COUNT, 0)
    assert (found.contradicting, found.foreign) == (0, 0)
    # The checkpoint beside the log is no part of it.
    assert verify(store, deep=True).clean


def unreadable(record: ScoredRecord) -> ScoredRecord:
    """The row of the same message, had it held something else."""
    bad = failed(record.origin, Status.UNSUPPORTED, "not a JPEG, PNG or WebP image")
    return replace(bad, scored_time_ms=record.scored_time_ms)


@pytest.mark.parametrize("lives", [1, 3])
def test_replay_gives_the_alerts_of_images_without_scores(tmp_path: Any, lives: int) -> None:
    """A stretch that cannot be read, after one that drifts."""
    stretch = range(610, 660)
    records = {
        name: [unreadable(r) if i in stretch else r for i, r in enumerate(RECORDS[name])]
        for name in NAMES
    }
    store = LocalStore(tmp_path)
    live = lived(store, [(40,), (7, 100, 21), (63,)], lives, records=records)
    again, found = replayed(store)
    assert [alert.event for alert in again if alert.state != "gap"] == [
        alert.event for alert in live if alert.state != "gap"
    ]
    assert found.unscored == len(NAMES) * len(stretch)
    told = [a.event for a in live if a.event["type"].startswith("io.nap-stream.unscored.")]
    reasons = [event["data"]["reason"] for event in told]
    assert (reasons[0], reasons[-1]) == ("began", "ended")
    assert set(reasons[1:-1]) <= {"repeated"}
    assert told[0]["data"]["unscored"]["by_status"].keys() == {"unsupported"}
    later, _ = replayed(store, unscored=None)
    assert not [a for a in later if a.event["type"].startswith("io.nap-stream.unscored.")]


@pytest.mark.parametrize(
    "lost", [[(0, 2)], [(0, 3), (0, 4), (0, 12), (1, 1), (2, 8)], [(1, n) for n in range(1, 16, 2)]]
)
def test_missing_segments_are_given_up_as_a_monitor_at_work_does(
    tmp_path: Any, lost: list[tuple[int, int]]
) -> None:
    store = LocalStore(tmp_path)
    live = lived(store, [(50,)], lost=lost)
    assert any(alert.state == "firing" for alert in live)
    again, found = replayed(store)
    assert ids(again) == ids(live)
    assert [a.event["data"] for a in again if a.state != "gap"] == [
        a.event["data"] for a in live if a.state != "gap"
    ]
    # As the rows are: an offset each.
    assert found.records == 3 * COUNT - found.missing.offsets
    assert (found.missing.offsets, found.late) == (50 * len(lost), 0)
    apart = [(name, number) for name, number in lost if (name, number - 1) not in lost]
    assert found.missing.ranges == len(apart)
    assert {(hole.partition, hole.start) for hole in found.missing.first} <= {
        (NAMES[name], 50 * number) for name, number in apart
    }
    assert len(found.missing.first) == min(len(apart), SHOWN_RANGES)


def replayed_by_records(store: MemoryStore) -> tuple[dict[str, int], ReplayReport]:
    """How many records were judged when an alert of each state first came."""
    done: list[int] = []
    told: dict[str, int] = {}

    def tell(alert: AlertEvent) -> None:
        told.setdefault(alert.state, done[-1])

    found = replay(
        store,
        monitor_settings(),
        FACTS,
        span=EventSpan(),
        on_alert=tell,
        advance=lambda records, _: done.append(records),
    )
    return told, found


def test_what_follows_a_missing_segment_is_judged_when_it_is_read() -> None:
    store = MemoryStore()
    published(store, [(50,)])
    store.remove([paths_in(store, name)[2] for name in NAMES])
    told, found = replayed_by_records(store)
    assert found.missing.ranges == 3
    assert told["firing"] < 3 * DRIFT.stop, "else all that comes would be held in memory"


def test_segments_may_be_cut_in_any_way() -> None:
    stories = []
    for sizes in ([(COUNT,)], [(25,), (31, 9)], [(100, 1), (33,), (500,)]):
        store = MemoryStore()
        published(store, sizes)
        stories.append(ids(replayed(store)[0]))
    assert stories[0] == stories[1] == stories[2]
    assert stories[0]


def test_a_log_that_begins_in_version_3_gives_the_same_alerts() -> None:
    store = MemoryStore()
    published(store, [(40,), (7, 100, 21), (63,)])
    alerts, found = replayed(store)
    for name in NAMES:
        make_version(store, name, 7 + name.partition)
    again, found_again = replayed(store)
    assert ids(alerts)
    assert [alert.event["data"] for alert in again] == [alert.event["data"] for alert in alerts]
    assert ids(again) == ids(alerts)
    assert found_again == found


def test_other_settings_on_history() -> None:
    store = MemoryStore()
    published(store, [(50,)])
    strict, _ = replayed(store, expected_run_length=1e12)
    loose, _ = replayed(store, expected_run_length=1e3)
    first = [
        next(a.event["data"]["firing_since"] for a in alerts if a.state == "firing")
        for alerts in (loose, strict)
    ]
    assert first[0] < first[1], "who bears more false alarms is told sooner"


def test_only_a_span_of_event_time() -> None:
    store = MemoryStore()
    published(store, [(50,), (20,), (70,)])
    back_ms = START_MS + DRIFT.stop * STEP_MS
    before, found = replayed(store, EventSpan(None, START_MS + DRIFT.start * STEP_MS))
    assert not before
    assert found.records == 3 * DRIFT.start
    after, found = replayed(store, EventSpan(back_ms, None))
    assert ids(after) == []
    assert len(ids(after, "gap")) == 1
    assert found.records == 3 * (COUNT - DRIFT.stop)
    within, found = replayed(store, EventSpan(START_MS + 300 * STEP_MS, back_ms))
    assert {alert.state for alert in within} == {"firing"}
    assert found.records == 3 * (DRIFT.stop - 300)
    nothing, found = replayed(store, EventSpan(START_MS + 2 * COUNT * STEP_MS, None))
    assert not nothing
    assert found.partitions == 0


def test_a_gap_at_the_beginning_is_told() -> None:
    store = MemoryStore()
    publisher = Publisher(store, FACTS.fingerprint, summary_shape(monitor_settings()))
    publisher.declare_gap(NAMES[0], 10, "retention deleted them")
    alerts, found = replayed(store)
    assert [alert.state for alert in alerts] == ["gap"]
    assert found.records == 0


def test_rows_of_another_calibration_are_counted() -> None:
    store = MemoryStore()
    published(store, [(50,)], "d" * 64)
    _, found = replayed(store)
    assert found.foreign == found.records == 3 * COUNT


def test_only_records_of_the_span_count_as_those_of_another_calibration() -> None:
    store, middle_ms = MemoryStore(), COUNT * STEP_MS // 2
    for fingerprint, part in (("d" * 64, slice(0, COUNT // 2)), (FACTS.fingerprint, slice(COUNT))):
        publisher = Publisher(store, fingerprint, summary_shape(monitor_settings()))
        for name in NAMES:
            # Published after all of them, as ever.
            early = [earlier(each, 2 * COUNT * STEP_MS) for each in RECORDS[name][part]]
            list(publisher.publish(name, early, [70]))
    first_ms = START_MS - 2 * COUNT * STEP_MS
    _, found = replayed(store)
    assert (found.foreign, found.records) == (3 * COUNT // 2, 3 * COUNT)
    _, found = replayed(store, EventSpan(first_ms + middle_ms))
    assert (found.foreign, found.records) == (0, 3 * COUNT // 2)


def test_records_are_found_where_the_monitor_counted_them() -> None:
    store = MemoryStore()
    publisher = Publisher(store, FACTS.fingerprint, summary_shape(monitor_settings()))
    for name in NAMES:
        old = [
            replace(each, origin=replace(each.origin, event_time_ms=START_MS - 30 * DAY_MS))
            for each in RECORDS[name]
        ]
        list(publisher.publish(name, old, [50]))
    whole, _ = replayed(store)
    again, found = replayed(store, EventSpan(START_MS - DAY_MS))
    assert ids(again) == ids(whole)
    assert ids(whole)
    assert found.records == 3 * COUNT


def test_a_partition_that_ends_early_holds_nobody_back() -> None:
    store = MemoryStore()
    publisher = Publisher(store, FACTS.fingerprint, summary_shape(monitor_settings()))
    list(publisher.publish(NAMES[0], RECORDS[NAMES[0]][:10], [10]))
    list(publisher.publish(NAMES[1], RECORDS[NAMES[1]], [50]))
    told, found = replayed_by_records(store)
    assert found.late == 0
    # As it is read, not only at the end: else all that comes would be held in memory.
    assert told["firing"] < DRIFT.stop
    assert told["resolved"] < found.records


def test_there_must_be_a_log(tmp_path: Any) -> None:
    with pytest.raises(LogRootError):
        replayed(LocalStore(tmp_path / "none"))


@pytest.mark.parametrize(
    ("rows", "alpha", "contradicting"),
    [
        ([(True, 0.01), (False, 0.5)], 0.05, 0),
        ([(False, 0.01), (False, 0.5)], 0.05, 1),
        ([(True, 0.3), (True, 0.4)], 0.05, 2),
        # Bins cannot tell it, the examples can.
        ([(True, 0.041)], 0.04, 1),
        ([(False, 0.03)], 0.04, 0),
    ],
)
def test_flags_against_p_values(
    rows: list[tuple[bool, float]], alpha: float, contradicting: int
) -> None:
    told = summary(0, 0, [Row(i, flagged, p) for i, (flagged, p) in enumerate(rows)])
    assert contradicting_flags(told, alpha) == contradicting
    assert contradicting_flags(replace(told, panes=told.panes.part(0, 0), examples=()), alpha) == 0
