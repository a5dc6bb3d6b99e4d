"""Where a chain starts and ends: markers, hints, compactions beside it, damage."""

import dataclasses
from collections.abc import Sequence
from typing import BinaryIO

import pytest

from nap_stream.errors import ChainBrokenError, SegmentConflictError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import LISTINGS, Genesis, chain_end, decode_genesis, encode_genesis
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import genesis_path, segment_path
from tests.scored_log.builders import CARS, memory_log, merged_segments, origin, scored
from tests.support.log_files import footers_in
from tests.support.memory_store import MemoryStore


class CountingStore(MemoryStore):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0
        self.opened: list[str] = []

    def names(self, folder: str, first: str = "") -> list[str]:
        found = super().names(folder, first)
        self.listed += len(found)
        return found

    def open(self, path: str) -> BinaryIO | None:
        self.opened.append(path)
        return super().open(path)


def _filled(store: MemoryStore, count: int, segment_offsets: int = 50) -> list[ChainPosition]:
    """A chain of segments; the positions from the genesis marker on."""
    log = memory_log(store)
    positions = [log.begin(CARS, 0)]
    for number in range(count):
        row = scored(origin(number * segment_offsets))
        end = (number + 1) * segment_offsets
        positions.append(log.publish(CARS, positions[-1], end, [row]).position)
    return positions


def _compact(store: MemoryStore, bases: Sequence[int], *, remove: bool = True) -> None:
    paths = [segment_path(CARS, base) for base in bases]
    store.replace(paths[0], merged_segments(store, paths))
    if remove:
        store.remove(paths[1:])


def test_a_hint_near_the_end_asks_for_few_names() -> None:
    store = CountingStore()
    end = _filled(store, 60, 1_000)[-1]
    names = {}
    for hint in (60_000, 59_000, 40_000, None):
        store.listed, store.opened = 0, []
        assert chain_end(store, CARS, hint) == end
        assert store.opened == [segment_path(CARS, 59_000)]
        names[hint] = store.listed
    # One more each: the marker's name comes after those of the segments.
    assert names == {60_000: 11, 59_000: 12, 40_000: 31, None: 61}


def test_a_hint_far_beyond_the_end_is_followed_by_the_whole_chain() -> None:
    store = CountingStore()
    end = _filled(store, 60, 1_000)[-1]
    store.listed = 0
    assert chain_end(store, CARS, 50_000_000) == end
    assert store.listed == 1 + 1 + 61


@pytest.mark.parametrize("hint", [None, 0, 50, 100, 150, 200, 10_000])
@pytest.mark.parametrize("remove", [True, False])
def test_compaction_changes_no_end(hint: int | None, remove: bool) -> None:
    store = MemoryStore()
    end = _filled(store, 4)[-1]
    _compact(store, [0, 50, 100], remove=remove)
    assert chain_end(store, CARS, hint) == end


def test_the_end_of_a_compacted_file_is_that_of_its_last_segment() -> None:
    store = MemoryStore()
    before = _filled(store, 3)[2]
    store.remove([segment_path(CARS, 100)])
    _compact(store, [0, 50])
    found = chain_end(store, CARS)
    assert found == dataclasses.replace(before, base=0)
    (merged,) = footers_in(store, CARS)
    assert found.previous_sha256 == segment_sha256(merged.merged[1])


class _VanishingStore(MemoryStore):
    """A segment that is listed is gone when it is opened, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def open(self, path: str) -> BinaryIO | None:
        if self.times > 0:
            self.times -= 1
            return None
        return super().open(path)


def test_a_segment_that_is_gone_is_looked_for_anew() -> None:
    store = _VanishingStore(0)
    end = _filled(store, 2)[-1]
    store.times = LISTINGS - 1
    assert chain_end(store, CARS, 100) == end
    store.times = LISTINGS
    with pytest.raises(ChainBrokenError, match=f"listed and is gone, {LISTINGS} times"):
        chain_end(store, CARS, 100)


@pytest.mark.parametrize("slept_at", [1, 2, 3])
def test_a_writer_that_slept_through_a_compaction_publishes_nothing(slept_at: int) -> None:
    store = MemoryStore()
    positions = _filled(store, 5)
    _compact(store, [0, 50, 100, 150])
    before = footers_in(store, CARS)
    zombie = memory_log(store, "zombie")
    slept = positions[slept_at]
    row = scored(origin(slept.offset))
    with pytest.raises(SegmentConflictError, match="is in a compacted file") as caught:
        zombie.publish(CARS, slept, slept.offset + 7, [row])
    assert caught.value.where == segment_path(CARS, slept.offset)
    assert footers_in(store, CARS) == before
    assert zombie.end(CARS) == positions[-1]


def test_a_writer_goes_on_behind_a_compacted_file() -> None:
    store = MemoryStore()
    positions = _filled(store, 3)
    _compact(store, [0, 50])
    log = memory_log(store)
    assert log.publish(CARS, positions[-1], 160, []).base_offset == 150
    store.remove([segment_path(CARS, 100), segment_path(CARS, 150)])
    assert log.publish(CARS, positions[2], 140, []).base_offset == 100


def test_a_chain_without_its_marker_is_broken() -> None:
    store = MemoryStore()
    _filled(store, 2)
    store.remove([genesis_path(CARS)])
    for hint in (None, 60):
        with pytest.raises(ChainBrokenError, match="there are segments, the last at 50"):
            chain_end(store, CARS, hint)


def test_a_moved_segment_is_refused() -> None:
    store = MemoryStore()
    _filled(store, 2)
    content = store.read(segment_path(CARS, 50))
    assert content is not None
    store.create(segment_path(CARS, 70), content)
    with pytest.raises(ChainBrokenError, match="the footer says cars/0@50"):
        chain_end(store, CARS)


def test_a_segment_before_the_start_of_the_chain_is_refused() -> None:
    store = MemoryStore()
    _filled(store, 1)
    store.remove([genesis_path(CARS)])
    other = MemoryStore()
    memory_log(other).begin(CARS, 10)
    store.create(genesis_path(CARS), other.read(genesis_path(CARS)) or b"")
    with pytest.raises(ChainBrokenError, match="lies before the chain's start at 10"):
        chain_end(store, CARS)


CARS_3 = TopicPartition("cars", 3)
MARKER = Genesis("cars", 3, 17, "worker-0", 99, "dGhlIHRvcGlj")


def test_round_trip() -> None:
    assert decode_genesis(encode_genesis(MARKER), CARS_3, "x") == MARKER


def test_a_broker_without_topic_ids_leaves_it_null() -> None:
    marker = dataclasses.replace(MARKER, topic_id=None)
    content = encode_genesis(marker)
    assert b'"topic_id": null' in content
    assert decode_genesis(content, CARS_3, "x") == marker


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid"),
        (b"\xff", "decode"),
        (b"[" * 100_000, "not valid"),
        (b"[]", "expected a JSON object"),
        (encode_genesis(MARKER)[:-9], "not valid"),
        (encode_genesis(MARKER).replace(b"17", b"-17"), "negative offset"),
        (encode_genesis(MARKER).replace(b"17", b"true"), "offset is not of type int"),
        (encode_genesis(MARKER).replace(b'"version": 2', b'"version": 3'), "version 3"),
        (encode_genesis(MARKER).replace(b'"version": 2', b'"version": 1'), "version 1"),
        (encode_genesis(MARKER).replace(b'"topic_id"', b'"topic"'), "expected the keys"),
        (encode_genesis(MARKER).replace(b'"dGhlIHRvcGlj"', b"5"), "topic_id is not of type str or"),
        (encode_genesis(MARKER).replace(b"cars", b"dogs"), "belongs to dogs/3"),
    ],
)
def test_a_marker_that_is_wrong_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(ChainBrokenError, match=problem):
        decode_genesis(content, CARS_3, "x")
