"""Clocks, deadlines, requests to stop and progress: what long work is given by its caller.

Nothing else in the package asks for the time.
"""

import time
from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int, int | None], None]
"""Told how much is done, and how much there is in all, None where that is not known."""

Timed = tuple[str, float, float]
"""What was done, from when to when, in seconds of the monotonic clock."""


class Clock(Protocol):
    """Wall time for what is recorded, monotonic time for what is measured."""

    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since the epoch, UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``, not negative."""


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``, not negative."""
        time.sleep(seconds)


class ManualClock:
    """A clock that is moved by hand, from a time in milliseconds since the epoch on."""

    def __init__(self, now_ms: int = 0) -> None:
        self._start_ms = now_ms
        self._elapsed_s = 0.0

    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since the epoch, UTC."""
        return self._start_ms + round(self._elapsed_s * 1000)

    def monotonic(self) -> float:
        """Seconds since construction."""
        return self._elapsed_s

    def advance(self, seconds: float) -> None:
        """Move both clocks on by ``seconds``.

        Raises:
            ValueError: If ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock never goes back: got {seconds = }")
        self._elapsed_s += seconds

    def sleep(self, seconds: float) -> None:
        """Move on at once."""
        self.advance(seconds)


class Deadline:
    """A moment on a clock's monotonic time, shared by the steps that must all be done by then."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock.monotonic())

    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining_s() == 0.0


class StopRequest:
    """Made by one thread and seen by another, which may look late: it tells how old it is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._made_at: float | None = None

    def make(self) -> None:
        """Ask to stop; asking again changes nothing."""
        if self._made_at is None:
            self._made_at = self._clock.monotonic()

    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self._made_at is not None

    def age_s(self) -> float:
        """Seconds since it was made; 0 before."""
        return 0.0 if self._made_at is None else self._clock.monotonic() - self._made_at
