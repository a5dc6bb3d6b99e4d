"""One deadline for several steps."""

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
