"""The chain of events beside the log: written once each, read strictly, no part of the rows."""

import dataclasses
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from nap_stream.errors import EventError, ScoredLogError
from nap_stream.objects import ObjectStore
from nap_stream.scored_log.events import (
    FOLDER,
    MAX_BYTES,
    MAX_HOLE,
    MAX_ID,
    MAX_NUMBER,
    START_SHA256,
    Event,
    alert_id,
    append_event,
    event_numbers,
    event_path,
    event_sha256,
    events_end,
    read_accepted,
    read_events,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore, as_log_error
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
        _dumped(last_accepted=1),
        _dumped(last_accepted=-2),
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
    far = 2 + MAX_HOLE
    for number in (far, MAX_NUMBER):
        store.create(event_path(number), content(store, 0))
    assert append_event(store, acknowledged("one more")).number == 1
    assert [event.number for event in read_events(store)] == [0, 1]
    assert append_event(store, acknowledged("near"), near=1).number == 2
    # One that leaves out fewer is a hole, which is named and not filled.
    assert append_event(store, acknowledged("behind the hole"), near=2).number == far + 1


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 8 * 2**40)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
    "8 TB of nothing": _sparse,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_can_be_no_event_is_named_and_passed_over(name: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    first, second = (append_event(store, acknowledged(text)) for text in ("one", "two"))
    HOSTILE[name](tmp_path / event_path(2))
    fourth = append_event(store, acknowledged("four"), near=2)
    assert fourth.number == 3
    defects: list[Defect] = []
    assert list(read_events(store, defects=defects)) == [first, second, fourth]
    assert [(each.file, each.kind) for each in defects] == [(event_path(2), DefectKind.UNREADABLE)]
    assert json.loads(content(store, 3))["previous_sha256"] == second.sha256
    assert event_sha256(store, 2) is None
    assert events_end(store) == (3, fourth.sha256)
    (tmp_path / event_path(3)).unlink()
    assert events_end(store) == (1, second.sha256)
    # An exchange is found all the same.
    (tmp_path / event_path(1)).rename(tmp_path / "kept")
    HOSTILE[name](tmp_path / event_path(1))
    append_event(store, acknowledged("three"))
    (tmp_path / event_path(1)).rename(tmp_path / "hostile")
    (tmp_path / "kept").rename(tmp_path / event_path(1))
    defects = []
    list(read_events(store, defects=defects))
    assert DefectKind.PREVIOUS_HASH in {each.kind for each in defects}


class Failing(LocalStore):
    """One of whose files cannot be opened, or read once it is open."""

    def __init__(self, root: Path, number: int, error: int, *, is_open: bool) -> None:
        super().__init__(root)
        self.path, self.error, self.is_open = event_path(number), error, is_open

    def open(self, path: str) -> BinaryIO | None:
        if path != self.path:
            return super().open(path)
        failure = OSError(self.error, os.strerror(self.error))
        if not self.is_open:
            raise as_log_error(failure, Path(self.root) / path)
        return _Broken(failure)


class _Broken(io.BytesIO):
    def __init__(self, failure: OSError) -> None:
        super().__init__()
        self.failure = failure

    def read(self, _size: int | None = -1, /) -> bytes:
        raise self.failure


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_one_that_cannot_be_read_is_a_defect_and_what_comes_next_waits_for_it(
    error: int, is_open: bool, tmp_path: Path
) -> None:
    whole = LocalStore(tmp_path)
    for number in range(3):
        append_event(whole, acknowledged(f"number {number}"))
    middle = Failing(tmp_path, 1, error, is_open=is_open)
    defects: list[Defect] = []
    assert [event.number for event in read_events(middle, defects=defects)] == [0, 2]
    assert [(each.file, each.kind) for each in defects] == [(event_path(1), DefectKind.UNREADABLE)]
    assert os.strerror(error) in defects[0].detail
    assert append_event(middle, acknowledged("number 3")).number == 3
    # An event that did not name it would be a defect for good.
    last = Failing(tmp_path, 3, error, is_open=is_open)
    for ask in (events_end, lambda store: append_event(store, STARTED)):
        with pytest.raises(ScoredLogError, match=rf"{event_path(3)}: .*{os.strerror(error)}"):
            ask(last)
    assert len(list(read_events(whole))) == 4


def test_each_names_the_last_acceptance_before_it() -> None:
    store = MemoryStore()
    accepted = dataclasses.replace(STARTED, kind="accepted")
    for event in (STARTED, accepted, STARTED, accepted, accepted, STARTED):
        append_event(store, event)
    named = [event.last_accepted for event in read_events(store)]
    assert named == [-1, -1, 1, 1, 3, 4]
    # What is damaged names none; its digest is named all the same.
    store.create(event_path(6), b"{}")
    assert append_event(store, STARTED, near=6).last_accepted == 4
    found, after = read_accepted(store, 2)
    assert ([event.number for event in found if isinstance(event, Event)], after) == ([3, 4], 8)
    forged = json.loads(content(store, 5)) | {"last_accepted": 1}
    store.replace(event_path(5), (json.dumps(forged) + "\n").encode())
    defects: list[Defect] = []
    list(read_events(store, defects=defects))
    assert (event_path(5), DefectKind.CONTENT) in [(each.file, each.kind) for each in defects]


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[31m", "a\nb", "x" * (MAX_ID + 1), 7, None])
def test_what_cannot_be_shown_is_no_id_of_an_alert(name: object) -> None:
    acknowledging = dataclasses.replace(STARTED, kind="acknowledged", data={"alert": name})
    alert = dataclasses.replace(STARTED, kind="alert", data={"event": {"id": name}})
    store = MemoryStore()
    for event in (acknowledging, alert):
        append_event(store, event)
    assert [alert_id(event) for event in read_events(store)] == ["", ""]
