"""The fused score: a base score and the Neural Activation Prior (arXiv 2402.18162, section 3.3)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SMALLEST = float(np.finfo(np.float64).tiny)


def fuse(base: ArrayLike, nap: ArrayLike, weight: float) -> NDArray[np.float64]:
    """Weighted geometric mean ``base ** weight * nap ** (1 - weight)``.

    The base score of the paper is positive. Energy (logsumexp of the logits) can be <= 0, which
    has no fractional power. So calibration takes the mean logit of in-distribution images off
    it first: a constant that the softmax does not see, 0 where the logits are centred
    (docs/negative-energies.md). What is still <= 0 is taken as the smallest positive normal
    float64, so that order is kept weakly and the image scores as far out-of-distribution as can
    be. For the same reason a NAP score below 0 is taken as 0. NaN in either gives NaN, at any
    weight.

    Args:
        base: (N,), any float dtype, higher = in-distribution: MSP, energy, ReAct and the like.
        nap: (N,), any float dtype, higher = in-distribution.
        weight: The base's weight in [0, 1]: 0 gives ``nap``, 1 gives ``base``.

    Returns:
        float64 (N,), higher = in-distribution, monotone in both scores.

    Raises:
        ValueError: The shapes differ or the weight is out of range.
    """
    wide_base = np.asarray(base, dtype=np.float64)
    wide_nap = np.asarray(nap, dtype=np.float64)
    if wide_base.shape != wide_nap.shape:
        raise ValueError(f"expected equal shapes, got {wide_base.shape} and {wide_nap.shape}")
    if not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in [0, 1], got {weight}")
    fused = np.maximum(wide_base, _SMALLEST) ** weight * np.maximum(wide_nap, 0.0) ** (1 - weight)
    return np.where(np.isnan(wide_base) | np.isnan(wide_nap), np.nan, fused)
