"""What the workers have told the coordinator about themselves."""

from collections import Counter as Totals
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prometheus_client import Counter

from nap_stream.metrics import OFFSET_DISAGREEMENTS, Metrics
from nap_stream.records import WorkerReport

RATE_WINDOW_S = 10.0
"""Ten reports: long enough to be steady, short enough to follow."""
_TOTALS = (
    "images_scored",
    "dead_letters",
    "segments_published",
    "segment_conflicts",
    "rebalances",
)
_DISAGREEMENTS = {f"offsets_{kind}": kind for kind in OFFSET_DISAGREEMENTS}


@dataclass(slots=True)
class _Worker:
    report: WorkerReport
    received_s: float
    images: deque[tuple[float, int]] = field(default_factory=deque)


class WorkerTable:
    """The last report of each worker, and counters made of their totals.

    A report carries totals of one incarnation. They are kept by (worker, incarnation), and
    only what they grow by is counted, so that reports may be lost, repeated or late.

    Args:
        metrics: Receives counts and stage times.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._workers: dict[str, _Worker] = {}
        self._counted: dict[tuple[str, int], dict[str, int]] = {}
        self._last_commit_ms = 0
        self.totals: Totals[str] = Totals()

    def take(self, report: WorkerReport, now_s: float) -> bool:
        """Take a report, received at ``now_s`` on the monotonic clock.

        Returns:
            Whether it is the worker's newest.
        """
        for stage, seconds in report.stage_seconds:
            self._metrics.observe_stage(stage, seconds)
        self._count(report)
        if report.last_commit_ms is not None and report.last_commit_ms > self._last_commit_ms:
            self._last_commit_ms = report.last_commit_ms
            self._metrics.last_commit.set(report.last_commit_ms / 1000)
        known = self._workers.get(report.worker)
        if known is not None and _age(report) < _age(known.report):
            return False
        slim = replace(report, stage_seconds=())
        if known is None or known.report.incarnation != report.incarnation:
            known = self._workers[report.worker] = _Worker(slim, now_s)
        known.report, known.received_s = slim, now_s
        known.images.append((now_s, report.images_scored))
        return True

    def reports(self) -> Mapping[str, WorkerReport]:
        """Give each worker's newest report, without its stage times."""
        return {name: worker.report for name, worker in self._workers.items()}

    def heard_within(self, age_s: float, now_s: float) -> list[WorkerReport]:
        """Give the newest reports that came in the last ``age_s`` seconds."""
        known = self._workers.values()
        return [worker.report for worker in known if now_s - worker.received_s <= age_s]

    def waiting(self, age_s: float, now_s: float) -> Mapping[str, str]:
        """Give what each worker waits for that has said so in the last ``age_s`` seconds."""
        return {
            report.worker: report.waiting_for
            for report in self.heard_within(age_s, now_s)
            if report.waiting_for is not None
        }

    def images_per_second(self, now_s: float) -> float:
        """Give the rate of all workers together over the last `RATE_WINDOW_S` seconds."""
        return sum(_rate(worker.images, now_s) for worker in self._workers.values())

    def _count(self, report: WorkerReport) -> None:
        counted = self._counted.setdefault((report.worker, report.incarnation), {})
        for name in (*_TOTALS, *_DISAGREEMENTS):
            total: int = getattr(report, name)
            grown = total - counted.get(name, 0)
            if grown > 0:
                counted[name] = total
                self.totals[name] += grown
                self._counter(name).inc(grown)
        # The one before may still have a report on its way; older ones have not.
        self._counted.pop((report.worker, report.incarnation - 2), None)

    def _counter(self, name: str) -> Counter:
        if name in _DISAGREEMENTS:
            return self._metrics.offset_disagreements.labels(_DISAGREEMENTS[name])
        counter: Counter = getattr(self._metrics, name)
        return counter


def _age(report: WorkerReport) -> tuple[int, int]:
    return report.incarnation, report.sent_at_ms


def _rate(images: deque[tuple[float, int]], now_s: float) -> float:
    while images and now_s - images[0][0] > RATE_WINDOW_S:
        images.popleft()
    if len(images) < 2:  # noqa: PLR2004 - a rate needs two points
        return 0.0
    (first_s, first), (last_s, last) = images[0], images[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
