from dataclasses import replace

import pytest

from nap_stream.metrics import Metrics
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.tables import (
    NOTHING_LEFT_S,
    REPORTS,
    ClockTable,
    PartitionTable,
    Refusal,
    WorkerTable,
)
from nap_stream.records import PartitionProgress, TopicPartition, WorkerReport
from nap_stream.settings.run import DriverSettings
from nap_stream.settings.topics import TopicSelection
from tests.support.summaries import partition, report

STALL_S, START_S = 60.0, 600.0
PATIENCE = DriverSettings(stall_timeout_s=STALL_S, start_timeout_s=START_S)
FLEET = Fleet(1)


def progress(number: int, position: int, lag: int | None = 0) -> PartitionProgress:
    return PartitionProgress(partition(number), position, lag, None)


def told(worker: str, *partitions: PartitionProgress) -> WorkerReport:
    return report(worker, partitions=partitions)


def logged(ends: dict[int, int]) -> dict[TopicPartition, int]:
    return {partition(number): end for number, end in ends.items()}


def test_a_partition_with_a_lag_is_expected_to_bring_more() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    table.take(told("a", progress(0, 5, lag=3), progress(1, 5), progress(2, 5, lag=None)), 0.0)
    ends = logged({0: 5, 1: 5, 2: 5})
    assert table.expected(0.0, ends.get) == [partition(0), partition(2)]


def test_a_partition_with_unpublished_rows_is_expected_to_bring_more() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    table.take(told("a", progress(0, 5), progress(1, 5)), 0.0)
    assert table.expected(0.0, logged({0: 5, 1: 4}).get) == [partition(1)]


def test_tells_which_are_new() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    assert table.take(told("a", progress(0, 5), progress(1, 5)), 0.0) == [
        partition(0),
        partition(1),
    ]
    assert table.take(told("b", progress(1, 5), progress(2, 0)), 1.0) == [partition(2)]


def test_where_nothing_is_logged_the_first_position_counts() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    table.take(told("a", progress(0, 5)), 0.0)
    assert table.expected(0.0, logged({}).get) == []
    table.take(told("a", progress(0, 6)), 1.0)
    assert table.expected(1.0, logged({}).get) == [partition(0)]


def test_a_partition_that_is_stuck_is_not_waited_for_for_ever() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    for second in range(100):
        table.take(told("a", progress(0, 5, lag=3), progress(1, second, lag=3)), float(second))
    assert table.expected(99.0, logged({0: 5, 1: 0}).get) == [partition(1)]


def test_a_partition_without_a_worker_is_waited_for_a_while() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    table.take(told("a", progress(0, 5)), 0.0)
    ends = logged({0: 5})
    assert table.expected(5.0, ends.get) == []
    assert table.expected(6.0, ends.get) == [partition(0)]
    assert table.expected(59.0, ends.get) == [partition(0)]
    assert table.expected(60.0, ends.get) == []


def test_what_the_log_has_is_waited_for_until_a_worker_reports_it() -> None:
    table = PartitionTable(Metrics("1"), PATIENCE)
    table.wait_for([partition(0), partition(1)], 100.0)
    ends = logged({0: 5, 1: 5})
    assert table.expected(100.0 + STALL_S, ends.get) == [partition(0), partition(1)]
    table.take(told("a", progress(0, 5)), 180.0)
    assert table.expected(181.0, ends.get) == [partition(1)]
    assert table.expected(100.0 + START_S, ends.get) == []


def test_series_follow_the_partition() -> None:
    metrics = Metrics("1")
    table = PartitionTable(metrics, PATIENCE)

    def lag(number: int) -> float | None:
        labels = {"topic": "images", "partition": str(number)}
        return metrics.registry.get_sample_value("nap_stream_partition_lag_offsets", labels)

    table.take(told("a", progress(0, 5, lag=1), progress(1, 5, lag=2)), 0.0)
    assert (lag(0), lag(1), table.max_lag()) == (1, 2, 2)
    # It moves to b, which says so before a does.
    table.take(told("b", progress(1, 6, lag=4)), 1.0)
    table.take(told("a", progress(0, 5, lag=1)), 1.1)
    assert (lag(0), lag(1), table.max_lag()) == (1, 4, 4)
    # b gives it back; nobody has it.
    table.take(told("b"), 2.0)
    assert (lag(0), lag(1), table.max_lag()) == (1, None, 1)
    # a falls silent.
    table.expected(10.0, logged({}).get)
    assert (lag(0), table.max_lag()) == (None, None)


def test_nothing_is_expected_of_a_topic_that_is_left_out_until_it_is_read_again() -> None:
    metrics = Metrics("1")
    images = partition(0).topic
    reads = TopicSelection((images, "cameras", "away"))
    table, workers = PartitionTable(metrics, PATIENCE, reads), WorkerTable(metrics, FLEET)

    def left_out(why: str) -> float | None:
        return metrics.registry.get_sample_value("nap_stream_topics_left_out", {"why": why})

    table.take(told("a", progress(0, 5, lag=3)), 0.0)
    table.lost([partition(0)])
    assert [left_out(why) for why in ("refused", "absent", "gone")] == [0, None, None]

    table.listed({images: 1, "cameras": 1, "away": 0})
    why = f"topic {images}: it is forbidden"
    workers.take(report("a", number=1, left_out={partition(0): why}), 1.0)
    table.take(told("a"), 1.0)
    table.refuse(workers.left_out(1.0), 1.0)

    assert table.expected(2.0, logged({0: 5}).get) == []
    assert table.lost([partition(0)]) == [partition(0)]
    assert table.topics_gone == ()
    assert table.left_out()[images] == f"topic {images} is left out: it is forbidden"
    assert "no topic away" in table.left_out()["away"]
    assert [left_out(why) for why in ("refused", "absent", "gone")] == [1, 1, 0]

    workers.take(report("a", number=2), 3.0)
    table.take(told("a", progress(0, 5, lag=3)), 3.0)
    table.refuse(workers.left_out(3.0), 3.0)
    assert table.expected(3.0, logged({0: 5}).get) == [partition(0)]
    assert table.lost([partition(0)]) == []


def test_a_partition_that_one_worker_leaves_out_takes_no_other_along() -> None:
    metrics = Metrics("1")
    images = partition(0).topic
    table, workers = PartitionTable(metrics, PATIENCE), WorkerTable(metrics, FLEET)

    def look(now_s: float, *reports: WorkerReport) -> None:
        for one in reports:
            workers.take(one, now_s)
            table.take(one, now_s)
        table.refuse(workers.left_out(now_s), now_s)

    table.listed({images: 2})
    reads_0 = told("a", progress(0, 5, lag=3))
    for second in range(40):
        one = report("b", number=second, left_out={partition(1): "it was truncated"})
        look(float(second), replace(reads_0, number=second), one)
        assert not table.nothing_left(float(second))
    known = [partition(0), partition(1)]
    assert table.gone(known) == [partition(1)]
    assert table.expected(39.0, logged({}).get) == [partition(0)]
    assert table.left_out() == {
        images: f"topic {images} is left out (1 of 2 partitions): it was truncated"
    }

    # b dies, and a takes up what it left out: b's last word counts no more.
    look(41.0, replace(told("a", progress(0, 5), progress(1, 7)), number=41))
    assert (table.gone(known), table.left_out()) == ([], {})
    # Nor does it once a, too, has given it away.
    look(42.0, replace(told("a", progress(0, 5)), number=42))
    assert (table.gone(known), table.left_out()) == ([], {})


def test_nothing_is_left_once_every_partition_was_refused_for_a_while() -> None:
    images = partition(0).topic
    table = PartitionTable(Metrics("1"), PATIENCE)
    refused = {partition(0): Refusal("no", 0.0), partition(1): Refusal("no", 0.0)}
    table.refuse(refused, 0.0)
    assert not table.nothing_left(NOTHING_LEFT_S)

    table.listed({images: 2, "away": 0})
    table.refuse(refused, 0.0)
    assert not table.nothing_left(NOTHING_LEFT_S - 1)
    assert table.nothing_left(NOTHING_LEFT_S)
    # One is taken up, of a topic that was not listed yet.
    table.take(
        report("a", partitions=(PartitionProgress(TopicPartition("new", 0), 5, 0, None),)), 30.0
    )
    table.refuse(refused, 30.0)
    assert not table.nothing_left(90.0)


def test_totals_are_counted_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics, FLEET)
    table.take(report(number=1, images_scored=10, dead_letters=1, rebalances=2), 1.0)
    table.take(report(number=1, images_scored=10, dead_letters=1, rebalances=2), 1.0)
    table.take(report(number=3, images_scored=25, rebalances=2, out_of_memory=3), 3.0)
    # A report that was lost and comes after a newer one.
    assert not table.take(report(number=2, images_scored=20), 3.1)
    table.take(report("worker-1", number=1, images_scored=5, decode_warnings=4), 3.2)
    assert table.totals["images_scored"] == 30
    value = metrics.registry.get_sample_value
    assert value("nap_stream_images_scored_total") == 30
    assert value("nap_stream_dead_letters_total") == 1
    assert value("nap_stream_rebalances_total") == 2
    assert value("nap_stream_out_of_memory_total") == 3
    assert value("nap_stream_decode_warnings_total") == 4
    assert table.reports()["worker-0"].number == 3


def test_the_time_of_scoring_threads_is_counted_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics, FLEET)
    table.take(report(number=1, time_parts=(1.0, 0.0, 2.5, 0.25)), 1.0)
    table.take(report(number=3, time_parts=(1.5, 0.0, 4.5, 0.25)), 3.0)
    table.take(report(number=2, time_parts=(1.25, 0.0, 3.0, 0.25)), 3.1)
    table.take(report("worker-1", number=1, time_parts=(0.0, 0.5, 1.0, 0.0)), 3.2)

    def seconds(part: str) -> float | None:
        return metrics.registry.get_sample_value("nap_stream_scoring_seconds_total", {"part": part})

    assert [seconds(part) for part in ("messages", "decode", "model", "log")] == [
        *(1.5, 0.5, 5.5, 0.25)
    ]


def test_an_incarnation_starts_from_zero() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    table.take(report(number=1, segments_published=4), 1.0)
    table.take(report(incarnation=1, number=5, segments_published=2), 5.0)
    # The last words of the one before.
    assert not table.take(report(number=2, segments_published=5), 5.1)
    table.take(report(incarnation=1, number=6, segments_published=3), 6.0)
    assert table.totals["segments_published"] == 8
    assert table.reports()["worker-0"].incarnation == 1


def test_disagreements_are_counted_by_kind_and_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics, FLEET)
    for number in (1, 2):
        table.take(report(number=number, offsets_ahead=1, offsets_behind=2), 1.0)
    table.take(report("worker-1", offsets_missing=3), 1.0)

    value = metrics.registry.get_sample_value
    counted = {
        kind: value("nap_stream_offset_disagreements_total", {"kind": kind})
        for kind in ("ahead", "behind", "missing")
    }
    assert counted == {"ahead": 1, "behind": 2, "missing": 3}


def test_only_workers_that_were_heard_lately_wait() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    table.take(report("worker-0", waiting_for="the broker"), 1.0)
    table.take(report("worker-1", waiting_for="the scored log"), 8.0)
    table.take(report("worker-2"), 8.0)

    assert table.waiting(10.0, 5.0) == {"worker-1": "the scored log"}


def test_memory_does_not_grow_with_restarts() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    for incarnation in range(100):
        table.take(report(incarnation=incarnation, images_scored=1), float(incarnation))
    assert table.totals["images_scored"] == 100
    assert len(table._counted) == 2


def test_rate_is_that_of_the_last_reports() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    assert table.images_per_second(0.0) == 0.0
    for second in range(21):
        images = 100 * second if second < 10 else 1_000 + 10 * (second - 10)
        table.take(report(number=second, images_scored=images), float(second))
        table.take(report("worker-1", number=second, images_scored=2 * second), float(second))
    assert table.images_per_second(20.0) == pytest.approx(12.0)
    assert table.images_per_second(29.5) == 0.0


def test_rate_is_unharmed_by_a_restart() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    table.take(report(images_scored=1_000), 1.0)
    table.take(report(incarnation=1, images_scored=0), 2.0)
    table.take(report(incarnation=1, number=1, images_scored=10), 3.0)
    assert table.images_per_second(3.0) == pytest.approx(10.0)


def test_silence_is_noticed() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    table.take(report(), 0.0)
    table.take(report("worker-1"), 4.0)
    assert [each.worker for each in table.heard_within(5.0, 6.0)] == ["worker-1"]
    assert len(table.heard_within(5.0, 5.0)) == 2


def test_stage_times_reach_the_histograms_and_are_not_kept() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics, FLEET)
    table.take(report(stage_seconds=(("poll", 0.5), ("batch", 0.25))), 0.0)
    value = metrics.registry.get_sample_value
    assert value("nap_stream_stage_duration_seconds_sum", {"stage": "poll"}) == 0.5
    assert value("nap_stream_batch_duration_seconds_sum") == 0.25
    assert table.reports()["worker-0"].stage_seconds == ()


def test_the_newest_commit_is_shown() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics, FLEET)
    table.take(report(last_commit_ms=5_000), 0.0)
    table.take(report("worker-1", last_commit_ms=4_000), 0.0)
    assert metrics.registry.get_sample_value("nap_stream_last_commit_timestamp_seconds") == 5


def test_workers_that_are_not_wanted_any_more_are_forgotten_and_those_without_a_place_told() -> (
    None
):
    metrics = Metrics("1")
    table = WorkerTable(metrics, FLEET)
    for name in ("worker-0", "worker-1"):
        table.take(report(name, images_scored=7), 1.0)

    table.expect(Fleet(2, ("worker-0", "worker-2"), {"worker-2": "a node with 1 CPUs free"}))

    assert table.reports().keys() == {"worker-0"}
    assert table.missing(1.0) == ("1 of 2 workers reported in the last 30 s",)
    assert table.waiting(1.0) == {"worker-2": "a node with 1 CPUs free"}
    table.show(1.0)
    value = metrics.registry.get_sample_value
    assert (value("nap_stream_workers"), value("nap_stream_workers_expected")) == (1, 2)
    assert table.totals["images_scored"] == 14, "what it did is counted all the same"


@pytest.mark.parametrize(
    ("skew_s", "words"), [(3600, "3,600 s ahead of"), (-3600, "3,600 s behind")]
)
def test_a_clock_that_is_an_hour_off_is_named_until_it_is_right_again(
    skew_s: int, words: str
) -> None:
    metrics = Metrics("1")
    clocks = ClockTable(metrics)
    for number in range(REPORTS):
        clocks.take(report("a", sent_at_ms=number * 1000 + skew_s * 1000), number * 1000)
        clocks.take(report("b", sent_at_ms=number * 1000 - 200), number * 1000)

    (said,) = clocks.wrong()
    assert said.startswith(f"the clock of a is {words} the coordinator's")
    assert metrics.registry.get_sample_value("nap_stream_clock_skew_seconds") == 3600

    for number in range(REPORTS):
        clocks.take(report("a", sent_at_ms=number * 1000), number * 1000)
    assert clocks.wrong() == ()
    assert metrics.registry.get_sample_value("nap_stream_clock_skew_seconds") == pytest.approx(0.2)


def test_reports_that_were_held_up_together_tell_nothing_of_a_clock() -> None:
    clocks = ClockTable(Metrics("1"))
    clocks.take(report("a", sent_at_ms=99_900), 100_000)
    # The coordinator hangs for two minutes, and then takes what has come meanwhile.
    for second in range(101, 221):
        clocks.take(report("a", sent_at_ms=second * 1000), 221_000)
    assert clocks.wrong() == ()


def test_the_clock_of_a_worker_that_is_no_more_is_forgotten() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    table.clocks.take(report("worker-7", sent_at_ms=10**9), 0)
    assert table.clocks.wrong()

    table.expect(Fleet(1))

    assert table.clocks.wrong() == ()


def test_a_clock_that_jumps_back_makes_no_report_an_old_one() -> None:
    table = WorkerTable(Metrics("1"), FLEET)
    assert table.take(report(number=1, sent_at_ms=7_200_000), 1.0)
    assert table.take(report(number=2, sent_at_ms=3_601_000, work_done=5), 2.0)
    assert table.reports()["worker-0"].work_done == 5
