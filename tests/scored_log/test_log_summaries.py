"""The log as a coordinator that begins sees it, and the order in which its chains are read."""

from nap_stream.records import SegmentSummary
from nap_stream.scored_log.summary import (
    LAST_OFFSET,
    TAIL_WINDOWS,
    LogSummaries,
    in_event_time,
    summary_shape,
)
from tests.support.drifting_log import Publisher, drifting
from tests.support.memory_store import MemoryStore
from tests.support.summaries import FACTS, partition, settings, summary


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


SETTINGS = settings(drift={"window_records": 20})
WINDOW = 20
NAMES = tuple(partition(n) for n in range(2))
RECORDS = {name: drifting(name, 400, range(0)) for name in NAMES}


def publisher(store: MemoryStore, fingerprint: str = FACTS.fingerprint) -> Publisher:
    return Publisher(store, fingerprint, summary_shape(SETTINGS))


def log_of(store: MemoryStore) -> LogSummaries:
    return LogSummaries(store, SETTINGS, FACTS.fingerprint)


def test_a_chain_is_read_from_anywhere() -> None:
    store = MemoryStore()
    told = list(publisher(store).publish(NAMES[0], RECORDS[NAMES[0]], [50]))
    log = log_of(store)
    assert log.partitions() == (NAMES[0],)
    assert log.ends() == {NAMES[0]: 400}
    assert list(log.read(NAMES[0], 0, LAST_OFFSET)) == told
    assert list(log.read(NAMES[0], 100, 200)) == told[2:4]
    assert list(log.read(NAMES[0], 400, LAST_OFFSET)) == []
    assert NAMES[1] not in log.ends()
    assert list(log.tail(NAMES[1])) == []


def test_a_tail_holds_more_windows_where_there_are_few_partitions() -> None:
    store = MemoryStore()
    told = list(publisher(store).publish(NAMES[0], RECORDS[NAMES[0]], [10]))
    assert list(log_of(store).tail(NAMES[0])) == told[-TAIL_WINDOWS * WINDOW // 10 :]
    list(publisher(store).publish(NAMES[1], RECORDS[NAMES[1]], [10]))
    assert list(log_of(store).tail(NAMES[0])) == told[-TAIL_WINDOWS * WINDOW // 10 // 2 :]


def test_a_tail_begins_after_what_another_calibration_has_judged() -> None:
    store = MemoryStore()
    list(publisher(store, "d" * 64).publish(NAMES[0], RECORDS[NAMES[0]][:300], [50]))
    (end,) = log_of(store).tail(NAMES[0])
    assert (end.base_offset, end.end_offset) == (250, 300)
    assert (len(end.panes), end.max_event_time_ms, end.examples) == (0, None, ())
    mine = list(publisher(store).publish(NAMES[0], RECORDS[NAMES[0]], [50]))
    assert list(log_of(store).tail(NAMES[0])) == mine
