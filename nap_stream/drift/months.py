"""The OOD fraction of the stream by calendar month, beside that of the baseline.

A baseline is fixed, so that what changes slowly adds up. Whether it has is not asked of a test:
with enough blocks any change is significant. Each month has an effect with an interval instead.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.blocks import Blocks, coarser, effect, stream_blocks
from nap_stream.core.panes import NO_KEY, ClosedPane
from nap_stream.drift.records import MonthlyEffect

LEAST_BLOCKS = 10
"""A month with fewer blocks has no effect yet."""
MAX_BLOCKS = 10_000
"""Beyond that `COARSER` blocks are put together; months of minutes need it, those of hours not."""
COARSER = 6


class MonthlyShares:
    """Blocks of the stream in the newest month; a block is of the month in which it begins, UTC.

    ``baseline`` are those of the stream in the baseline.
    """

    def __init__(self, baseline: Blocks) -> None:
        self._baseline, self._block_ms = _stream_alone(baseline), baseline.block_ms
        self._month_ms: int | None = None
        # Start, records and flagged ones of each block; the last one may go on.
        self._blocks: list[tuple[int, int, int]] = []
        self._known: tuple[int, MonthlyEffect] | None = None

    def push(self, pane: ClosedPane) -> None:
        """Take the next pane."""
        start_ms = pane.start_ms - pane.start_ms % self._block_ms
        if (month_ms := _month_of(start_ms)) != self._month_ms:
            self._month_ms, self._blocks, self._known = month_ms, [], None
            self._block_ms = self._baseline.block_ms
            start_ms = pane.start_ms - pane.start_ms % self._block_ms
        records = flagged = 0
        if self._blocks and self._blocks[-1][0] == start_ms:
            _, records, flagged = self._blocks.pop()
        self._blocks.append((start_ms, records + pane.records, flagged + pane.flagged))
        if len(self._blocks) > MAX_BLOCKS:
            blocks = coarser(self._of_month(), COARSER * self._block_ms)
            columns = (blocks.start_ms, blocks.records, blocks.flagged)
            self._block_ms = blocks.block_ms
            self._blocks = list(zip(*(column.tolist() for column in columns), strict=True))

    def effect(self) -> MonthlyEffect | None:
        """Compare the newest month, without the open block; None while it is new."""
        closed = len(self._blocks) - 1
        if self._month_ms is None or closed < LEAST_BLOCKS:
            return None
        if self._known is None or self._known[0] != closed:
            of_month = self._of_month()
            is_closed = np.arange(len(of_month)) < closed
            found = effect(coarser(self._baseline, self._block_ms), of_month.chosen(is_closed))
            told = MonthlyEffect(
                month_ms=self._month_ms,
                blocks=closed,
                share=found.share,
                baseline_share=found.baseline_share,
                change=found.difference,
                low=found.low,
                high=found.high,
            )
            self._known = closed, told
        return self._known[1]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give all that they know, by name."""
        month = [] if self._month_ms is None else [self._month_ms]
        return {
            "month": np.array([self._block_ms, *month], dtype=np.int64),
            "month_blocks": np.array(self._blocks, dtype=np.int64).reshape(-1, 3),
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up where others were.

        Raises:
            ValueError: An array has another shape.
            KeyError: One is missing.
        """
        self._block_ms, *month = arrays["month"].tolist()
        self._month_ms = month[0] if month else None
        self._blocks = [
            (start_ms, records, flagged)
            for start_ms, records, flagged in arrays["month_blocks"].tolist()
        ]

    def _of_month(self) -> Blocks:
        table = np.array(self._blocks, dtype=np.int64)
        return stream_blocks(table[:, 0], table[:, 1], table[:, 2], self._block_ms)


def _stream_alone(blocks: Blocks) -> Blocks:
    own = blocks.of(NO_KEY)
    return stream_blocks(own.start_ms, own.records, own.flagged, own.block_ms)


def _month_of(time_ms: int) -> int:
    """When the calendar month of a time begins, UTC; both in milliseconds since the epoch."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return round(first.timestamp() * 1000)
