"""Tails of the p-values, whose rates tell a shift of the scores in either direction.

Conformal p-values of in-distribution images are uniform over the draw of the calibration set. For
one calibration set they are not quite: of m scores, the event p <= u takes in k = floor(u (m + 1))
of the m + 1 ranks, and its rate is Beta(k, m + 1 - k), that of p > u is Beta(m + 1 - k, k). So a
test against uniformity itself would find the calibration set, sooner or later, instead of a drift.
Each tail is tested against the upper quantile of its own law instead.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Sides(StrEnum):
    """Which scores are flagged: low ones, or those at either end."""

    ONE = "one"
    TWO = "two"


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
    """Count the records of each of J events, with edges of `EDGES`: int64 (..., J).

    ``bins`` are records by bin, int64 (..., BIN_COUNT).
    """
    member = np.zeros((BIN_COUNT, len(events)), dtype=np.int64)
    for column, event in enumerate(events):
        cut = EDGES.index(event.edge) + 1
        member[cut:, column] = event.upper
        member[:cut, column] = not event.upper
    return bins @ member


@dataclass(frozen=True, slots=True, order=True)
class FlagRateLaw:
    """Beta(flag_rank, size + 1 - flag_rank): a true flag rate, over draws of ``size`` images.

    Raises:
        ValueError: Not 1 <= flag_rank <= size.
    """

    flag_rank: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.flag_rank <= self.size:
            raise ValueError(f"expected 1 <= flag_rank <= size, got {self}")
