"""The log as a coordinator that begins sees it."""

from nap_stream.monitor.summaries import LAST_OFFSET, TAIL_WINDOWS, LogSummaries
from nap_stream.scored_log.stores.memory import MemoryStore
from nap_stream.scored_log.summary import summary_shape
from tests.support.drifting_log import Publisher, drifting
from tests.support.summaries import FACTS, partition, settings

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
    assert log.end(NAMES[0]) == 400
    assert list(log.read(NAMES[0], 0, LAST_OFFSET)) == told
    assert list(log.read(NAMES[0], 100, 200)) == told[2:4]
    assert list(log.read(NAMES[0], 400, LAST_OFFSET)) == []
    assert log.end(NAMES[1]) is None
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
