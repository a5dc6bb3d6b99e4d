"""The chain of events beside the log: written once each, read strictly, no part of the rows."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nap_stream.errors import EventError, ScoredLogError
from nap_stream.scored_log.events import (
    FOLDER,
    MAX_BYTES,
    MAX_NUMBER,
    START_SHA256,
    Event,
    append_event,
    event_numbers,
    event_path,
    event_sha256,
    read_events,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.stores.s3 import ObjectStore
from nap_stream.scored_log.verify.report import Defect, DefectKind
from tests.support.memory_store import MemoryStore

STARTED = Event(
    time_ms=1_767_268_800_000,
    kind="run-started",
    by="coordinator/1/host/7",
    topic="cars",
    monitor="ood-fraction",
    data={"version": "1.2", "bound": 0.0625, "by": {"keys": ["é", None, True]}},
)


def acknowledged(comment: str) -> Event:
    return Event(time_ms=5, kind="acknowledged", by="Ann", data={"comment": comment})


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    if request.param == "s3":
        return ObjectStore(request.getfixturevalue("s3_root"))
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path)


def written(count: int = 3) -> MemoryStore:
    store = MemoryStore()
    for number in range(count):
        append_event(store, acknowledged(f"number {number}"))
    return store


def content(store: SegmentStore, number: int) -> bytes:
    return store.read(event_path(number)) or b""


def test_each_names_the_file_before_it(store: SegmentStore) -> None:
    first = append_event(store, STARTED)
    second = append_event(store, acknowledged("it is the lens"))
    third = append_event(store, acknowledged("it was the lens"), near=second.number)
    assert list(read_events(store)) == [first, second, third]
    assert list(read_events(store, 2)) == [third]
    assert first == dataclasses.replace(STARTED, number=0, sha256=first.sha256)
    named = [json.loads(content(store, number))["previous_sha256"] for number in range(3)]
    digests = [hashlib.sha256(content(store, number)).hexdigest() for number in range(3)]
    assert named == [START_SHA256, *digests[:2]]
    assert [first.sha256, second.sha256, third.sha256] == digests
    assert [event_sha256(store, number) for number in range(4)] == [*digests, None]


def test_a_number_that_another_takes_meanwhile_is_left_to_it() -> None:
    class Crowded(MemoryStore):
        """Whoever lists the folder finds less than there is a moment later."""

        def names(self, folder: str, first: str = "") -> list[str]:
            return super().names(folder, first)[:1]

    crowded = Crowded()
    texts = [f"number {number}" for number in range(4)]
    assert [append_event(crowded, acknowledged(text)).number for text in texts] == [0, 1, 2, 3]
    store = MemoryStore()
    for number in range(4):
        store.create(event_path(number), content(crowded, number))
    assert [event.data["comment"] for event in read_events(store)] == texts


@pytest.mark.parametrize(
    "change",
    [
        {"by": " "},
        {"by": "x" * 251},
        {"by": "a\x1b[31m"},
        {"kind": ""},
        {"kind": "Alert!"},
        {"topic": "x\n"},
        {"time_ms": 10**30},
        {"data": {"a": float("nan")}},
        {"data": {"a": {1, 2}}},
        {"data": {"a": "x" * MAX_BYTES}},
    ],
)
def test_what_no_event_can_hold_is_refused(change: dict[str, Any]) -> None:
    store = MemoryStore()
    with pytest.raises(EventError, match="not a valid event"):
        append_event(store, dataclasses.replace(STARTED, **change))
    assert store.names("") == []


Spoil = Callable[[dict[str, Any]], bytes]


def _dumped(**change: object) -> Spoil:
    return lambda tree: (json.dumps(tree | change) + "\n").encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _tree: b"",
        lambda _tree: b"[1]",
        lambda _tree: b"\xff",
        lambda _tree: b"[" * 100_000,
        lambda _tree: b" " * MAX_BYTES + b"{}",
        lambda tree: json.dumps(tree).encode(),
        lambda tree: json.dumps(tree).replace("{", '{"by": "Eve", ', 1).encode() + b"\n",
        lambda tree: json.dumps(dict(reversed(tree.items()))).encode() + b"\n",
        _dumped(version=2),
        _dumped(format="nap-stream acceptance"),
        _dumped(number=7),
        _dumped(number=True),
        _dumped(time_ms=1.5),
        _dumped(time_ms=-(10**30)),
        _dumped(by=""),
        _dumped(by="a\nb"),
        _dumped(kind="UPPER"),
        _dumped(topic=None),
        _dumped(data=[]),
        _dumped(data={"x": float("inf")}),
        _dumped(previous_sha256="A" * 64),
        _dumped(previous_sha256=None),
        _dumped(more=1),
    ],
)
def test_a_damaged_one_is_named_and_the_others_are_read(spoil: Spoil) -> None:
    store = written()
    store.replace(event_path(1), spoil(json.loads(content(store, 1))))
    with pytest.raises(EventError, match=r"_events/0{19}1\.json: not a valid event"):
        list(read_events(store))
    defects: list[Defect] = []
    found = [event.number for event in read_events(store, defects=defects)]
    assert found == [0, 2]
    kinds = [(defect.file, defect.kind) for defect in defects]
    assert kinds == [
        (event_path(1), DefectKind.UNREADABLE),
        (event_path(2), DefectKind.PREVIOUS_HASH),
    ]
    # What comes next stands on what is there.
    assert append_event(store, STARTED).number == 3
    assert len(list(read_events(store, 3))) == 1


def test_one_that_was_changed_shows_in_the_next_one() -> None:
    store = written()
    store.replace(event_path(0), content(store, 0).replace(b"Ann", b"Eve"))
    with pytest.raises(EventError, match=f"which has {event_sha256(store, 0)}"):
        list(read_events(store))
    assert [event.by for event in read_events(store, defects=[])] == ["Eve", "Ann", "Ann"]


def test_a_hole_is_named_and_not_filled() -> None:
    store = written(4)
    store.remove([event_path(1), event_path(2)])
    with pytest.raises(EventError, match=r"0{19}1\.json: the events 1 to 2 are missing"):
        list(read_events(store))
    assert [event.number for event in read_events(store, defects=[])] == [0, 3]
    assert append_event(store, STARTED).number == 4


def test_a_name_that_a_listing_leaves_out_is_looked_for_again() -> None:
    class Forgetful(MemoryStore):
        forgotten: str | None = event_path(1).removeprefix(f"{FOLDER}/")

        def names(self, folder: str, first: str = "") -> list[str]:
            left_out, self.forgotten = self.forgotten, None
            return [name for name in super().names(folder, first) if name != left_out]

    store = Forgetful()
    for number in range(3):
        store.create(event_path(number), content(written(), number))
    assert len(list(read_events(store))) == 3


def test_a_number_that_nobody_gave_does_not_count_for_the_next() -> None:
    store = MemoryStore()
    for junk in ("9" * 20, f"{7:019}", "x"):
        store.create(f"{FOLDER}/{junk}.json", b"{}")
    assert event_numbers(store) == []
    assert append_event(store, STARTED).number == 0
    store.create(event_path(MAX_NUMBER), b"{}")
    with pytest.raises(ScoredLogError, match=f"{MAX_NUMBER} is the last"):
        append_event(store, acknowledged("one more"))
