"""Looks after the workers: restarts with backoff, replaces the wedged, gives up in the end.

Knows no Ray: `nap_stream.monitor.cluster` provides the cluster.
"""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from nap_stream.clock import Clock, Deadline
from nap_stream.errors import BrokerError, WorkerError, WorkerGaveUpError
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.journal import failed_words
from nap_stream.monitor.slots import (
    Slot,
    WorkerHandle,
    has_settled,
    is_final,
    keeps_its_place,
    note_progress,
    report_of,
)
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.settings.run import DriverSettings

LOOK_EVERY_S = 0.25
UNWANTED_S = 30.0
"""How long a worker that is at work is kept when fewer are wanted."""
WORKERS_SHARE = 0.7
"""Of the shutdown deadline; the rest is for the coordinator's last alerts."""
LOADING_RESTARTS = 2
"""Of each worker, and of the coordinator, while there is another run to go back to."""


class Cluster(Protocol):
    """Where workers run. ``may_wait`` says whether a worker may wait for a place for good."""

    may_wait: bool

    def wanted(self) -> int:
        """How many workers there are to be now."""

    def at_least(self) -> int:
        """How many of them must have a place."""

    def partitions(self) -> int:
        """How many partitions there are to be read now."""

    def start_worker(self, name: str, incarnation: int) -> WorkerHandle:
        """Start a worker; returns at once."""

    def worker_restarted(self, name: str) -> None:
        """Have a restart counted."""

    def replace_coordinator(self) -> None:
        """End the coordinator's process at once and have another take its place."""

    def tick(self, fleet: Fleet) -> None:
        """Have the coordinator move the watermark on and deliver alerts; returns at once.

        It is told which workers there are to be.
        """

    def status(self) -> CoordinatorStatus | None:
        """The coordinator's view, which asking does not change; None while it does not answer."""

    def finish(
        self, timeout_s: float, *, input_ended: bool, reason: str
    ) -> CoordinatorStatus | None:
        """Judge what waits if the input has ended, deliver alerts, close the coordinator.

        ``reason`` is why the run ended.
        """


class Ending(StrEnum):
    """Why a run ended well."""

    STOPPED = "stopped"
    IDLE = "idle"
    ENOUGH_RECORDS = "enough_records"
    RELOAD = "reload"
    """Another run with other settings takes its place."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """When a run ends by itself."""

    until_idle_s: float | None = None
    max_records: int | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended, and the coordinator's last view (None where it did not answer).

    ``unclean`` names the workers that did not publish, commit and leave within the deadline.
    """

    ending: Ending
    status: CoordinatorStatus | None
    unclean: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Coordinator:
    """The coordinator that answered last: when it started, since when it answers, its restarts."""

    started_ms: int | None = None
    since: float = 0.0
    restarts: int = 0


class Driver:
    """Runs workers until a limit is reached, a signal comes or nothing more can be done.

    There are as many workers as the cluster says are wanted, while that changes. ``on_status`` is
    shown the coordinator's status about four times a second. ``reloads`` is asked as often who
    wants another run to take this one's place now; None where nobody does. While it ``is_loading``
    another run can take its place back: then it fails soon, where it fails.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: DriverSettings,
        limits: RunLimits,
        *,
        clock: Clock,
        on_status: Callable[[CoordinatorStatus], None],
        reloads: Callable[[], str | None] = lambda: None,
        is_loading: Callable[[], bool] = lambda: False,
    ) -> None:
        self._cluster, self._settings, self._limits = cluster, settings, limits
        self._clock, self._on_status, self._reloads = clock, on_status, reloads
        self._is_loading, self._load_by, self._has_begun = is_loading, 0.0, False
        self._reason = ""
        self._slots: list[Slot] = []
        self._incarnations: dict[str, int] = {}
        self._idle_since: float | None = None
        self._silent_since: float | None = None
        self._heard_at = float("-inf")
        self._fitted_at = clock.monotonic()
        self._coordinator = _Coordinator()
        self._was_replaced = False

    def run(self, stop: threading.Event, begin: Callable[[], None]) -> RunResult:
        """Supervise until the end, then shut down within one deadline.

        Workers are started before ``begin``, which starts the coordinator, is called: they load the
        model meanwhile. Neither is where ``stop`` is set by then.

        Raises:
            WorkerGaveUpError: A worker, or the coordinator, failed as often as it may be restarted.
            NapStreamError: A worker met an error that trying again will not mend.
        """
        try:
            if not stop.is_set():
                self._begin(begin)
            ending = self._supervise(stop)
        except Exception as error:
            failure = failed_words(error)
            if not self._has_begun or self._is_loading():
                # Those that have not reported have read nothing: there is nothing to wait for.
                for slot in self._slots:
                    if slot.handle is not None and slot.progress is None:
                        slot.handle.kill()
                        slot.handle = None
            self._shut_down(lambda: failure, input_ended=False)
            raise

        def reason() -> str:
            nonlocal ending
            if ending is Ending.RELOAD and stop.is_set():
                # It came while the workers left: no other run begins.
                ending, self._reason = Ending.STOPPED, ""
            return f"{ending.value}{self._reason}"

        unclean, status = self._shut_down(reason, input_ended=ending is Ending.IDLE)
        return RunResult(ending, status, unclean)

    def _begin(self, begin: Callable[[], None]) -> None:
        now = self._clock.monotonic()
        self._load_by = now + self._settings.start_timeout_s
        self._resize()
        for slot in self._slots:
            self._start(slot, now)
        begin()
        self._has_begun = True

    def _supervise(self, stop: threading.Event) -> Ending:
        while True:
            if stop.is_set():
                return Ending.STOPPED
            if (by := self._reloads()) is not None:
                self._reason = f", asked for by {by}"
                return Ending.RELOAD
            self._resize()
            self._cluster.tick(self._fleet())
            status = self._listen()
            for slot in list(self._slots):
                self._look_after(slot, status)
            if status is not None:
                self._on_status(status)
                if status.nothing_left:
                    raise BrokerError(f"no topic is left to read: {status.left_out}")
                if (ending := self._reached(status)) is not None:
                    return ending
            self._require_loaded()
            self._clock.sleep(LOOK_EVERY_S)

    def _require_loaded(self) -> None:
        """Give up on a run that takes too long to begin, where there is one to go back to."""
        if self._is_loading() and self._clock.monotonic() >= self._load_by:
            limit = f"driver.start_timeout_s, {self._settings.start_timeout_s:g} s"
            raise WorkerGaveUpError(f"not all workers have reported within {limit}")

    def _may_restart(self) -> int:
        """How often in a row a worker, or the coordinator, is started anew."""
        allowed = self._settings.max_restarts
        return min(allowed, LOADING_RESTARTS) if self._is_loading() else allowed

    def _listen(self) -> CoordinatorStatus | None:
        """The coordinator's status; None while it is silent, which is tolerated for a while.

        One that hangs is replaced, as a worker is. Where nothing answers then either, it is no
        process that hangs, and the run ends.
        """
        status, now = self._cluster.status(), self._clock.monotonic()
        if status is not None:
            if self._silent_since is not None:
                self._silent_since, self._heard_at = None, now
            self._was_replaced = False
            self._count_restart(status, now)
            return status
        if self._silent_since is None:
            self._silent_since = now
        silence_s = now - self._silent_since
        if silence_s < self._settings.stall_timeout_s:
            return None
        if self._was_replaced or not self._settings.max_restarts:
            raise WorkerGaveUpError(
                f"the coordinator has not answered for {silence_s:.0f} s",
                "coordinator",
                "Its log says why; start again: the window is rebuilt from the scored log",
            )
        structlog.get_logger().error("coordinator_replaced", silent_for_s=round(silence_s))
        self._cluster.replace_coordinator()
        self._was_replaced, self._silent_since = True, now
        return None

    def _count_restart(self, status: CoordinatorStatus, now: float) -> None:
        """Tell of a coordinator that Ray has restarted; give up where that goes on."""
        seen, started_ms = self._coordinator, status.started_ms
        if seen.started_ms == started_ms:
            return
        has_lasted = now - seen.since >= self._settings.stall_timeout_s
        restarts = 0 if seen.started_ms is None else 1 if has_lasted else seen.restarts + 1
        self._coordinator = _Coordinator(started_ms, now, restarts)
        if restarts:
            structlog.get_logger().warning(
                "coordinator_restarted", metrics=status.metrics_url, rows=status.rows
            )
        if restarts > self._may_restart():
            raise WorkerGaveUpError(
                f"the coordinator died {restarts} times in a row",
                "coordinator",
                "Its log says why; mend it and start again: nothing that was published is lost",
            )

    def _resize(self) -> None:
        """Have as many workers as are wanted; those that wait, or must leave, go first.

        One that is at work goes only once it has not been wanted for a while: a cluster whose head
        was replaced has few nodes at first.
        """
        wanted, now = self._cluster.wanted(), self._clock.monotonic()
        staying = [slot for slot in self._slots if slot.stays]
        # Sorting keeps the order among alike.
        staying.sort(key=lambda slot: not keeps_its_place(slot))
        if sum(map(keeps_its_place, staying)) <= wanted:
            self._fitted_at = now
        for slot in staying[wanted:]:
            if keeps_its_place(slot) and now - self._fitted_at < UNWANTED_S:
                continue
            slot.stays = False
            if slot.handle is None:
                self._slots.remove(slot)
            elif slot.leave_by is None:
                self._ask_to_leave(slot, "fewer workers are wanted")
        names = {slot.name for slot in self._slots}
        free = (name for n in itertools.count() if (name := f"worker-{n}") not in names)
        for name in itertools.islice(free, max(0, wanted - len(staying))):
            # Reports of one that had the name before must not pass for its own.
            self._slots.append(Slot(name, incarnation=self._incarnations.get(name, 0)))

    def _fleet(self) -> Fleet:
        """The workers that there are to be. Those that may wait for a place count with it alone."""
        staying = [slot for slot in self._slots if slot.stays]
        placed = sum(slot.is_settled for slot in staying)
        expected = max(self._cluster.at_least(), placed) if self._cluster.may_wait else len(staying)
        return Fleet(expected, tuple(slot.name for slot in self._slots))

    def _look_after(self, slot: Slot, status: CoordinatorStatus | None) -> None:
        now = self._clock.monotonic()
        if slot.handle is None:
            if now >= slot.start_after:
                self._start(slot, now)
            return
        if slot.leave_by is not None:
            self._see_off(slot, now)
        elif slot.handle.ended():
            cause = slot.handle.error()
            if slot.handle.evicted() and not is_final(cause):
                self._left(slot, "its node was drained", cause)
                return
            self._failed(slot, cause or WorkerError("the worker ended by itself", slot.name), now)
        elif slot.handle.evicted():
            self._ask_to_leave(slot, "its node is drained")
        elif self._stalled(slot, status, now):
            slot.handle.kill()
            problem = f"the worker made no progress for {now - slot.progress_at:.0f} s"
            self._failed(slot, WorkerError(problem, slot.name), now)

    def _ask_to_leave(self, slot: Slot, reason: str) -> None:
        """Have a worker publish, commit and leave; that is no failure."""
        assert slot.handle is not None
        structlog.get_logger().info("worker_asked_to_leave", worker=slot.name, reason=reason)
        slot.handle.stop()
        patience_s = self._settings.shutdown_deadline_s * WORKERS_SHARE
        slot.leave_by = self._clock.monotonic() + patience_s

    def _see_off(self, slot: Slot, now: float) -> None:
        """Take note of a worker that was asked to leave and has, or does not in time."""
        assert slot.handle is not None
        assert slot.leave_by is not None
        if slot.handle.ended():
            cause = slot.handle.error()
            if slot.stays and is_final(cause):
                self._failed(slot, cause, now)
            self._left(slot, "it was asked to", cause)
        elif now >= slot.leave_by:
            slot.handle.kill()
            self._left(slot, "it was asked to", WorkerError("it did not leave in time", slot.name))

    def _left(self, slot: Slot, reason: str, cause: Exception | None) -> None:
        """Take note of a worker that is gone through no fault of its own; start another at once."""
        log = structlog.get_logger()
        tell = log.info if cause is None else log.warning
        tell("worker_left", worker=slot.name, reason=reason, cause=cause and str(cause))
        slot.plan_start(self._clock.monotonic())
        if not slot.stays:
            self._slots.remove(slot)

    def _start(self, slot: Slot, now: float) -> None:
        slot.begin(self._cluster.start_worker(slot.name, slot.incarnation), now)
        self._incarnations[slot.name] = slot.incarnation + 1
        structlog.get_logger().info(
            "worker_started", worker=slot.name, incarnation=slot.incarnation
        )

    def _failed(self, slot: Slot, cause: Exception, now: float) -> None:
        """Plan the next start, or give up."""
        slot.handle = None
        if is_final(cause):
            raise cause
        if slot.progress_at - slot.started_at >= self._settings.stall_timeout_s:
            slot.restarts = 0
        if slot.restarts >= self._may_restart():
            raise WorkerGaveUpError(
                # The cause is no part of the problem: it may quote anything.
                f"the worker failed {slot.restarts + 1} times in a row",
                slot.name,
                f"Last cause: {cause}. Mend it and start again: nothing that was published is lost",
            ) from cause
        settings = self._settings
        delay = min(settings.backoff_initial_s * 2**slot.restarts, settings.backoff_max_s)
        slot.restarts += 1
        slot.plan_start(now + delay)
        self._cluster.worker_restarted(slot.name)
        structlog.get_logger().error(
            "worker_failed", worker=slot.name, cause=str(cause), restart_in_s=delay
        )

    def _stalled(self, slot: Slot, status: CoordinatorStatus | None, now: float) -> bool:
        """Whether a worker has work and has not got on with it for too long."""
        if status is None:
            return False
        if (report := report_of(slot, status)) is not None:
            note_progress(slot, report, now)
        elif self._cluster.may_wait and slot.handle is not None and not slot.handle.placed():
            slot.progress_at = now
        patience_s = self._settings.stall_timeout_s
        if slot.progress is None:
            patience_s = self._settings.start_timeout_s
        # While the coordinator was silent, nobody could tell it of progress.
        return now - max(slot.progress_at, self._heard_at) >= patience_s

    def _reached(self, status: CoordinatorStatus) -> Ending | None:
        limits, now = self._limits, self._clock.monotonic()
        if limits.max_records is not None and status.rows >= limits.max_records:
            return Ending.ENOUGH_RECORDS
        if limits.until_idle_s is None or not self._idle(status):
            self._idle_since = None
            return None
        if self._idle_since is None:
            self._idle_since = now
        return Ending.IDLE if now - self._idle_since >= limits.until_idle_s else None

    def _idle(self, status: CoordinatorStatus) -> bool:
        """Whether every partition is owned and none of the workers has anything to do."""
        there = [slot for slot in self._slots if slot.is_settled or not self._cluster.may_wait]
        reports = [report_of(slot, status) for slot in there]
        present = [report for report in reports if report is not None]
        owned = {progress.partition for report in present for progress in report.partitions}
        left_out = {partition for report in present for partition in report.left_out}
        return (
            len(present) == len(reports)
            and len(owned | left_out) >= self._cluster.partitions()
            and all(report.idle for report in present)
        )

    def _shut_down(
        self, reason: Callable[[], str], *, input_ended: bool
    ) -> tuple[tuple[str, ...], CoordinatorStatus | None]:
        """Have all leave; ``reason`` is asked for why once the workers have."""
        deadline = Deadline(self._clock, self._settings.shutdown_deadline_s)
        running = [slot.handle for slot in self._slots if slot.handle is not None]
        for slot in self._slots:
            if slot.handle is not None and slot.leave_by is None:
                slot.handle.stop()
        patience = Deadline(self._clock, self._settings.shutdown_deadline_s * WORKERS_SHARE)
        while not all(handle.ended() for handle in running) and not patience.expired():
            self._clock.sleep(min(0.05, patience.remaining_s()))
        # A worker that had not even reported yet had no rows in flight.
        unclean = tuple(
            slot.name
            for slot in self._slots
            if slot.handle is not None and not has_settled(slot) and slot.progress is not None
        )
        words = reason()
        if unclean:
            words = f"{words}; did not leave in time: {', '.join(unclean)}"
        status = self._cluster.finish(deadline.remaining_s(), input_ended=input_ended, reason=words)
        return unclean, status
