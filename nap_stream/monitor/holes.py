"""What drift lacks of the log: offsets of which no summary came are looked for there."""

from collections.abc import Callable
from threading import Lock

import structlog

from nap_stream.clock import Clock
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import DriftUpdate
from nap_stream.records import OffsetRange, TopicPartition
from nap_stream.scored_log.summary import LogSummaries


class Holes:
    """Fills the holes of a drift monitor from the log, and gives them up in the end.

    ``lock`` guards the monitor; ``apply`` and ``lost`` are called under it, with what the monitor
    did and with what it goes on without. For one thread at a time.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        log: LogSummaries,
        lock: Lock,
        clock: Clock,
        *,
        apply: Callable[[DriftUpdate], None],
        lost: Callable[[int, int], None],
    ) -> None:
        self._monitor, self._log, self._lock, self._clock = monitor, log, lock, clock
        self._apply, self._lost = apply, lost
        self._missing_since: dict[tuple[TopicPartition, int], float] = {}

    def fill(self, patience_s: float) -> bool:
        """Look in the log for missing offsets; after ``patience_s`` seconds go on without them.

        While the log cannot be read nothing is given up: it may have them. Returns whether there
        was a hole of which the log could be read.
        """
        with self._lock:
            holes = self._monitor.partitions.holes()
        is_any_read = False
        for hole in holes:
            found = self._log.find(hole)
            if found is None:
                self._missing_since.pop((hole.partition, hole.start), None)
                continue
            is_any_read = True
            with self._lock:
                for summary in found:
                    self._apply(self._monitor.add(summary))
                self._give_up_after(patience_s, hole)
        return is_any_read

    def _give_up_after(self, patience_s: float, hole: OffsetRange) -> None:
        key, now_s = (hole.partition, hole.start), self._clock.monotonic()
        if self._monitor.partitions.end(hole.partition) != hole.start:
            self._missing_since.pop(key, None)
            return
        if now_s - self._missing_since.setdefault(key, now_s) < patience_s:
            return
        del self._missing_since[key]
        holes = self._monitor.partitions.holes()
        skipped = [known for known in holes if known.partition == hole.partition]
        self._apply(self._monitor.skip_hole(hole.partition))
        for gap in skipped:
            self._lost(gap.start, gap.end)
            structlog.get_logger().error(
                "summaries_missing", partition=str(gap.partition), start=gap.start, end=gap.end
            )
