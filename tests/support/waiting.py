"""Waiting for a condition instead of for time to pass."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool], deadline_s: float, what: str | Callable[[], str]
) -> None:
    """Return as soon as ``condition`` holds; fail, saying what was awaited, at the deadline.

    Where ``what`` is a function, it is called then, and can say what has become of it.
    """
    end = time.monotonic() + deadline_s
    pause = 0.005
    while not condition():
        if time.monotonic() >= end:
            awaited = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {deadline_s:g} s in vain for {awaited}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
