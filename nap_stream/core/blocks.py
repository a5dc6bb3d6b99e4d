"""Blocks: stretches of event time of a key, each one observation.

Neighbouring records of a camera are dependent. Blocks that are long against the time over which
they are so are nearly exchangeable: those of one key, and of one kind of time
(`nap_stream.core.time_kinds`).

A block's statistic is the excess of a mean over the baseline's, c, shrunk to 0 by b records:

    s = m / (m + b) x (mean of x - c), m = min(n, b),

for x of a record's flag, -ln p, and -ln(1 - p), each p at the middle of its bin. b is the median
number of records of a block. Up to it the spread of s for independent records grows with n, so that
a block with few of them is never extreme. More than b records count as b: those of a camera are
dependent, so that the mean of many is no surer, and a higher frame rate makes no block extreme.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from nap_stream.core.panes import NO_KEY, PaneCounts, changes
from nap_stream.core.tails import BIN_COUNT, EDGES
from nap_stream.core.time_kinds import DAY_MS

STATISTICS = ("flagged", "low p-values", "high p-values")
_COLUMNS = ("key", "start_ms", "records", "flagged", "bins")
_MANY_ROWS = 1_000_000
_MIDDLES = np.diff([0.0, *EDGES, 1.0]) / 2 + np.array([0.0, *EDGES])
_WEIGHTS = np.stack((-np.log(_MIDDLES), -np.log1p(-_MIDDLES)), axis=1)
"""float64 (BIN_COUNT, 2): -ln p and -ln(1 - p) at the middle of each bin."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """N blocks, each of a key and a stretch ``[start_ms, start_ms + block_ms)`` of event time.

    ``key`` int64 (N,), index into ``keys``, which are sorted and begin with `NO_KEY`: the whole
    stream, all records with a key and without. ``start_ms`` int64 (N,), a multiple of ``block_ms``,
    in milliseconds since the epoch; ``records`` int64 (N,), at least 1, ``flagged`` int64 (N,);
    ``bins`` int64 (N, BIN_COUNT), by p-value, see `nap_stream.core.tails`. Ordered by key, then
    time.

    Raises:
        ValueError: The shapes do not fit, or blocks are out of order or stand twice.
    """

    key: NDArray[np.int64]
    start_ms: NDArray[np.int64]
    records: NDArray[np.int64]
    flagged: NDArray[np.int64]
    bins: NDArray[np.int64]
    keys: tuple[str, ...]
    block_ms: int

    def __post_init__(self) -> None:
        size = len(self.key)
        shapes = [a.shape for a in (self.start_ms, self.records, self.flagged)]
        if shapes != [(size,)] * 3 or self.bins.shape != (size, BIN_COUNT):
            raise ValueError(f"expected arrays of {size} blocks, got {shapes}, {self.bins.shape}")
        if self.block_ms < 1 or self.keys[:1] != (NO_KEY,) or list(self.keys) != sorted(self.keys):
            raise ValueError(f"expected block_ms >= 1 and sorted keys, the stream's first: {self}")
        step, later = np.diff(self.key), np.diff(self.start_ms) > 0
        if not ((step > 0) | ((step == 0) & later)).all():
            raise ValueError("expected blocks by key and time, each once")

    def __len__(self) -> int:
        return len(self.key)

    @property
    def middle_ms(self) -> NDArray[np.int64]:
        """The middle of each block, int64 (N,), which decides its kind of time."""
        return self.start_ms + self.block_ms // 2

    def of(self, name: str) -> "Blocks":
        """The blocks of one key, with all ``keys``; none where it is not known."""
        number = self.keys.index(name) if name in self.keys else -1
        return self.chosen(self.key == number)

    def chosen(self, is_chosen: NDArray[np.bool_]) -> "Blocks":
        """The blocks where ``is_chosen``, bool (N,), is true."""
        columns = {name: getattr(self, name)[is_chosen] for name in _COLUMNS}
        return replace(self, **columns)


def added_up(
    key: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    counts: NDArray[np.int64],
    keys: tuple[str, ...],
    block_ms: int,
) -> Blocks:
    """Add up R entries to blocks; blocks without a record are none.

    Args:
        key: int64 (R,), index into ``keys`` of each; those of `NO_KEY` are of the whole stream.
        time_ms: int64 (R,), any time within its block.
        counts: int64 (R, 2 + BIN_COUNT): records, flagged ones, and records by bin.
        keys: Sorted, `NO_KEY` first.
        block_ms: Length of a block in milliseconds.
    """
    key, block, sums = _summed(key, time_ms // block_ms, counts)
    held = sums[:, 0] > 0
    if not held.all():
        key, block, sums = key[held], block[held], sums[held]
    return Blocks(key, block * block_ms, sums[:, 0], sums[:, 1], sums[:, 2:], keys, block_ms)


def blocks_of(counts: Iterable[PaneCounts], block_ms: int) -> Blocks:
    """Count the records of panes in blocks; a pane counts in that of its start.

    Where keys are not told apart, there are only blocks of the whole stream. Counts are taken one
    at a time, in any order, so that a generator of them needs memory for the blocks alone.
    """
    numbers: dict[str, int] = {NO_KEY: 0}
    held: list[NDArray[np.int64]] = []
    rows = 0
    for part in counts:
        place = np.array([numbers.setdefault(n, len(numbers)) for n in part.keys], np.int64)
        block = part.start_ms // block_ms
        entries = np.column_stack((block, part.records, part.flagged, part.bins))
        own = place[part.key]
        held.append(np.column_stack((np.zeros_like(own), entries)))
        held.append(np.column_stack((own, entries))[own > 0])
        rows += len(part)
        if rows > _MANY_ROWS:
            table = np.concatenate(held)
            held = [np.column_stack(_summed(table[:, 0], table[:, 1], table[:, 2:]))]
            rows = 0
    keys = tuple(sorted(numbers))
    placed = np.empty(len(keys), dtype=np.int64)
    placed[[numbers[name] for name in keys]] = np.arange(len(keys))
    table = np.concatenate(held) if held else np.zeros((0, 4 + BIN_COUNT), dtype=np.int64)
    return added_up(placed[table[:, 0]], table[:, 1] * block_ms, table[:, 2:], keys, block_ms)


def _summed(
    key: NDArray[np.int64], block: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Add up the counts, int64 (R, C), of the same key and block, in their order."""
    step = np.diff(key)
    # Those of blocks are in order already, and to move them takes longer than to add them up.
    if ((step < 0) | ((step == 0) & (np.diff(block) < 0))).any():
        order = np.lexsort((block, key))
        key, block, counts = key[order], block[order], counts[order]
    first = np.flatnonzero(changes(key, block))
    sums = np.add.reduceat(counts, first, axis=0) if len(first) else counts
    return key[first], block[first], sums


def coarser(blocks: Blocks, block_ms: int) -> Blocks:
    """Give longer blocks: ``block_ms`` is a multiple of theirs.

    Raises:
        ValueError: It is not.
    """
    if block_ms % blocks.block_ms:
        raise ValueError(f"expected a multiple of {blocks.block_ms} ms, got {block_ms}")
    if block_ms == blocks.block_ms:
        return blocks
    counts = np.column_stack((blocks.records, blocks.flagged, blocks.bins))
    return added_up(blocks.key, blocks.start_ms, counts, blocks.keys, block_ms)


def block_sums(flagged: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give sums over the records of blocks: flags, -ln p, -ln(1 - p); float64 (..., 3).

    ``flagged`` is int64 (...), ``bins`` int64 (..., BIN_COUNT).
    """
    return np.concatenate((flagged[..., np.newaxis].astype(np.float64), bins @ _WEIGHTS), axis=-1)


def block_means(blocks: Blocks) -> NDArray[np.float64]:
    """Give the means of a flag, -ln p and -ln(1 - p) over each block, float64 (N, 3)."""
    sums = block_sums(blocks.flagged, blocks.bins)
    means: NDArray[np.float64] = sums / blocks.records[:, np.newaxis]
    return means


def shrunk(
    excess: NDArray[np.float64], records: NDArray[np.int64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the statistics of summed excesses, float64 (..., 3); see the module.

    ``excess`` float64 (..., 3) is the sum of x - n c over ``records``, int64 (...), be they of a
    key or of the whole stream; ``prior``, float64 (...), is above 0. Without records they are 0.
    """
    most = np.minimum(records, prior)
    weight = most / (most + prior) / np.maximum(records, 1)
    statistics: NDArray[np.float64] = excess * weight[..., np.newaxis]
    return statistics


@dataclass(frozen=True, slots=True)
class Effect:
    """By how much the OOD fraction of one stretch differs from that of another.

    ``difference`` is ``share`` less ``baseline_share``; ``low`` and ``high`` are its confidence
    interval, infinite where one of the stretches has a single unit. Units are ``unit_ms`` long:
    days where both have `MIN_DAYS` of them, as days differ, else blocks. ``units`` and
    ``baseline_units`` are their numbers.
    """

    share: float
    baseline_share: float
    difference: float
    low: float
    high: float
    confidence: float
    unit_ms: int
    units: int
    baseline_units: int


MIN_DAYS = 7


def effect(baseline: Blocks, later: Blocks, key: str = NO_KEY, confidence: float = 0.95) -> Effect:
    """Compare the OOD fractions of a key, or of the stream, in two stretches.

    The interval is Welch's, of the ratio of flagged records to records, whose error comes from the
    spread over units (Cochran, "Sampling Techniques", 1977, section 6.3). A stretch whose share is
    0 or 1 has no spread, which does not make it sure: where n blocks had no flag, at most a share
    of -ln(1 - confidence) / n of them has (the rule of three: 3 / n at 0.95). The interval is wider
    by that, to the side where the share of the stretch may lie.

    Raises:
        ValueError: One of them has no block of the key.
    """
    blocks = len(baseline.of(key)), len(later.of(key))
    first, second = _in_units(baseline, later, key)
    old, new = (_ratio(part.flagged, part.records) for part in (first, second))
    half = _half_width(old, new, confidence)
    difference = new.value - old.value
    new_less, new_more = _unseen(new.value, blocks[1], confidence)
    old_less, old_more = _unseen(old.value, blocks[0], confidence)
    low, high = difference - half - new_less - old_more, difference + half + new_more + old_less
    units = second.block_ms, len(second), len(first)
    return Effect(new.value, old.value, difference, low, high, confidence, *units)


@dataclass(frozen=True, slots=True)
class Shift:
    """How much more anomalous the records of one stretch are than those of another.

    ``probability`` is that a record of the later stretch has the smaller p-value of two, one of
    each, half of it where both are in the same bin: 0.5 without a change. ``low`` and ``high`` are
    its confidence interval, 0 and 1 where one of the stretches has a single unit. Units are as in
    `Effect`.
    """

    probability: float
    low: float
    high: float
    confidence: float
    unit_ms: int
    units: int
    baseline_units: int


def shift(baseline: Blocks, later: Blocks, key: str = NO_KEY, confidence: float = 0.95) -> Shift:
    """Compare the p-values of a key, or of the stream, in two stretches, by their bins.

    It is the area under a ROC curve, whose error comes from the spread over units of where the
    records of one stretch stand among those of the other (Obuchowski, "Nonparametric analysis of
    clustered ROC curve data", Biometrics 1997); the interval is Welch's. Where all stand at one
    side, it is wider as that of `effect` is.

    Raises:
        ValueError: One of them has no block of the key.
    """
    blocks = len(baseline.of(key)), len(later.of(key))
    first, second = _in_units(baseline, later, key)
    new = _ratio(second.bins @ (1 - _placed(first.bins)), second.records)
    old = _ratio(first.bins @ _placed(second.bins), first.records)
    half = _half_width(old, new, confidence)
    less, more = _unseen(new.value, min(blocks), confidence)
    low, high = max(0.0, new.value - half - less), min(1.0, new.value + half + more)
    units = second.block_ms, len(second), len(first)
    return Shift(new.value, low, high, confidence, *units)


def _placed(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of records in lower bins than each, and half of those in it, (BIN_COUNT,)."""
    counts = bins.sum(axis=0)
    shares: NDArray[np.float64] = (np.cumsum(counts) - counts / 2) / counts.sum()
    return shares


def _in_units(baseline: Blocks, later: Blocks, key: str) -> tuple[Blocks, Blocks]:
    """The blocks of a key: days where both stretches have `MIN_DAYS` of them."""
    first, second = baseline.of(key), later.of(key)
    if not len(first) or not len(second):
        raise ValueError(f"there are no blocks of {key!r} in one of the stretches")
    days = [len(np.unique(part.start_ms // DAY_MS)) for part in (first, second)]
    divides = all(DAY_MS % part.block_ms == 0 for part in (first, second))
    if min(days) >= MIN_DAYS and divides:
        return coarser(first, DAY_MS), coarser(second, DAY_MS)
    return first, second


class _Ratio(NamedTuple):
    """A ratio over so many units, and the variance of its error."""

    value: float
    variance: float
    units: int


def _ratio(sums: NDArray[Any], records: NDArray[np.int64]) -> _Ratio:
    count, size = int(records.sum()), len(records)
    value = float(sums.sum()) / count
    residuals = (sums - value * records) / (count / size)
    return _Ratio(value, float((residuals**2).sum()) / max(1, size - 1) / size, size)


def _half_width(one: _Ratio, other: _Ratio, confidence: float) -> float:
    """Half of Welch's interval for the difference of two ratios."""
    errors, sizes = np.array([one.variance, other.variance]), np.array([one.units, other.units])
    total = float(errors.sum())
    if sizes.min() < 2:  # noqa: PLR2004  a spread needs two
        return float("inf")
    if total <= 0:
        return 0.0
    freedom = total**2 / float((errors**2 / (sizes - 1)).sum())
    return float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(total)


def _unseen(share: float, blocks: int, confidence: float) -> tuple[float, float]:
    """How far below and above a share of 0 or 1 the real one may be, seen in so many blocks."""
    most = min(1.0, -math.log1p(-confidence) / blocks)
    return (most if share >= 1 else 0.0), (most if share <= 0 else 0.0)


def stream_blocks(
    start_ms: NDArray[np.int64],
    records: NDArray[np.int64],
    flagged: NDArray[np.int64],
    block_ms: int,
    bins: NDArray[np.int64] | None = None,
) -> Blocks:
    """Blocks of the stream alone, in order; without ``bins`` an `effect` alone can be asked for."""
    if bins is None:
        bins = np.zeros((len(start_ms), BIN_COUNT), dtype=np.int64)
    key = np.zeros(len(start_ms), dtype=np.int64)
    return Blocks(key, start_ms, records, flagged, bins, (NO_KEY,), block_ms)
