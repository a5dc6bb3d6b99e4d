"""Which blocks of a stretch look foreign to the rest of their key, and how many of their records.

The middle of a key's blocks and their spread are taken by medians (Hampel, "The influence curve
and its role in robust estimation", JASA 69, 1974), which few blocks cannot move: the median, and
1.4826 times the median distance from it, but at least what independent records would spread by. A
block is odd where the mean of -ln p or of -ln(1 - p) lies more than `ODD_DEVIATIONS` of that above
the median: lower, or higher p-values than in the other blocks of its key and kind of time. Shares
of flags are not looked at: where most blocks have none, any flag would be odd.

Of an odd block, the records that the other blocks do not explain count as foreign: with shares b of
its records in the bins of the p-values, and q of those of the other blocks, the sum of what b has
above q. That is the total variation distance, and at most the share of what was mixed in.

Blocks must be long against the time over which records depend on each other: a burst of flags is
no foreigner where bursts are usual. `check_ms` estimates that time from the ranks of the blocks'
means, on which a short stretch of foreign records has little weight, however foreign they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from nap_stream.core.block_plan import MIN_BLOCKS
from nap_stream.core.blocks import Blocks, added_up, block_means, coarser
from nap_stream.core.decorrelation import (
    BLOCK_GRID_MS,
    DECORRELATION_TIMES,
    MIN_RECORDS,
    Series,
    decorrelation_panes,
    series_of,
)
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import TimeKinds

ODD_DEVIATIONS = 6.0
_MOST_BLOCKS = 50
"""So many of a key tell its middle well enough; longer ones have less of a tail."""
_PER_DEVIATION = 1.4826
"""Of a normal law, the standard deviation over the median distance from the median."""


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """What looks foreign among N blocks.

    ``is_odd`` is bool (N,); ``records`` float64 (N,) how many records of each block are foreign, 0
    where it is not odd. ``judged`` bool (N,) says which blocks have enough others to tell.
    """

    is_odd: NDArray[np.bool_]
    records: NDArray[np.float64]
    judged: NDArray[np.bool_]


def foreign_in(blocks: Blocks, kinds: TimeKinds) -> Foreign:
    """Tell which blocks of each key look foreign; those of the stream where there are no keys."""
    of_keys = blocks.key > 0
    wanted = np.flatnonzero(of_keys if of_keys.any() else ~of_keys)
    group = blocks.key * kinds.count + kinds.kind_of(blocks.middle_ms)
    means = block_means(blocks)
    is_odd = np.zeros(len(blocks), np.bool_)
    judged = np.zeros(len(blocks), np.bool_)
    records = np.zeros(len(blocks))
    order = wanted[np.argsort(group[wanted], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(rows) < MIN_BLOCKS:
            continue
        judged[rows] = True
        odd = _odd(blocks.records[rows], means[rows, 1:])
        if odd.any() and not odd.all():
            is_odd[rows] = odd
            records[rows[odd]] = _unexplained(blocks.bins[rows[odd]], blocks.bins[rows[~odd]])
    return Foreign(is_odd, records, judged)


def check_ms(fine: Blocks, kinds: TimeKinds) -> int:
    """Give the length of blocks at which to look for what is foreign, from short blocks.

    Raises:
        ValueError: There are none, or they are not of a length of `BLOCK_GRID_MS`.
    """
    grid = [length for length in BLOCK_GRID_MS if length % fine.block_ms == 0]
    if not len(fine) or not grid:
        raise ValueError(f"expected blocks of a length of the grid, got {fine.block_ms} ms")
    for length in grid:
        panes = coarser(fine, length)
        series = _rank_series(panes, kinds)
        held = sum(len(at) for at, _ in series)
        if 2 * held >= sum(int(at[-1] - at[0]) + 1 for at, _ in series):
            break
    span = int(fine.start_ms.max() - fine.start_ms.min()) + fine.block_ms
    records = float(np.median(panes.records[panes.key > 0] if panes.keys[1:] else panes.records))
    needed = max(
        DECORRELATION_TIMES * decorrelation_panes(series) * panes.block_ms,
        MIN_RECORDS / records * panes.block_ms,
        span / _MOST_BLOCKS,
    )
    return next((length for length in grid if length >= needed), grid[-1])


def _rank_series(blocks: Blocks, kinds: TimeKinds) -> Sequence[Series]:
    """Ranks of the mean of -ln p over the blocks of each key, of the stream where there are none.

    They are within a kind of time, and lie in (-1/2, 1/2), so that keys count by their number of
    blocks.
    """
    means, ranks = block_means(blocks)[:, 1], np.zeros(len(blocks))
    group = blocks.key * kinds.count + kinds.kind_of(blocks.middle_ms)
    for number in np.unique(group).tolist():
        own = group == number
        size = int(own.sum())
        # Centred exactly: what does not vary must not seem to.
        ranks[own] = (rankdata(means[own]) - (size + 1) / 2) / size
    first = 1 if len(blocks.keys) > 1 else 0
    found = series_of(blocks, ranks, range(first, len(blocks.keys)))
    return [(at, values) for at, values in found if len(at)]


def odd_parts(fine: Blocks, blocks: Blocks, is_odd: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which of the N short blocks that ``blocks`` are made of lie in odd ones, bool (N,).

    ``is_odd`` is bool, of ``blocks``.
    """
    changes = np.diff(fine.key) != 0
    changes |= np.diff(fine.start_ms // blocks.block_ms) != 0
    found: NDArray[np.bool_] = is_odd[np.concatenate(([0], np.cumsum(changes)))[: len(fine)]]
    return found


def without(blocks: Blocks, is_odd: NDArray[np.bool_]) -> Blocks:
    """Leave blocks out, bool (N,), those of keys out of the stream's too."""
    if not is_odd.any():
        return blocks
    counts = np.column_stack((blocks.records, blocks.flagged, blocks.bins))
    kept = counts[~is_odd]
    key, starts = blocks.key[~is_odd], blocks.start_ms[~is_odd]
    odd = is_odd & (blocks.key > 0)
    return added_up(
        np.concatenate((key, np.zeros(int(odd.sum()), np.int64))),
        np.concatenate((starts, blocks.start_ms[odd])),
        np.concatenate((kept, -counts[odd])),
        blocks.keys,
        blocks.block_ms,
    )


def _odd(records: NDArray[np.int64], means: NDArray[np.float64]) -> NDArray[np.bool_]:
    middle = np.median(means, axis=0)
    spread = _PER_DEVIATION * np.median(np.abs(means - middle), axis=0)
    # The variance of -ln p of a uniform p is 1.
    least = np.maximum(spread, 1 / np.sqrt(records)[:, np.newaxis])
    return np.asarray((means - middle > ODD_DEVIATIONS * least).any(axis=1))


def _unexplained(odd: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many records of each odd block the others do not explain, float64 (N,).

    Both are records by bin, int64 (..., BIN_COUNT).
    """
    usual = others.sum(axis=0) / others.sum()
    records = odd.sum(axis=1, keepdims=True)
    excess = np.maximum(odd - records * usual.reshape(1, BIN_COUNT), 0.0)
    total: NDArray[np.float64] = excess.sum(axis=1)
    return total
