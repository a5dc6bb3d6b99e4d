from nap_stream.metrics import Metrics
from nap_stream.monitor.status import PartitionTable
from nap_stream.records import PartitionProgress, TopicPartition, WorkerReport
from tests.support.summaries import partition, report

STALL_S, START_S = 60.0, 600.0


def progress(number: int, position: int, lag: int | None = 0) -> PartitionProgress:
    return PartitionProgress(partition(number), position, lag, None)


def told(worker: str, *partitions: PartitionProgress) -> WorkerReport:
    return report(worker, partitions=partitions)


def logged(ends: dict[int, int]) -> dict[TopicPartition, int]:
    return {partition(number): end for number, end in ends.items()}


def test_a_partition_with_a_lag_is_expected_to_bring_more() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5, lag=3), progress(1, 5), progress(2, 5, lag=None)), 0.0)
    ends = logged({0: 5, 1: 5, 2: 5})
    assert table.expected(0.0, ends.get) == [partition(0), partition(2)]


def test_a_partition_with_unpublished_rows_is_expected_to_bring_more() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5), progress(1, 5)), 0.0)
    assert table.expected(0.0, logged({0: 5, 1: 4}).get) == [partition(1)]


def test_tells_which_are_new() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    assert table.take(told("a", progress(0, 5), progress(1, 5)), 0.0) == [
        partition(0),
        partition(1),
    ]
    assert table.take(told("b", progress(1, 5), progress(2, 0)), 1.0) == [partition(2)]


def test_where_nothing_is_logged_the_first_position_counts() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5)), 0.0)
    assert table.expected(0.0, logged({}).get) == []
    table.take(told("a", progress(0, 6)), 1.0)
    assert table.expected(1.0, logged({}).get) == [partition(0)]


def test_a_partition_that_is_stuck_is_not_waited_for_for_ever() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    for second in range(100):
        table.take(told("a", progress(0, 5, lag=3), progress(1, second, lag=3)), float(second))
    assert table.expected(99.0, logged({0: 5, 1: 0}).get) == [partition(1)]


def test_a_partition_without_a_worker_is_waited_for_a_while() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5)), 0.0)
    ends = logged({0: 5})
    assert table.expected(5.0, ends.get) == []
    assert table.expected(6.0, ends.get) == [partition(0)]
    assert table.expected(59.0, ends.get) == [partition(0)]
    assert table.expected(60.0, ends.get) == []


def test_what_the_log_has_is_waited_for_until_a_worker_reports_it() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.wait_for([partition(0), partition(1)], 100.0)
    ends = logged({0: 5, 1: 5})
    assert table.expected(100.0 + STALL_S, ends.get) == [partition(0), partition(1)]
    table.take(told("a", progress(0, 5)), 180.0)
    assert table.expected(181.0, ends.get) == [partition(1)]
    assert table.expected(100.0 + START_S, ends.get) == []


def test_series_follow_the_partition() -> None:
    metrics = Metrics("1")
    table = PartitionTable(metrics, STALL_S, START_S)

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
