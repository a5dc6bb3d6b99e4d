"""From scores to p-values and flags: one- or two-sided, over all images or per class."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.bounds import FlagRateLaw
from nap_stream.core.conformal import (
    flag_rank,
    flag_rate_interval,
    p_values,
    required_size,
    threshold,
    two_sided_flag_rank,
    two_sided_p_values,
    upper_flag_rate,
)
from nap_stream.core.tail_events import TAIL_EVENTS
from nap_stream.core.tail_laws import tail_law

_WEAKEST_CONFIDENCE = 0.95


class Sides(StrEnum):
    """Which scores are flagged: low ones, or those at either end."""

    ONE = "one"
    TWO = "two"


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
    def required_size(self) -> int:
        """The smallest calibration set (per class: of each class) that can flag anything."""
        return required_size(self.alpha if self.sides is Sides.ONE else self.alpha / 2)

    def flag_rank(self, m: int) -> int:
        """How many of the m + 1 ranks are flagged; 0 where m is too small."""
        return (
            flag_rank(self.alpha, m)
            if self.sides is Sides.ONE
            else two_sided_flag_rank(self.alpha, m)
        )


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
        """See `nap_stream.core.conformal.flag_rate_interval`."""
        return flag_rate_interval(self.flag_rank, self.size, confidence)


class Judge:
    """Gives images their conformal p-values by a rule.

    Args:
        rule: The rule.
        scores: Calibration scores, float64 (m,), finite, in any order.
        class_id: Predicted class of each, int64 (m,), in [0, classes).
        classes: How many classes the model has.

    Raises:
        ValueError: The shapes differ, a score is not finite, the rule is per class and a class
            is out of range, or a group is too small to flag anything; says which and how many
            images are needed.
    """

    def __init__(
        self,
        rule: Rule,
        scores: NDArray[np.float64],
        class_id: NDArray[np.int64],
        classes: int,
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

        Distinct and ascending; none for an event that some group has no law for: see
        `nap_stream.core.tail_laws`.
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

        Args:
            scores: float64 (N,).
            class_id: Predicted classes, int64 (N,).

        Raises:
            ValueError: The shapes differ, or the rule is per class and a class is out of range.
        """
        if scores.shape != class_id.shape:
            raise ValueError(f"expected one shape (N,), got {scores.shape} and {class_id.shape}")
        compare = p_values if self._rule.sides is Sides.ONE else two_sided_p_values
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
    listed = ", ".join(f"class {number} has {size}" for number, size in list(small.items())[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""  # noqa: PLR2004  as listed
    raise ValueError(
        f"{alpha} per class needs at least {needed} calibration images of each predicted class: "
        f"{listed}{more}"
    )


def _group(rule: Rule, number: int | None, ascending: NDArray[np.float64]) -> Group:
    m = len(ascending)
    if rule.sides is Sides.ONE:
        return Group(number, m, rule.flag_rank(m), threshold(ascending, rule.alpha), None)
    upper = -threshold(-ascending[::-1], rule.alpha / 2)
    return Group(number, m, rule.flag_rank(m), threshold(ascending, rule.alpha / 2), upper)
