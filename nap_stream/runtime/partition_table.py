"""How far the workers are in their partitions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nap_stream.metrics import Metrics
from nap_stream.records import PartitionProgress, TopicPartition, WorkerReport

FRESH_S = 5.0
"""Workers report once a second; a partition without a report for so long has no worker."""


@dataclass(slots=True)
class _Seen:
    """A partition as last reported. ``moved_s`` is when its position last changed."""

    worker: str | None
    progress: PartitionProgress
    first_position: int
    reported_s: float
    moved_s: float


class PartitionTable:
    """The progress of each partition; tells which are expected to bring more.

    Args:
        metrics: Receives the lags. Series go with the worker that had the partition.
        stall_timeout_s: The longest that a partition is expected to bring more while it does
            not move, or while no worker has it.
        start_timeout_s: The same while no worker has reported it yet: they load their models.
    """

    def __init__(self, metrics: Metrics, stall_timeout_s: float, start_timeout_s: float) -> None:
        self._metrics = metrics
        self._stall_timeout_s, self._start_timeout_s = stall_timeout_s, start_timeout_s
        self._seen: dict[TopicPartition, _Seen] = {}
        self._awaited_since_s: dict[TopicPartition, float] = {}

    def wait_for(self, partitions: Iterable[TopicPartition], now_s: float) -> None:
        """Expect that a worker reports them: the log has them, and they may have more to bring."""
        self._awaited_since_s = dict.fromkeys(partitions, now_s)

    def take(self, report: WorkerReport, now_s: float) -> list[TopicPartition]:
        """Take a worker's newest report, received at ``now_s`` on the monotonic clock.

        Returns:
            The partitions that were not known before.
        """
        new = [p.partition for p in report.partitions if p.partition not in self._seen]
        for progress in report.partitions:
            self._awaited_since_s.pop(progress.partition, None)
            self._see(report.worker, progress, now_s)
        reported = {progress.partition for progress in report.partitions}
        for partition, seen in self._seen.items():
            if seen.worker == report.worker and partition not in reported:
                self._disown(partition, seen)
        return new

    def expected(
        self, now_s: float, logged_end: Callable[[TopicPartition], int | None]
    ) -> list[TopicPartition]:
        """Give the partitions that have, or may have, records that no summary has told yet.

        That is where the lag is not 0, where the position is past the logged end, and where no
        worker reports, or has yet: what came in the meantime is known only once one does.

        Args:
            now_s: The monotonic time.
            logged_end: The offset up to which summaries have come, or None.
        """
        expected = [
            partition
            for partition, since_s in self._awaited_since_s.items()
            if now_s - since_s < self._start_timeout_s
        ]
        for partition, seen in self._seen.items():
            if now_s - seen.reported_s > FRESH_S:
                self._disown(partition, seen)
                since_s = seen.reported_s
            elif self._is_behind(partition, seen, logged_end):
                since_s = seen.moved_s
            else:
                continue
            if now_s - since_s < self._stall_timeout_s:
                expected.append(partition)
        return expected

    def max_lag(self) -> int | None:
        """Give the largest known lag, in offsets, of partitions that a worker has."""
        lags = [seen.progress.lag for seen in self._seen.values() if seen.worker]
        return max((lag for lag in lags if lag is not None), default=None)

    def _see(self, worker: str, progress: PartitionProgress, now_s: float) -> None:
        self._metrics.set_partition(progress.partition, progress.lag, progress.time_lag_ms)
        seen = self._seen.get(progress.partition)
        if seen is None:
            position = progress.position
            self._seen[progress.partition] = _Seen(worker, progress, position, now_s, now_s)
            return
        if progress.position != seen.progress.position:
            seen.moved_s = now_s
        seen.worker, seen.progress, seen.reported_s = worker, progress, now_s

    def _disown(self, partition: TopicPartition, seen: _Seen) -> None:
        if seen.worker is not None:
            seen.worker = None
            self._metrics.remove_partition(partition)

    def _is_behind(
        self,
        partition: TopicPartition,
        seen: _Seen,
        logged_end: Callable[[TopicPartition], int | None],
    ) -> bool:
        end = logged_end(partition)
        done = seen.first_position if end is None else end
        return seen.progress.lag != 0 or seen.progress.position > done
