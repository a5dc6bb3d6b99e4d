"""Shares of trials, with intervals. Without scipy, which takes long to load for a command."""

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054
"""The normal quantile of an interval of 95 %."""


def wilson(
    hits: NDArray[np.float64], trials: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval of 95 % for shares, as if trials were independent.

    ``hits`` and ``trials`` are counts (N,). Where trials are 0 the interval means nothing.

    Returns:
        Its lower and its upper ends, (N,) each.
    """
    known = np.maximum(trials, 1.0)
    share = hits / known
    middle = (share + _Z**2 / (2 * known)) / (1 + _Z**2 / known)
    spread = share * (1 - share) / known + _Z**2 / (4 * known**2)
    half = _Z * np.sqrt(spread) / (1 + _Z**2 / known)
    # At either end the bound is the end itself, but for rounding.
    low = np.where(hits == 0, 0.0, middle - half)
    return low, np.where(hits == trials, 1.0, middle + half)
