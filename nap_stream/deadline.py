"""One deadline for several steps, and a request to stop, from which one counts."""

from nap_stream.clock import Clock


class Deadline:
    """A moment on a clock, shared by the steps that must all be done by then.

    Args:
        clock: Whose monotonic time counts.
        seconds: From now, not negative.
    """

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
    """Made by one thread, looked at by another, which may come to that late.

    Args:
        clock: Whose monotonic time counts.
    """

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
