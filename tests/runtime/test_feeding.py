from nap_stream.monitor.summaries import in_event_time
from nap_stream.records import SegmentSummary
from tests.support.summaries import partition, summary


def test_the_chain_that_is_furthest_behind_comes_next() -> None:
    chains = {
        partition(0): [summary(0, 0, [(100, False)]), summary(0, 1, [(400, False)])],
        partition(1): [summary(1, n, [(50 * n, False)]) for n in range(4)],
        partition(2): [],
    }
    fed = list(in_event_time({name: iter(chain) for name, chain in chains.items()}))
    assert [(name.partition, each and each.max_event_time_ms) for name, each in fed] == [
        *((0, 100), (1, 0), (2, None)),
        *((1, 50), (1, 100)),
        *((0, 400), (1, 150), (1, None)),
        (0, None),
    ]


def test_a_segment_without_rows_moves_nothing_on() -> None:
    gap = summary(0, 1, [], end=9, gap="gone")
    chains = {
        partition(0): iter([summary(0, 0, [(10, False)]), gap, summary(0, 9, [(90, False)])]),
        partition(1): iter([summary(1, 0, [(20, False)])]),
    }
    told = [each for _, each in in_event_time(chains) if isinstance(each, SegmentSummary)]
    assert [each.max_event_time_ms for each in told] == [10, 20, None, 90]


def test_no_chain_is_read_further_than_needed() -> None:
    taken = []

    def chain(number: int) -> object:
        for i in range(100):
            taken.append(number)
            yield summary(number, i, [(i * 10, False)])

    feeding = in_event_time({partition(n): chain(n) for n in range(2)})  # type: ignore[misc]  # a generator is an iterator of summaries here
    for _ in range(20):
        next(feeding)
    assert abs(taken.count(0) - taken.count(1)) <= 1
    assert len(taken) == 20
