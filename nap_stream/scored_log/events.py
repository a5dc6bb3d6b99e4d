"""Events beside the chains of rows: what was started, told, accepted and done, by whom and when.

    <root>/_events/<number, 20 digits>.json

They are a chain of their own: numbers from 0 on without holes, and each file names the SHA-256 of
the file before it. Each is created exclusively under the next free number and never changed. The
folder is hidden from Parquet readers, as all names that begin with an underscore.

A file is one line of JSON, `Document`; one that differs in a single byte from what is written of
its content is damaged. Files come from outside: their size is limited before they are decoded.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nap_stream.errors import ConfigError, EventError, ScoredLogError
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import Defect, DefectKind
from nap_stream.text import EARLIEST_MS, LATEST_MS

FOLDER = "_events"
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
_NAME = re.compile(r"([0-9]{20})\.json")


class EventKind(StrEnum):
    """What nap-stream writes of itself. A later version may write others."""

    RUN_STARTED = "run-started"
    RUN_STOPPED = "run-stopped"
    ALERT = "alert"
    ACKNOWLEDGED = "acknowledged"
    ACCEPTED = "accepted"
    ERASING = "erasing"
    ERASED = "erased"


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


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it is not printable")
    return text


Printable = Annotated[str, AfterValidator(_printable)]
Time = Annotated[int, Field(ge=EARLIEST_MS, le=LATEST_MS)]
"""Milliseconds since the epoch."""
_Name = Annotated[Printable, Field(max_length=250)]


class Document(BaseModel):
    """The object in a file, its keys in this order."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: Literal["nap-stream event"] = "nap-stream event"
    version: Literal[1] = 1
    number: Annotated[int, Field(ge=0, le=MAX_NUMBER)]
    time_ms: Time
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,39}$")]
    by: Annotated[_Name, Field(pattern=r"\S")]
    topic: _Name
    monitor: _Name
    data: dict[str, Any]
    previous_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def event_path(number: int) -> str:
    """Where the event of a number lies, below the log's root."""
    return f"{FOLDER}/{number:020}.json"


def alert_id(event: Event) -> str:
    """The id of the alert that an event is or acknowledges; empty for none."""
    found = event.data.get("alert") if event.kind == EventKind.ACKNOWLEDGED else None
    if event.kind == EventKind.ALERT and isinstance(tree := event.data.get("event"), dict):
        found = tree.get("id")
    return found if isinstance(found, str) else ""


def append_event(store: SegmentStore, event: Event, *, near: int = 0) -> Event:
    """Write an event as the last one of the chain; give it with its number and digest.

    ``near`` is a number that there was lately: it saves listing those before.

    Raises:
        EventError: Its texts or its data are not what an event can hold.
        ScoredLogError: The store cannot be read or written.
    """
    folder = f"{store.root}/{FOLDER}"
    try:
        _encoded(event, 0, START_SHA256)
    except (ValueError, TypeError, RecursionError) as error:
        raise EventError(f"not a valid event: {problem_of(error)}", folder) from error
    store.prepare(FOLDER)
    free = max(event_numbers(store, near) or event_numbers(store), default=-1) + 1
    for number in range(free, min(free + ATTEMPTS, MAX_NUMBER + 1)):
        previous = event_sha256(store, number - 1) if number else START_SHA256
        if previous is None:
            raise ScoredLogError(f"event {number - 1} was listed and is gone", folder, "Try again")
        content = _encoded(event, number, previous)
        if store.create(event_path(number), content):
            return replace(event, number=number, sha256=hashlib.sha256(content).hexdigest())
    raise ScoredLogError(
        f"no number from {free} on could be taken: others took them, or {MAX_NUMBER} is the last",
        folder,
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
        names = store.names(FOLDER, f"{first:020}.json" if first else "")
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
    return _read(store, number)[1]


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

    An event is given that can be read, also where it or the one before it was exchanged.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    numbers = event_numbers(store, max(first - 1, 0))
    expected, previous = first, START_SHA256 if first == 0 else None
    with ThreadPoolExecutor(THREADS, "events") as pool:
        for start in range(0, len(numbers), 4 * THREADS):
            some = numbers[start : start + 4 * THREADS]
            read = pool.map(lambda number: _read(store, number), some)
            for number, (content, sha256) in zip(some, read, strict=True):
                if number > expected:
                    detail = f"the events {expected} to {number - 1} are missing"
                    yield Defect(event_path(expected), DefectKind.HOLE, detail)
                    previous = None
                if number >= first:
                    yield from _examined(number, content, sha256, previous)
                expected, previous = max(first, number + 1), sha256


def _read(store: SegmentStore, number: int) -> tuple[bytes, str | None]:
    """What a file holds, cut where it is too long, and the digest of all; None where it is gone."""
    file = store.open(event_path(number))
    if file is None:
        return b"", None
    with file:
        content = file.read(MAX_BYTES + 1)
        digest = hashlib.sha256(content)
        while more := file.read(MAX_BYTES):
            digest.update(more)
    return content, digest.hexdigest()


def _examined(
    number: int, content: bytes, sha256: str | None, previous: str | None
) -> Iterator[Event | Defect]:
    path = event_path(number)
    try:
        event, named = _decoded(content, number)
    except (ValueError, TypeError, RecursionError) as error:
        yield Defect(path, DefectKind.UNREADABLE, f"not a valid event: {problem_of(error)}")
        return
    if previous is not None and named != previous:
        detail = f"it names {named} as the event before it, which has {previous}"
        yield Defect(path, DefectKind.PREVIOUS_HASH, detail)
    yield replace(event, sha256=sha256 or "")


def _encoded(event: Event, number: int, previous: str) -> bytes:
    """The file of an event; ValueError or TypeError where there can be none."""
    document = Document(
        number=number,
        time_ms=event.time_ms,
        kind=str(event.kind),
        by=event.by,
        topic=event.topic,
        monitor=event.monitor,
        data=dict(event.data),
        previous_sha256=previous,
    )
    content = (json.dumps(document.model_dump(), allow_nan=False) + "\n").encode("ascii")
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content


def _decoded(content: bytes, number: int) -> tuple[Event, str]:
    """The event of a file, without its digest, and the digest that it names."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    tree = Document.model_validate(json.loads(content.decode("ascii"))).model_dump()
    del tree["format"], tree["version"]
    previous, event = tree.pop("previous_sha256"), Event(**tree)
    # So no key stands twice in it, which readers would take for different things.
    if event.number != number or _encoded(event, number, previous) != content:
        raise ValueError("it has another number, or is not as nap-stream writes it")
    return event, previous


def problem_of(error: Exception) -> str:
    """What is wrong with what a file holds, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
