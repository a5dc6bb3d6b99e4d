"""Processes that start in a moment: forked from one that has imported everything."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

from tests.support.waiting import wait_until

FORKS = multiprocessing.get_context("forkserver")
# A child runs the main module again, so the fork server imports what that imports as well.
FORKS.set_forkserver_preload(["__main__", "tests.faults.worker_process"])


class Forked:
    """A process that has been started. Several threads may have processes of their own.

    multiprocessing looks after all processes whenever one is started, and two threads that look
    after the same one spoil its exit code.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, target: Callable[..., object], *arguments: Any) -> None:
        self._process = FORKS.Process(target=target, args=arguments, daemon=True)
        with self._one_at_a_time:
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def exitcode(self) -> int | None:
        """What it ended with, the negative signal where one ended it; None while it runs."""
        with self._one_at_a_time:
            return self._process.exitcode

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.exitcode is None:
            os.kill(self.pid, number)

    def wait(self) -> None:
        """Return when it has ended."""
        wait_until(lambda: self.exitcode is not None, f"the end of process {self.pid}")
