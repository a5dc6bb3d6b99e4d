"""Workers in processes, each started again under its name until it is told to stop."""

import math
import signal
import time
from dataclasses import dataclass, field, replace

from tests.faults.failpoints import STOPS, Action, Fired, read_fired
from tests.faults.harness_processes import Forked
from tests.faults.worker_process import TYPED_ERROR, WorkerSpec, work
from tests.support.waiting import wait_until

REPLACED_S = 1.0
"""How long a process stays stopped whose place another has taken."""
DUMP_S = 1.0
_GOOD_EXITS = {0, TYPED_ERROR, -signal.SIGKILL, -signal.SIGTERM}
"""SIGTERM ends a process that was told to stop before it could listen."""


@dataclass(slots=True)
class _Stopped:
    process: Forked
    wake_at: float


class Member:
    """One worker's place in the group.

    Args:
        spec: Its name, its files, and all the faults of the run.
        sleep_s: How long a process stays stopped; None for as long as its kind of stop needs.
    """

    def __init__(self, spec: WorkerSpec, sleep_s: float | None = None) -> None:
        self._spec, self._sleep_s = spec, sleep_s
        self._process: Forked | None = None
        self._asleep: list[_Stopped] = []
        self._replaced: list[Forked] = []
        self._seen = 0
        self.starts = 0

    @property
    def fired(self) -> list[Fired]:
        """What has happened to its processes so far."""
        return read_fired(self._spec.record)

    @property
    def replaced_are_gone(self) -> bool:
        """Whether the processes have ended whose place another one has taken."""
        return all(process.exitcode is not None for process in self._replaced)

    def look_after(self) -> None:
        """Start it where it has ended, let it go on where it has slept enough.

        Raises:
            AssertionError: A process has ended as none should.
        """
        self._take_note()
        self.wake(time.monotonic())
        if self._process is None or self._process.exitcode is not None:
            self._check_exits()
            self._take_note()
            self._start(self._seen)

    def wake(self, now: float = math.inf) -> None:
        """Let the processes go on that have slept enough; by default all."""
        for one in [one for one in self._asleep if one.wake_at <= now]:
            self._asleep.remove(one)
            one.process.signal(signal.SIGCONT)

    def end(self) -> None:
        """Stop all in good order, and wait until they are gone; whoever sleeps is woken."""
        for process in self._processes():
            process.signal(signal.SIGTERM)
        wait_until(self._gone, f"the end of {self._spec.name}")
        self._check_exits()

    def dump(self) -> None:
        """Have its processes write down what each of their threads does."""
        for process in self._processes():
            process.signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End all its processes at once, whatever they do."""
        for process in self._processes():
            process.signal(signal.SIGKILL)
            process.wait()

    def _processes(self) -> list[Forked]:
        return [*self._replaced, *([self._process] if self._process else [])]

    def _gone(self) -> bool:
        self._take_note()  # a process may stop itself while it ends
        self.wake()
        return all(process.exitcode is not None for process in self._processes())

    def _start(self, used: int) -> None:
        spec = replace(self._spec, incarnation=self.starts, faults=self._spec.faults[used:])
        self._process = Forked(work, spec)
        self.starts += 1

    def _take_note(self) -> None:
        fired = self.fired
        for one in fired[self._seen :]:
            self._note(one)
        self._seen = len(fired)

    def _note(self, fired: Fired) -> None:
        process = self._process
        if fired.action not in STOPS or process is None or process.pid != fired.pid:
            return
        sleep_s = self._spec.kafka.session_timeout_s * 1.5 + 0.5
        if fired.action is Action.STOP_REPLACED:
            self._replaced.append(process)
            self._process = None
            sleep_s = REPLACED_S
        sleep_s = sleep_s if self._sleep_s is None else self._sleep_s
        self._asleep.append(_Stopped(process, time.monotonic() + sleep_s))

    def _check_exits(self) -> None:
        for process in self._processes():
            ended = process.exitcode
            assert ended is None or ended in _GOOD_EXITS, f"{self._spec.name} ended with {ended}"


@dataclass(slots=True)
class Fleet:
    """All workers of a run."""

    members: list[Member] = field(default_factory=list)

    def add(self, spec: WorkerSpec, sleep_s: float | None = None) -> Member:
        """Let one more worker work; see `Member`."""
        self.members.append(Member(spec, sleep_s))
        return self.members[-1]

    def look_after(self) -> None:
        """See `Member.look_after`."""
        for member in self.members:
            member.look_after()

    def end(self) -> None:
        """See `Member.end`."""
        for member in self.members:
            member.end()

    def dump(self) -> None:
        """See `Member.dump`; returns when they have had the time."""
        for member in self.members:
            member.dump()
        time.sleep(DUMP_S)

    def kill(self) -> None:
        """See `Member.kill`."""
        for member in self.members:
            member.kill()
