"""The clock protocol. Nothing else in the package asks for the time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what is recorded, monotonic time for what is measured."""

    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``, not negative."""
        ...


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
    """A clock that a test moves by hand.

    Args:
        now_ms: Wall-clock time to start from, in milliseconds since the epoch.
    """

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
