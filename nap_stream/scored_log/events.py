"""Events beside the chains of rows: what was started, told, accepted and done, by whom and when.

    <root>/_events/<number, 20 digits>.json

They are a chain of their own: numbers from 0 on without holes, and each file names the SHA-256 of
the file before it. Each is created exclusively under the next free number and never changed. The
folder is hidden from Parquet readers, as all names that begin with an underscore.

A file is one line of JSON, the object of `Event` without its digest, and three keys more:
``format``, ``version`` and ``previous_sha256``, which is `START_SHA256` for number 0. A file that
differs from what is written of its content in a single byte is damaged. Files come from outside:
their size is limited before they are decoded.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from nap_stream.errors import ConfigError, EventError, ScoredLogError
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import Defect, DefectKind
from nap_stream.text import EARLIEST_MS, LATEST_MS, rfc3339

FOLDER = "_events"
FORMAT = "nap-stream event"
VERSION = 1
START_SHA256 = "0" * 64
"""What the first event names, as there is none before it."""
MAX_BYTES = 4 * 2**20
"""The settings with the names of 100,000 classes, and an alert with its examples, take less."""
MAX_NUMBER = 2**31 - 1
"""A file with a larger number in its name is none of the chain."""
ATTEMPTS = 100
"""So many others may take the next number while one is written."""
THREADS = 16
"""Small files wait for the disk or the network."""
MAX_NAME = 250
"""Characters of who, topic and monitor."""
_NAME = re.compile(r"([0-9]{20})\.json")
_KIND = re.compile(r"[a-z][a-z-]{0,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPES: dict[str, type] = {
    **dict.fromkeys(("number", "time_ms"), int),
    **dict.fromkeys(("kind", "by", "topic", "monitor"), str),
    "data": dict,
}
_BEHIND = (*_TYPES, "previous_sha256")


class EventKind(StrEnum):
    """What nap-stream writes of itself. A later version may write others."""

    RUN_STARTED = "run-started"
    RUN_STOPPED = "run-stopped"
    ALERT = "alert"
    ACKNOWLEDGED = "acknowledged"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, of one of the kinds that docs/scored-log.md lists.

    ``time_ms`` is of the writer's clock, milliseconds since the epoch. ``by`` says who: a monitor's
    writer id, or a person's name. ``topic`` and ``monitor`` are empty where it is of none. ``data``
    is JSON. ``number`` and ``sha256``, the digest of the file, are those of one that is written.
    """

    time_ms: int
    kind: str
    by: str
    topic: str = ""
    monitor: str = ""
    data: Mapping[str, Any]
    number: int = -1
    sha256: str = ""


def event_path(number: int) -> str:
    """Where the event of a number lies, below the log's root."""
    return f"{FOLDER}/{number:020}.json"


def alert_id(event: Event) -> str:
    """The id of the alert that an event is or acknowledges; empty for none."""
    found = event.data.get("alert")
    if event.kind == EventKind.ALERT:
        tree = event.data.get("event")
        found = tree.get("id") if isinstance(tree, dict) else None
    is_of_alert = event.kind in {EventKind.ALERT, EventKind.ACKNOWLEDGED}
    return found if isinstance(found, str) and is_of_alert else ""


def append_event(store: SegmentStore, event: Event, *, near: int = 0) -> Event:
    """Write an event as the last one of the chain; give it with its number and digest.

    To append the same event again after a failure is safe: where it is the last one already, that
    counts. ``near`` is a number that there was lately: it saves listing those before.

    Raises:
        EventError: Its texts or its data are not what an event can hold.
        ScoredLogError: The store cannot be read or written.
    """
    try:
        _encoded(replace(event, number=0), START_SHA256)
    except (ValueError, TypeError, RecursionError) as error:
        raise EventError(f"not a valid event: {error}", f"{store.root}/{FOLDER}") from error
    store.prepare(FOLDER)
    free = max(event_numbers(store, near) or event_numbers(store), default=-1) + 1
    for number in range(free, min(free + ATTEMPTS, MAX_NUMBER + 1)):
        before = None if number == 0 else _read(store, number - 1)
        if before is None and number > 0:
            where = f"{store.root}/{event_path(number - 1)}"
            raise ScoredLogError("an event was listed and is gone", where, "Try again")
        if before is not None and (written := _as_written(event, number - 1, before)) is not None:
            return written
        previous = START_SHA256 if before is None else before.sha256
        content = _encoded(replace(event, number=number), previous)
        if store.create(event_path(number), content):
            return replace(event, number=number, sha256=hashlib.sha256(content).hexdigest())
    raise ScoredLogError(
        f"no number from {free} on could be taken: others took them, or {MAX_NUMBER} is the last",
        f"{store.root}/{FOLDER}",
        "Try again; if it stays so, run `nap-stream verify`",
    )


def require_text(name: str, text: str, limit: int, *, may_be_empty: bool = False) -> None:
    """Refuse a text of a person that is empty, too long, or not printable.

    Raises:
        ConfigError: It is so; ``name`` is that of its option.
    """
    if (not text.strip() and not may_be_empty) or len(text) > limit or not text.isprintable():
        raise ConfigError(
            f"expected 1 to {limit} printable characters, got {text[:limit]!r}", f"--{name}"
        )


def event_numbers(store: SegmentStore, first: int = 0) -> list[int]:
    """Give the numbers of the events from ``first`` on, in order.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    # A folder that changes while it is listed can leave out a name that is there.
    for _ in range(2):
        names = store.names(FOLDER, event_path(first).removeprefix(f"{FOLDER}/") if first else "")
        found = sorted(number for name in names if (number := event_number(name)) is not None)
        if not found or found[-1] - found[0] == len(found) - 1:
            break
    return found


def event_number(name: str) -> int | None:
    """The number in the name of an event's file; None where it is no such name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and int(match[1]) <= MAX_NUMBER else None


def event_sha256(store: SegmentStore, number: int) -> str | None:
    """The digest of an event's file, whatever it holds; None where there is none.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    found = _read(store, number)
    return None if found is None else found.sha256


def read_events(
    store: SegmentStore, first: int = 0, *, defects: list[Defect] | None = None
) -> Iterator[Event]:
    """Read the events from a number on, in order.

    With ``defects``, what is wrong is put there, and every event given that can be read; without,
    it is raised.

    Raises:
        EventError: One is damaged or missing, or is not the one that the next one names.
        ScoredLogError: The store cannot be read.
    """
    for found in walk_events(store, first):
        if isinstance(found, Event):
            yield found
        elif defects is None:
            where = f"{store.root}/{found.file}"
            raise EventError(found.detail, where, "Run `nap-stream verify`, which names all")
        else:
            defects.append(found)


def walk_events(store: SegmentStore, first: int = 0) -> Iterator[Event | Defect]:
    """Give the events from a number on, in order, and what is wrong before the one that shows it.

    An event after which another one was put in place is given all the same: it can be read.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    numbers = event_numbers(store, max(first - 1, 0))
    expected, previous = first, START_SHA256 if first == 0 else None
    for number, file in _files(store, numbers):
        if file is not None and number < first:
            previous = file.sha256
        if number < first:
            continue
        if file is None or number > expected:
            missing = f"{expected} to {number if file is None else number - 1}"
            detail = f"the events {missing} are missing"
            yield Defect(event_path(expected), DefectKind.HOLE, detail)
            previous = None
        if file is not None:
            yield from _examined(number, file, previous)
            previous = file.sha256
        expected = number + 1


class _File(NamedTuple):
    """What a file holds, cut where it is too long, and the digest of all of it."""

    content: bytes
    sha256: str


def _files(store: SegmentStore, numbers: list[int]) -> Iterator[tuple[int, _File | None]]:
    size = 4 * THREADS
    with ThreadPoolExecutor(THREADS, "events") as pool:
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            yield from zip(some, pool.map(partial(_read, store), some), strict=True)


def _read(store: SegmentStore, number: int) -> _File | None:
    file = store.open(event_path(number))
    if file is None:
        return None
    with file:
        content = file.read(MAX_BYTES + 1)
        digest = hashlib.sha256(content)
        while more := file.read(MAX_BYTES):
            digest.update(more)
    return _File(content, digest.hexdigest())


def _examined(number: int, file: _File, previous: str | None) -> Iterator[Event | Defect]:
    path = event_path(number)
    try:
        event, named = _decoded(file.content, number)
    except (ValueError, TypeError, RecursionError) as error:
        yield Defect(path, DefectKind.UNREADABLE, f"not a valid event: {error}")
        return
    if previous is not None and named != previous:
        detail = f"it names {named} as the event before it, which has {previous}"
        yield Defect(path, DefectKind.PREVIOUS_HASH, detail)
    yield replace(event, sha256=file.sha256)


def _as_written(event: Event, number: int, file: _File) -> Event | None:
    """The event as it stands in a file, if it is the one there."""
    try:
        _, named = _decoded(file.content, number)
        is_there = _encoded(replace(event, number=number), named) == file.content
    except (ValueError, TypeError, RecursionError):
        return None
    return replace(event, number=number, sha256=file.sha256) if is_there else None


def _encoded(event: Event, previous: str) -> bytes:
    """The file of an event.

    Raises:
        ValueError: A text, a time or the size is not within its limits; or data is no JSON.
        TypeError: Data is no JSON.
    """
    texts = {"by": event.by, "topic": event.topic, "monitor": event.monitor}
    for name, text in texts.items():
        if len(text) > MAX_NAME or not text.isprintable():
            raise ValueError(f"{name} is not of at most {MAX_NAME} printable characters")
    if not event.by.strip() or _KIND.fullmatch(event.kind) is None:
        raise ValueError("it does not say by whom it is, or of which kind")
    if not EARLIEST_MS <= event.time_ms <= LATEST_MS:
        raise ValueError(f"its time is not from {rfc3339(EARLIEST_MS)} to {rfc3339(LATEST_MS)}")
    tree = {"format": FORMAT, "version": VERSION}
    tree |= {name: getattr(event, name) for name in _TYPES} | {"previous_sha256": previous}
    content = (json.dumps(tree, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content


def _decoded(content: bytes, number: int) -> tuple[Event, str]:
    """The event of a file, without its digest, and the digest that it names."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    tree = json.loads(content.decode("ascii"))
    if not isinstance(tree, dict) or (tree.pop("format", None), tree.pop("version", None)) != (
        FORMAT,
        VERSION,
    ):
        raise ValueError(f"expected format {FORMAT!r}, version {VERSION}")
    if tuple(tree) != _BEHIND:
        raise ValueError(f"expected the keys {', '.join(_BEHIND)}")
    previous = tree.pop("previous_sha256")
    if not isinstance(previous, str) or _SHA256.fullmatch(previous) is None:
        raise ValueError("previous_sha256 is no digest")
    for name, wanted in _TYPES.items():
        if type(tree[name]) is not wanted:
            raise ValueError(f"{name} is not of type {wanted.__name__}")
    if tree["number"] != number:
        raise ValueError(f"it has the number {tree['number']}")
    event = Event(**tree)
    # So no name stands twice in it, which readers would take for different things.
    if _encoded(event, previous) != content:
        raise ValueError("it is not as nap-stream writes it")
    return event, previous
