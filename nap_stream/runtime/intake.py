"""How summaries reach the drift monitor: from workers, and from the log where they went missing."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import structlog

from nap_stream.clock import Clock
from nap_stream.drift.monitor import DriftMonitor, DriftUpdate
from nap_stream.errors import ChainBrokenError, NapStreamError
from nap_stream.metrics import Metrics
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.runtime.feeding import in_event_time

HOLE_PATIENCE_S = 30.0
"""How long the log is asked for missing offsets before the monitor goes on without them."""

LAST_OFFSET = 2**63 - 1


class SummaryLog(Protocol):
    """The scored log of a topic, as the drift monitor sees it."""

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that the log has.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        ...

    def end(self, partition: TopicPartition) -> int | None:
        """Say where a partition's chain ends; None while it has no segment.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        ...

    def read(self, partition: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        """Summaries of the segments that begin within ``[start, end)``, in order.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        ...

    def tail(self, partition: TopicPartition) -> Iterator[SegmentSummary]:
        """Summaries of the newest segments, up to the chain's end: enough to begin with.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        ...


class SummaryIntake:
    """Hands summaries to the monitor; reads from the log what a worker published and never told.

    The log is read without the lock, so that a slow disk holds nobody up.

    Args:
        monitor: Used under ``lock`` alone.
        summaries: Finds summaries in the log.
        on_update: Called under ``lock`` with what came of each summary, in order.
        metrics: Counts gaps.
        lock: The coordinator's own.
        clock: Times the patience with a hole.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        summaries: SummaryLog,
        on_update: Callable[[DriftUpdate], None],
        *,
        metrics: Metrics,
        lock: threading.RLock,
        clock: Clock,
    ) -> None:
        self._monitor, self._summaries, self._on_update = monitor, summaries, on_update
        self._metrics, self._lock, self._clock = metrics, lock, clock
        self._missing_since: dict[tuple[TopicPartition, int], float] = {}

    def catch_up(
        self,
        chains: Mapping[TopicPartition, Iterator[SegmentSummary]],
        on_update: Callable[[DriftUpdate], None],
    ) -> None:
        """Take what the log has, as if all of it came at once: no partition is idle meanwhile.

        Args:
            chains: Summaries of each partition that the log has.
            on_update: Called under the lock with what came of each, in order.
        """
        with self._lock:
            self._hold(chains)
        for _, summary in in_event_time(chains):
            if summary is not None:
                with self._lock:
                    self._hold(chains)
                    on_update(self._monitor.add(summary))

    def submit(self, summary: SegmentSummary) -> None:
        """Take a worker's summary.

        The first one of a partition may not tell of the chain's beginning, if the worker that
        published that died before it could. What stands before it in the log comes first.
        """
        with self._lock:
            is_first = self._monitor.end(summary.partition) is None
        beginning: Sequence[SegmentSummary] | None = ()
        if is_first and summary.base_offset > 0:
            beginning = self._read(OffsetRange(summary.partition, 0, summary.base_offset))
        if beginning is None:
            # Taken by itself it would be the beginning. The log has it: `read_ahead` finds it.
            return
        with self._lock:
            for each in (*beginning, summary):
                self._on_update(self._monitor.add(each))

    def fill_holes(self) -> None:
        """Look in the log for missing offsets; after `HOLE_PATIENCE_S` go on without them.

        While the log cannot be read nothing is given up: it may have them.
        """
        self._fill(HOLE_PATIENCE_S)

    def read_ahead(self) -> None:
        """Take from the log what a worker published last and died before it could tell."""
        with self._lock:
            ends = {name: self._monitor.end(name) for name in self._monitor.partitions()}
        found = {
            name: self._read(OffsetRange(name, end or 0, LAST_OFFSET)) or ()
            for name, end in ends.items()
        }
        chains = {name: iter(summaries) for name, summaries in found.items() if summaries}
        self.catch_up(chains, self._on_update)

    def close_holes(self) -> None:
        """Look in the log for missing offsets a last time, and go on without them.

        Those of a partition of which the log cannot be read stay missing.
        """
        self.read_ahead()
        while self._fill(0.0):
            pass

    def _fill(self, patience_s: float) -> bool:
        """Try each hole once; return whether there was one of which the log could be read."""
        with self._lock:
            holes = self._monitor.holes()
        is_any_read = False
        for hole in holes:
            found = self._read(hole)
            if found is None:
                self._missing_since.pop((hole.partition, hole.start), None)
                continue
            is_any_read = True
            with self._lock:
                for summary in found:
                    self._on_update(self._monitor.add(summary))
                self._give_up_after(patience_s, hole)
        return is_any_read

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

    def _hold(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._monitor.hold(partition)

    def _read(self, wanted: OffsetRange) -> Sequence[SegmentSummary] | None:
        """What the log has of a range; None where it cannot be read now, which is logged.

        Nothing where a segment can never be read, so that it is given up as a hole.
        """
        try:
            return tuple(self._summaries.read(wanted.partition, wanted.start, wanted.end))
        except NapStreamError as error:
            structlog.get_logger().warning("log_not_read", range=str(wanted), cause=str(error))
            return () if isinstance(error, ChainBrokenError) else None
