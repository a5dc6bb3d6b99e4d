"""In which order a log of several partitions is read, so that the drift monitor waits for none.

How summaries reach the drift monitor: from workers, and from the log where they went missing.

Summaries from the scored log: what nobody sent, or was sent to a coordinator that is gone.

Where a coordinator begins: after the last one's checkpoint, or at the log's tail.
"""

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import structlog

from nap_stream.clock import Clock
from nap_stream.core.panes import count_panes
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import DriftAlert, DriftUpdate
from nap_stream.errors import ChainBrokenError, NapStreamError
from nap_stream.metrics import Metrics
from nap_stream.monitor.alerts import AlertDesk, Hindsight
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.read import partitions, parts_backwards
from nap_stream.scored_log.stores.base import SegmentStore
from nap_stream.scored_log.summary import summarise_chain, summary_shape
from nap_stream.settings.schema import Settings

_BEFORE_ALL_MS = -(2**63)


def in_event_time(
    chains: Mapping[TopicPartition, Iterator[SegmentSummary]],
) -> Iterator[tuple[TopicPartition, SegmentSummary | None]]:
    """Read several chains side by side: always the one that is furthest behind in event time.

    So the panes that wait for the slowest partition stay few, however long the chains are.

    Args:
        chains: Summaries of each partition, in order of offset. Read no further than needed.

    Yields:
        A partition and its next summary; None once where its chain has ended.
    """
    reached = [(_BEFORE_ALL_MS, partition) for partition in chains]
    heapq.heapify(reached)
    while reached:
        time_ms, partition = heapq.heappop(reached)
        summary = next(chains[partition], None)
        yield partition, summary
        if summary is not None:
            newest_ms = summary.max_event_time_ms
            time_ms = time_ms if newest_ms is None else max(time_ms, newest_ms)
            heapq.heappush(reached, (time_ms, partition))


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


TAIL_WINDOWS = 10
"""How many windows' records a tail holds, over all partitions; each has one at least."""


class LogSummaries:
    """The log of a monitor's topic; implements `nap_stream.monitor.summaries.SummaryLog`.

    Args:
        store: Where the log lies.
        settings: Of the monitor.
        calibration_fingerprint: Tails hold nothing that another calibration has judged.
    """

    def __init__(
        self, store: SegmentStore, settings: Settings, calibration_fingerprint: str
    ) -> None:
        self._store, self._topic = store, settings.kafka.topic
        self._window, self._pane_ms = settings.drift.window_records, settings.drift.pane_ms
        self._shape = summary_shape(settings)
        self._fingerprint = calibration_fingerprint

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that the log has."""
        return partitions(self._store, self._topic)

    def end(self, partition: TopicPartition) -> int | None:
        """Say where a partition's chain ends; None while it has no segment."""
        newest = next(parts_backwards(self._store, partition), None)
        return None if newest is None else newest.end_offset

    def read(self, partition: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        """Summaries of the segments that begin within ``[start, end)``, in order."""
        return summarise_chain(self._store, partition, start, end, self._shape)

    def tail(self, partition: TopicPartition) -> Iterator[SegmentSummary]:
        """Summaries of the newest segments: a window's records at least, more where it is cheap.

        It begins after what another calibration has judged: those p-values mean something else.
        """
        share = TAIL_WINDOWS * self._window // max(1, len(self.partitions()))
        wanted = max(self._window, share)
        start, found, newest = None, 0, None
        for part in parts_backwards(self._store, partition):
            newest = newest or part
            if found >= wanted or part.calibration_fingerprint != self._fingerprint:
                break
            start, found = part.base_offset, found + part.scored_rows
        if start is not None:
            return self.read(partition, start, LAST_OFFSET)
        return iter(()) if newest is None else iter((self._uncounted(newest),))

    def _uncounted(self, footer: SegmentFooter) -> SegmentSummary:
        """Where the chain ends, and nothing of what its last segment holds."""
        none = np.zeros(0)
        return SegmentSummary(
            partition=footer.partition,
            base_offset=footer.base_offset,
            end_offset=footer.end_offset,
            rows_by_status={},
            panes=count_panes(
                none.astype(np.int64), none, none.astype(np.bool_), pane_ms=self._pane_ms
            ),
            max_event_time_ms=None,
            path=segment_path(footer.partition, footer.base_offset),
        )


class Takeover:
    """Lets a new coordinator take up the story, before anybody tells it anything.

    With a checkpoint the story goes on: what the log has beyond it is judged and told. Without
    one that fits, the log's tail is judged and nothing told of what is over; an alert that fires
    at its end is.

    Args:
        monitor: A new one.
        summaries: The log.
        intake: Feeds the monitor.
        desk: Is told what was decided, and has the checkpoint.
    """

    def __init__(
        self, monitor: DriftMonitor, summaries: SummaryLog, intake: SummaryIntake, desk: AlertDesk
    ) -> None:
        self._monitor, self._summaries = monitor, summaries
        self._intake, self._desk = intake, desk

    def restore(self) -> bool:
        """Take up where the checkpoint says, if there is one that fits this log.

        Returns:
            False where there is none: then the monitor is as before.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        if not self._desk.restore():
            return False
        ahead = [str(name) for name in self._monitor.partitions() if self._is_ahead(name)]
        if ahead:
            # All that comes would be taken for known.
            structlog.get_logger().warning("checkpoint_ahead_of_log", partitions=ahead)
            self._monitor.reset()
            return False
        structlog.get_logger().info("monitor_restored")
        return True

    def go_on(self) -> None:
        """Judge and tell what the log has beyond the checkpoint.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        names = self._summaries.partitions()
        reached = {name: self._monitor.end(name) or 0 for name in names}
        chains = {n: self._summaries.read(n, at, LAST_OFFSET) for n, at in reached.items()}
        self._intake.catch_up(chains, self._desk.take)

    def begin_at_tail(self) -> None:
        """Judge the log's tail; tell only what fires at its end.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        structlog.get_logger().info("monitor_rebuilt_from_log")
        decided: list[DriftAlert] = []
        tails = {name: self._summaries.tail(name) for name in self._summaries.partitions()}
        self._intake.catch_up(tails, lambda update: decided.extend(update.alerts))
        newest_ms = self._monitor.newest_ms()
        if newest_ms is not None:
            pane_ms = self._monitor.settings.drift.pane_ms
            self._desk.look_back(Hindsight(newest_ms - newest_ms % pane_ms), decided)

    def _is_ahead(self, name: TopicPartition) -> bool:
        return (self._monitor.end(name) or 0) > (self._summaries.end(name) or 0)
