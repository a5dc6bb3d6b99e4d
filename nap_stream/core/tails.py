"""P-values of a sum's terms: smooth, and without a floor.

A conformal p-value against r reference scores takes r + 1 values, the smallest 1 / (r + 1). In
a sum of logarithms that makes ties, and a least value that no image can go below: a threshold
that stands there flags nothing. So between the references these p-values are interpolated, and
beyond them they fall on as the tail of a generalised Pareto distribution of shape 1, whose
scale is the mean excess of the outer tenth. They need not be valid: the sum that they go into is
only a score, and has a conformal p-value of its own.

Tails of the p-values, whose rates tell a shift of the scores in either direction.

Conformal p-values of in-distribution images are uniform over the draw of the calibration set. For
one calibration set they are not quite: of m scores, the event p <= u takes in k = floor(u (m + 1))
of the m + 1 ranks, and its rate is Beta(k, m + 1 - k), that of p > u is Beta(m + 1 - k, k). So a
test against uniformity itself would find the calibration set, sooner or later, instead of a drift.
Each tail is tested against the upper quantile of its own law instead.
"""

from dataclasses import dataclass

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


EDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98)
"""Between which p-values are counted. A p-value that equals an edge counts below it."""
BIN_COUNT = len(EDGES) + 1


@dataclass(frozen=True, slots=True)
class TailEvent:
    """``p <= edge``, or ``p > edge`` where ``upper``."""

    edge: float
    upper: bool

    def __str__(self) -> str:
        return f"p-value {'above' if self.upper else 'at most'} {self.edge:g}"


TAIL_EVENTS = (
    *(TailEvent(edge, upper=False) for edge in EDGES if edge <= 0.5),  # noqa: PLR2004  the middle
    *(TailEvent(edge, upper=True) for edge in EDGES if edge >= 0.5),  # noqa: PLR2004  the middle
)
"""Low p-values are those of records that are less in-distribution than the calibration images,
high ones of records that are more so."""


def bins_of(p_values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give the bin of each p-value, int64 of its shape, in [0, BIN_COUNT)."""
    return np.searchsorted(np.asarray(EDGES), p_values, side="left").astype(np.int64)


def tail_counts(bins: NDArray[np.int64], events: tuple[TailEvent, ...]) -> NDArray[np.int64]:
    """Count the records of each event.

    Args:
        bins: int64 (..., BIN_COUNT), records by bin.
        events: J of them, with edges of `EDGES`.

    Returns:
        int64 (..., J).
    """
    member = np.zeros((BIN_COUNT, len(events)), dtype=np.int64)
    for column, event in enumerate(events):
        cut = EDGES.index(event.edge) + 1
        member[cut:, column] = event.upper
        member[:cut, column] = not event.upper
    return bins @ member
