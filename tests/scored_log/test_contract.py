"""What every scored log must do, over every implementation."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nap_stream.errors import SegmentConflictError
from nap_stream.objects import ObjectStore
from nap_stream.records import ChainPosition, Status, TopicPartition
from tests.scored_log.builders import CARS, failed, local_log, log_in, memory_log, origin, scored
from tests.support.clouds import EMULATED
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog, ScoredRecord

Writers = Callable[[str], RecordLog]


@pytest.fixture(params=["local", "memory", *EMULATED])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Writers:
    """Makes writers that compete for the same log."""
    if request.param == "local":
        return lambda writer_id: local_log(tmp_path / "log", writer_id)
    if request.param == "memory":
        store = MemoryStore()
        return lambda writer_id: memory_log(store, writer_id)
    root = request.getfixturevalue(f"{request.param}_root")
    return lambda writer_id: log_in(ObjectStore(root), writer_id)


def test_a_partition_without_genesis_has_no_end(writer: Writers) -> None:
    assert writer("a").end(CARS) is None


def test_the_first_writer_fixes_where_the_chain_starts(writer: Writers) -> None:
    first = writer("a").begin(CARS, 42)
    assert first.offset == 42
    assert writer("b").begin(CARS, 7) == first
    assert writer("c").end(CARS) == first


def test_begin_on_a_chain_with_segments_returns_its_end(writer: Writers) -> None:
    log = writer("a")
    published = log.publish(CARS, log.begin(CARS, 0), 3, [scored(origin(1))])
    assert writer("b").begin(CARS, 0) == published.position


def test_segments_follow_each_other(writer: Writers) -> None:
    log = writer("a")
    position = log.begin(CARS, 5)
    first = log.publish(CARS, position, 9, [scored(origin(5)), failed(origin(6, 0))])
    assert (first.base_offset, first.position.offset, first.rows) == (5, 9, 2)
    assert first.path == "topic=cars/partition=0/00000000000000000005.parquet"
    assert first.size_bytes > 0
    second = log.publish(CARS, first.position, 10, [scored(origin(9, 0)), scored(origin(9, 1))])
    assert writer("b").end(CARS) == second.position
    assert len({p.previous_sha256 for p in (position, first.position, second.position)}) == 3


def test_partitions_and_topics_have_chains_of_their_own(writer: Writers) -> None:
    log = writer("a")
    other, dogs = TopicPartition("cars", 1), TopicPartition("cars2", 0)
    log.publish(CARS, log.begin(CARS, 0), 3, [scored(origin(1))])
    assert log.begin(other, 8).offset == 8
    assert log.end(dogs) is None


def test_the_loser_of_a_base_offset_is_told_and_changes_nothing(writer: Writers) -> None:
    winner, loser = writer("a"), writer("b")
    position = winner.begin(CARS, 0)
    assert loser.begin(CARS, 0) == position
    published = winner.publish(CARS, position, 2, [scored(origin(0))])
    with pytest.raises(SegmentConflictError, match="base offset 0"):
        loser.publish(CARS, position, 5, [scored(origin(0)), scored(origin(4))])
    assert loser.end(CARS) == published.position
    assert loser.publish(CARS, published.position, 5, [scored(origin(4))]).base_offset == 2


@pytest.mark.parametrize("writer", ["local", "memory"], indirect=True)
def test_the_same_bytes_twice_are_a_conflict_too(writer: Writers) -> None:
    log = writer("a")
    position = log.begin(CARS, 0)
    log.publish(CARS, position, 2, [scored(origin(0))])
    with pytest.raises(SegmentConflictError):
        log.publish(CARS, position, 2, [scored(origin(0))])


@pytest.mark.parametrize("writer", EMULATED, indirect=True)
def test_the_same_bytes_twice_are_one_segment_where_answers_may_be_lost(writer: Writers) -> None:
    log = writer("a")
    position = log.begin(CARS, 0)
    first = log.publish(CARS, position, 2, [scored(origin(0))])
    assert log.publish(CARS, position, 2, [scored(origin(0))]) == first
    with pytest.raises(SegmentConflictError):
        writer("b").publish(CARS, position, 2, [scored(origin(0))])


def test_skipped_offsets_and_gaps_move_the_chain_on_without_rows(writer: Writers) -> None:
    log = writer("a")
    skipped = log.publish(CARS, log.begin(CARS, 0), 4, [])
    gap = log.publish(CARS, skipped.position, 9, [], gap="retention has deleted them")
    assert (gap.rows, gap.position.offset) == (0, 9)
    assert log.end(CARS) == gap.position


@pytest.mark.parametrize(
    "records",
    [
        [scored(origin(4))],
        [scored(origin(8))],
        [scored(origin(6)), scored(origin(5))],
        [scored(origin(6)), scored(origin(6))],
        [scored(origin(6, 1)), scored(origin(6, 0))],
        [scored(origin(6, -1))],
    ],
    ids=["before", "after", "backwards", "twice", "index", "negative"],
)
def test_rows_that_do_not_belong_are_refused(writer: Writers, records: list[ScoredRecord]) -> None:
    log = writer("a")
    position = log.begin(CARS, 5)
    with pytest.raises(ValueError, match="cars"):
        log.publish(CARS, position, 8, records)
    assert log.end(CARS) == position


def test_an_empty_range_and_a_gap_with_rows_are_refused(writer: Writers) -> None:
    log = writer("a")
    position = log.begin(CARS, 5)
    with pytest.raises(ValueError, match="not an offset range"):
        log.publish(CARS, position, 5, [])
    with pytest.raises(ValueError, match="a declared gap with 1 rows"):
        log.publish(CARS, position, 8, [scored(origin(6))], gap="why")
    with pytest.raises(ValueError, match="cannot start"):
        log.begin(TopicPartition("cars", 2), -1)
    assert log.end(CARS) == position


def test_every_status_can_be_published(writer: Writers) -> None:
    log = writer("a")
    bad = [status for status in Status if status is not Status.OK]
    records = [failed(origin(n), status) for n, status in enumerate(bad)]
    published = log.publish(CARS, log.begin(CARS, 0), 50, records)
    assert log.end(CARS) == ChainPosition(50, published.position.previous_sha256, 0)


def test_a_hint_changes_nothing_but_the_listing(writer: Writers) -> None:
    log = writer("a")
    position = log.begin(CARS, 30_000)
    for end in (30_001, 45_000, 45_001):
        position = log.publish(CARS, position, end, []).position
    for hint in (0, 30_000, 45_000, 45_001, 55_002, 20_000_000, 2**63 - 1):
        assert log.end(CARS, hint) == position
    assert log.end(TopicPartition("cars", 1), 7) is None


def test_a_chain_knows_its_topic_id(writer: Writers) -> None:
    log = writer("a")
    position = log.begin(CARS, 0, "dGhlIHRvcGlj")
    assert position.topic_id == "dGhlIHRvcGlj"
    assert writer("b").begin(CARS, 0, "another") == position
    published = log.publish(CARS, position, 3, [])
    assert published.position.topic_id == "dGhlIHRvcGlj"
    assert writer("b").end(CARS) == published.position


def test_a_chain_without_a_topic_id_can_be_told_one(writer: Writers) -> None:
    log = writer("a")
    position = log.publish(CARS, log.begin(CARS, 0), 3, []).position
    assert position.topic_id is None
    told = dataclasses.replace(position, topic_id="dGhlIHRvcGlj")
    log.publish(CARS, told, 5, [])
    end = writer("b").end(CARS)
    assert end is not None
    assert (end.offset, end.topic_id) == (5, "dGhlIHRvcGlj")
