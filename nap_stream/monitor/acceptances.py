"""Acceptances, as a monitor at work comes to know of them: it looks at the log's root at times."""

import structlog

from nap_stream.clock import Clock
from nap_stream.errors import AcceptanceError, ScoredLogError
from nap_stream.records import Acceptance
from nap_stream.scored_log.acceptances import acceptance_numbers, read_acceptance
from nap_stream.scored_log.stores import SegmentStore

LOOK_EVERY_S = 5.0
"""A fraction of `nap_stream.scored_log.acceptances.NOTICE_MS`, after which one takes effect."""


class AcceptanceReader:
    """Gives the acceptances of a topic, each once. The first look is at once.

    One that is damaged is told in the program's log once, and does not stop the monitor. It is
    looked at with each look: once it is removed, another may get its number, and a replay knows
    that one alone. A store that cannot be read is told too, and asked again with the next look.
    """

    def __init__(self, store: SegmentStore, topic: str, clock: Clock) -> None:
        self._store, self._topic, self._clock = store, topic, clock
        self._given: set[int] = set()
        self._unreadable: set[int] = set()
        self._look_at_s = clock.monotonic()

    def new(self) -> tuple[Acceptance, ...]:
        """Give those that were not given before; none before the next look is due."""
        if self._clock.monotonic() < self._look_at_s:
            return ()
        self._look_at_s = self._clock.monotonic() + LOOK_EVERY_S
        try:
            found = self._read()
        except ScoredLogError as error:
            structlog.get_logger().warning("acceptances_not_read", cause=str(error))
            return ()
        return tuple(each for each in found if each.topic == self._topic)

    def _read(self) -> list[Acceptance]:
        found: list[Acceptance] = []
        for number in acceptance_numbers(self._store):
            if number in self._given:
                continue
            try:
                found.append(read_acceptance(self._store, number))
            except AcceptanceError as error:
                if number not in self._unreadable:
                    structlog.get_logger().error("acceptance_unreadable", cause=str(error))
                self._unreadable.add(number)
        # Only now: what was read before a failure is read again after it.
        numbers = {each.number for each in found}
        self._given |= numbers
        self._unreadable -= numbers
        return found
