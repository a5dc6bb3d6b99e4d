"""P-values of a sum's terms: smooth, and without a floor.

A conformal p-value against r reference scores takes r + 1 values, the smallest 1 / (r + 1). In
a sum of logarithms that makes ties, and a least value that no image can go below: a threshold
that stands there flags nothing. So between the references these p-values are interpolated, and
beyond them they fall on as the tail of a generalised Pareto distribution of shape 1, whose
scale is the mean excess of the outer tenth. They need not be valid: the sum that they go into is
only a score, and has a conformal p-value of its own.
"""

import numpy as np
from numpy.typing import NDArray

OUTER_SHARE = 0.1
"""Of the references, from which the scale beyond them is taken."""


def log_p(reference: NDArray[np.float64], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log of the share of in-distribution images that score as low, continued beyond them.

    At the i-th smallest of r references it is ``log(i / (r + 1))``, linear in p between two.
    Below the smallest, x_1, it is ``-log(r + 1) - log(1 + (x_1 - x) / s)``; above the largest
    likewise towards 0, by the upper end.

    Args:
        reference: Ascending, float64 (r,), r >= 2, finite.
        scores: Any float dtype and shape.

    Returns:
        float64 of the shape of ``scores``, <= 0, increasing in the score (strictly wherever the
        references differ); NaN where the score is NaN.

    Raises:
        ValueError: There are fewer than two references, or they are not ascending or hold NaN.
    """
    r = len(reference)
    # NaN compares false, so this finds NaN too.
    if r < 2 or not np.all(reference[:-1] <= reference[1:]):  # noqa: PLR2004  a scale needs two
        raise ValueError(f"expected two or more reference scores, ascending without NaN, got {r}")
    wide = np.asarray(scores, dtype=np.float64)
    below = np.maximum(reference[0] - wide, 0) / _scale(reference)
    above = np.maximum(wide - reference[-1], 0) / _scale(-reference[::-1])
    inside = np.interp(wide, reference, np.arange(1, r + 1) / (r + 1))
    log_inside = np.log(inside) - np.log1p(below)
    smoothed: NDArray[np.float64] = np.where(
        above > 0, np.log1p(-1 / ((r + 1) * (1 + above))), log_inside
    )
    return smoothed


def log_two_sided_p(
    reference: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Log of twice the smaller p-value of both directions, at most 0.

    Args:
        reference: See `log_p`.
        scores: See `log_p`.

    Returns:
        float64 of the shape of ``scores``: 0 at the references' median, falling to either side.

    Raises:
        ValueError: See `log_p`.
    """
    low = log_p(reference, scores)
    high = log_p(-reference[::-1], -np.asarray(scores, dtype=np.float64))
    smaller: NDArray[np.float64] = np.log(2) + np.minimum(low, high)
    return np.minimum(0.0, smaller)


def _scale(reference: NDArray[np.float64]) -> float:
    """Mean excess of the lower tenth below its largest; 1 where they are all the same."""
    outer = reference[: max(2, int(np.ceil(OUTER_SHARE * len(reference))))]
    return float(np.mean(outer[-1] - outer[:-1])) or 1.0
