"""How summaries reach the drift monitor: from workers, and from the log where they went missing."""

import threading
from collections.abc import Callable, Sequence

import structlog

from nap_stream.clock import Clock
from nap_stream.drift.monitor import DriftMonitor, DriftUpdate
from nap_stream.errors import NapStreamError
from nap_stream.metrics import Metrics
from nap_stream.records import DriftVerdict, OffsetRange, SegmentSummary, TopicPartition

HOLE_PATIENCE_S = 30.0
"""How long the log is asked for missing offsets before the monitor goes on without them."""

LAST_OFFSET = 2**63 - 1

ReadRange = Callable[[TopicPartition, int, int], Sequence[SegmentSummary]]
"""(partition, start, end) → summaries of the log's segments within ``[start, end)``, in order."""


class SummaryIntake:
    """Hands summaries to the monitor; reads from the log what a worker published and never told.

    The log is read without the lock, so that a slow disk holds nobody up.

    Args:
        monitor: Used under ``lock`` alone.
        read_range: Finds summaries in the log.
        on_update: Called under ``lock`` with what came of each summary, in order.
        metrics: Counts gaps.
        lock: The coordinator's own.
        clock: Times the patience with a hole.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        read_range: ReadRange,
        on_update: Callable[[DriftUpdate], None],
        *,
        metrics: Metrics,
        lock: threading.RLock,
        clock: Clock,
    ) -> None:
        self._monitor, self._read_range, self._on_update = monitor, read_range, on_update
        self._metrics, self._lock, self._clock = metrics, lock, clock
        self._missing_since: dict[tuple[TopicPartition, int], float] = {}

    def rebuild(self, tail: Sequence[SegmentSummary]) -> tuple[DriftVerdict, ...]:
        """Take the log's tail, of all partitions, and tell nobody what came of it.

        Returns:
            The verdicts of the tail, in order.
        """
        with self._lock:
            for summary in tail:
                self._monitor.hold(summary.partition)
            updates = [self._monitor.add(summary) for summary in tail]
        return tuple(verdict for update in updates for verdict in update.verdicts)

    def submit(self, summary: SegmentSummary) -> None:
        """Take a worker's summary.

        The first one of a partition may not tell of the chain's beginning, if the worker that
        published that died before it could. What stands before it in the log comes first.
        """
        with self._lock:
            is_first = self._monitor.end(summary.partition) is None
        beginning: Sequence[SegmentSummary] = ()
        if is_first and summary.base_offset > 0:
            beginning = self._read(OffsetRange(summary.partition, 0, summary.base_offset))
        with self._lock:
            for each in (*beginning, summary):
                self._on_update(self._monitor.add(each))

    def fill_holes(self) -> None:
        """Look in the log for missing offsets; after `HOLE_PATIENCE_S` go on without them."""
        self._fill(HOLE_PATIENCE_S)

    def read_ahead(self) -> None:
        """Take from the log what a worker published last and died before it could tell."""
        with self._lock:
            ends = {name: self._monitor.end(name) for name in self._monitor.partitions()}
        for name, end in ends.items():
            found = self._read(OffsetRange(name, end or 0, LAST_OFFSET))
            with self._lock:
                for summary in found:
                    self._on_update(self._monitor.add(summary))

    def close_holes(self) -> None:
        """Look in the log for missing offsets a last time, and go on without them."""
        self.read_ahead()
        while self._fill(0.0):
            pass

    def _fill(self, patience_s: float) -> bool:
        """Try each hole once; return whether there was one."""
        with self._lock:
            holes = self._monitor.holes()
        for hole in holes:
            found = self._read(hole)
            with self._lock:
                for summary in found:
                    self._on_update(self._monitor.add(summary))
                self._give_up_after(patience_s, hole)
        return bool(holes)

    def _give_up_after(self, patience_s: float, hole: OffsetRange) -> None:
        key, now_s = (hole.partition, hole.start), self._clock.monotonic()
        if self._monitor.end(hole.partition) != hole.start:
            self._missing_since.pop(key, None)
            return
        if now_s - self._missing_since.setdefault(key, now_s) < patience_s:
            return
        del self._missing_since[key]
        skipped = [known for known in self._monitor.holes() if known.partition == hole.partition]
        self._on_update(self._monitor.skip_hole(hole.partition))
        for gap in skipped:
            self._metrics.gaps.inc()
            self._metrics.gap_offsets.inc(gap.end - gap.start)
            structlog.get_logger().error(
                "summaries_missing", partition=str(gap.partition), start=gap.start, end=gap.end
            )

    def _read(self, wanted: OffsetRange) -> Sequence[SegmentSummary]:
        try:
            return self._read_range(wanted.partition, wanted.start, wanted.end)
        except NapStreamError as error:
            structlog.get_logger().warning("log_not_read", range=str(wanted), cause=str(error))
            return ()
