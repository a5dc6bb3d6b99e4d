from nap_stream.scored_log.stores.memory import MemoryStore
from tests.scored_log.builders import CARS, failed, memory_log, origin, scored


def test_what_was_written_can_be_looked_at() -> None:
    store = MemoryStore()
    log = memory_log(store, "a")
    assert store.table(CARS).num_rows == 0
    first = log.publish(CARS, log.begin(CARS, 0), 2, [scored(origin(0)), failed(origin(1))])
    log.publish(CARS, first.position, 7, [], gap="retention")
    assert store.table(CARS).column("status").to_pylist() == ["ok", "corrupt"]
    assert [footer.gap for footer in store.footers(CARS)] == [None, "retention"]
    assert [footer.writer_id for footer in store.footers(CARS)] == ["a", "a"]
    assert [footer.scored_rows for footer in store.footers(CARS)] == [1, 0]


def test_a_store_outlives_its_writers() -> None:
    store = MemoryStore()
    position = memory_log(store, "a").begin(CARS, 4)
    assert memory_log(store, "b").end(CARS) == position
