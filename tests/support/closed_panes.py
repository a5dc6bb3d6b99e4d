"""Rows of partitions for tests of panes, and closed panes that can be compared."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from nap_stream.core.panes import NO_KEY, ClosedPane, PaneCounts, count_panes

KEYS = (NO_KEY, "left", "right")
PANE_MS = 10


class ScoredRow(NamedTuple):
    """A scored record: its event time, p-value, flag and the index of its key in `KEYS`."""

    time_ms: int
    p_value: float
    flagged: bool
    key: int


ROWS = st.lists(
    st.builds(
        ScoredRow,
        st.integers(-50, 150),
        st.sampled_from((0.001, 0.02, 0.03, 0.3, 0.7, 0.99, 1.0)),
        st.booleans(),
        st.integers(0, len(KEYS) - 1),
    ),
    max_size=30,
)


def counts_of(rows: Sequence[ScoredRow], *, one_per_pane: bool) -> PaneCounts:
    """Count rows, in their order."""
    return count_panes(
        np.array([row.time_ms for row in rows], dtype=np.int64),
        np.array([row.p_value for row in rows], dtype=np.float64),
        np.array([row.flagged for row in rows], dtype=np.bool_),
        pane_ms=PANE_MS,
        keys=KEYS,
        key=np.array([row.key for row in rows], dtype=np.int64),
        one_per_pane=one_per_pane,
    )


class PlainPane(NamedTuple):
    """A closed pane, with tuples for arrays. ``keys`` holds (name, records, flagged).

    Their bins are in ``key_bins``.
    """

    start_ms: int
    records: int
    flagged: int
    bins: tuple[int, ...]
    keys: tuple[tuple[str, int, int], ...]
    key_bins: tuple[tuple[int, ...], ...] = ()


def plain(pane: ClosedPane) -> PlainPane:
    """Give a closed pane as it can be compared."""
    by_key = zip(pane.keys, pane.key_records.tolist(), pane.key_flagged.tolist(), strict=True)
    return PlainPane(
        pane.start_ms,
        pane.records,
        pane.flagged,
        tuple(pane.bins.tolist()),
        tuple(by_key),
        tuple(tuple(row) for row in pane.key_bins.tolist()),
    )
