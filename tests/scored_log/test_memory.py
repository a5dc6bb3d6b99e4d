from nap_stream.scored_log.stores.memory import MemoryStore
from tests.scored_log.builders import CARS, failed, memory_log, origin, scored
from tests.support.log_files import footers_in, rows_in


def test_what_was_written_can_be_looked_at() -> None:
    store = MemoryStore()
    log = memory_log(store, "a")
    assert rows_in(store, CARS).num_rows == 0
    first = log.publish(CARS, log.begin(CARS, 0), 2, [scored(origin(0)), failed(origin(1))])
    log.publish(CARS, first.position, 7, [], gap="retention")
    assert rows_in(store, CARS).column("status").to_pylist() == ["ok", "corrupt"]
    assert [footer.gap for footer in footers_in(store, CARS)] == [None, "retention"]
    assert [footer.writer_id for footer in footers_in(store, CARS)] == ["a", "a"]
    assert [footer.scored_rows for footer in footers_in(store, CARS)] == [1, 0]


def test_a_store_outlives_its_writers() -> None:
    store = MemoryStore()
    position = memory_log(store, "a").begin(CARS, 4)
    assert memory_log(store, "b").end(CARS) == position
