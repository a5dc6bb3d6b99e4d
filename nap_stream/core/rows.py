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
