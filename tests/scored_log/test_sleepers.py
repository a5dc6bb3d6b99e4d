"""Writers that slept while compaction freed the name that they meant to publish."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, SegmentConflictError
from nap_stream.records import ChainPosition
from nap_stream.scored_log.chain import WriterIdentity, is_taken
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    memory_log,
    merged_segments,
    origin,
    scored,
)
from tests.scored_log.failing_store import DyingStore, Killed
from tests.support.log_files import run_query
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog

TOMORROW = ManualClock(NOON_MS + 86_400_000)


class DisorderedStore(MemoryStore):
    """Removes the last file first, as an object store may, and lets others act in between."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], None] = lambda: None

    def remove(self, paths: Sequence[str]) -> None:
        for path in reversed(paths):
            super().remove([path])
            if path.startswith("topic="):
                act, self.between = self.between, lambda: None
                act()


def _chain(store: MemoryStore, count: int) -> list[ChainPosition]:
    """Segments of two offsets, a row each; the positions from the genesis marker on."""
    log = memory_log(store)
    positions = [log.begin(CARS, 0)]
    for base in range(0, 2 * count, 2):
        rows = [scored(origin(base)), scored(origin(base + 1))]
        positions.append(log.publish(CARS, positions[-1], base + 2, rows).position)
    return positions


def _dying_log(store: MemoryStore) -> RecordLog:
    """Of a writer that is gone after its next segment is there."""
    return RecordLog(
        DyingStore(store, steps=1), WriterIdentity("other", MODEL, CALIBRATION), TOMORROW
    )


def test_a_sleeper_amid_the_removal_leaves_nothing_and_is_told_with_its_next_segment() -> None:
    store = DisorderedStore()
    positions = _chain(store, 5)
    rows = run_query(store, Query())
    sleeper = memory_log(store, "sleeper")
    taken: list[ChainPosition] = []

    def wake() -> None:
        stale = [scored(origin(6), p_value=0.9)]
        taken.append(sleeper.publish(CARS, positions[3], 7, stale).position)

    store.between = wake
    assert compact(store, clock=TOMORROW).segments == 4
    assert len(taken) == 1
    assert run_query(store, Query()).equals(rows)
    assert verify(store, deep=True).clean
    with pytest.raises(SegmentConflictError, match="compacted file"):
        sleeper.publish(CARS, taken[0], 8, [scored(origin(7))])
    assert verify(store, deep=True).clean


def test_a_writer_takes_nothing_back_because_of_what_another_left_at_its_predecessor() -> None:
    """Stopped between its link and its look back, it has published: others may have gone on."""
    store = MemoryStore()
    positions = _chain(store, 4)
    paths = [segment_path(CARS, base) for base in (0, 2)]
    store.replace(paths[0], merged_segments(store, paths))
    store.remove(paths[1:])
    with pytest.raises(Killed):
        _dying_log(store).publish(CARS, positions[1], 3, [scored(origin(2))])
    assert store.names("topic=cars/partition=0").count("00000000000000000002.parquet") == 1
    assert not is_taken(store, CARS, positions[2])


def test_a_predecessor_that_is_gone_and_was_not_merged_is_named() -> None:
    store = MemoryStore()
    positions = _chain(store, 3)
    store.remove([segment_path(CARS, 4)])
    with pytest.raises(ChainBrokenError, match="before offset 6 is gone"):
        memory_log(store).publish(CARS, positions[3], 8, [scored(origin(6))])
    other = dataclasses.replace(positions[2], previous_sha256="ab" * 32)
    with pytest.raises(ChainBrokenError, match="before offset 4 is gone"):
        is_taken(store, CARS, other)
