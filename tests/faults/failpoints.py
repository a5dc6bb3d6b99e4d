"""Named points between poll and commit at which a test lets a process fail.

An `Injector` is handed the faults of one process. The first is armed; it fires when its point
has been reached as often as it says, and then the next one is armed. What has fired stands in a
file before it takes effect, so that whoever starts the next process knows what is left.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Failpoint(StrEnum):
    """Where a process can fail. A step of the file system is a point once it is done."""

    POLL_BEFORE = "poll.before"
    POLL_AFTER = "poll.after"  # with messages
    DECODE_BEFORE = "decode.before"
    DECODE_AFTER = "decode.after"
    SCORE_BEFORE = "score.before"
    SCORE_AFTER = "score.after"
    DEAD_LETTER_SEND_BEFORE = "dead-letter-send.before"
    DEAD_LETTER_SEND_AFTER = "dead-letter-send.after"
    DEAD_LETTER_FLUSH_BEFORE = "dead-letter-flush.before"
    DEAD_LETTER_FLUSH_AFTER = "dead-letter-flush.after"
    PUBLISH_BEFORE = "publish.before"
    TEMPORARY_CREATED = "temporary-created"
    TEMPORARY_WRITTEN = "temporary-written"
    TEMPORARY_FSYNCED = "temporary-fsynced"
    LINKED = "linked"
    FOLDER_FSYNCED = "folder-fsynced"
    TEMPORARY_UNLINKED = "temporary-unlinked"
    PUBLISH_AFTER = "publish.after"
    COMMIT_BEFORE = "commit.before"
    COMMIT_AFTER = "commit.after"
    SUMMARY_BEFORE = "summary.before"
    SUMMARY_AFTER = "summary.after"
    ASSIGNED_BEFORE = "assigned.before"
    ASSIGNED_AFTER = "assigned.after"
    END_BEFORE = "end.before"
    END_AFTER = "end.after"
    BEGIN_BEFORE = "begin.before"
    BEGIN_AFTER = "begin.after"
    REVOKED_BEFORE = "revoked.before"
    COMMIT_SOON_AFTER = "commit-soon.after"  # revoked with rows in flight
    REVOKED_AFTER = "revoked.after"
    LOST_BEFORE = "lost.before"
    SOURCE_CLOSED = "source-closed"


FILE_STEPS = (
    Failpoint.TEMPORARY_CREATED,
    Failpoint.TEMPORARY_WRITTEN,
    Failpoint.TEMPORARY_FSYNCED,
    Failpoint.LINKED,
    Failpoint.FOLDER_FSYNCED,
    Failpoint.TEMPORARY_UNLINKED,
)
"""The points at which the file system itself can fail."""


class Action(StrEnum):
    """What happens at a failpoint."""

    KILL = "kill"
    """SIGKILL."""
    TERM = "term"
    """Told to stop in good order."""
    STOP_REPLACED = "stop-replaced"
    """SIGSTOP; another process takes its place; then it goes on."""
    STOP_EXPIRED = "stop-expired"
    """SIGSTOP until the group has given its partitions to others; then it goes on."""
    ENOSPC = "ENOSPC"
    """The step of the file system fails; the next one succeeds."""
    EIO = "EIO"


STOPS = (Action.STOP_REPLACED, Action.STOP_EXPIRED)
ERRORS = {Action.ENOSPC: errno.ENOSPC, Action.EIO: errno.EIO}
_SIGNALS = {
    Action.KILL: signal.SIGKILL,
    Action.TERM: signal.SIGTERM,
    Action.STOP_REPLACED: signal.SIGSTOP,
    Action.STOP_EXPIRED: signal.SIGSTOP,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """At the ``hit``-th time (from 1) that ``point`` is reached since the fault was armed."""

    point: Failpoint
    hit: int
    action: Action

    def __str__(self) -> str:
        return f"{self.action} at {self.point} #{self.hit}"


@dataclass(frozen=True, slots=True)
class Fired:
    """A fault that took effect in the process ``pid``."""

    pid: int
    point: Failpoint
    action: Action


class Injector:
    """Lets this process fail as planned. Safe for threads.

    Args:
        faults: What is to happen, in order.
        record: The file that holds what has happened, one line a fault.
    """

    def __init__(self, faults: Sequence[Fault], record: Path) -> None:
        self._left, self._record = list(faults), record
        self._hits = 0
        self._lock = threading.Lock()

    def reach(self, point: Failpoint) -> None:
        """Say that the process is at ``point``; it may not come back."""
        fault = self._due(point, errors=False)
        if fault is not None:
            os.kill(os.getpid(), _SIGNALS[fault.action])

    def attempt(self, point: Failpoint, step: Callable[[], T]) -> T:
        """Take a step of the file system that ends at ``point``.

        Raises:
            OSError: The step's own, or the planned one; then nothing was done.
        """
        fault = self._due(point, errors=True)
        if fault is not None:
            code = ERRORS[fault.action]
            raise OSError(code, f"{os.strerror(code)} (planned)")
        done = step()
        self.reach(point)
        return done

    def _due(self, point: Failpoint, *, errors: bool) -> Fault | None:
        with self._lock:
            if not self._left:
                return None
            fault = self._left[0]
            if fault.point is not point or (fault.action in ERRORS) is not errors:
                return None
            self._hits += 1
            if self._hits < fault.hit:
                return None
            self._hits = 0
            self._left.pop(0)
            if fault.action is Action.STOP_REPLACED:
                self._left.clear()  # what is left belongs to the process that takes the place
            self._note(fault)
            return fault

    def _note(self, fault: Fault) -> None:
        line = f"{os.getpid()} {fault.point} {fault.action}\n".encode()
        descriptor = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def read_fired(record: Path) -> list[Fired]:
    """What has happened so far to the processes that share a record."""
    if not record.exists():
        return []
    lines = [line.split() for line in record.read_text().splitlines()]
    return [Fired(int(pid), Failpoint(point), Action(action)) for pid, point, action in lines]
