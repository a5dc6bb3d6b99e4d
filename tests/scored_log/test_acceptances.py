"""Acceptances beside the log: written once each, read strictly, no part of the log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.errors import AcceptanceError, ConfigError, ScoredLogError
from nap_stream.monitor.acceptances import LOOK_EVERY_S, AcceptanceReader
from nap_stream.records import Acceptance
from nap_stream.scored_log.acceptances import (
    MAX_BYTES,
    MAX_NUMBER,
    MAX_REASON,
    acceptance_path,
    read_acceptance,
    read_acceptances,
    write_acceptance,
)
from nap_stream.scored_log.read import partitions
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CARS, memory_log, origin, scored
from tests.support.memory_store import MemoryStore

ACCEPTED = Acceptance(0, "cars", "camera-7", 1_000, 95_000, 5_000, "Ann", "line 3 was retooled")


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path)


def test_each_gets_the_next_number(store: SegmentStore) -> None:
    first = write_acceptance(store, ACCEPTED)
    other = write_acceptance(store, Acceptance(0, "trucks", "", 1, 2, 3, "Bob", "new lens"))
    third = write_acceptance(store, ACCEPTED)
    assert [each.number for each in (first, other, third)] == [0, 1, 2]
    assert read_acceptance(store, 0) == ACCEPTED
    assert read_acceptances(store, "cars") == (first, third)
    assert read_acceptances(store, "boats") == ()


def test_a_number_that_another_takes_meanwhile_is_left_to_it() -> None:
    class Crowded(MemoryStore):
        """Whoever lists the folder finds less than there is a moment later."""

        def names(self, folder: str, first: str = "") -> list[str]:
            return super().names(folder, first)[:1]

    store = Crowded()
    assert [write_acceptance(store, ACCEPTED).number for _ in range(4)] == [0, 1, 2, 3]
    assert json.loads(store.read(acceptance_path(3)) or b"")["number"] == 3


def test_they_are_no_part_of_the_log() -> None:
    store = MemoryStore()
    log = memory_log(store)
    position = log.begin(CARS, 0)
    log.publish(CARS, position, 1, [scored(origin(0))])
    write_acceptance(store, ACCEPTED)
    assert partitions(store) == (CARS,)
    assert verify(store, deep=True).clean


@pytest.mark.parametrize(
    "change",
    [
        {"by": " "},
        {"by": "x" * 201},
        {"reason": ""},
        {"reason": "x" * (MAX_REASON + 1)},
        {"reason": "two\nlines"},
        {"key": "camera\x1b[31m"},
    ],
)
def test_texts_are_checked_before_they_are_written(change: dict[str, str]) -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError, match=f"--{next(iter(change))}"):
        write_acceptance(store, Acceptance(**{**_tree(), **change}))
    assert store.names("") == []


def _tree() -> dict[str, Any]:
    return {name: getattr(ACCEPTED, name) for name in Acceptance.__slots__}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _tree: b"",
        lambda _tree: b"[1]",
        lambda _tree: b"\xff",
        lambda _tree: b"[" * 10_000,
        lambda _tree: b" " * MAX_BYTES + b"{}",
        lambda tree: json.dumps(tree | {"version": 2}).encode(),
        lambda tree: json.dumps(tree | {"number": 7}).encode(),
        lambda tree: json.dumps(tree | {"from_ms": 1.5}).encode(),
        lambda tree: json.dumps(tree | {"from_ms": True}).encode(),
        lambda tree: json.dumps(tree | {"from_ms": 10**30}).encode(),
        lambda tree: json.dumps(tree | {"effective_ms": -(2**63)}).encode(),
        lambda tree: json.dumps(tree | {"more": 1}).encode(),
        lambda tree: json.dumps(tree | {"reason": "a\nb"}).encode(),
        lambda tree: json.dumps(tree | {"key": "x" * 201}).encode(),
    ],
)
def test_a_damaged_one_is_refused_by_name(spoil: Callable[[dict[str, Any]], bytes]) -> None:
    store = MemoryStore()
    write_acceptance(store, ACCEPTED)
    tree = json.loads(store.read(acceptance_path(0)) or b"")
    store.replace(acceptance_path(0), spoil(tree))
    with pytest.raises(AcceptanceError, match=r"_acceptances/0{20}\.json.*not a valid acceptance"):
        read_acceptances(store, "cars")


def test_a_monitor_reads_each_once_and_passes_a_damaged_one() -> None:
    store, clock = MemoryStore(), ManualClock()
    reader = AcceptanceReader(store, "cars", clock)
    assert reader.new() == ()
    first = write_acceptance(store, ACCEPTED)
    assert reader.new() == (), "not before the next look"
    clock.advance(LOOK_EVERY_S)
    assert reader.new() == (first,)
    store.create(acceptance_path(1), b"{}")
    third = write_acceptance(store, ACCEPTED)
    clock.advance(LOOK_EVERY_S)
    with capture_logs() as logs:
        assert reader.new() == (third,)
        clock.advance(LOOK_EVERY_S)
        assert reader.new() == ()
    assert [line["event"] for line in logs] == ["acceptance_unreadable"]


def test_the_number_of_a_damaged_one_that_was_removed_may_come_again() -> None:
    """A monitor at work then knows what a replay knows."""
    store, clock = MemoryStore(), ManualClock()
    first = write_acceptance(store, ACCEPTED)
    for junk in (1, 7):
        store.create(acceptance_path(junk), b"{}")
    reader = AcceptanceReader(store, "cars", clock)
    found = list(reader.new())
    store.remove([acceptance_path(junk) for junk in (1, 7)])
    write_acceptance(store, ACCEPTED)
    clock.advance(LOOK_EVERY_S)
    found += reader.new()
    assert [each.number for each in found] == [0, 1]
    assert tuple(found) == read_acceptances(store, "cars")
    assert found[0] == first


def test_a_number_that_nobody_gave_does_not_count_for_the_next() -> None:
    store = MemoryStore()
    junk = int("9" * 20)
    store.create(acceptance_path(junk), b"{}")
    assert write_acceptance(store, ACCEPTED).number == 0
    with pytest.raises(AcceptanceError, match="its number is above"):
        read_acceptance(store, junk)
    store.create(acceptance_path(MAX_NUMBER), b"{}")
    with pytest.raises(ScoredLogError, match="remove the file with the largest number"):
        write_acceptance(store, ACCEPTED)


def test_a_store_that_cannot_be_read_is_asked_again() -> None:
    class Failing(MemoryStore):
        failing = False

        def names(self, folder: str, first: str = "") -> list[str]:
            if self.failing:
                raise ScoredLogError("the disk is gone", "the log", "Mount it")
            return super().names(folder, first)

    store, clock = Failing(), ManualClock()
    written = write_acceptance(store, ACCEPTED)
    store.failing = True
    reader = AcceptanceReader(store, "cars", clock)
    with capture_logs() as logs:
        assert reader.new() == ()
    assert "the disk is gone" in logs[0]["cause"]
    store.failing = False
    clock.advance(LOOK_EVERY_S)
    assert reader.new() == (written,)
