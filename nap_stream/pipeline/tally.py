"""What a worker has done so far, for its reports."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from nap_stream.clock import Clock
from nap_stream.pipeline.partition import Disagreement
from nap_stream.records import PartitionProgress, WorkerReport


class Tally:
    """Counts of one incarnation of a worker, and stage times since the last report.

    Stage times come from several threads; counts belong to the thread that polls.

    Args:
        worker: The worker's name.
        incarnation: How often it has been started before.
    """

    def __init__(self, worker: str, incarnation: int) -> None:
        self._worker, self._incarnation = worker, incarnation
        self._lock = threading.Lock()
        self._stage_seconds: list[tuple[str, float]] = []
        self.work_done = 0
        self.rows = 0
        self.images_scored = 0
        self.dead_letters = 0
        self.segments_published = 0
        self.segment_conflicts = 0
        self.rebalances = 0
        self.disagreements: Counter[Disagreement] = Counter()
        self.last_commit_ms: int | None = None

    def observe(self, stage: str, seconds: float) -> None:
        """Remember how long a stage took."""
        with self._lock:
            self._stage_seconds.append((stage, seconds))

    @contextmanager
    def timed(self, stage: str, clock: Clock) -> Iterator[None]:
        """Remember how long what is within took, unless it fails."""
        started = clock.monotonic()
        yield
        self.observe(stage, clock.monotonic() - started)

    def report(
        self,
        sent_at_ms: int,
        partitions: tuple[PartitionProgress, ...],
        *,
        idle: bool,
        waiting_for: str | None,
    ) -> WorkerReport:
        """The totals, and the stage times since the last report."""
        with self._lock:
            seconds, self._stage_seconds = tuple(self._stage_seconds), []
        return WorkerReport(
            worker=self._worker,
            incarnation=self._incarnation,
            sent_at_ms=sent_at_ms,
            work_done=self.work_done,
            idle=idle,
            rows=self.rows,
            images_scored=self.images_scored,
            dead_letters=self.dead_letters,
            segments_published=self.segments_published,
            segment_conflicts=self.segment_conflicts,
            rebalances=self.rebalances,
            last_commit_ms=self.last_commit_ms,
            partitions=partitions,
            stage_seconds=seconds,
            waiting_for=waiting_for,
            offsets_ahead=self.disagreements[Disagreement.AHEAD],
            offsets_behind=self.disagreements[Disagreement.BEHIND],
            offsets_missing=self.disagreements[Disagreement.MISSING],
        )
