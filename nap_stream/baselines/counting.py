"""From the records of a stretch to blocks and to scores that are nearly independent."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from nap_stream.baselines.stretch import Stretch
from nap_stream.core.blocks import Blocks, blocks_of
from nap_stream.core.conformal import p_values
from nap_stream.core.decorrelation import BLOCK_GRID_MS
from nap_stream.core.panes import NO_KEY, PaneCounts, count_panes

Judge = Callable[
    [NDArray[np.float64], NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.bool_]]
]
"""Scores and predicted classes, (N,) each, to p-values and flags, (N,) each."""

MAX_CELLS = 2_000_000
"""Blocks that are held at once: some 200 bytes each."""
_FINE_PER_KEY = 10_000
_SAMPLE = 50_000
MAX_SCORES = 100_000
WANTED_SCORES = 2_000
"""So many scores at least, where the stretch has them: fewer make p-values coarse."""


def fine_ms(stretch: Stretch, pane_ms: int) -> int:
    """A length of short blocks at which dependence is looked at: not shorter than panes."""
    least = max(pane_ms, _span_ms(stretch) / _FINE_PER_KEY)
    return next((length for length in BLOCK_GRID_MS if length >= least), BLOCK_GRID_MS[-1])


def chosen_keys(stretch: Stretch, block_ms: int) -> tuple[str, ...]:
    """The keys, or, where their blocks would be too many, some that stand for all."""
    names = sorted(set(stretch.keys) - {NO_KEY})
    room = max(1, MAX_CELLS // max(1, _span_ms(stretch) // block_ms))
    if len(names) <= room:
        return tuple(names)
    places = np.linspace(0, len(names) - 1, room).round().astype(int)
    return tuple(names[place] for place in np.unique(places).tolist())


def _span_ms(stretch: Stretch) -> int:
    return int(stretch.last_ms.max() - stretch.first_ms.min()) + 1


def count_blocks(
    stretch: Stretch,
    judge: Judge,
    block_ms: int,
    pane_ms: int,
    keys: tuple[str, ...] | None = None,
) -> Blocks:
    """Count the records of a stretch in blocks, as `nap_stream.core.block_monitors` does.

    A record counts in the block in which its pane begins. Of ``keys`` alone, all where null; the
    blocks of the stream hold all records.
    """
    told = set(stretch.keys if keys is None else keys)
    names = tuple(name if name in told else NO_KEY for name in stretch.keys)

    def counted() -> Iterator[PaneCounts]:
        for chunk in stretch.spool.chunks():
            p, flagged = judge(chunk["fused"], chunk["class_id"].astype(np.int64))
            times = chunk["time_ms"] - chunk["time_ms"] % pane_ms
            key = chunk["key"].astype(np.int64)
            yield count_panes(times, p, flagged, pane_ms=block_ms, keys=names, key=key)

    return blocks_of(counted(), block_ms)


def first_judge(stretch: Stretch, alpha: float) -> Judge:
    """Judge records by a sample of the stretch itself, before there are scores to judge by.

    One-sided and whatever the class: how records depend on each other does not hang on that.
    """
    step = max(1, stretch.records // _SAMPLE)
    scores, skipped = [], 0
    for chunk in stretch.spool.chunks():
        scores.append(chunk["fused"][(-skipped) % step :: step])
        skipped += len(chunk)
    sample = np.sort(np.concatenate(scores))

    def judge(
        fused: NDArray[np.float64], class_id: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        del class_id
        p = p_values(sample, fused)
        return p, p <= alpha

    return judge


def thinned(
    stretch: Stretch, decorrelation_ms: float
) -> tuple[NDArray[np.float64], NDArray[np.int32], int]:
    """Take one record a key in about a decorrelation time; more often where that leaves few.

    Returns:
        Scores float64 (m,), predicted classes int32 (m,), and the time in milliseconds in which a
        key has one at most.
    """
    slot_ms = max(1, round(decorrelation_ms))
    while True:
        kept = _one_in(stretch, slot_ms)
        if len(kept) >= min(WANTED_SCORES, stretch.records) or slot_ms == 1:
            break
        # As the number of records grows with the number of slots at most.
        slot_ms = max(1, min(slot_ms // 2, slot_ms * len(kept) // WANTED_SCORES))
    if len(kept) > MAX_SCORES:
        chosen = np.random.default_rng(0).choice(len(kept), MAX_SCORES, replace=False)
        kept = kept[np.sort(chosen)]
    return kept["fused"].copy(), kept["class_id"].copy(), slot_ms


def _one_in(stretch: Stretch, slot_ms: int) -> NDArray[np.void]:
    """The first record of each key in each slot, of a partition."""
    taken = []
    last = np.full(len(stretch.keys), np.iinfo(np.int64).min)
    for chunk in stretch.spool.chunks():
        key, slot = chunk["key"].astype(np.int64), chunk["time_ms"] // slot_ms
        order = np.lexsort((slot, key))
        key, slot = key[order], slot[order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (np.diff(key) != 0) | (np.diff(slot) != 0)
        is_first &= slot != last[key]
        # Assigned in order: of a key in the chunk the last slot stays.
        last[key] = slot
        taken.append(chunk[np.sort(order[is_first])])
    return np.concatenate(taken)
