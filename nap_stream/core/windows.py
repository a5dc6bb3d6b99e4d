"""Event-time panes and the rolling window over them. Merging is associative and commutative.

Panes and watermarks: Akidau et al., "The Dataflow Model", VLDB 8 (2015).
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MAX_OPEN_PANES = 200_000
"""Some 40 MB: 5 hours of panes of 100 ms behind a partition that holds the watermark back."""


@dataclass(frozen=True, slots=True, order=True)
class Pane:
    """Counts of the scored records whose event time lies in ``[start_ms, start_ms + width)``.

    ``records`` is how many were scored, ``flagged`` how many of them have a p-value ≤ alpha.
    """

    start_ms: int
    records: int
    flagged: int

    def __post_init__(self) -> None:
        if not 0 <= self.flagged <= self.records or self.records == 0:
            raise ValueError(
                f"expected 0 <= flagged <= records and records > 0, "
                f"got {self.flagged = }, {self.records = }"
            )


def panes_of(
    event_times_ms: Iterable[int], flags: Iterable[bool], width_ms: int
) -> tuple[Pane, ...]:
    """Count records and flags by pane.

    Args:
        event_times_ms: Event time of each scored record, milliseconds since the epoch.
        flags: Whether each record is flagged out-of-distribution.
        width_ms: Width of a pane in milliseconds, at least 1.

    Returns:
        The panes that hold records, ordered by start.
    """
    counts: dict[int, tuple[int, int]] = {}
    for time_ms, flag in zip(event_times_ms, flags, strict=True):
        start = time_ms - time_ms % width_ms
        records, flagged = counts.get(start, (0, 0))
        counts[start] = (records + 1, flagged + int(flag))
    return tuple(Pane(start, *counts[start]) for start in sorted(counts))


def merge_panes(*groups: Iterable[Pane]) -> tuple[Pane, ...]:
    """Add the counts of panes with the same start.

    Returns:
        One pane a start, ordered by start.
    """
    counts: dict[int, tuple[int, int]] = {}
    for group in groups:
        for pane in group:
            records, flagged = counts.get(pane.start_ms, (0, 0))
            counts[pane.start_ms] = (records + pane.records, flagged + pane.flagged)
    return tuple(Pane(start, *counts[start]) for start in sorted(counts))


@dataclass(frozen=True, slots=True)
class WindowState:
    """The rolling window after a pane was closed: it covers ``[start_ms, end_ms)``."""

    start_ms: int
    end_ms: int
    records: int
    flagged: int


class RollingWindow:
    """The newest closed panes that together hold at least ``size`` records.

    Panes collect counts while they are open. A watermark closes them, one at a time in order
    of event time; the oldest panes leave as long as the rest still holds ``size`` records. So
    the states depend on the panes and not on the order in which their counts came, as long as
    nothing comes late.

    A late record, whose pane is closed, counts in the oldest pane that can still be open: a
    monitor that dropped it would be blind to a source whose clock lags.

    Args:
        size: Records of a full window, at least 1.
        pane_ms: Width of a pane in milliseconds, at least 1.
        max_open_panes: Beyond so many the oldest are closed without waiting for the watermark,
            which bounds memory. Closed panes are at most ``size``, as each holds a record.
    """

    def __init__(self, size: int, pane_ms: int, max_open_panes: int = MAX_OPEN_PANES) -> None:
        if size < 1 or pane_ms < 1 or max_open_panes < 1:
            raise ValueError(
                f"expected at least 1 of each, got {size = }, {pane_ms = }, {max_open_panes = }"
            )
        self._size = size
        self._pane_ms = pane_ms
        self._max_open = max_open_panes
        self._open: dict[int, tuple[int, int]] = {}
        self._starts: list[int] = []
        self._closed: deque[Pane] = deque()
        self._records = 0
        self._flagged = 0
        self._closed_until: int | None = None
        self.late_records = 0

    @property
    def state(self) -> WindowState | None:
        """The window now; None before the first pane is closed."""
        if not self._closed:
            return None
        end = self._closed[-1].start_ms + self._pane_ms
        return WindowState(self._closed[0].start_ms, end, self._records, self._flagged)

    @property
    def closed_until_ms(self) -> int | None:
        """Start of the oldest pane that can still be open; None before anything is closed."""
        return self._closed_until

    @property
    def open_panes(self) -> int:
        """Panes that wait for the watermark."""
        return len(self._open)

    def add(self, panes: Iterable[Pane]) -> None:
        """Add counts to open panes. Starts are multiples of ``pane_ms``."""
        for pane in panes:
            start = pane.start_ms
            if self._closed_until is not None and start < self._closed_until:
                self.late_records += pane.records
                start = self._closed_until
            if start not in self._open:
                heapq.heappush(self._starts, start)
            records, flagged = self._open.get(start, (0, 0))
            self._open[start] = (records + pane.records, flagged + pane.flagged)

    def close(self, watermark_ms: int | None) -> list[WindowState]:
        """Close the panes that end at or before the watermark, and those beyond the limit.

        Args:
            watermark_ms: No record with an earlier event time is expected, in milliseconds
                since the epoch; None while nothing is known.

        Returns:
            The state after each closing, in order; full ones hold at least ``size`` records.
        """
        states = []
        while self._starts and (
            len(self._starts) > self._max_open
            or (watermark_ms is not None and self._starts[0] + self._pane_ms <= watermark_ms)
        ):
            states.append(self._close_oldest())
        if watermark_ms is not None:
            self._close_until(watermark_ms - watermark_ms % self._pane_ms)
        return states

    def close_all(self) -> list[WindowState]:
        """Close every open pane, whatever the watermark. Returns the state after each."""
        return [self._close_oldest() for _ in range(len(self._starts))]

    def _close_oldest(self) -> WindowState:
        start = heapq.heappop(self._starts)
        pane = Pane(start, *self._open.pop(start))
        self._closed.append(pane)
        self._records += pane.records
        self._flagged += pane.flagged
        while self._records - self._closed[0].records >= self._size:
            oldest = self._closed.popleft()
            self._records -= oldest.records
            self._flagged -= oldest.flagged
        end = start + self._pane_ms
        self._close_until(end)
        return WindowState(self._closed[0].start_ms, end, self._records, self._flagged)

    def _close_until(self, time_ms: int) -> None:
        if self._closed_until is None or time_ms > self._closed_until:
            self._closed_until = time_ms
