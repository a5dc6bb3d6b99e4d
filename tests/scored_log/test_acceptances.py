"""Acceptances are events: written once each, read strictly, each given once to a monitor."""

import dataclasses
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, EventError, ScoredLogError
from nap_stream.records import Acceptance
from nap_stream.scored_log.acceptances import (
    LIST_EVERY,
    LOOK_EVERY_S,
    MAX_REASON,
    NOTICE_MS,
    AcceptanceReader,
    acceptance_of,
    write_acceptance,
)
from nap_stream.scored_log.events import Event, append_event, event_path, read_events
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from tests.support.memory_store import MemoryStore

ACCEPTED = Acceptance(0, "cars", "camera-7", 1_000, 95_000, 5_000, "Ann", "line 3 was retooled")
OTHER = Event(time_ms=7, kind="alert", by="coordinator", topic="cars", data={"event": {}})


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path)


def known(store: SegmentStore, topic: str = "cars") -> tuple[Acceptance, ...]:
    """Those that a replay knows."""
    return AcceptanceReader(store, topic, ManualClock()).read()


def test_each_is_an_event_with_its_number(store: SegmentStore) -> None:
    first = write_acceptance(store, ACCEPTED)
    append_event(store, OTHER)
    other = write_acceptance(store, Acceptance(0, "trucks", "", 1, 2, 3, "Bob", "new lens"))
    fourth = write_acceptance(store, ACCEPTED)
    assert first == ACCEPTED
    assert [each.number for each in (first, other, fourth)] == [0, 2, 3]
    assert known(store) == (first, fourth)
    assert known(store, "trucks") == (other,)
    assert known(store, "boats") == ()
    event = next(iter(read_events(store)))
    assert (event.kind, event.by, event.topic, event.time_ms) == ("accepted", "Ann", "cars", 5_000)


@pytest.mark.parametrize(
    "change",
    [
        {"by": " "},
        {"by": "x" * 201},
        {"reason": ""},
        {"reason": "x" * (MAX_REASON + 1)},
        {"reason": "two\nlines"},
        {"key": "camera\x1b[31m"},
        {"key": "x" * 201},
    ],
)
def test_texts_are_checked_before_they_are_written(change: dict[str, Any]) -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError, match=f"--{next(iter(change))}"):
        write_acceptance(store, dataclasses.replace(ACCEPTED, **change))
    assert store.names("") == []


@pytest.mark.parametrize(
    "change",
    [
        {"from_ms": 1.5},
        {"from_ms": True},
        {"from_ms": 10**30},
        {"effective_ms": -(2**63)},
        {"more": 1},
        {"reason": "a\nb"},
        {"key": "x" * 201},
        {"key": None},
    ],
)
def test_an_event_that_holds_no_acceptance_is_refused_by_name(change: dict[str, Any]) -> None:
    store = MemoryStore()
    write_acceptance(store, ACCEPTED)
    (event,) = read_events(store)
    forged = append_event(store, dataclasses.replace(event, data={**event.data, **change}))
    with pytest.raises(EventError, match=r"_events/0{19}1\.json: not a valid acceptance"):
        acceptance_of(forged)
    with capture_logs() as logs:
        assert known(store) == (ACCEPTED,)
    assert ["not a valid acceptance" in line["cause"] for line in logs] == [True]


def test_a_monitor_reads_each_once_and_passes_a_damaged_one() -> None:
    store, clock = MemoryStore(), ManualClock()
    reader = AcceptanceReader(store, "cars", clock)
    assert reader.new() == ()
    first = write_acceptance(store, ACCEPTED)
    assert reader.new() == (), "not before the next look"
    clock.advance(LOOK_EVERY_S)
    assert reader.new() == (first,)
    store.create(event_path(1), b"{}")
    with capture_logs() as logs:
        for _ in range(2):
            clock.advance(LOOK_EVERY_S)
            assert reader.new() == ()
        third = write_acceptance(store, dataclasses.replace(ACCEPTED, made_ms=6_000))
        clock.advance(LOOK_EVERY_S)
        assert reader.new() == (third,)
        clock.advance(LOOK_EVERY_S)
        assert reader.new() == ()
    assert [line["event"] for line in logs] == ["event_unreadable"]
    assert known(store) == (first, third)


def test_the_number_of_a_damaged_one_that_was_removed_may_come_again() -> None:
    """A monitor at work then knows what a replay knows."""
    store, clock = MemoryStore(), ManualClock()
    first = write_acceptance(store, ACCEPTED)
    store.create(event_path(1), b"{}")
    reader = AcceptanceReader(store, "cars", clock)
    found = list(reader.new())
    store.remove([event_path(1)])
    write_acceptance(store, dataclasses.replace(ACCEPTED, made_ms=6_000))
    clock.advance(LOOK_EVERY_S)
    found += reader.new()
    assert [each.number for each in found] == [0, 1]
    assert tuple(found) == known(store)
    assert found[0] == first


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


def test_no_other_events_are_read_to_find_them() -> None:
    class Counting(MemoryStore):
        opened = listed = 0

        def open(self, path: str) -> BinaryIO | None:
            self.opened += 1
            return super().open(path)

        def names(self, folder: str, first: str = "") -> list[str]:
            self.listed += 1
            return super().names(folder, first)

    store, clock = Counting(), ManualClock()
    written = []
    for number in range(300):
        if number % 100 == 0:
            written.append(write_acceptance(store, ACCEPTED))
        append_event(store, OTHER, near=number)
    store.create(event_path(303), b"{}")
    reader = AcceptanceReader(store, "cars", clock)
    store.opened = store.listed = 0
    with capture_logs():
        assert list(reader.new()) == written
        # Those three, the last event, and the damaged one behind it.
        assert (store.opened, store.listed) == (5, 1)
        append_event(store, OTHER, near=303)
        clock.advance(LOOK_EVERY_S)
        assert reader.new() == ()
        store.opened = store.listed = 0
        for _ in range(LIST_EVERY * 4):
            clock.advance(LOOK_EVERY_S)
            assert reader.new() == ()
    assert store.listed <= 4
    assert store.opened <= LIST_EVERY * 4
    assert LIST_EVERY * LOOK_EVERY_S * 1000 <= NOTICE_MS / 2


def test_one_that_cannot_be_read_now_is_read_later_and_hides_no_other() -> None:
    class Denying(MemoryStore):
        denied: str | None = None

        def open(self, path: str) -> BinaryIO | None:
            if path == self.denied:
                raise ScoredLogError("the file system failed", path, "Check the disk")
            return super().open(path)

    store, clock = Denying(), ManualClock()
    first, second, third = (write_acceptance(store, ACCEPTED) for _ in range(3))
    append_event(store, OTHER)
    store.denied = event_path(1)
    reader = AcceptanceReader(store, "cars", clock)
    with capture_logs() as logs:
        for given in ((first, third), (), ()):
            assert reader.new() == given
            clock.advance(LOOK_EVERY_S)
        store.denied = None
        assert reader.new() == (second,)
    assert [line["event"] for line in logs] == ["event_unreadable"]
    clock.advance(LOOK_EVERY_S)
    assert reader.new() == ()
    assert known(store) == (first, second, third)
