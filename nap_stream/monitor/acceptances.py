"""Acceptances, as a monitor at work comes to know of them: it looks at the log's root at times."""

from collections.abc import Iterator

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

    One that is damaged is told in the program's log, and does not stop the monitor; so is a store
    that cannot be read, which is asked again with the next look.
    """

    def __init__(self, store: SegmentStore, topic: str, clock: Clock) -> None:
        self._store, self._topic, self._clock = store, topic, clock
        self._next = 0
        self._look_at_s = clock.monotonic()

    def new(self) -> tuple[Acceptance, ...]:
        """Give those that were not given before; none before the next look is due."""
        if self._clock.monotonic() < self._look_at_s:
            return ()
        self._look_at_s = self._clock.monotonic() + LOOK_EVERY_S
        try:
            found = tuple(self._read())
        except ScoredLogError as error:
            structlog.get_logger().warning("acceptances_not_read", cause=str(error))
            return ()
        return tuple(each for each in found if each.topic == self._topic)

    def _read(self) -> Iterator[Acceptance]:
        last = self._next - 1
        for last in acceptance_numbers(self._store, self._next):
            try:
                yield read_acceptance(self._store, last)
            except AcceptanceError as error:
                structlog.get_logger().error("acceptance_unreadable", cause=str(error))
        # Only now: what was read before a failure is read again after it.
        self._next = last + 1
