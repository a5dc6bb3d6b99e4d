"""How patient tests are: they wait for a condition, and never for time to pass."""

import time
from collections.abc import Callable

PATIENCE_S = 300.0
"""How long any wait of a test may take. A machine that is several times slower, or stands still for
a while, is to fail no test, and patience costs nothing where a test passes. The time-out of a whole
test, in pyproject.toml, is that of several waits."""


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Return as soon as ``condition`` holds; fail, saying what was awaited, when patience ends.

    Where ``what`` is a function, it is called then, and can say what has become of it.
    """
    end = time.monotonic() + PATIENCE_S
    pause = 0.005
    while not condition():
        if time.monotonic() >= end:
            awaited = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {PATIENCE_S:g} s in vain for {awaited}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
