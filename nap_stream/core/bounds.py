"""How many flagged records a window of in-distribution ones may hold.

Given the calibration set, flags of in-distribution records are Bernoulli with an unknown rate
that is Beta(k, m + 1 - k) over the draw of that set (see `nap_stream.core.conformal`). So their
number among n exchangeable records is beta-binomial: X ~ BetaBinomial(n, k, m + 1 - k). The
plain binomial at alpha leaves the calibration's uncertainty out and alarms 2 to 30 times as
often as it states.

Where each class has its own calibration set, each has its own rate, and a window's number of
flags follows the mix of its classes, which is not known beforehand. `highest_flag_limit` holds
for a window whose records are all predicted as one class, whichever. For a mix it is not proven:
a mix averages independent rates, which thins the far tail, but near the median (where the limit
is a flag or two) its tail can be a little heavier than that of each class.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def tail_probabilities(n: int, k: int, m: int) -> NDArray[np.float64]:
    """P(X >= q) for q = 0 … n + 1, with X ~ BetaBinomial(n, k, m + 1 - k).

    The pmf comes from its ratios ``p(x + 1) / p(x) = (n - x)(k + x) / ((x + 1)(b + n - x - 1))``,
    b = m + 1 - k, in the log domain, and divided by its own sum: no cancellation of log-gammas,
    relative error about n times the machine's epsilon.

    Args:
        n: Number of records, at least 1.
        k: Flag rank, 1 <= k <= m.
        m: Size of the calibration set.

    Returns:
        float64 (n + 2,), from exactly 1 down to 0.

    Raises:
        ValueError: An argument is out of range.
    """
    if n < 1 or not 1 <= k <= m:
        raise ValueError(f"expected n >= 1 and 1 <= k <= m, got {n = }, {k = }, {m = }")
    x = np.arange(n, dtype=np.float64)
    b = m + 1 - k
    log_ratio = np.log(n - x) + np.log(k + x) - np.log(x + 1) - np.log(b + n - x - 1)
    log_pmf = np.concatenate(([0.0], np.cumsum(log_ratio)))
    pmf = np.exp(log_pmf - log_pmf.max())
    # Summed from the far tail inwards, so that small terms are not lost beside large ones.
    tail = np.cumsum(pmf[::-1])[::-1]
    return np.concatenate((tail / tail[0], [0.0]))


def flag_limit(n: int, k: int, m: int, probability: float) -> int:
    """Give the smallest q with P(X >= q) <= probability: that many flags are a surprise.

    Args:
        n: Number of records, at least 1.
        k: Flag rank, 1 <= k <= m.
        m: Size of the calibration set.
        probability: Of reaching the limit by chance, in (0, 1), for one window, over the draw
            of the calibration set and of the records.

    Returns:
        A count in [1, n + 1]; n + 1 where not even n flags of n are a surprise.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < probability < 1:
        raise ValueError(f"expected 0 < probability < 1, got {probability}")
    tail = tail_probabilities(n, k, m)
    return int(np.searchsorted(-tail, -probability, side="left"))


def highest_flag_limit(
    n: int, laws: Iterable[FlagRateLaw], probability: float
) -> tuple[int, FlagRateLaw]:
    """Give the largest `flag_limit` over the laws of several flag rates, and the law that has it.

    Which one that is depends on n and the probability: a small calibration set has the fatter
    tail, a large one may have the higher mean. Of equal limits, that of the smallest rank counts.

    Args:
        n: Number of records, at least 1.
        laws: At least one.
        probability: See `flag_limit`; the limit keeps it under each of the laws.

    Raises:
        ValueError: An argument is out of range, or there is no law.
    """
    # Beta(k, m + 1 - k) falls stochastically as m grows, so one law a rank decides.
    smallest: dict[int, int] = {}
    for law in laws:
        smallest[law.flag_rank] = min(law.size, smallest.get(law.flag_rank, law.size))
    limits = ((flag_limit(n, k, m, probability), -k, m) for k, m in smallest.items())
    limit, minus_rank, size = max(limits)
    return limit, FlagRateLaw(-minus_rank, size)
