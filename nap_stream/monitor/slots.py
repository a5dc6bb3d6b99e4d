"""A worker's place: its present incarnation, and what has become of it. Knows no Ray."""

from dataclasses import dataclass
from typing import Protocol, TypeGuard

import structlog

from nap_stream.errors import NapStreamError
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.records import WorkerReport


class WorkerHandle(Protocol):
    """One incarnation of a worker."""

    def placed(self) -> bool:
        """Whether it has, or had, a process."""

    def evicted(self) -> bool:
        """Whether its node is being drained, or was ended in good order: it is no fault of its."""

    def ended(self) -> bool:
        """Whether its run is over, well or badly."""

    def error(self) -> Exception | None:
        """What ended it; None where it ended well. Only after `ended`."""

    def stop(self) -> None:
        """Ask it to publish, commit and leave; returns at once."""

    def kill(self) -> None:
        """End its process at once."""


@dataclass(slots=True)
class Slot:
    """One worker's place: its present incarnation, and what has become of it."""

    name: str
    handle: WorkerHandle | None = None
    incarnation: int = 0
    restarts: int = 0
    started_at: float = 0.0
    start_after: float = 0.0
    progress: tuple[int, int] | None = None
    progress_at: float = 0.0
    report_number: int | None = None
    report_at: float = 0.0
    leave_by: float | None = None
    """Until when it may take to leave, having been asked to; None where it was not."""
    stays: bool = True
    """Whether another incarnation takes its place."""

    @property
    def is_settled(self) -> bool:
        """Whether it has a process, and is not on its way out."""
        return self.handle is not None and self.leave_by is None and self.handle.placed()

    def begin(self, handle: WorkerHandle, now: float) -> None:
        """Have an incarnation in it."""
        self.handle = handle
        self.started_at = self.progress_at = self.report_at = now
        self.progress = self.report_number = None

    def plan_start(self, at: float) -> None:
        """Have none, and another one from a moment on."""
        self.handle, self.leave_by, self.start_after = None, None, at
        self.incarnation += 1


def keeps_its_place(slot: Slot) -> bool:
    """Whether it is at work, and its node stays."""
    return slot.is_settled and slot.handle is not None and not slot.handle.evicted()


def is_final(cause: Exception | None) -> TypeGuard[NapStreamError]:
    """Whether trying again will not mend it."""
    return isinstance(cause, NapStreamError) and not cause.retriable


def note_progress(slot: Slot, report: WorkerReport, now: float) -> None:
    """Take note of a report; the time before one that says what it waits for does not count."""
    if report.number != slot.report_number:
        if report.waiting_for is not None:
            slot.progress_at = min(now, slot.progress_at + now - slot.report_at)
        slot.report_number, slot.report_at = report.number, now
    progress = (report.number if report.idle else -1, report.work_done)
    if progress != slot.progress:
        slot.progress, slot.progress_at = progress, now


def has_settled(slot: Slot) -> bool:
    """Whether a worker that was asked to stop has ended well; one that goes on is killed."""
    handle = slot.handle
    assert handle is not None
    if not handle.ended():
        structlog.get_logger().error("worker_killed_at_deadline", worker=slot.name)
        handle.kill()
        return False
    if (error := handle.error()) is not None:
        structlog.get_logger().error("worker_failed_at_stop", worker=slot.name, cause=str(error))
    return error is None


def report_of(slot: Slot, status: CoordinatorStatus) -> WorkerReport | None:
    """The last report of the slot's present incarnation."""
    report = status.workers.get(slot.name)
    return report if report and report.incarnation == slot.incarnation else None
