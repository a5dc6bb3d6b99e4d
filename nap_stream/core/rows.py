"""Choosing rows."""

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(count: int, limit: int) -> NDArray[np.int64]:
    """Choose at most ``limit`` of ``count`` rows, evenly spaced.

    Where the rows are sorted by class, the classes keep their shares.

    Args:
        count: Rows there are, at least 0.
        limit: Rows wanted at most, at least 1.

    Returns:
        int64 (min(count, limit),), ascending, each row once.
    """
    chosen = min(count, limit)
    return np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)


def drawn_from_blocks(count: int, limit: int, seed: int) -> NDArray[np.int64]:
    """Draw at most ``limit`` of ``count`` rows: one at random of each of as many equal blocks.

    Where rows are sorted by class, the classes keep about their shares; where something recurs
    every few rows, such as one of several cameras, no row is preferred.

    Args:
        count: Rows there are, at least 0.
        limit: Rows wanted at most, at least 1.
        seed: The same seed draws the same rows.

    Returns:
        int64 (min(count, limit),), ascending, each row once.
    """
    starts = evenly_spaced(count, limit)
    ends = np.append(starts[1:], count)
    return np.random.default_rng(seed).integers(starts, ends[: len(starts)])
