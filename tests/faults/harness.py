"""One seeded run: a stream, workers that fail as planned, and what the log holds in the end."""

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.failpoints import Action, Failpoint, Fired
from tests.faults.harness_broker import Broker
from tests.faults.harness_compaction import Compaction
from tests.faults.harness_fleet import Fleet
from tests.faults.harness_plan import Plan, draw_plan
from tests.faults.harness_site import Site, new_site
from tests.faults.harness_stream import Stream, draw_bursts
from tests.support.waiting import wait_until


class RunFailedError(AssertionError):
    """A run did not end as it should; the text holds its seed, its plan and the workers' logs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to."""

    plan: Plan
    messages: int
    rows: int
    merged: int
    fired: tuple[Fired, ...]
    starts: int
    seconds: float


@dataclass(slots=True)
class Totals:
    """What many runs came to."""

    runs: int = 0
    messages: int = 0
    rows: int = 0
    merged: int = 0
    starts: int = 0
    seconds: float = 0.0
    actions: Counter[Action] = field(default_factory=Counter)
    points: Counter[Failpoint] = field(default_factory=Counter)
    killed_at: Counter[Failpoint] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one more run."""
        self.runs += 1
        self.messages += outcome.messages
        self.rows += outcome.rows
        self.merged += outcome.merged
        self.starts += outcome.starts
        self.seconds += outcome.seconds
        for one in outcome.fired:
            self.actions[one.action] += 1
            self.points[one.point] += 1
            self.killed_at[one.point] += one.action is Action.KILL

    def never_killed(self) -> list[Failpoint]:
        """Failpoints at which no process was killed."""
        return [point for point in Failpoint if not self.killed_at[point]]

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {action}" for action, count in self.actions.most_common())
        return (
            f"{self.runs} runs, {self.messages} messages, {self.rows} rows, "
            f"{sum(self.actions.values())} faults ({faults}), {self.starts} processes, "
            f"{self.merged} segments compacted, {self.seconds:.0f} s of runs"
        )


def run_seed(seed: int, broker: Broker, folder: Path, log_root: str | None = None) -> Outcome:
    """Run the plan of a seed in an empty folder, and check what it leaves behind.

    The log lies there too, unless ``log_root`` is the address of one in an object store.

    Raises:
        RunFailedError: Something was lost or doubled, or the run did not come to its end.
    """
    plan = draw_plan(seed)
    site = new_site(
        broker,
        folder,
        partitions=plan.partitions,
        session_timeout_s=plan.session_timeout_s,
        log_root=log_root,
    )
    try:
        outcome = _Run(plan, site).complete()
    except Exception as error:
        raise RunFailedError(f"{error!r}\n{plan}\n{site.worker_logs()}") from error
    broker.delete(site.kafka.topic, site.dead_letter_topic)
    shutil.rmtree(folder)
    return outcome


class _Run:
    def __init__(self, plan: Plan, site: Site) -> None:
        self._plan, self._site = plan, site
        self._fleet = Fleet()
        self._stream = Stream(site.kafka, draw_bursts(plan.seed, plan.messages, plan.partitions))
        self._compaction = Compaction(site.root) if plan.compacts else None
        self._ends: dict[int, int] = {}

    def complete(self) -> Outcome:
        """Run to the end and check."""
        started = time.monotonic()
        self._stream.start()
        if self._compaction:
            self._compaction.start()
        try:
            self._work()
        except Exception:
            self._fleet.dump()
            raise
        finally:
            self._fleet.kill()
            self._stream.join()
            if self._compaction:
                self._compaction.stop()
        self._site.check(self._stream)
        return self._outcome(time.monotonic() - started)

    def _work(self) -> None:
        first, *others = (
            self._site.worker(number, faults, segment_max_age_s=self._plan.segment_max_age_s)
            for number, faults in enumerate(self._plan.faults)
        )
        self._fleet.add(first)
        if self._plan.joins_late:
            wait_until(self._some_logged, "the first segment")
        for spec in others:
            self._fleet.add(spec)
        wait_until(self._all_logged, self._lacking)
        self._fleet.end()

    def _some_logged(self) -> bool:
        self._look_after()
        return any(self._site.logged().values())

    def _all_logged(self) -> bool:
        self._look_after()
        if not self._stream.finished():
            return False
        self._ends = self._ends or self._site.ends()
        return self._site.logged() == self._ends and self._site.committed() == self._ends

    def _lacking(self) -> str:
        return (
            f"all that was produced in the log, and committed: the partitions end at "
            f"{self._ends}, the chains at {self._site.logged()}, and what is committed at "
            f"{self._site.committed()}"
        )

    def _look_after(self) -> None:
        self._fleet.look_after()
        if self._compaction:
            self._compaction.check()

    def _outcome(self, seconds: float) -> Outcome:
        members = self._fleet.members
        return Outcome(
            self._plan,
            self._stream.messages,
            len(self._stream.rows),
            self._compaction.segments if self._compaction else 0,
            tuple(one for member in members for one in member.fired),
            sum(member.starts for member in members),
            seconds,
        )
