"""Open event-time panes, closed by a watermark, and the rolling window over closed ones."""

import heapq
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nap_stream.core.panes import ClosedPane, PaneCounts, closed_pane

MAX_OPEN_ENTRIES = 1_000_000
"""Some 150 MB: entries of open panes behind a partition that holds the watermark back."""


class PaneBuffer:
    """Panes that wait for the watermark, which closes them one at a time in order of event time.

    What is closed depends on the counts and not on the order in which they came, as long as
    nothing comes late. A late record, whose pane is closed, counts in the oldest pane that can
    still be open: a monitor that dropped it would be blind to a source whose clock lags.

    Args:
        pane_ms: Width of a pane in milliseconds, at least 1.
        one_per_pane: See `nap_stream.core.panes.count_panes`.
        max_open_entries: Beyond so many entries the oldest panes are closed without waiting for
            the watermark, which bounds memory.
    """

    def __init__(
        self, pane_ms: int, *, one_per_pane: bool, max_open_entries: int = MAX_OPEN_ENTRIES
    ) -> None:
        if pane_ms < 1 or max_open_entries < 1:
            raise ValueError(f"expected at least 1, got {pane_ms = }, {max_open_entries = }")
        self._pane_ms, self._one_per_pane = pane_ms, one_per_pane
        self._max_entries = max_open_entries
        self._open: dict[int, list[tuple[int, PaneCounts]]] = {}
        self._starts: list[int] = []
        self._entries = 0
        self.closed_until_ms: int | None = None
        self.late_records = 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, counts: PaneCounts, partition: int, earliest_ms: int | None) -> None:
        """Add a partition's counts, which come in order of offset.

        Args:
            counts: Starts are multiples of ``pane_ms``.
            partition: Its number.
            earliest_ms: The partition's watermark: what lies before it counts in its pane.
        """
        placed = counts.start_ms
        if earliest_ms is not None:
            placed = np.maximum(placed, earliest_ms - earliest_ms % self._pane_ms)
        if self.closed_until_ms is not None:
            late = placed < self.closed_until_ms
            self.late_records += int(counts.records[late].sum())
            placed = np.maximum(placed, self.closed_until_ms)
        cuts = [0, *(np.flatnonzero(np.diff(placed)) + 1).tolist(), len(counts)]
        for start, end in pairwise(cuts):
            if end > start:
                self._put(int(placed[start]), partition, counts.part(start, end))

    def close(self, watermark_ms: int | None) -> list[ClosedPane]:
        """Close the panes that end at or before the watermark, and those beyond the limit.

        Args:
            watermark_ms: No record with an earlier event time is expected, in milliseconds
                since the epoch; None while nothing is known.
        """
        closed = []
        while self._starts and (
            self._entries > self._max_entries
            or (watermark_ms is not None and self._starts[0] + self._pane_ms <= watermark_ms)
        ):
            closed.append(self._close_oldest())
        if watermark_ms is not None:
            self._close_until(watermark_ms - watermark_ms % self._pane_ms)
        return closed

    def close_all(self) -> list[ClosedPane]:
        """Close every open pane, whatever the watermark."""
        return [self._close_oldest() for _ in range(len(self._starts))]

    def open_parts(self) -> list[tuple[int, int, PaneCounts]]:
        """Give what is open, as (start of its pane, partition, counts), in order."""
        return [
            (start, partition, counts)
            for start in sorted(self._open)
            for partition, counts in self._open[start]
        ]

    def restore(
        self,
        parts: list[tuple[int, int, PaneCounts]],
        closed_until_ms: int | None,
        late_records: int,
    ) -> None:
        """Take up where another buffer of the same kind was."""
        self.closed_until_ms, self.late_records = closed_until_ms, late_records
        for start, partition, counts in parts:
            self._put(start, partition, counts)

    def _put(self, start_ms: int, partition: int, counts: PaneCounts) -> None:
        if start_ms not in self._open:
            self._open[start_ms] = []
            heapq.heappush(self._starts, start_ms)
        self._open[start_ms].append((partition, counts))
        self._entries += len(counts)

    def _close_oldest(self) -> ClosedPane:
        start = heapq.heappop(self._starts)
        # Stable, so that a partition's counts keep their order of offsets.
        parts = [part for _, part in sorted(self._open.pop(start), key=lambda item: item[0])]
        self._entries -= sum(len(part) for part in parts)
        self._close_until(start + self._pane_ms)
        return closed_pane(start, parts, one_per_pane=self._one_per_pane)

    def _close_until(self, time_ms: int) -> None:
        if self.closed_until_ms is None or time_ms > self.closed_until_ms:
            self.closed_until_ms = time_ms


@dataclass(frozen=True, slots=True)
class WindowState:
    """The rolling window after a pane was closed: it covers ``[start_ms, end_ms)``."""

    start_ms: int
    end_ms: int
    records: int
    flagged: int

    @property
    def fraction(self) -> float:
        """The OOD fraction."""
        return self.flagged / self.records


class RollingWindow:
    """The newest panes that together hold at least ``size`` records.

    Args:
        size: Records of a full window, at least 1. Memory is bounded by it: a pane holds a
            record at least.
        pane_ms: Width of a pane in milliseconds.
    """

    def __init__(self, size: int, pane_ms: int) -> None:
        if size < 1 or pane_ms < 1:
            raise ValueError(f"expected at least 1 of each, got {size = }, {pane_ms = }")
        self._size, self._pane_ms = size, pane_ms
        self._panes: deque[tuple[int, int, int]] = deque()
        self._records = 0
        self._flagged = 0

    @property
    def state(self) -> WindowState | None:
        """The window now; None before the first pane."""
        if not self._panes:
            return None
        end = self._panes[-1][0] + self._pane_ms
        return WindowState(self._panes[0][0], end, self._records, self._flagged)

    @property
    def is_full(self) -> bool:
        """Whether it holds ``size`` records."""
        return self._records >= self._size

    @property
    def panes(self) -> tuple[tuple[int, int, int], ...]:
        """(start, records, flagged) of its panes, in order."""
        return tuple(self._panes)

    def push(self, start_ms: int, records: int, flagged: int) -> WindowState:
        """Take the next pane, and let the oldest go that are not needed. Returns the state."""
        if not 0 <= flagged <= records or records == 0:
            raise ValueError(
                f"expected 0 <= flagged <= records and records > 0, got {flagged = }, {records = }"
            )
        self._panes.append((start_ms, records, flagged))
        self._records += records
        self._flagged += flagged
        while self._records - self._panes[0][1] >= self._size:
            _, old_records, old_flagged = self._panes.popleft()
            self._records -= old_records
            self._flagged -= old_flagged
        return WindowState(
            self._panes[0][0], start_ms + self._pane_ms, self._records, self._flagged
        )
