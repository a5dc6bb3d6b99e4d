"""From scores to conformal p-values and flags, and what a finite calibration set leaves uncertain.

Split-conformal theory: Bates et al., "Testing for outliers with conformal p-values", Annals of
Statistics 51 (2023), arXiv 2104.08279; the law of the flag rate given the calibration set:
Angelopoulos and Bates, "Conformal prediction: a gentle introduction", section 3.2.

The rate of a tail of the p-values, over the draw of the calibration images, has a law of its own
(`ConformalTest.tail_laws`). Let s_(1) <= … <= s_(m) be the calibration scores and k the rank of the
edge u, the largest with k / (m + 1) <= u. Write scores as quantiles F^-(U) of uniform variables,
so that s_(i) is F^-(U_(i)), and U_(i) is Beta(i, m + 1 - i). One-sided, with
p = (1 + #{s_i <= s}) / (m + 1):

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
that is simulated (tests/core/test_tails.py) and not proven.

A score that occurs once counts as one of a continuous F.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.bounds import flag_rate_interval, upper_flag_rate
from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw, Sides, TailEvent
from nap_stream.text import listed

_WEAKEST_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Rule:
    """When an image is flagged: where its conformal p-value is at most ``alpha``, in (0, 1).

    ``per_class`` compares an image with the calibration images of the class that the model
    predicts for it (Mondrian conformal prediction, Vovk et al., "Algorithmic learning in a
    random world", section 4.5): alpha then holds for each class on its own.
    """

    alpha: float
    sides: Sides = Sides.ONE
    per_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"expected 0 < alpha < 1, got {self.alpha = }")

    @property
    def ends(self) -> int:
        """At how many ends of the scores images are flagged, each at ``alpha / ends``."""
        return 1 if self.sides is Sides.ONE else 2

    @property
    def required_size(self) -> int:
        """The smallest calibration set (per class: of each class) that can flag anything."""
        return required_size(self.alpha / self.ends)

    def flag_rank(self, m: int) -> int:
        """How many of the m + 1 ranks are flagged, half of two-sided ones an end: k.

        It is 0 where m is too small. The true flag rate is Beta(k, m + 1 - k), two-sided as
        one-sided: the gaps between m uniform order statistics are exchangeable, so that any k of
        the m + 1 have that law together.
        """
        return self.ends * flag_rank(self.alpha / self.ends, m)


@dataclass(frozen=True, slots=True)
class Group:
    """The calibration images that an image is compared with.

    ``class_id`` is null where they are all of them. An image is flagged exactly where its score
    is below ``lower``, or above ``upper`` (null where the rule has one side). The true flag rate
    is Beta(flag_rank, size + 1 - flag_rank) over the draw of the calibration images.
    """

    class_id: int | None
    size: int
    flag_rank: int
    lower: float
    upper: float | None

    def flag_rate_interval(self, confidence: float) -> tuple[float, float]:
        """See `nap_stream.core.bounds.flag_rate_interval`."""
        return flag_rate_interval(self.flag_rank, self.size, confidence)


class ConformalTest:
    """Gives images their conformal p-values by a rule.

    ``scores`` are those of the calibration images, float64 (m,), finite, in any order; ``class_id``
    is the predicted class of each, int64 (m,), in [0, classes).

    Raises:
        ValueError: The shapes differ, a score is not finite, the rule is per class and a class
            is out of range, or a group is too small to flag anything; says which and how many
            images are needed.
    """

    def __init__(
        self, rule: Rule, scores: NDArray[np.float64], class_id: NDArray[np.int64], classes: int
    ) -> None:
        if scores.ndim != 1 or scores.shape != class_id.shape or not np.isfinite(scores).all():
            raise ValueError(
                f"expected finite scores and classes of one shape (m,), "
                f"got {scores.shape} and {class_id.shape}"
            )
        if rule.per_class:
            _require_classes(class_id, classes)
        self._rule = rule
        self._sorted = dict(_sorted_groups(rule, scores, class_id, classes))
        _require_sizes(rule, self._sorted)
        self.groups = tuple(_group(rule, *item) for item in self._sorted.items())

    @property
    def weakest(self) -> Group:
        """The group whose flag rate may be highest, by the upper 95 % quantile of its law.

        Often the smallest, not always: at an alpha of 0.05, one of 39 images flags two ranks and
        may well exceed one of 38, which flags a single rank. At another confidence it may be
        another group, so bounds on windows come from all of them: see
        `nap_stream.core.bounds.highest_flag_limit`.
        """
        return max(
            self.groups,
            key=lambda group: upper_flag_rate(group.flag_rank, group.size, _WEAKEST_CONFIDENCE),
        )

    def tail_laws(self) -> tuple[tuple[FlagRateLaw, ...], ...]:
        """Give the laws of the rates of `TAIL_EVENTS`, in their order, over the groups.

        Distinct and ascending; none for an event that some group has no law for.
        """
        two_sided = self._rule.sides is Sides.TWO
        found = []
        for event in TAIL_EVENTS:
            laws = [tail_law(event, s, two_sided=two_sided) for s in self._sorted.values()]
            known = {law for law in laws if law is not None}
            found.append(() if None in laws else tuple(sorted(known)))
        return tuple(found)

    def p_values(
        self, scores: NDArray[np.float64], class_id: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Give conformal p-values, small = out-of-distribution; NaN where the score is NaN.

        Scores are float64 (N,), predicted classes int64 (N,).

        Raises:
            ValueError: The shapes differ, or the rule is per class and a class is out of range.
        """
        if scores.shape != class_id.shape:
            raise ValueError(f"expected one shape (N,), got {scores.shape} and {class_id.shape}")
        compare = _p_values if self._rule.sides is Sides.ONE else _two_sided_p_values
        if not self._rule.per_class:
            return compare(self._sorted[None], scores)
        _require_classes(class_id, len(self.groups))
        found = np.full(scores.shape, np.nan)
        for number in np.unique(class_id):
            of_class = class_id == number
            found[of_class] = compare(self._sorted[int(number)], scores[of_class])
        return found


def _require_classes(class_id: NDArray[np.int64], classes: int) -> None:
    outside = class_id[(class_id < 0) | (class_id >= classes)]
    if len(outside):
        raise ValueError(f"expected classes in [0, {classes}), got {outside[0]}")


def _sorted_groups(
    rule: Rule, scores: NDArray[np.float64], class_id: NDArray[np.int64], classes: int
) -> Iterator[tuple[int | None, NDArray[np.float64]]]:
    if not rule.per_class:
        yield None, np.sort(scores)
        return
    for number in range(classes):
        yield number, np.sort(scores[class_id == number])


def _require_sizes(rule: Rule, groups: dict[int | None, NDArray[np.float64]]) -> None:
    needed = rule.required_size
    small = {number: len(scores) for number, scores in groups.items() if len(scores) < needed}
    if not small:
        return
    alpha = f"{'a two-sided' if rule.sides is Sides.TWO else 'an'} alpha of {rule.alpha:g}"
    if None in small:
        raise ValueError(
            f"{small[None]} calibration images can flag nothing at {alpha}: "
            f"at least {needed} are needed"
        )
    named = listed([f"class {number} has {size}" for number, size in small.items()], 5)
    raise ValueError(
        f"{alpha} per class needs at least {needed} calibration images of each predicted class: "
        f"{named}"
    )


def _group(rule: Rule, number: int | None, ascending: NDArray[np.float64]) -> Group:
    m, alpha = len(ascending), rule.alpha / rule.ends
    upper = -threshold(-ascending[::-1], alpha) if rule.sides is Sides.TWO else None
    return Group(number, m, rule.flag_rank(m), threshold(ascending, alpha), upper)


def p_values(
    sorted_scores: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Conformal p-values, small for out-of-distribution images.

    ``p = (1 + #{calibration scores <= score}) / (m + 1)``: a calibration score that ties with
    the score counts as at least as out-of-distribution, which can only lower the flag rate.

    Args:
        sorted_scores: float64 (m,), ascending: scores of in-distribution images that the
            model was not trained on. Higher is more in-distribution.
        scores: Any float dtype and shape. Compared in float64.

    Returns:
        float64 of the shape of ``scores``, in [1 / (m + 1), 1]; NaN where the score is NaN.

    Raises:
        ValueError: ``sorted_scores`` is empty, not one-dimensional, not ascending or holds NaN.
    """
    _check_calibration(sorted_scores)
    return _p_values(sorted_scores, scores)


def _p_values(
    sorted_scores: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    wide = np.asarray(scores, dtype=np.float64)
    at_most = np.searchsorted(sorted_scores, wide, side="right")
    p = (1 + at_most) / (len(sorted_scores) + 1)
    return np.where(np.isnan(wide), np.nan, p)


def two_sided_p_values(
    sorted_scores: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Conformal p-values that are small for a score at either end of the calibration scores.

    Twice the smaller of the p-values towards either side, at most 1. The rank of an exchangeable
    score among the m + 1 is uniform, so that ``P(p <= alpha) = 2 floor(alpha (m + 1) / 2) /
    (m + 1)`` where scores are continuous: see `Rule.flag_rank`.

    The arguments are those of `p_values`.

    Returns:
        float64 of the shape of ``scores``, in [2 / (m + 1), 1]; NaN where the score is NaN.

    Raises:
        ValueError: See `p_values`.
    """
    _check_calibration(sorted_scores)
    return _two_sided_p_values(sorted_scores, scores)


def _two_sided_p_values(
    sorted_scores: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    wide, m = np.asarray(scores, dtype=np.float64), len(sorted_scores)
    at_most = np.searchsorted(sorted_scores, wide, side="right")
    at_least = m - np.searchsorted(sorted_scores, wide, side="left")
    p = np.minimum(1.0, 2 * ((1 + np.minimum(at_most, at_least)) / (m + 1)))
    return np.where(np.isnan(wide), np.nan, p)


def flag_rank(alpha: float, m: int) -> int:
    """``k = floor(alpha (m + 1))``: an image is flagged if at most ``k - 1`` scores are below.

    Computed as the largest ``k`` whose p-value ``k / (m + 1)`` is ``<= alpha`` in float64, so
    that rounding cannot contradict `p_values`: ``flag_rank(0.05, 19)`` is 1. An image is flagged at
    and below the p-value ``alpha``, in (0, 1); m >= 1 is the size of the calibration set.

    Raises:
        ValueError: ``alpha`` or ``m`` is out of range.
    """
    if not (0 < alpha < 1 and m >= 1):
        raise ValueError(f"expected 0 < alpha < 1 and m >= 1, got {alpha = }, {m = }")
    k = math.floor(alpha * (m + 1)) + 1
    while k / (m + 1) > alpha:
        k -= 1
    return k


def required_size(alpha: float) -> int:
    """Give the smallest calibration set that can flag anything: the least m with a rank of 1.

    For two-sided p-values that is ``required_size(alpha / 2)``.

    Raises:
        ValueError: ``alpha`` is not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"expected 0 < alpha < 1, got {alpha = }")
    m = max(1, math.ceil(1 / alpha) - 2)
    while flag_rank(alpha, m) < 1:
        m += 1
    return m


def threshold(sorted_scores: NDArray[np.float64], alpha: float) -> float:
    """Give the score below which an image is flagged: ``p <= alpha`` exactly if ``score < t``.

    It is the k-th smallest calibration score, with k from `flag_rank`.

    Returns:
        The threshold; minus infinity where the calibration set is too small to flag anything.

    Raises:
        ValueError: See `p_values` and `flag_rank`.
    """
    _check_calibration(sorted_scores)
    k = flag_rank(alpha, len(sorted_scores))
    return float(sorted_scores[k - 1]) if k else -math.inf


def tail_law(
    event: TailEvent, ascending: NDArray[np.float64], *, two_sided: bool
) -> FlagRateLaw | None:
    """Give the law of a tail's rate; where scores are tied, that of a tail that is no smaller.

    ``ascending`` are the calibration scores, float64 (m,), m >= 1. There is no law where m is too
    small for the edge, or the tail may hold everything.
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


def _check_calibration(sorted_scores: NDArray[np.float64]) -> None:
    if sorted_scores.ndim != 1 or not len(sorted_scores):
        raise ValueError(f"expected scores of shape (m,), m >= 1, got {sorted_scores.shape}")
    # NaN compares false, so this finds NaN too, except alone.
    ascending = np.all(sorted_scores[:-1] <= sorted_scores[1:])
    if not ascending or np.isnan(sorted_scores[0]):
        raise ValueError("expected calibration scores in ascending order, without NaN")
