"""Coordinators that are dropped at any point, and others that take over."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState
from nap_stream.errors import ScoredLogError
from nap_stream.monitor.alerts import CHECKPOINT_EVERY_S, CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.journal import Journal
from nap_stream.records import PartitionProgress, SegmentSummary, TopicPartition
from nap_stream.scored_log.events import alert_id, read_events
from tests.support.alert_sinks import FlakySink
from tests.support.memory_store import MemoryStore
from tests.support.summaries import FACTS, Row, partition, report, segments, summary
from tests.support.summaries import settings as monitor_settings
from tests.support.summary_log import SummaryList
from tests.support.waiting import wait_until

NOW_MS = 1_000_000
SECTIONS: dict[str, dict[str, Any]] = {
    "drift": {"keys": {"max_firing": 2}},
    "alerts": {"repeat_interval_s": 1, "critical_fraction": 0.6},
}
"""A repeat comes after a hundred panes."""


class Dropped(BaseException):
    """The coordinator's process dies here."""


class Fate:
    """Lets a coordinator die at the n-th point at which it could."""

    def __init__(self) -> None:
        self.left = -1

    def pass_by(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Dropped


class MortalStore(MemoryStore):
    """Dies before or after a checkpoint or an event was written."""

    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self.fate = fate

    def replace(self, path: str, content: bytes) -> None:
        self.fate.pass_by()
        super().replace(path, content)
        self.fate.pass_by()

    def create(self, path: str, content: bytes) -> bool:
        self.fate.pass_by()
        done = super().create(path, content)
        self.fate.pass_by()
        return done


class MortalSink(FlakySink):
    """Dies before or after an alert was delivered."""

    def __init__(self, fate: Fate, store: MemoryStore) -> None:
        super().__init__()
        self.fate, self.store = fate, store

    def publish(self, alert: AlertEvent) -> None:
        self.fate.pass_by()
        assert alert.id in {alert_id(event) for event in read_events(self.store)}
        super().publish(alert)
        self.fate.pass_by()


def story(alerts: Iterable[AlertEvent]) -> list[str]:
    """Ids in the order in which they were sent; gaps last, which come when they are found."""
    return [alert.id for alert in sorted(alerts, key=lambda alert: alert.state == "gap")]


class Site:
    """What outlives a coordinator: log, checkpoint and sink; and the one that runs."""

    def __init__(self) -> None:
        self.fate = Fate()
        self.log, self.store = SummaryList(), MortalStore(self.fate)
        self.sink = MortalSink(self.fate, self.store)
        self.clock = ManualClock(NOW_MS)
        self._numbers = count()
        self.drops = 0
        self.coordinator: Coordinator | None = None

    def running(self) -> Coordinator:
        """The coordinator; another one until it has come to be ready, where none runs."""
        while self.coordinator is None:
            self.coordinator = new_coordinator(self.log, self.store, self.sink, self.clock)
            self.attempt(self.coordinator.start)
            if self.coordinator is not None:
                self._meet_workers(self.coordinator)
        return self.coordinator

    def publish(self, each: SegmentSummary, *, is_told: bool) -> None:
        """A worker's segment is durable; its summary comes, unless the worker died."""
        coordinator = self.running()
        self.log.durable.append(each)
        if is_told:
            self.attempt(lambda: coordinator.submit(each))

    def tick(self) -> None:
        self.attempt(self.running().tick)

    def drop(self) -> None:
        if self.coordinator is not None:
            self.drops += 1
            self.coordinator.close()
            self.coordinator = None

    def finish(self) -> list[str]:
        """What was sent. Each alert stands in the chain of events, once, and was there first."""
        self.fate.left = -1
        self.running().flush(5)
        self.drop()
        kept = [alert_id(event) for event in read_events(self.store) if event.kind == "alert"]
        assert sorted(kept) == sorted(alert.id for alert in self.sink.alerts)
        assert len(set(kept)) == len(kept)
        return story(self.sink.alerts)

    def attempt(self, act: Any) -> None:
        try:
            act()
        except Dropped:
            self.drop()

    def _meet_workers(self, coordinator: Coordinator) -> None:
        known = tuple(PartitionProgress(partition(n), 0, 1, None) for n in range(2))
        coordinator.report(report(number=next(self._numbers), partitions=known))
        self.attempt(coordinator.tick)


def new_coordinator(
    log: SummaryList,
    store: MemoryStore,
    sink: FlakySink,
    clock: ManualClock,
    *other_sinks: FlakySink,
    **sections: Any,
) -> Coordinator:
    chosen = monitor_settings(**(sections or SECTIONS))
    return Coordinator(
        chosen,
        FACTS,
        [sink, *other_sinks],
        summaries=log,
        checkpoints=CheckpointStore(store, "ood-fraction", "images"),
        journal=Journal(store, chosen, clock),
        clock=clock,
    )


def rows(first_ms: int, number: int) -> list[Row]:
    """Calm, a drift that two of three keys bring, of which the second comes later, and calm."""
    found = []
    for i in range(600):
        first, second = 150 <= i < 450 and i % 3 == 0, 250 <= i < 450 and i % 3 == 1
        key = f"camera-{number}-{i % 3}"
        # A second of silence amid the drift: then it is told again.
        time_ms = first_ms + i * 2 + (1_000 if i >= 350 else 0)
        found.append(Row(time_ms, i % 20 == 0 or first or second, None, key))
    return found


GAP = summary(0, 600, [], end=650, gap="offsets [600, 650): retention deleted them")
CHAINS: tuple[list[SegmentSummary], ...] = (
    [*segments(0, rows(0, 0), [25] * 24), GAP],
    segments(1, rows(2, 1), [40] * 15),
)
TOTAL = sum(map(len, CHAINS))


@cache
def undisturbed() -> tuple[AlertEvent, ...]:
    site = Site()
    for each in interleaved([]):
        site.publish(each, is_told=True)
        site.tick()
    site.finish()
    return tuple(site.sink.alerts)


def expected() -> list[str]:
    return story(undisturbed())


def interleaved(order: Sequence[int]) -> Iterator[SegmentSummary]:
    """The segments of both partitions, each in order of offset; by turns where nothing is said."""
    rest = [list(chain) for chain in CHAINS]
    for choice in (*order, *(n % 2 for n in range(2 * TOTAL))):
        if rest[choice]:
            yield rest[choice].pop(0)


def test_the_story_has_every_kind_of_alert() -> None:
    alerts = undisturbed()
    drift = [alert.event["data"] for alert in alerts if alert.state != "gap"]
    assert {data["reason"] for data in drift} == {"began", "repeated", "escalated", "ended"}
    assert {data["key"] is None for data in drift} == {True, False}
    assert "gap" in {alert.state for alert in alerts}
    assert len(set(expected())) == len(alerts)


PATTERN: dict[str, dict[str, Any]] = {
    **SECTIONS,
    "kafka": {"topic": "images", "topic_pattern": "images|gone"},
}


def two_topics() -> SummaryList:
    """The log of a calm topic, and the beginning of that of another."""
    gone = [replace(each, partition=TopicPartition("gone", 0)) for each in CHAINS[1][:2]]
    return SummaryList([*CHAINS[0][:4], *gone])


def watermark_after(coordinator: Coordinator, number: int, topics: Mapping[str, int]) -> int | None:
    known = (PartitionProgress(partition(0), CHAINS[0][number].end_offset, 0, None),)
    coordinator.report(report(number=number, partitions=known))
    coordinator.submit(CHAINS[0][number])
    coordinator.tick(Fleet(1, ("worker-0",), topics=topics))
    return coordinator.status().drift.watermark_ms


def test_a_topic_that_was_deleted_is_not_waited_for() -> None:
    clock = ManualClock(NOW_MS)
    coordinator = new_coordinator(two_topics(), MemoryStore(), FlakySink(), clock, **PATTERN)
    coordinator.start()
    both = {"images": 1, "gone": 1}
    before = watermark_after(coordinator, 4, both)
    clock.advance(40)
    assert watermark_after(coordinator, 5, both) == before
    waits = "drift is not judged further yet: no worker has gone/0"
    assert waits in coordinator.status().degraded()
    after = watermark_after(coordinator, 6, {"images": 1})
    assert before is not None
    assert after is not None
    assert after > before
    said = coordinator.status().degraded()
    assert waits not in said
    assert "the broker has no more of gone, which the log has" in said
    assert not coordinator.health()
    coordinator.close()


def test_a_topic_that_is_named_and_not_there_is_told() -> None:
    named = {**SECTIONS, "kafka": {"topic": "images", "topics": ["images", "gone"]}}
    log, clock = two_topics(), ManualClock(NOW_MS)
    coordinator = new_coordinator(log, MemoryStore(), FlakySink(), clock, **named)
    coordinator.start()
    watermark_after(coordinator, 4, {"images": 1, "gone": 0})
    (said,) = coordinator.health()
    assert "the broker has no topic gone" in said
    watermark_after(coordinator, 5, {"images": 1, "gone": 1})
    assert coordinator.health() == ()
    coordinator.close()


def test_a_topic_that_is_read_no_more_leaves_the_rest_as_it_is() -> None:
    store, clock, log = MemoryStore(), ManualClock(NOW_MS), two_topics()
    named = {**SECTIONS, "kafka": {"topic": "images", "topics": ["images", "gone"]}}
    with closing(new_coordinator(log, store, FlakySink(), clock, **named)) as coordinator:
        coordinator.start()
        coordinator.flush(1)
    # The log is asked for what is read.
    alone = {**SECTIONS, "kafka": {"topic": "images", "topics": ["images"]}}
    rest = SummaryList([each for each in log.durable if each.partition.topic == "images"])
    with (
        capture_logs() as events,
        closing(new_coordinator(rest, store, FlakySink(), clock, **alone)) as coordinator,
    ):
        coordinator.start()
        assert "monitor_restored" in [event["event"] for event in events]
        before = watermark_after(coordinator, 4, {"images": 1})
        after = watermark_after(coordinator, 5, {"images": 1})
        assert before is not None
        assert after is not None
        assert after > before
        assert coordinator.status().topics_gone == ()


def test_a_gap_that_was_declared_while_nobody_coordinated_is_counted() -> None:
    site = Site()
    for each in CHAINS[0][:-1]:
        site.publish(each, is_told=True)
    site.tick()
    site.drop()
    site.log.durable.append(GAP)
    assert site.running().metrics.registry.get_sample_value("nap_stream_gap_offsets_total") == 50
    site.tick()
    assert [alert.state for alert in site.sink.alerts if alert.state == "gap"] == ["gap"]
    site.drop()


@st.composite
def lives(draw: st.DrawFn) -> dict[str, Any]:
    """In which order what happens, and where coordinators die."""
    return {
        "order": draw(st.lists(st.integers(0, 1), max_size=TOTAL)),
        "ticks": draw(st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL)),
        "told": draw(st.lists(st.integers(0, 9), min_size=TOTAL, max_size=TOTAL)),
        "deaths": draw(st.lists(st.integers(1, 40), max_size=8)),
        "drops": draw(st.sets(st.integers(0, TOTAL - 1), max_size=4)),
    }


def delivered(
    order: list[int], ticks: list[bool], told: list[int], deaths: list[int], drops: set[int]
) -> list[str]:
    site = Site()
    for number, each in enumerate(interleaved(order)):
        if site.fate.left <= 0 and deaths:
            site.fate.left = deaths.pop()
        site.publish(each, is_told=told[number] > 0)
        if ticks[number]:
            site.tick()
        if number in drops:
            site.drop()
    return site.finish()


@settings(max_examples=5, deadline=None)
@given(life=lives())
def test_dropped_anywhere_every_alert_is_delivered_exactly_once(life: dict[str, Any]) -> None:
    """Between the decision, the checkpoint and the delivery, or anywhere between two calls."""
    assert delivered(**life) == expected()


@pytest.mark.slow
@given(life=lives())
def test_many_lives(life: dict[str, Any]) -> None:
    assert delivered(**life) == expected()


@pytest.mark.slow
def test_dropped_at_each_point_once() -> None:
    for point in count(1):
        site = Site()
        site.fate.left = point
        for each in interleaved([]):
            site.publish(each, is_told=True)
            site.tick()
        is_over = site.fate.left > 0
        assert site.finish() == expected()
        if is_over:
            break
    assert point > 2 * len(expected())


def test_a_run_that_was_stopped_goes_on_where_it_was() -> None:
    """A new run of the program, not a coordinator that stands in: the story is one."""
    log, store, sink, clock = SummaryList(), MemoryStore(), FlakySink(), ManualClock(NOW_MS)
    chain = CHAINS[0]
    for part in (chain[:11], chain[11:15], chain[15:]):
        coordinator = new_coordinator(log, store, sink, clock)
        coordinator.start()
        for each in part:
            log.durable.append(each)
            coordinator.submit(each)
        coordinator.flush(5)
        coordinator.close()
    ids = [alert.id for alert in sink.alerts]
    assert len(set(ids)) == len(ids)
    stream = [a.event["data"]["reason"] for a in sink.alerts if a.event["data"].get("state")]
    assert stream.count("began") == stream.count("ended")


def closed_without_a_broker(log: SummaryList, store: MemoryStore, clock: ManualClock) -> list[str]:
    """Run a coordinator whose alerts all wait in the end; give their ids."""
    away = FlakySink(failures=1_000)
    first = new_coordinator(SummaryList(), store, away, clock)
    first.start()
    for each in log.durable:
        first.submit(each)
    first.tick()
    waiting = [alert.id for alert in first._dispatcher.outboxes.pending()]
    assert waiting
    assert len(first._dispatcher.outboxes) == len(waiting)
    first.close()
    return waiting


def test_an_alert_that_waits_for_the_broker_survives_its_coordinator() -> None:
    log, store, clock = SummaryList(CHAINS[0][:14]), MemoryStore(), ManualClock(NOW_MS)
    waiting = len(closed_without_a_broker(log, store, clock))
    sink = FlakySink()
    second = new_coordinator(log, store, sink, clock)
    second.start()
    assert second.status().alerts_waiting == waiting
    second.tick()
    second.close()
    assert len(sink.alerts) == waiting


def test_an_alert_that_waits_for_the_broker_is_delivered_under_other_settings() -> None:
    log, store, clock = SummaryList(CHAINS[0][:14]), MemoryStore(), ManualClock(NOW_MS)
    waiting = closed_without_a_broker(log, store, clock)
    sink = FlakySink()
    second = new_coordinator(log, store, sink, clock, drift={"window_records": 60})
    second.start()
    second.tick()
    second.close()
    ids = [alert.id for alert in sink.alerts]
    assert ids[: len(waiting)] == waiting
    assert len(set(ids)) == len(ids)


def test_an_alert_that_waits_for_the_second_sink_survives_its_coordinator() -> None:
    log, store, clock = SummaryList(), MemoryStore(), ManualClock(NOW_MS)
    broker, away = FlakySink(name="kafka"), FlakySink(failures=1_000, name="webhook")
    first = new_coordinator(log, store, broker, clock, away)
    first.start()
    for each in CHAINS[0][:14]:
        log.durable.append(each)
        first.submit(each)
    first.tick()
    # Writes a checkpoint that the first sink's deliveries precede.
    first.flush(0, input_ended=False)
    sent = [alert.id for alert in broker.alerts]
    assert sent
    first.close()
    back = FlakySink(name="webhook")
    second = new_coordinator(log, store, broker, clock, back)
    second.start()
    second.tick()
    wait_until(lambda: len(second._dispatcher.outboxes) == 0, "the second sink")
    second.close()
    assert [alert.id for alert in back.alerts] == sent
    assert [alert.id for alert in broker.alerts] == sent


def test_a_stop_with_a_partition_far_behind_and_a_hole_changes_no_alert() -> None:
    site = Site()
    ahead, behind = CHAINS
    for each in (*ahead, *behind[:3]):
        site.publish(each, is_told=True)
        site.tick()
    stopped = site.running()
    site.log.broken = True
    for each, is_told in ((behind[3], False), (behind[4], True)):
        site.publish(each, is_told=is_told)
    stopped.flush(5, input_ended=False)
    site.drop()
    site.log.broken = False
    for each in behind[5:]:
        site.publish(each, is_told=True)
        site.tick()
    last = site.running()
    assert last is not stopped
    last.flush(5)
    assert (stopped.status().drift.late_records, last.status().drift.late_records) == (0, 0)
    site.drop()
    assert story(site.sink.alerts) == expected()


def test_other_settings_begin_anew() -> None:
    log, store, clock = SummaryList(CHAINS[0][:14]), MemoryStore(), ManualClock(NOW_MS)
    sink = FlakySink()
    for told, window in enumerate((40, 60), start=1):
        one = new_coordinator(log, store, sink, clock, drift={"window_records": window})
        one.start()
        one.tick()
        one.close()
        assert one.status().drift.state is AlertState.FIRING
        assert sink.states == ["firing"] * told, "the log's tail ends with it"
    assert len({alert.id for alert in sink.alerts}) == 2


def test_a_checkpoint_of_a_log_that_is_gone_is_not_taken() -> None:
    """Else all that comes would be taken for known."""
    store, clock, sink = MemoryStore(), ManualClock(NOW_MS), FlakySink()
    old = SummaryList(CHAINS[1])
    first = new_coordinator(old, store, sink, clock)
    first.start()
    first.flush(1)
    first.close()
    log = SummaryList(CHAINS[1][:3])
    second = new_coordinator(log, store, sink, clock)
    second.start()
    second.submit(CHAINS[1][3])
    assert second.status().rows == 40
    second.close()


class SlowLog(SummaryList):
    """Of which each segment takes longer to read than a partition may be silent."""

    clock = ManualClock(NOW_MS)

    def read(self, wanted: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        for each in super().read(wanted, start, end):
            self.clock.advance(60)
            yield each


def test_however_long_it_takes_to_catch_up_nothing_is_late_for_that() -> None:
    log, store, sink = SlowLog(), MemoryStore(), FlakySink()
    first = new_coordinator(log, store, sink, log.clock)
    first.start()
    first.close()
    log.durable = list(interleaved([]))
    second = new_coordinator(log, store, sink, log.clock)
    second.start()
    second.flush(5)
    assert second.status().drift.late_records == 0
    second.close()
    assert story(sink.alerts) == expected()


def test_whoever_takes_over_waits_for_the_partitions_that_workers_have_named() -> None:
    log, store, clock = SummaryList(), MemoryStore(), ManualClock(NOW_MS)
    first = new_coordinator(log, store, FlakySink(), clock)
    first.start()
    known = tuple(PartitionProgress(partition(n), 0, 1, None) for n in range(2))
    first.report(report(partitions=known))
    first.tick()
    first.close()
    log.durable = CHAINS[0][:20]
    second = new_coordinator(log, store, FlakySink(), clock)
    second.start()
    assert second.status().drift.window_records == 0, "partition 1 may have older records"
    second.close()


class Auditor(FlakySink):
    """Looks, before it takes an alert, whether a checkpoint has it."""

    def __init__(self, checkpoints: CheckpointStore) -> None:
        super().__init__(name="auditor")
        self.checkpoints = checkpoints
        self.found: list[bool] = []

    def publish(self, alert: AlertEvent) -> None:
        kept = self.checkpoints.read()
        self.found.append(kept is not None and alert.id in {each.id for each in kept.pending})
        super().publish(alert)


def test_no_sink_is_told_what_no_checkpoint_has() -> None:
    """Other sinks than the first have threads of their own, which wait for no tick."""
    checkpoints = CheckpointStore(MemoryStore(), "ood-fraction", "images")
    auditor = Auditor(checkpoints)
    coordinator = Coordinator(
        monitor_settings(**SECTIONS),
        FACTS,
        [FlakySink(), auditor],
        summaries=SummaryList(),
        checkpoints=checkpoints,
        journal=Journal(MemoryStore(), monitor_settings(**SECTIONS), ManualClock(NOW_MS)),
        clock=ManualClock(NOW_MS),
    )
    coordinator.start()
    for each in CHAINS[0]:
        coordinator.submit(each)
    coordinator.tick()
    wait_until(lambda: len(auditor.alerts) >= 4, "alerts at the second sink")
    coordinator.close()
    assert all(auditor.found)


class FullStore(MemoryStore):
    """Without room for a checkpoint while ``full``."""

    full = True

    def replace(self, path: str, content: bytes) -> None:
        if self.full:
            raise ScoredLogError("no space left on device", path, "Make room")
        super().replace(path, content)


def test_a_full_disk_keeps_no_alert_back_and_is_tried_again() -> None:
    log, store, clock, sink = SummaryList(), FullStore(), ManualClock(NOW_MS), FlakySink()
    coordinator = new_coordinator(log, store, sink, clock)
    coordinator.start()
    value = coordinator.metrics.registry.get_sample_value
    for each in CHAINS[0][:14]:
        coordinator.submit(each)
    coordinator.tick()
    assert sink.states[0] == "firing"
    failures = value("nap_stream_checkpoint_failures_total")
    assert failures == 2
    assert value("nap_stream_last_checkpoint_timestamp_seconds") == 0
    coordinator.tick()
    assert value("nap_stream_checkpoint_failures_total") == failures, "not at every tick"
    store.full = False
    clock.advance(CHECKPOINT_EVERY_S)
    coordinator.tick()
    assert value("nap_stream_checkpoint_failures_total") == failures
    assert value("nap_stream_last_checkpoint_timestamp_seconds") == clock.now_ms() / 1000
    coordinator.close()


def test_a_checkpoint_is_written_while_something_changes_and_only_then() -> None:
    log, store, clock, sink = SummaryList(), MemoryStore(), ManualClock(NOW_MS), FlakySink()
    coordinator = new_coordinator(log, store, sink, clock)
    coordinator.start()
    value = coordinator.metrics.registry.get_sample_value
    written = [value("nap_stream_last_checkpoint_timestamp_seconds")]
    for each in (CHAINS[0][0], None):
        if each is not None:
            coordinator.submit(each)
        # Past the time after which a partition is idle, which is a change too.
        for _ in range(3):
            clock.advance(CHECKPOINT_EVERY_S)
            coordinator.tick()
        written.append(value("nap_stream_last_checkpoint_timestamp_seconds"))
    coordinator.close()
    assert written[0] == NOW_MS / 1000
    assert written[1] is not None
    assert written[1] > NOW_MS / 1000
    assert written[2] == written[1]


def test_workers_may_take_long_to_come_back_and_nothing_is_late_for_that() -> None:
    """They load their models, and join when the session of those that were killed has expired."""
    site = Site()
    ahead, behind = CHAINS
    for each in (*ahead, *behind[:3]):
        site.publish(each, is_told=True)
        site.tick()
    stopped = site.running()
    stopped.flush(5, input_ended=False)
    site.drop()
    second = new_coordinator(site.log, site.store, site.sink, site.clock)
    second.start()
    for _ in range(60):
        site.clock.advance(5)
        second.tick()
    known = (
        PartitionProgress(partition(0), 650, 0, None),
        PartitionProgress(partition(1), 120, 480, None),
    )
    second.report(report(number=NOW_MS, partitions=known))
    for each in behind[3:]:
        site.log.durable.append(each)
        second.submit(each)
    second.flush(5)
    assert second.status().drift.late_records == 0
    second.close()
    assert story(site.sink.alerts) == expected()


def begun_at_tail(*chains: list[SegmentSummary]) -> tuple[Coordinator, FlakySink, ManualClock]:
    log, sink, clock = SummaryList(s for c in chains for s in c), FlakySink(), ManualClock(NOW_MS)
    coordinator = new_coordinator(log, MemoryStore(), sink, clock)
    coordinator.start()
    coordinator.tick()
    assert sink.alerts == [], "the second partition may have more"
    return coordinator, sink, clock


def idle(coordinator: Coordinator, clock: ManualClock, *known: PartitionProgress) -> None:
    """Workers report that nothing more is to be read, until partitions count as idle."""
    for second in range(20):
        clock.advance(1)
        coordinator.report(report(number=NOW_MS + 1_000 * second, partitions=known))
        coordinator.tick()


ALL_READ = (
    PartitionProgress(partition(0), 600, 0, None),
    PartitionProgress(partition(1), 120, 0, None),
)


def test_what_is_over_at_the_tail_is_not_told_when_a_partition_has_ended_before() -> None:
    coordinator, sink, clock = begun_at_tail(CHAINS[0][:-1], CHAINS[1][:3])
    idle(coordinator, clock, *ALL_READ)
    coordinator.close()
    assert coordinator.status().drift.state is AlertState.INACTIVE
    assert sink.alerts == []


def test_what_fires_at_the_tail_is_told_when_a_partition_has_ended_before() -> None:
    coordinator, sink, clock = begun_at_tail(CHAINS[0][:14], CHAINS[1][:3])
    idle(coordinator, clock, *ALL_READ)
    coordinator.close()
    assert coordinator.status().drift.state is AlertState.FIRING
    assert sink.states[:1] == ["firing"]
    keys = [alert.key for alert in sink.alerts]
    assert len(set(keys)) == len(keys)


def test_whoever_takes_over_before_the_past_is_judged_does_not_tell_it_either() -> None:
    log, store, sink = SummaryList([*CHAINS[0][:-1], *CHAINS[1][:3]]), MemoryStore(), FlakySink()
    clock = ManualClock(NOW_MS)
    first = new_coordinator(log, store, sink, clock)
    first.start()
    first.flush(5, input_ended=False)
    first.close()
    second = new_coordinator(log, store, sink, clock)
    second.start()
    idle(second, clock, *ALL_READ)
    second.close()
    assert sink.alerts == []
