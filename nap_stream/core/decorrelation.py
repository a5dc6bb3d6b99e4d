"""Over what time the records of a key are dependent, and how long blocks must be.

The decorrelation time is the integrated autocorrelation time of a series of pane means,

    tau = 1 + 2 sum of rho(lag) over lags from 1 on,

in panes: so many dependent panes say as much about a mean as one independent one. The sum ends
where the estimate is noise, by the initial positive sequence (Geyer, "Practical Markov chain Monte
Carlo", Statistical Science 7, 1992): at the first pair of neighbouring lags whose sum is not
positive. Autocovariances are pooled over keys, so that keys count by their variance, and over the
pairs of panes that both hold records, so that gaps in a series are no data.

A slow component under much noise hides in such a sum. So the choice of a length does not end
there: what it must bring about, that neighbouring blocks are not correlated, is tested on the
blocks themselves, for all keys together and for each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from nap_stream.core.block_plan import MIN_BLOCKS
from nap_stream.core.blocks import Blocks, block_means, coarser
from nap_stream.core.time_kinds import HOUR_MS, KindEvidence, TimeKinds, find_kinds, group_means

_SECOND_MS, _MINUTE_MS = 1_000, 60_000
BLOCK_GRID_MS = (
    *(_SECOND_MS * s for s in (1, 2, 5, 10, 20)),
    *(_MINUTE_MS * m for m in (1, 2, 5, 10, 15, 20, 30)),
    *(HOUR_MS * h for h in (1, 2, 3, 4, 6, 12, 24)),
)
"""Lengths that blocks can have; all divide a day."""
DECORRELATION_TIMES = 10
"""A block is at least so many of them: neighbours then correlate by some 0.025. It is an estimate,
so that `_ENOUGH` of a length will do."""
_ENOUGH = 0.9
MIN_RECORDS = 20
MAX_BLOCKS = 1_000
_CORRELATION_LEVEL = 0.02
"""Of the tests of all keys together and of the stream; all tests of single keys share another."""
_HARMLESS = 0.05
"""A correlation of neighbouring blocks that is no larger does not matter."""
_ROUNDING = 1e-12
_PANES_IN_A_LAG = 4
"""Lags up to a quarter of the longest series are looked at."""

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Numbers of panes, ascending, int64 (P,), and a value at each, float64 (P,)."""


def decorrelation_panes(series: Sequence[Series]) -> float:
    """Give the integrated autocorrelation time of several keys' series together, in panes.

    At least 1; 1 where no series varies.
    """
    length = max((int(at[-1] - at[0]) + 1 for at, _ in series if len(at)), default=0)
    lags = max(2, length // _PANES_IN_A_LAG)
    products, pairs = np.zeros(lags), np.zeros(lags)
    for at, values in series:
        if len(at) > 1:
            _add_products(at, values, products, pairs)
    variance = products[0] / max(pairs[0], 1.0)
    size = max((float(np.abs(values).max()) for _, values in series if len(values)), default=0.0)
    # What a mean leaves of equal values is rounding, which is correlated.
    if variance <= (_ROUNDING * size) ** 2:
        return 1.0
    rho = _filled(products / np.maximum(pairs, 1.0) / variance, pairs >= 0.5)  # noqa: PLR2004
    return _initial_positive(rho)


def _add_products(
    at: NDArray[np.int64],
    values: NDArray[np.float64],
    products: NDArray[np.float64],
    pairs: NDArray[np.float64],
) -> None:
    """Add the sums of products and the numbers of pairs at each lag, float64 (L,), of a series."""
    place = at - at[0]
    size = int(place[-1]) + 1
    lags = min(len(products), size)
    # Padded so that no pair wraps around.
    padded = 1 << (size + lags - 1).bit_length()
    dense, present = np.zeros(size), np.zeros(size)
    dense[place], present[place] = values - values.mean(), 1.0
    for row, into in ((dense, products), (present, pairs)):
        spectrum = np.fft.rfft(row, padded)
        into[:lags] += np.fft.irfft(spectrum * spectrum.conj(), padded)[:lags]


def _filled(rho: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Autocorrelations at all lags: those without a pair lie between their neighbours."""
    lags = np.arange(len(rho))
    return np.interp(lags, lags[known], rho[known])


def _initial_positive(rho: NDArray[np.float64]) -> float:
    even = len(rho) // 2 * 2
    pairs = rho[0:even:2] + rho[1:even:2]
    ends = np.flatnonzero(pairs <= 0)
    last = int(ends[0]) if len(ends) else len(pairs)
    # Monotone: a sum of pairs never grows with the lag, but by noise.
    return max(1.0, float(2 * np.minimum.accumulate(pairs[:last]).sum() - 1))


@dataclass(frozen=True, slots=True)
class BlockChoice:
    """A length of blocks and what it rests on.

    ``decorrelation_ms`` is the decorrelation time. ``median_records`` and ``median_blocks`` are of
    a block and of a key, at the length chosen. ``correlation`` is that of neighbouring blocks, and
    ``correlation_limit`` what chance allows or does no harm. ``reason`` tells what asked for the
    length: ``decorrelation``, ``records``, ``blocks`` or ``correlation``. ``settled`` is whether
    blocks are as uncorrelated as they should be and long enough: no longer length helps where not,
    as the stretch has too few blocks.
    """

    block_ms: int
    decorrelation_ms: float
    median_records: float
    median_blocks: float
    correlation: float
    correlation_limit: float
    reason: str
    settled: bool


def choose_block_ms(blocks: Blocks, kinds: TimeKinds) -> BlockChoice:
    """Choose how long blocks should be, from short ones.

    The smallest of `BLOCK_GRID_MS` that is at least `DECORRELATION_TIMES` long, has a median of
    `MIN_RECORDS` records in a block of a key, and makes `MAX_BLOCKS` blocks of a key at most; then
    longer ones as long as neighbouring blocks are correlated. What differs between kinds of time is
    taken out before.

    Raises:
        ValueError: There is no block, or those given are not of a length of the grid.
    """
    grid = [length for length in BLOCK_GRID_MS if length % blocks.block_ms == 0]
    if not len(blocks) or not grid:
        raise ValueError(f"expected blocks of a length of the grid, got {blocks.block_ms} ms")
    fine, tau_ms = _decorrelation(blocks, kinds, grid)
    needs = {
        "decorrelation": _ENOUGH * DECORRELATION_TIMES * tau_ms,
        "records": fine.block_ms
        * MIN_RECORDS
        / max(_in_time(fine, fine.records.astype(np.float64)), 1e-9),
        "blocks": _span(fine) / MAX_BLOCKS,
    }
    reason, need = max(needs.items(), key=lambda item: item[1])
    longer = [length for length in grid if length >= max(need, fine.block_ms)]
    chosen = _measured(fine, kinds, longer[0] if longer else grid[-1], tau_ms, reason)
    fitting = chosen.block_ms >= need
    for length in longer[1:]:
        if chosen.correlation <= chosen.correlation_limit or length < 2 * chosen.block_ms:
            continue
        following = _measured(fine, kinds, length, tau_ms, "correlation")
        if following.median_blocks < MIN_BLOCKS <= chosen.median_blocks:
            break
        chosen = following
    is_apart = chosen.correlation <= chosen.correlation_limit
    return replace(chosen, settled=fitting and is_apart and chosen.median_blocks >= MIN_BLOCKS)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """Blocks of a stretch as they are judged: their length, kinds of time, and why so."""

    blocks: Blocks
    kinds: TimeKinds
    evidence: KindEvidence
    choice: BlockChoice


def settle_blocks(
    fine: Blocks, *, kinds: TimeKinds | None = None, timezone: str = "UTC"
) -> Settled:
    """Find the kinds of time and the length of blocks that a stretch of short blocks speaks for.

    ``kinds`` are given where they are not to be found. Found at blocks of an hour, they are looked
    for again once the length is chosen: each must have enough blocks for a reference.
    """
    at = max(HOUR_MS, fine.block_ms)
    found, evidence = _kinds(fine, kinds, at, timezone, 1)
    choice = choose_block_ms(fine, found)
    # How many blocks a kind has is known only now.
    length = max(at, choice.block_ms)
    least = blocks_needed(choice.block_ms, length)
    if kinds is None and (length > at or found.count > 1):
        found, evidence = _kinds(fine, kinds, length, timezone, least)
    return Settled(coarser(fine, choice.block_ms), found, evidence, choice)


def blocks_needed(block_ms: int, length_ms: int) -> int:
    """Give how many blocks of ``length_ms`` hold enough of ``block_ms`` for a reference.

    Two more than `MIN_BLOCKS` of these: those at the ends of a stretch are cut off.
    """
    return math.ceil((MIN_BLOCKS + 2) * block_ms / length_ms)


def _kinds(
    fine: Blocks, kinds: TimeKinds | None, block_ms: int, timezone: str, least: int
) -> tuple[TimeKinds, KindEvidence]:
    blocks = coarser(fine, block_ms)
    found, evidence = find_kinds(
        blocks.key, blocks.middle_ms, block_means(blocks), timezone=timezone, least=least
    )
    return (found, evidence) if kinds is None else (kinds, evidence)


def _decorrelation(blocks: Blocks, kinds: TimeKinds, grid: Sequence[int]) -> tuple[Blocks, float]:
    """The shortest blocks that are not mostly gaps, and the decorrelation time in milliseconds."""
    fine = blocks
    for length in grid:
        fine = coarser(blocks, length)
        if _occupied(fine) >= 1 / 2:
            break
    residuals = _residuals(fine, kinds)
    slowest = max(
        decorrelation_panes(series_of(fine, residuals[:, column], keys))
        for column in range(residuals.shape[1])
        for keys in ((0,), range(1, len(fine.keys)))
    )
    return fine, slowest * fine.block_ms


def _residuals(blocks: Blocks, kinds: TimeKinds) -> NDArray[np.float64]:
    group = blocks.key * kinds.count + kinds.kind_of(blocks.middle_ms)
    means = block_means(blocks)
    residuals: NDArray[np.float64] = means - group_means(group, means)
    return residuals


def series_of(blocks: Blocks, values: NDArray[np.float64], keys: Sequence[int]) -> list[Series]:
    """Give the values, float64 (N,), of the blocks of each of the keys, by number."""
    bounds = np.searchsorted(blocks.key, np.arange(len(blocks.keys) + 1))
    cuts = [slice(int(bounds[key]), int(bounds[key + 1])) for key in keys]
    return [(blocks.start_ms[cut] // blocks.block_ms, values[cut]) for cut in cuts]


def _judged(blocks: Blocks) -> NDArray[np.bool_]:
    """The blocks of keys; those of the stream where there are none."""
    of_keys: NDArray[np.bool_] = blocks.key > 0
    return of_keys if of_keys.any() else ~of_keys


def _occupied(blocks: Blocks) -> float:
    """The median share of panes with records, over keys, between their first and last."""
    return _in_time(blocks, np.ones(len(blocks)))


def _in_time(blocks: Blocks, values: NDArray[np.float64]) -> float:
    """The median, over keys, of the sum of values, float64 (N,), in a block's time."""
    found = [
        float(own.sum()) / (int(at[-1] - at[0]) + 1)
        for at, own in series_of(blocks, values, range(len(blocks.keys)))
        if len(at)
    ]
    return float(np.median(found[1:] or found))


def _span(blocks: Blocks) -> int:
    return int(blocks.start_ms.max() - blocks.start_ms.min()) + blocks.block_ms


def _measured(
    fine: Blocks, kinds: TimeKinds, length: int, tau_ms: float, reason: str
) -> BlockChoice:
    blocks = coarser(fine, length)
    judged = _judged(blocks)
    counts = np.bincount(blocks.key[judged])
    correlation, limit = neighbour_correlation(blocks, kinds)
    return BlockChoice(
        length,
        tau_ms,
        float(np.median(blocks.records[judged])),
        float(np.median(counts[counts > 0])),
        correlation,
        limit,
        reason,
        settled=False,
    )


def neighbour_correlation(blocks: Blocks, kinds: TimeKinds) -> tuple[float, float]:
    """Give the correlation of neighbouring blocks that is furthest above its limit, and the limit.

    Of each statistic, over all keys together, over the stream, and of each key alone. The limit is
    what chance reaches as rarely as `_CORRELATION_LEVEL` says, and at least `_HARMLESS`.
    """
    residuals = _residuals(blocks, kinds)
    follows = (np.diff(blocks.key) == 0) & (np.diff(blocks.start_ms) == blocks.block_ms)
    key = blocks.key[:-1][follows]
    size = len(blocks.keys)
    pairs = np.bincount(key, minlength=size).astype(np.float64)
    sums, squares = np.zeros((size, residuals.shape[1])), np.zeros((size, residuals.shape[1]))
    np.add.at(sums, key, (residuals[:-1] * residuals[1:])[follows])
    np.add.at(squares, key, ((residuals[:-1] ** 2 + residuals[1:] ** 2) / 2)[follows])
    scaled = sums / np.where(squares > 0, squares, 1.0)
    # Keys count alike here, whatever their variance. A mean taken out makes rho some -1/n.
    tested = pairs > 2  # noqa: PLR2004
    rho, counts = scaled[tested] + 1 / np.maximum(pairs[tested], 1.0)[:, np.newaxis], pairs[tested]
    alone = np.full(len(counts), _CORRELATION_LEVEL / max(1, rho.size))
    if pairs[0] > 2:  # noqa: PLR2004
        alone[0] = _CORRELATION_LEVEL
    together = pairs[1:].sum()
    if together:
        mean = (scaled[1:] * pairs[1:, np.newaxis]).sum(axis=0) / together
        rho = np.concatenate((rho, mean[np.newaxis]))
        counts, alone = np.append(counts, together), np.append(alone, _CORRELATION_LEVEL)
    if not rho.size:
        return 0.0, 1.0
    limits = np.maximum(-ndtri(alone) / np.sqrt(counts), _HARMLESS)[:, np.newaxis]
    worst = np.unravel_index(int(np.argmax(rho - limits)), rho.shape)
    limit = float(np.broadcast_to(limits, rho.shape)[worst])
    found = float(rho[worst])
    return (found, limit) if math.isfinite(found) else (0.0, limit)
