"""Acceptances: that somebody takes a change of a key for the new normal.

They are events of the kind "accepted", so that a monitor and a replay of its log read the same
ones. A monitor at work looks for new ones at times.
"""

from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field

from nap_stream.clock import Clock
from nap_stream.errors import EventError, ScoredLogError
from nap_stream.records import Acceptance
from nap_stream.scored_log.events import (
    Event,
    EventKind,
    Printable,
    Time,
    append_event,
    event_path,
    problem_of,
    read_accepted,
    require_text,
)
from nap_stream.scored_log.stores import SegmentStore

MAX_BY, MAX_REASON, MAX_KEY = 200, 1_000, 200
"""Characters."""
NOTICE_MS = 30_000
"""How long after it was made an acceptance takes effect: monitors at work must have read it by
then, so that a replay, which knows of it from the beginning, gives the same alerts."""
LOOK_EVERY_S = 5.0
"""A fraction of `NOTICE_MS`."""
LIST_EVERY = 3
"""The folder is listed with so many looks; with the others only where the next event is there."""


class _Data(BaseModel):
    """What the event of an acceptance says beside who, when and of which topic."""

    model_config = ConfigDict(strict=True, extra="forbid")
    key: Annotated[Printable, Field(max_length=MAX_KEY)]
    from_ms: Time
    effective_ms: Time
    reason: Annotated[Printable, Field(min_length=1, max_length=MAX_REASON)]


def write_acceptance(store: SegmentStore, acceptance: Acceptance) -> Acceptance:
    """Write an acceptance as the next event; give it with that event's number.

    Raises:
        ConfigError: A text is empty where it must not be, too long, or not printable.
        ScoredLogError: The store cannot be read or written.
    """
    require_text("by", acceptance.by, MAX_BY)
    require_text("reason", acceptance.reason, MAX_REASON)
    require_text("key", acceptance.key, MAX_KEY, may_be_empty=True)
    data = {name: getattr(acceptance, name) for name in _Data.model_fields}
    who, made_ms, topic = acceptance.by, acceptance.made_ms, acceptance.topic
    event = Event(time_ms=made_ms, kind=EventKind.ACCEPTED, by=who, topic=topic, data=data)
    return acceptance_of(append_event(store, event))


def acceptance_of(event: Event) -> Acceptance:
    """The acceptance that an event of that kind tells of.

    Raises:
        EventError: It tells of none.
    """
    try:
        data = _Data.model_validate(event.data).model_dump()
    except ValueError as error:
        where = event_path(event.number)
        raise EventError(f"not a valid acceptance: {problem_of(error)}", where) from error
    return Acceptance(
        number=event.number, topic=event.topic, made_ms=event.time_ms, by=event.by, **data
    )


class AcceptanceReader:
    """Gives the acceptances of a topic, each once. The first look is at once.

    An event that is damaged is told in the program's log once, and stops nobody. One at the end is
    looked at again: once it is removed, another may get its number, and a replay knows that one
    alone.
    """

    def __init__(self, store: SegmentStore, topic: str, clock: Clock) -> None:
        self._store, self._topic, self._clock = store, topic, clock
        self._next, self._looks = 0, 0
        self._given: set[int] = set()
        self._told: set[str] = set()
        self._look_at_s = clock.monotonic()

    def new(self) -> tuple[Acceptance, ...]:
        """Give those that were not given before; none before the next look is due.

        A store that cannot be read is told in the log, and asked again with the next look.
        """
        if self._clock.monotonic() < self._look_at_s:
            return ()
        self._look_at_s = self._clock.monotonic() + LOOK_EVERY_S
        self._looks += 1
        try:
            is_due = self._looks % LIST_EVERY == 1 or self._is_more()
            return self.read() if is_due else ()
        except ScoredLogError as error:
            structlog.get_logger().warning("acceptances_not_read", cause=str(error))
            self._looks = 0
            return ()

    def read(self) -> tuple[Acceptance, ...]:
        """Give those that were not given before.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        found: list[Acceptance] = []
        read, self._next = read_accepted(self._store, self._next)
        for each in read:
            if not isinstance(each, Event):
                self._tell(str(each))
            elif each.topic == self._topic and each.number not in self._given:
                self._given.add(each.number)
                try:
                    found.append(acceptance_of(each))
                except EventError as error:
                    self._tell(str(error))
        return tuple(found)

    def _is_more(self) -> bool:
        """Whether anything has the number from which on events are new."""
        try:
            file = self._store.open(event_path(self._next))
        except ScoredLogError:
            return True
        if file is not None:
            file.close()
        return file is not None

    def _tell(self, cause: str) -> None:
        if cause not in self._told:
            self._told.add(cause)
            structlog.get_logger().error("event_unreadable", cause=cause)
