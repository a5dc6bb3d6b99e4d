import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest
from structlog.testing import capture_logs

from nap_stream.clock import Clock, ManualClock
from nap_stream.core.alert_state import AlertState, Severity
from nap_stream.errors import ChainBrokenError, ConfigError, ScoredLogError
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import HOLE_PATIENCE_S, LOOK_EVERY_S, Coordinator
from nap_stream.monitor.journal import Journal
from nap_stream.records import PartitionProgress, SegmentSummary, Status, TopicPartition
from nap_stream.scored_log.stores import SegmentStore
from tests.support.alert_sinks import FlakySink
from tests.support.memory_store import MemoryStore
from tests.support.schemas import alert_schema, gap_schema
from tests.support.summaries import (
    FACTS,
    AnyRow,
    Row,
    partition,
    report,
    segments,
    settings,
    summary,
)
from tests.support.summary_log import SummaryList
from tests.support.waiting import PATIENCE_S

NOW_MS = 1_000_000
CALM: list[AnyRow] = [(i, i % 20 == 0) for i in range(200)]
DRIFT: list[AnyRow] = [(200 + i, i % 2 == 0) for i in range(200)]
BACK: list[AnyRow] = [(400 + i, False) for i in range(200)]


@contextmanager
def running(
    log: SummaryList | None = None,
    sink: FlakySink | None = None,
    clock: Clock | None = None,
    since: dict[TopicPartition, int] | None = None,
    store: SegmentStore | None = None,
    **sections: dict[str, Any],
) -> Iterator[Coordinator]:
    chosen, store, clock = (
        settings(**sections),
        store or MemoryStore(),
        clock or ManualClock(NOW_MS),
    )
    coordinator = Coordinator(
        chosen,
        FACTS,
        [sink or FlakySink()],
        summaries=log or SummaryList(),
        checkpoints=CheckpointStore(store, "ood-fraction", "images"),
        journal=Journal(store, chosen, clock),
        clock=clock,
    )
    coordinator.start(since)
    try:
        yield coordinator
    finally:
        coordinator.close()


def value(coordinator: Coordinator, name: str, **labels: str) -> float | None:
    return coordinator.metrics.registry.get_sample_value(f"nap_stream_{name}", labels)


def test_a_coordinator_that_stands_in_for_another_counts_rows_since_the_run_began() -> None:
    chain = segments(0, CALM, [25] * 8)
    began = chain[2].base_offset
    with running(SummaryList(chain[:6]), since={chain[0].partition: began}) as coordinator:
        assert coordinator.status().rows == 4 * 25
        coordinator.submit(chain[5])
        assert coordinator.status().rows == 4 * 25, "its rows are in the log and counted"
        coordinator.submit(chain[6])
        assert coordinator.status().rows_by_status == {Status.OK: 5 * 25}
    with running(SummaryList(chain[:6])) as coordinator:
        coordinator.submit(chain[6])
        assert coordinator.status().rows == 25


def test_a_coordinator_that_is_made_anew_need_not_wait_for_torch() -> None:
    code = "import sys, nap_stream.monitor.actors\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def test_alerts_of_a_drift_and_a_return() -> None:
    sink = FlakySink()
    with running(sink=sink) as coordinator:
        chain = segments(0, [*CALM, *DRIFT, *BACK], [25] * 24)
        for each in chain[:8]:
            coordinator.submit(each)
        coordinator.tick()
        assert sink.states == []
        assert coordinator.status().drift.state is AlertState.INACTIVE
        for each in chain[8:16]:
            coordinator.submit(each)
        assert sink.states == [], "delivery is for the tick"
        assert coordinator.status().alerts_waiting == 1
        coordinator.tick()
        assert sink.states == ["firing"]
        assert value(coordinator, "alert_firing", severity="critical") == 1
        with capture_logs() as logs:
            for each in chain[16:]:
                coordinator.submit(each)
            coordinator.flush(timeout_s=5)
        told = [(e["state"], e["log_level"]) for e in logs if e["event"] == "drift_alert"]
        assert told == [("resolved", "info")]
        status = coordinator.status()

        assert sink.states == ["firing", "resolved"]
        for alert in sink.alerts:
            jsonschema.validate(json.loads(json.dumps(alert.event)), alert_schema())
        assert sink.alerts[0].event["data"]["offsets"][0]["partition"] == 0
        assert (status.alerts_fired, status.alerts_resolved, status.alerts_waiting) == (1, 1, 0)
        assert status.rows == 600
        assert status.rows_by_status == {Status.OK: 600}
        assert status.ood_fraction == 0.0
        assert status.drift.bound is not None
        assert status.drift.window_records == status.window_size == 40
        assert value(coordinator, "alert_firing", severity="critical") == 0
        assert value(coordinator, "alerts_published_total", sink="memory", state="firing") == 1
        assert value(coordinator, "records_total", status="ok") == 600
        assert value(coordinator, "ood_fraction") == 0
        assert value(coordinator, "ood_fraction_bound") == status.drift.bound
        expected = value(coordinator, "ood_fraction_expected")
        assert expected is not None
        assert 0.05 < expected < status.drift.bound
        assert value(coordinator, "window_fill_ratio") == 1


def test_detectors_keys_and_the_watermark_are_shown() -> None:
    clock = ManualClock(NOW_MS)
    rows = [Row(*row[:2], None, f"camera-{row[0] % 4}") for row in [*CALM, *DRIFT]]
    with running(clock=clock, drift={"keys": {"max_keys": 3}}) as coordinator:
        for each in segments(0, rows, [25] * 16):
            coordinator.submit(each)
        clock.advance(60)
        coordinator.tick()
        for detector in ("ood-window", "ood-sequential"):
            statistic, threshold, active = (
                value(coordinator, f"detector_{name}", detector=detector)
                for name in ("statistic", "threshold", "active")
            )
            assert statistic is not None
            assert threshold is not None
            assert statistic >= threshold > 0
            assert active == 1
        assert value(coordinator, "watermark_delay_seconds") == (NOW_MS + 60_000 - 399) / 1000
        of_partition = value(
            coordinator, "partition_watermark_seconds", topic="images", partition="0"
        )
        assert of_partition == 0.399
        assert value(coordinator, "keys") == 3
        status = coordinator.status()
        assert status.drift.keys == 3
        assert status.drift.severity is Severity.CRITICAL
        assert status.drift.keys_firing == value(coordinator, "keys_firing")
        assert value(coordinator, "keys_active") == status.drift.keys_firing
        assert (value(coordinator, "keys_forgotten_total") or 0) > 0


def test_an_alert_has_a_line_in_the_log() -> None:
    with capture_logs() as events, running() as coordinator:
        for each in segments(0, [*CALM, *DRIFT], [25] * 16):
            coordinator.submit(each)
        coordinator.tick()
    (line,) = [event for event in events if event["event"] == "drift_alert"]
    assert (line["monitor"], line["key"], line["state"]) == ("ood-fraction", None, "firing")
    assert (line["reason"], line["severity"]) == ("began", "critical")
    assert "out-of-distribution" in line["summary"]


def test_before_the_window_is_full_there_is_no_fraction() -> None:
    with running() as coordinator:
        coordinator.submit(summary(0, 0, CALM[:25]))
        status = coordinator.status()
        assert status.ood_fraction is None
        assert status.drift.bound is None
        assert status.drift.window_records == 20
        assert value(coordinator, "window_fill_ratio") == 0.5


def test_repeated_and_rebuilt_alerts_have_the_same_id() -> None:
    chain = segments(0, [*CALM, *DRIFT], [25] * 16)
    ids = []
    for order in (chain, [*chain, *chain]):
        sink = FlakySink()
        with running(sink=sink) as coordinator:
            for each in order:
                coordinator.submit(each)
            coordinator.flush(0)
        ids.append([alert.event["id"] for alert in sink.alerts])
    assert len(ids[0]) == 1
    assert ids[0] == ids[1]


def test_a_summary_that_comes_twice_counts_once() -> None:
    with running() as coordinator:
        first = summary(0, 0, CALM[:25])
        coordinator.submit(first)
        coordinator.submit(first)
        assert coordinator.status().rows == 25
        assert value(coordinator, "duplicate_summaries_total") == 1


def test_a_summary_that_went_missing_is_read_from_the_log() -> None:
    chain = segments(0, CALM, [50, 50, 50])
    log = SummaryList()
    with running(log) as coordinator:
        coordinator.submit(chain[0])
        coordinator.submit(chain[2])
        assert coordinator.status().rows == 50
        log.durable = chain
        coordinator.tick()
        assert log.reads == [(partition(0), 50, 100)]
        assert coordinator.status().rows == 150
        assert value(coordinator, "gaps_total") == 0


def test_what_stands_before_the_first_summary_is_read_from_the_log() -> None:
    chain = segments(0, CALM, [50, 50, 50])
    log = SummaryList()
    with running(log) as coordinator:
        log.durable = chain
        coordinator.submit(chain[1])
        assert log.reads == [(partition(0), 0, 50)]
        assert coordinator.status().rows == 100


def test_a_hole_that_stays_is_counted_and_passed() -> None:
    chain = segments(0, CALM, [50, 50, 50])
    clock = ManualClock(NOW_MS)
    with running(SummaryList(), clock=clock) as coordinator:
        coordinator.submit(chain[0])
        coordinator.submit(chain[2])
        coordinator.tick()
        clock.advance(HOLE_PATIENCE_S - 1)
        coordinator.tick()
        assert coordinator.status().rows == 50
        clock.advance(1)
        coordinator.tick()
        assert coordinator.status().rows == 100
        assert value(coordinator, "gaps_total") == 1
        assert value(coordinator, "gap_offsets_total") == 50


def test_no_hole_is_given_up_while_the_log_cannot_be_read() -> None:
    chain = segments(0, CALM, [50, 50, 50])
    clock, log = ManualClock(NOW_MS), SummaryList()
    with running(log, clock=clock) as coordinator:
        coordinator.submit(chain[0])
        coordinator.submit(chain[2])
        log.broken = True
        for _ in range(3):
            coordinator.tick()
            clock.advance(HOLE_PATIENCE_S)
        coordinator.flush(0)
        assert coordinator.status().rows == 50
        assert value(coordinator, "gaps_total") == 0
        log.broken, log.durable = False, chain[:3]
        coordinator.tick()
        assert coordinator.status().rows == 150
        assert value(coordinator, "gaps_total") == 0


def test_a_hole_over_a_segment_that_can_never_be_read_is_given_up() -> None:
    chain = segments(0, CALM, [50, 50, 50])
    clock, log = ManualClock(NOW_MS), SummaryList()
    with running(log, clock=clock) as coordinator:
        coordinator.submit(chain[0])
        coordinator.submit(chain[2])
        log.broken, log.fault = True, ChainBrokenError("a status of a newer version", "[50, 100)")
        coordinator.tick()
        assert coordinator.status().rows == 50
        clock.advance(HOLE_PATIENCE_S)
        coordinator.tick()
        assert coordinator.status().rows == 100
        assert value(coordinator, "gap_offsets_total") == 50


def test_a_stop_gives_no_hole_up() -> None:
    chain = segments(0, CALM, [20] * 9)
    log = SummaryList([])
    with running(log) as coordinator:
        for each in chain[::2]:
            coordinator.submit(each)
        log.durable = chain[:4]
        coordinator.flush(0, input_ended=False)
        assert coordinator.status().rows == 100, "up to the first hole that the log has not"
        assert value(coordinator, "gaps_total") == 0


def test_flush_waits_for_no_hole() -> None:
    chain = segments(0, CALM, [20] * 9)
    log = SummaryList([])
    with running(log) as coordinator:
        for each in chain[::2]:
            coordinator.submit(each)
        log.durable = chain[:4]
        coordinator.flush(0)
        # Of the four holes two are in the log.
        assert coordinator.status().rows == 140
        assert value(coordinator, "gaps_total") == 2
        assert value(coordinator, "gap_offsets_total") == 40


def test_a_gap_in_the_log_is_counted() -> None:
    with running() as coordinator:
        coordinator.submit(summary(0, 0, [], end=70, gap="retention deleted the offsets"))
        assert value(coordinator, "gaps_total") == 1
        assert value(coordinator, "gap_offsets_total") == 70
        assert coordinator.status().rows == 0


GAP = summary(0, 200, [], end=270, gap="offsets [200, 270): retention deleted them")


def test_a_gap_makes_an_alert_once() -> None:
    sink = FlakySink()
    with running(sink=sink) as coordinator:
        coordinator.submit(summary(0, 0, CALM))
        coordinator.submit(GAP)
        coordinator.submit(GAP)
        assert coordinator.status().alerts_waiting == 1
        coordinator.tick()
        coordinator.tick()
        assert sink.states == ["gap"]
        assert value(coordinator, "alerts_published_total", sink="memory", state="gap") == 1
    (event,) = [alert.event for alert in sink.alerts]
    jsonschema.validate(event, gap_schema())
    assert event["data"]["offsets"] == 70


def test_a_gap_that_nobody_told_of_is_found_in_the_log_and_alerted() -> None:
    log, sink = SummaryList(), FlakySink()
    with running(log, sink) as coordinator:
        coordinator.submit(summary(0, 0, CALM))
        log.durable = [summary(0, 0, CALM), GAP]
        coordinator.submit(summary(0, 270, CALM))
        coordinator.tick()
        assert sink.states == ["gap"]


def test_gaps_of_before_the_start_are_not_alerted_again() -> None:
    sink = FlakySink()
    with running(SummaryList([summary(0, 0, CALM), GAP]), sink) as coordinator:
        coordinator.submit(GAP)
        coordinator.tick()
        assert sink.states == []
        assert value(coordinator, "gaps_total") == 0


def test_what_workers_wait_for_is_told() -> None:
    clock = ManualClock(NOW_MS)
    with running(clock=clock, worker={"count": 2}) as coordinator:
        coordinator.report(report("worker-0", waiting_for="the scored log: the disk is full"))
        coordinator.report(report("worker-1"))
        coordinator.tick()
        waits = {"worker-0": "the scored log: the disk is full"}
        assert coordinator.status().waiting_for == waits
        assert coordinator.health() == ("worker-0 waits for the scored log: the disk is full",)
        assert coordinator.ready() == ()
        assert value(coordinator, "workers_waiting") == 1
        coordinator.report(report("worker-0", number=1))
        coordinator.tick()
        assert coordinator.status().waiting_for == {}
        assert coordinator.health() == ()
        assert value(coordinator, "workers_waiting") == 0


def test_what_a_worker_waited_for_that_is_gone_is_not_told() -> None:
    clock = ManualClock(NOW_MS)
    with running(clock=clock) as coordinator:
        coordinator.report(report("worker-0", waiting_for="the broker"))
        clock.advance(31)
        assert coordinator.status().waiting_for == {}


def test_without_a_checkpoint_what_is_over_is_not_told_and_what_fires_is() -> None:
    chain = segments(0, [*CALM, *DRIFT, *BACK], [25] * 24)
    sink = FlakySink()
    with running(SummaryList(chain[:16]), sink) as coordinator:
        coordinator.tick()
        assert sink.states == ["firing"]
        assert coordinator.status().drift.state is AlertState.FIRING
        assert coordinator.status().rows == 0
        assert value(coordinator, "alert_firing", severity="critical") == 1
        for each in chain[14:]:
            coordinator.submit(each)
        coordinator.flush(0)
        assert sink.states == ["firing", "resolved"]
        assert coordinator.status().rows == 200
    again = FlakySink()
    with running(SummaryList(chain), again) as coordinator:
        coordinator.tick()
        assert again.states == [], "it began and ended before"


def test_without_a_checkpoint_what_fires_and_was_delivered_is_not_told_again() -> None:
    chain = segments(0, [*CALM, *DRIFT], [25] * 16)
    sink = FlakySink()
    for _ in range(2):
        with running(SummaryList(chain), sink) as coordinator:
            coordinator.tick()
    assert sink.states == ["firing"]


def test_rebuild_takes_partitions_together() -> None:
    """The tail comes partition by partition; no record is late for that."""
    tail = [*segments(0, CALM, [50] * 4), *segments(1, CALM, [30] * 7)]
    with running(SummaryList(tail)) as coordinator:
        assert value(coordinator, "late_records_total") == 0
        assert coordinator.status().drift.window_records >= 40


def test_a_log_that_cannot_be_read_keeps_it_from_starting() -> None:
    log, sink = SummaryList([summary(0, 0, CALM)]), FlakySink()
    log.broken = True
    coordinator = Coordinator(
        settings(),
        FACTS,
        [sink],
        summaries=log,
        checkpoints=CheckpointStore(MemoryStore(), "ood-fraction", "images"),
        journal=Journal(MemoryStore(), settings(), ManualClock()),
        clock=ManualClock(),
    )
    with pytest.raises(ScoredLogError):
        coordinator.start()
    with pytest.raises(RuntimeError, match="not started"):
        _ = coordinator.metrics_url
    coordinator.close()
    coordinator.close()
    assert sink.closed


def test_a_port_in_use_keeps_it_from_starting() -> None:
    with running() as first:
        port = int(first.metrics_url.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match="cannot listen"), running(metrics={"port": port}):
            pass


def test_a_partition_that_lags_is_waited_for() -> None:
    """One worker has read on; the records of the other's backlog are not late for that."""
    clock = ManualClock(NOW_MS)
    with running(clock=clock) as coordinator:
        for second in range(30):
            lagging = PartitionProgress(partition(1), second, 100 - second, None)
            leading = PartitionProgress(partition(0), 200, 0, None)
            coordinator.report(report("worker-0", number=second, partitions=(leading,)))
            coordinator.report(report("worker-1", number=second, partitions=(lagging,)))
            if second == 1:
                coordinator.submit(summary(0, 0, CALM))
            coordinator.tick()
            clock.advance(1)
        assert coordinator.status().drift.window_records == 0
        assert coordinator.status().max_lag == 71
        coordinator.submit(summary(1, 0, CALM))
        assert coordinator.status().drift.late_records == 0
        assert coordinator.status().drift.window_records >= 40


def test_a_partition_that_a_worker_names_is_waited_for_once() -> None:
    clock = ManualClock(NOW_MS)
    with running(clock=clock) as coordinator:
        quiet = PartitionProgress(partition(1), 0, 0, None)
        coordinator.report(report(partitions=(quiet,)))
        coordinator.submit(summary(0, 0, CALM))
        assert coordinator.status().drift.window_records == 0
        clock.advance(10)
        coordinator.report(report(number=1, partitions=(quiet,)))
        coordinator.tick()
        assert coordinator.status().drift.window_records == 40


def test_a_worker_that_died_is_waited_for() -> None:
    clock = ManualClock(NOW_MS)
    with running(clock=clock) as coordinator:
        for number in range(2):
            done = PartitionProgress(partition(number), 100, 0, None)
            coordinator.report(report(f"worker-{number}", partitions=(done,)))
        for number in range(2):
            coordinator.submit(summary(number, 0, CALM[:100]))
        for second in range(20):
            clock.advance(1)
            mine = PartitionProgress(partition(0), 100 + second, 0, None)
            coordinator.report(report(number=second, partitions=(mine,)))
            coordinator.tick()
        coordinator.submit(summary(0, 100, CALM[100:]))
        clock.advance(1)
        coordinator.tick()
        coordinator.submit(summary(1, 100, CALM[100:]))
        assert coordinator.status().drift.late_records == 0


def test_undelivered_alerts_wait_and_health_says_so() -> None:
    sink, clock = FlakySink(failures=2), ManualClock(NOW_MS)
    with running(sink=sink, clock=clock) as coordinator:
        for each in segments(0, [*CALM, *DRIFT, *BACK], [600]):
            coordinator.submit(each)
        coordinator.report(report())
        coordinator.tick()
        assert coordinator.status().alerts_waiting == 2
        assert coordinator.health() == (
            "2 alerts not delivered: memory: localhost:9092: no broker answers. Start it",
        )
        clock.advance(1)
        coordinator.tick()
        clock.advance(2)
        coordinator.tick()
        assert sink.states == ["firing", "resolved"]
        assert coordinator.health() == ()
        assert value(coordinator, "alert_failures_total", sink="memory") == 2


def test_health_wants_to_hear_of_every_worker() -> None:
    clock = ManualClock(NOW_MS)
    with running(clock=clock, worker={"count": 2}) as coordinator:
        coordinator.report(report("worker-0"))
        assert coordinator.health() == ("1 of 2 workers reported in the last 30 s",)
        coordinator.report(report("worker-1"))
        assert coordinator.health() == ()
        clock.advance(31)
        assert coordinator.health() == ("0 of 2 workers reported in the last 30 s",)
        assert coordinator.ready() == coordinator.health()
        coordinator.status()
        clock.advance(59)
        assert coordinator.alive() == ()
        clock.advance(2)
        assert coordinator.alive() == ("the driver has not asked for 61 s: it is gone, or hangs",)


def test_a_stream_that_turns_unreadable_is_told_everywhere() -> None:
    sink, clock = FlakySink(), ManualClock(700)
    unreadable = [Row(200 + i, flagged=False, status=Status.CORRUPT) for i in range(400)]
    with running(sink=sink, clock=clock, drift={"stale_after_s": 0.3}) as coordinator:
        for each in segments(0, [*CALM, *unreadable], [25] * 24):
            coordinator.submit(each)
        with capture_logs() as logs:
            coordinator.report(report())
            coordinator.tick()
        assert [alert.event["type"] for alert in sink.alerts] == ["io.nap-stream.unscored.firing"]
        assert coordinator.health() == ()
        blind, old = coordinator.status().degraded()
        assert "(critical): 40 of the last 40 images have no scores (corrupt 40)" in blind
        assert old.endswith("none of the images since could be scored")
        status = coordinator.status()
        assert status.drift.state is AlertState.INACTIVE
        assert (status.alerts_fired, status.stale_since_ms) == (1, 200)
        assert value(coordinator, "unscored_fraction") == 1
        assert value(coordinator, "unscored_fraction_bound") == 0.01
        assert value(coordinator, "unscored_alert_firing", severity="critical") == 1
        assert value(coordinator, "detector_active", detector="unscored-images") == 1
        assert value(coordinator, "window_age_seconds") == 0.5
        assert value(coordinator, "alert_firing", severity="critical") == 0
        assert not [each for each in logs if each["log_level"] == "error"]
        with urllib.request.urlopen(
            coordinator.metrics_url.replace("/metrics", "/healthz"), timeout=PATIENCE_S
        ) as answer:
            assert (answer.status, json.load(answer)) == (
                200,
                {"status": "degraded", "degraded": [blind, old]},
            )


def test_a_coordinator_that_takes_over_goes_on_with_the_alert_of_unreadable_images() -> None:
    store, first, second = MemoryStore(), FlakySink(), FlakySink()
    unreadable = [Row(200 + i, flagged=False, status=Status.CORRUPT) for i in range(200)]
    back = [(400 + i, i % 20 == 0) for i in range(1_200)]
    chain = segments(0, [*CALM, *unreadable, *back], [25] * 64)
    with running(sink=first, store=store) as coordinator:
        for each in chain[:12]:
            coordinator.submit(each)
        coordinator.flush(5, input_ended=False)
    with running(SummaryList(chain), second, store=store) as coordinator:
        coordinator.flush(5)
    types = [alert.event["type"] for alert in (*first.alerts, *second.alerts)]
    assert types == ["io.nap-stream.unscored.firing", "io.nap-stream.unscored.resolved"]
    since = {alert.event["data"]["firing_since"] for alert in (*first.alerts, *second.alerts)}
    assert len(since) == 1


def test_one_that_begins_at_the_tail_tells_of_images_that_cannot_be_read_now() -> None:
    sink = FlakySink()
    unreadable = [Row(200 + i, flagged=False, status=Status.CORRUPT) for i in range(200)]
    chain = segments(0, [*CALM, *unreadable], [25] * 16)
    with running(SummaryList(chain), sink) as coordinator:
        coordinator.flush(5)
    assert [alert.event["type"] for alert in sink.alerts] == ["io.nap-stream.unscored.firing"]


def test_metrics_and_health_are_served() -> None:
    with running(drift={"stale_after_s": 3_600}) as coordinator:
        coordinator.submit(summary(0, 0, CALM))
        coordinator.report(report(images_scored=5, dead_letters=2, stage_seconds=(("poll", 0.1),)))
        coordinator.worker_restarted("worker-0")
        with urllib.request.urlopen(coordinator.metrics_url, timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        for line in (
            'nap_stream_records_total{status="ok"} 200.0',
            "nap_stream_images_scored_total 5.0",
            "nap_stream_dead_letters_total 2.0",
            "nap_stream_worker_restarts_total 1.0",
            'nap_stream_stage_duration_seconds_count{stage="poll"} 1.0',
            "nap_stream_workers 1.0",
        ):
            assert line in text.splitlines()
        assert coordinator.status().worker_restarts == 1
        assert coordinator.status().dead_letters == 2
        assert coordinator.status().images_scored == 5
        url = coordinator.metrics_url.replace("/metrics", "/healthz")
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=PATIENCE_S)


def test_many_threads_lose_and_repeat_nothing() -> None:
    sink = FlakySink()
    chains = [segments(n, [*CALM, *DRIFT, *BACK], [7] * 90) for n in range(4)]
    durable = SummaryList()
    with running(durable, sink) as coordinator:
        for number in range(4):
            known = PartitionProgress(partition(number), 0, 600, None)
            coordinator.report(report(f"worker-{number}", partitions=(known,)))

        def send(chain: list[SegmentSummary]) -> None:
            for sent, each in enumerate(chain):
                coordinator.submit(each)
                coordinator.report(
                    report(chain[0].path, number=sent, images_scored=each.end_offset)
                )
                coordinator.tick()
                coordinator.status()

        threads = [threading.Thread(target=send, args=(chain,)) for chain in chains for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        coordinator.flush(5)

        status = coordinator.status()
        assert status.rows == 2_400
        assert status.images_scored == 2_400
        assert status.drift.late_records == 0
        assert sink.states == ["firing", "resolved"]
        assert value(coordinator, "duplicate_summaries_total") == sum(map(len, chains))


def test_what_takes_time_for_each_partition_is_done_now_and_then() -> None:
    clock = ManualClock(NOW_MS)
    with running(clock=clock) as coordinator:
        chain = segments(0, CALM, [25] * 8)

        def shown_s() -> float | None:
            name = "partition_watermark_seconds"
            return value(coordinator, name, topic="images", partition="0")

        coordinator.submit(chain[0])
        assert shown_s() == 0.024
        coordinator.submit(chain[1])
        assert shown_s() == 0.024, "looked at a moment ago"
        clock.advance(LOOK_EVERY_S)
        coordinator.submit(chain[2])
        assert shown_s() == 0.074
        coordinator.submit(chain[3])
        coordinator.tick()
        assert shown_s() == 0.099
        coordinator.submit(chain[4])
        assert coordinator.status().drift.watermark_ms == 124
        assert shown_s() == 0.124
