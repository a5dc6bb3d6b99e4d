"""Waiting for a condition instead of for time to pass."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Return as soon as ``condition`` holds; fail, saying what was awaited, at the deadline."""
    end = time.monotonic() + deadline_s
    pause = 0.005
    while not condition():
        if time.monotonic() >= end:
            raise AssertionError(f"waited {deadline_s:g} s in vain for {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
