"""Events beside the chains of rows: what was started, told, accepted and done, by whom and when.

    <root>/_events/<number, 20 digits>.json

They are a chain of their own: numbers from 0 on without holes, and each file names the SHA-256 of
the file before it. Each is created exclusively under the next free number and never changed. The
folder is hidden from Parquet readers, as all names that begin with an underscore.

Each also names the last event before it that accepts something, so that whoever wants those alone
reads no others.

A file is one line of JSON, `Document`; one that differs in a single byte from what is written of
its content is damaged. Files come from outside: their size is limited before they are decoded.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nap_stream.errors import ConfigError, EventError, NotAFileError, ScoredLogError
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import as_log_error
from nap_stream.scored_log.verify.report import Defect, DefectKind
from nap_stream.text import EARLIEST_MS, LATEST_MS

FOLDER = "_events"
START_SHA256 = "0" * 64
"""What the first event names, as there is none before it."""
MAX_BYTES = 4 * 2**20
"""The settings with the names of 100,000 classes, and an alert with its examples, take less."""
MAX_NUMBER = 2**31 - 1
"""A file with a larger number in its name is none of the chain."""
MAX_HOLE = 100_000
"""Nor is one that leaves out so many numbers: nobody may use up the numbers with one file."""
MAX_ID = 250
"""Characters of an alert's id."""
ATTEMPTS = 100
"""So many others may take the next number while one is written."""
THREADS = 16
"""Small files wait for the disk or the network."""
_NAME = re.compile(r"([0-9]{20})\.json")


class EventKind(StrEnum):
    """What nap-stream writes of itself. A later version may write others."""

    RUN_STARTED = "run-started"
    RUN_STOPPED = "run-stopped"
    RELOAD_REFUSED = "reload-refused"
    LEFT_OUT = "left-out"
    ALERT = "alert"
    ACKNOWLEDGED = "acknowledged"
    ACCEPTED = "accepted"
    ERASING = "erasing"
    ERASED = "erased"
    PRUNING = "pruning"
    PRUNED = "pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, of one of the kinds that docs/scored-log.md lists.

    ``time_ms`` is of the writer's clock, milliseconds since the epoch. ``by`` says who: a monitor's
    writer id, or a person's name. ``topic`` and ``monitor`` are empty where it is of none. ``data``
    is JSON. One that is written has a ``number``, the digest of its file, ``sha256``, and the
    number of the last one before it that accepts something, ``last_accepted``: -1 for none.
    """

    time_ms: int
    kind: str
    by: str
    topic: str = ""
    monitor: str = ""
    data: Mapping[str, Any]
    number: int = -1
    last_accepted: int = -1
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
    last_accepted: Annotated[int, Field(ge=-1, le=MAX_NUMBER)]
    previous_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def event_path(number: int) -> str:
    """Where the event of a number lies, below the log's root."""
    return f"{FOLDER}/{number:020}.json"


def alert_id(event: Event) -> str:
    """The id of the alert that an event is or acknowledges; empty for none that can be shown."""
    found = event.data.get("alert") if event.kind == EventKind.ACKNOWLEDGED else None
    if event.kind == EventKind.ALERT and isinstance(tree := event.data.get("event"), dict):
        found = tree.get("id")
    if not isinstance(found, str) or len(found) > MAX_ID or not found.isprintable():
        return ""
    return found


def append_event(store: SegmentStore, event: Event, *, near: int = 0) -> Event:
    """Write an event as the last one of the chain; give it with its number and digest.

    ``near`` is a number that there was lately: it saves listing those before. What can be no event
    is passed over: the event names the last one before that.

    Raises:
        EventError: Its texts or its data are not what an event can hold.
        ScoredLogError: The store, or what may be the last event, cannot be read or written.
    """
    folder = f"{store.root}/{FOLDER}"
    try:
        _encoded(event, 0, -1, START_SHA256)
    except (ValueError, TypeError, RecursionError) as error:
        raise EventError(f"not a valid event: {problem_of(error)}", folder) from error
    store.prepare(FOLDER)
    chain = event_numbers(store, near) or event_numbers(store)
    free = chain[-1] + 1 if chain else 0
    for number in range(free, min(free + ATTEMPTS, MAX_NUMBER + 1)):
        last_accepted, previous = _links(store, chain)
        content = _encoded(event, number, last_accepted, previous)
        if store.create(event_path(number), content):
            sha256 = hashlib.sha256(content).hexdigest()
            return replace(event, number=number, last_accepted=last_accepted, sha256=sha256)
        chain.append(number)
    raise ScoredLogError(
        f"no number from {free} on could be taken: others took them, or {MAX_NUMBER} is the last",
        folder,
        "Try again; if it stays so, run `nap-stream verify`",
    )


def _links(store: SegmentStore, chain: Sequence[int]) -> tuple[int, str]:
    """What an event behind these says of them: the last acceptance, and the digest of the last.

    Raises:
        ScoredLogError: One that is needed for it cannot be read.
    """
    digest = ""
    for number in _backwards(store, chain):
        file = _read(store, number)
        if file.failure is not None:
            raise file.failure
        digest = digest or file.sha256 or ""
        found = _decoded(number, file)
        if isinstance(found, tuple):
            event, _ = found
            return number if event.kind == EventKind.ACCEPTED else event.last_accepted, digest
    return -1, digest or START_SHA256


def _backwards(store: SegmentStore, chain: Sequence[int]) -> Iterator[int]:
    """The numbers of a chain of which the last ones are known, from its end on."""
    yield from reversed(chain)
    if chain and chain[0] > 0:
        yield from (number for number in reversed(event_numbers(store)) if number < chain[0])


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
    """Give the numbers of the events from ``first`` on, in order, up to a hole of `MAX_HOLE`.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    # A folder that changes while it is listed can leave out a name that is there.
    for _ in range(2):
        names = store.names(FOLDER, f"{first:020}.json" if first else "")
        numbers = (event_number(name) for name in names)
        found = _without_strays(sorted(n for n in numbers if n is not None and n >= first), first)
        if not found or found[-1] - found[0] == len(found) - 1:
            break
    return found


def _without_strays(numbers: list[int], first: int) -> list[int]:
    before = first - 1
    for index, number in enumerate(numbers):
        if number - before > MAX_HOLE:
            return numbers[:index]
        before = number
    return numbers


def events_end(store: SegmentStore) -> tuple[int, str] | None:
    """The number of the last event and the digest of its file; None where there is none.

    Raises:
        ScoredLogError: The store, or what may be the last event, cannot be read.
    """
    for number in reversed(event_numbers(store)):
        file = _read(store, number)
        if file.failure is not None:
            raise file.failure
        if file.sha256 is not None:
            return number, file.sha256
    return None


def event_number(name: str) -> int | None:
    """The number in the name of an event's file; None where it is no such name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and int(match[1]) <= MAX_NUMBER else None


def event_sha256(store: SegmentStore, number: int) -> str | None:
    """The digest of an event's file, whatever it holds; None where it is gone or can be no event.

    Raises:
        ScoredLogError: It cannot be read.
    """
    file = _read(store, number)
    if file.failure is not None and not file.is_gone:
        raise file.failure
    return file.sha256


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

    An event is given that can be read, also where it or the one before it was exchanged. A file
    that cannot be read is a defect.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    numbers = event_numbers(store, max(first - 1, 0))
    before = _Before(first, *((-1, START_SHA256) if first == 0 else (None, None)))
    with ThreadPoolExecutor(THREADS, "events") as pool:
        for start in range(0, len(numbers), 4 * THREADS):
            some = numbers[start : start + 4 * THREADS]
            read = pool.map(lambda number: _read(store, number), some)
            for number, file in zip(some, read, strict=True):
                found = tuple(before.examine(number, file))
                yield from found if number >= first else ()


def read_accepted(store: SegmentStore, first: int = 0) -> tuple[list[Event | Defect], int]:
    """Read the events that accept something, from a number on, in order, and what is wrong there.

    So many files are read: those events, the last one, and for each of them that cannot be read
    the one before it. Also gives where to begin the next time: behind the last event, or at the
    first file that could not be read now and may be later.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    found: list[Event | Defect] = []
    numbers, end, unread = event_numbers(store, first), first, None
    while numbers:
        number = numbers.pop()
        file = _read(store, number)
        each = _decoded(number, file)
        if isinstance(each, tuple):
            event, _ = each
            end = max(end, number + 1)
            del numbers[bisect_right(numbers, event.last_accepted) :]
            found += [event] if event.kind == EventKind.ACCEPTED else []
        else:
            unread = unread if file.failure is None else number
            found.append(each)
    return found[::-1], end if unread is None else unread


@dataclass(frozen=True, slots=True)
class _File:
    """What has an event's name. Without ``sha256`` it can be no event, or there was a failure."""

    content: bytes = b""
    sha256: str | None = None
    problem: str = ""
    failure: ScoredLogError | None = None
    is_gone: bool = False


def _read(store: SegmentStore, number: int) -> _File:
    path = event_path(number)
    try:
        file = store.open(path)
        if file is None:
            gone = ScoredLogError("it was listed and is gone", f"{store.root}/{path}", "Try again")
            return _File(problem=gone.problem, failure=gone, is_gone=True)
        with file:
            content = file.read(MAX_BYTES + 1)
    except NotAFileError as error:
        return _File(problem=error.problem)
    except (ScoredLogError, OSError) as error:
        if isinstance(error, OSError):
            error = as_log_error(error, Path(store.root) / path)
        return _File(problem=f"it cannot be read: {error.problem}", failure=error)
    if len(content) > MAX_BYTES:
        return _File(problem=f"it has more than {MAX_BYTES} bytes")
    return _File(content, hashlib.sha256(content).hexdigest())


@dataclass(slots=True)
class _Before:
    """What is known of the events before a number; None for what is not."""

    expected: int
    last_accepted: int | None
    sha256: str | None

    def examine(self, number: int, file: _File) -> Iterator[Event | Defect]:
        """Give what is wrong with the next file, and its event; go on behind it."""
        if number > self.expected:
            detail = f"the events {self.expected} to {number - 1} are missing"
            yield Defect(event_path(self.expected), DefectKind.HOLE, detail)
            self.last_accepted = self.sha256 = None
        self.expected = number + 1
        found = _decoded(number, file)
        if isinstance(found, Defect):
            yield found
            # What may have been an event then is not known; what can be none has no place here.
            self.last_accepted = None
            if file.sha256 is not None or file.failure is not None:
                self.sha256 = file.sha256
            return
        event, named = found
        if self.sha256 not in {None, named}:
            detail = f"it names {named} as the event before it, which has {self.sha256}"
            yield Defect(event_path(number), DefectKind.PREVIOUS_HASH, detail)
        if self.last_accepted not in {None, event.last_accepted}:
            detail = (
                f"it names event {event.last_accepted} as the last acceptance, which is "
                f"{self.last_accepted}"
            )
            yield Defect(event_path(number), DefectKind.CONTENT, detail)
        is_one = event.kind == EventKind.ACCEPTED
        self.last_accepted = number if is_one else event.last_accepted
        self.sha256 = event.sha256
        yield event


def _encoded(event: Event, number: int, last_accepted: int, previous: str) -> bytes:
    """The file of an event; ValueError or TypeError where there can be none."""
    document = Document(
        number=number,
        time_ms=event.time_ms,
        kind=str(event.kind),
        by=event.by,
        topic=event.topic,
        monitor=event.monitor,
        data=dict(event.data),
        last_accepted=last_accepted,
        previous_sha256=previous,
    )
    content = (json.dumps(document.model_dump(), allow_nan=False) + "\n").encode("ascii")
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content


def _decoded(number: int, file: _File) -> tuple[Event, str] | Defect:
    """The event of a file and the digest that it names, or what is wrong with it."""
    try:
        return _parsed(number, file)
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"not a valid event: {problem_of(error)}"
        return Defect(event_path(number), DefectKind.UNREADABLE, problem)


def _parsed(number: int, file: _File) -> tuple[Event, str]:
    if file.sha256 is None:
        raise ValueError(file.problem)
    tree = Document.model_validate(json.loads(file.content.decode("ascii"))).model_dump()
    del tree["format"], tree["version"]
    previous, event = tree.pop("previous_sha256"), Event(**tree, sha256=file.sha256)
    # So no key stands twice in it, which readers would take for different things.
    is_written = _encoded(event, number, event.last_accepted, previous) == file.content
    if event.number != number or event.last_accepted >= number or not is_written:
        raise ValueError("it has another number, or is not as nap-stream writes it")
    return event, previous


def problem_of(error: Exception) -> str:
    """What is wrong with what a file holds, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
