"""How high the flag rate of in-distribution records can be, and the flags of a window of them.

Given the calibration set, flags of in-distribution records are Bernoulli with an unknown rate
that is Beta(k, m + 1 - k) over the draw of that set (see `nap_stream.core.conformal`). So their
number among n exchangeable records is beta-binomial: X ~ BetaBinomial(n, k, m + 1 - k). The
plain binomial at alpha leaves the calibration's uncertainty out and alarms 2 to 30 times as
often as it states. `flag_limit` is the bound for one window.

A rolling window is judged again and again, and its windows overlap. `scan_limit` takes that in.
Let the records be Bernoulli(p), independent, W_t the flags among the last n at time t >= n, and
tau the first t with W_t >= q. Cut time into blocks of n: block j holds t in [jn, (j + 1)n). The
windows of one block lie in 2n records, and the probability Q2 that none of its n windows reaches
q is known exactly (Naus, "Probabilities for a generalized birthday problem", JASA 69, 1974; n
of the n + 1 windows of 2n records, so that taking all n + 1 is on the safe side):

    Q2 = F(q-1; n)^2 - (q-1) b(q; n) F(q-2; n) + n p b(q; n) F(q-3; n-1)

with b and F the binomial pmf and cdf. "No window of this block reaches q" is a decreasing event
of independent trials, for each block, so those events are positively correlated (Harris, 1960):

    P(tau >= (j + 1) n) >= Q2^j,  so  E[tau] >= n / (1 - Q2)  and  P(tau < T) <= T (1 - Q2) / n.

Simulated run lengths are 1.1 to 1.4 times that bound. It holds for any independent flags with
rates of at most p, whatever their mix, since they are stochastically smaller; with p = p_U, the
upper quantile of the Beta law, it holds with that confidence over the calibration draw.

Where each class has its own calibration set, each has its own rate, and a window's number of
flags follows the mix of its classes, which is not known beforehand. `highest_flag_limit` holds
for a window whose records are all predicted as one class, whichever. For a mix it is not proven:
a mix averages independent rates, which thins the far tail, but near the median (where the limit
is a flag or two) its tail can be a little heavier than that of each class.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincc, betaincinv

from nap_stream.core.tails import FlagRateLaw


def flag_rate_interval(k: int, m: int, confidence: float) -> tuple[float, float]:
    """Give the equal-tailed interval of the true flag rate of in-distribution images.

    Over the draw of the calibration set, the rate at which a threshold flags images with
    continuous iid scores is a Beta(k, m + 1 - k) variable, not alpha. The rank k >= 1 is from
    `nap_stream.core.conformal.Rule.flag_rank`, m the size of the calibration set. The interval
    holds the rate with a probability of ``confidence``, in (0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
    tail = (1 - confidence) / 2
    return upper_flag_rate(k, m, tail), upper_flag_rate(k, m, 1 - tail)


def upper_flag_rate(k: int, m: int, confidence: float) -> float:
    """Give ``p_U``, which the true flag rate exceeds for a share 1 - confidence of calibrations.

    The arguments are those of `flag_rate_interval`.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 1 <= k <= m:
        raise ValueError(f"expected 1 <= k <= m, got {k = }, {m = }: too few calibration scores")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
    return float(betaincinv(k, m + 1 - k, confidence))


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

    ``probability``, in (0, 1), is that of reaching the limit by chance, for one window, over the
    draw of the calibration set and of the records; the rest is as in `tail_probabilities`.

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

    The limit keeps the probability under each of the laws, of which there is at least one. Which
    one has it depends on n and the probability: a small calibration set has the fatter tail, a
    large one may have the higher mean. Of equal limits, that of the smallest rank counts.

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


def scan_exceedance(n: int, q: int, p: float) -> float:
    """Give 1 - Q2: the probability that one of the windows in 2n records holds q flags or more.

    A window has n >= 1 records and the limit 1 <= q <= n; the flag rate p is in (0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    if not (1 <= q <= n and 0 < p < 1):
        raise ValueError(f"expected 1 <= q <= n and 0 < p < 1, got {n = }, {q = }, {p = }")
    above = float(betainc(q, n - q + 1, p))
    exactly = above - (float(betainc(q + 1, n - q, p)) if q < n else 0.0)
    shared = (q - 1) * _binomial_cdf(q - 2, n, p)
    if n > 1:
        shared -= n * p * _binomial_cdf(q - 3, n - 1, p)
    # Written as 1 - F^2 = sf (2 - sf), so that small probabilities keep their digits.
    return min(1.0, above * (2 - above) + exactly * shared)


# scipy.stats takes 35 times as long for a single number, and a second of each process to import.
# scipy.special's bdtr and bdtrc lose digits far out, up to 4 % of the tail.
def _binomial_cdf(x: int, n: int, p: float) -> float:
    """P(X <= x) of n trials, for x < n."""
    return float(betaincc(x + 1, n - x, p)) if x >= 0 else 0.0


def scan_run_length(n: int, q: int, p: float) -> float:
    """Give a lower bound on the average run length, in records, of a window that fires at q flags.

    It is ``n / (1 - Q2)``, see the module; infinity where 1 - Q2 is too small for a float.
    """
    exceedance = scan_exceedance(n, q, p)
    return n / exceedance if exceedance > 0 else float("inf")


def scan_limit(n: int, p: float, run_length: float) -> int:
    """Give the smallest q at which a rolling window of n records has at least the run length.

    ``run_length`` is the least average number of records between false alarms; n >= 1, and p in
    (0, 1) is the flag rate of in-distribution records.

    Returns:
        A count in [1, n + 1]; n + 1 where no count of flags is so rare.

    Raises:
        ValueError: An argument is out of range.
    """
    if not run_length >= 1:
        raise ValueError(f"expected a run length of at least 1, got {run_length = }")
    low, high = 1, n + 1
    while low < high:
        middle = (low + high) // 2
        if scan_run_length(n, middle, p) >= run_length:
            high = middle
        else:
            low = middle + 1
    return low
