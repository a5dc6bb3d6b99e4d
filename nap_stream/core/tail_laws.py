"""What the rate of a tail of the p-values may be, over the draw of the calibration images.

Let s_(1) <= … <= s_(m) be the calibration scores and k the rank of the edge u, the largest with
k / (m + 1) <= u. Write scores as quantiles F^-(U) of uniform variables, so that s_(i) is
F^-(U_(i)), and U_(i) is Beta(i, m + 1 - i). One-sided, with p = (1 + #{s_i <= s}) / (m + 1):

- ``p <= u`` is {s < s_(k)}. Its rate is at most U_(k), which is Beta(k, m + 1 - k); equal to it
  where F is continuous. Ties make p larger, and this rate smaller.
- ``p > u`` is {s >= s_(k)}. Where F is continuous its rate is 1 - U_(k): Beta(m + 1 - k, k). Where
  s_(k) is tied, the event holds the whole tie, below rank k too, and its rate is larger than
  that. Of the j scores strictly below s_(k), s_(j) is the last, and {s >= s_(k)} lies in
  {s > s_(j)}: its rate is at most 1 - U_(j), Beta(m + 1 - j, j). Though j depends on the draw,
  the quantile q_j of that law at a confidence c is exceeded with a probability of at most 1 - c.
  For an exceedance means that G(v) = P(s < v), at v = s_(k), is below 1 - q_j; since j < k, then
  G(v) < 1 - q_(k-1). Let w be the largest value with that. Either v = w; or v < w, and so k
  scores or more are below w. In both cases the number of scores below w is one that a binomial
  variable of m trials at G(w) reaches with a probability of at most 1 - c.

Two-sided p-values have half of the rank at each end, k = 2h: ``p <= u`` is {s < s_(h)} or
{s > s_(m+1-h)}, and ``p > u`` what lies between, both ends with it. The same laws hold with the
ranks of both ends added up, because the gaps of the U_(i) are exchangeable; with a tie at an end
that is simulated (tests/core/test_tail_laws.py) and not proven.

A score that occurs once counts as one of a continuous F.
"""

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.bounds import FlagRateLaw
from nap_stream.core.conformal import flag_rank
from nap_stream.core.tail_events import TailEvent


def tail_law(
    event: TailEvent, ascending: NDArray[np.float64], *, two_sided: bool
) -> FlagRateLaw | None:
    """Give the law of a tail's rate; of one that is no smaller, where scores are tied.

    Args:
        event: The tail.
        ascending: Calibration scores, float64 (m,), ascending, m >= 1.
        two_sided: Whether p-values are small at either end of the scores.

    Returns:
        None where m is too small for the edge, or the tail may hold everything.
    """
    m = len(ascending)
    ends = [ascending, -ascending[::-1]] if two_sided else [ascending]
    rank = flag_rank(event.edge / len(ends), m)
    if rank < 1:
        return None
    if not event.upper:
        return FlagRateLaw(rank * len(ends), m)
    outside = sum(_rank_outside(end, rank) for end in ends)
    return FlagRateLaw(m + 1 - outside, m) if outside else None


def _rank_outside(ascending: NDArray[np.float64], rank: int) -> int:
    edge = ascending[rank - 1]
    below, at_most = (int(np.searchsorted(ascending, edge, side)) for side in ("left", "right"))
    return rank if at_most - below == 1 else below
