"""Methods: which score of an image is calibrated and flagged.

A method is the Neural Activation Prior alone, a base score alone, or several together:

- ``auto``, the default: the sum of weighted log p-values of several scores, the prior among them,
  all one-sided. `nap_stream.core.selection` chooses scores and weights.
- ``nap-<base>``: the weighted geometric mean of arXiv 2402.18162, section 3.3, one-sided. The
  paper's NAP-M, -E, -R, -A, -D and -K are ``nap-msp``, ``nap-energy``, ``nap-react``,
  ``nap-ash``, ``nap-dice`` and ``nap-knn``.
- ``fisher-<base>``: ``w log p_base + (1 - w) log p_nap`` (Good's weighting of Fisher's sum),
  where NAP's p-value is two-sided: an image whose prior is higher than that of all
  in-distribution images is as suspicious as one whose prior is lower. The sum's own p-value is
  taken against a calibration set.

All are higher for in-distribution images.

The terms of these sums are smoothed p-values against a reference sample. A conformal p-value
against r reference scores takes r + 1 values, the smallest 1 / (r + 1). In a sum of logarithms
that makes ties, and a least value that no image can go below: a threshold that stands there
flags nothing. So between the references these p-values are interpolated, and beyond them they
fall on as the tail of a generalised Pareto distribution of shape 1, whose scale is the mean
excess of the outer tenth. They need not be valid: the sum that they go into is only a score.

Nothing here needs torch or SciPy, which take seconds to import: settings name methods.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nap_stream.core.score_specs import BaseScore

NAP = "nap"
"""The prior's name among the values of an image."""

_LABELS = {
    BaseScore.MSP: ("MSP", "M"),
    BaseScore.MAX_LOGIT: ("MaxLogit", "L"),
    BaseScore.ENERGY: ("Energy", "E"),
    BaseScore.REACT: ("ReAct", "R"),
    BaseScore.ASH: ("ASH", "A"),
    BaseScore.SCALE: ("SCALE", "S"),
    BaseScore.DICE: ("DICE", "D"),
    BaseScore.KNN: ("KNN", "K"),
    BaseScore.FDBD: ("fDBD", None),
    BaseScore.MAHALANOBIS: ("Mahalanobis", None),
    BaseScore.GEN: ("GEN", None),
    BaseScore.NCI: ("NCI", None),
}
"""In a paper's table: the base score's name, and its letter after NAP-; None where no method puts
it together with NAP alone."""

AUTO = "auto"
POOL = (BaseScore.MSP, BaseScore.ENERGY, BaseScore.FDBD, BaseScore.MAHALANOBIS)
"""The base scores that the default method chooses among, beside NAP."""


OUTER_SHARE = 0.1
"""Of the references, from which the scale beyond them is taken."""
_SMALLEST = float(np.finfo(np.float64).tiny)

Values = Mapping[str, NDArray[np.floating]]


class Combination(StrEnum):
    """How NAP and a base score are put together."""

    ALONE = "alone"
    GEOMETRIC = "nap"
    FISHER = "fisher"
    SUM = AUTO


@dataclass(frozen=True, slots=True)
class Method:
    """How an image gets its one score. ``base`` is null for NAP alone, and for a sum of many."""

    base: BaseScore | None
    combination: Combination

    def __post_init__(self) -> None:
        takes_pair = self.combination in _PAIRS
        if takes_pair if self.base is None else self.combination is Combination.SUM:
            raise ValueError(f"{self.combination} does not go with the base score {self.base}")

    def __str__(self) -> str:
        if self.base is None:
            return NAP if self.combination is Combination.ALONE else AUTO
        if self.combination is Combination.ALONE:
            return str(self.base)
        return f"{self.combination}-{self.base}"

    @property
    def label(self) -> str:
        """The name in a paper's table, such as NAP-E."""
        if self.base is None:
            return "NAP" if self.combination is Combination.ALONE else "Auto"
        name, letter = _LABELS[self.base]
        if self.combination is Combination.ALONE:
            return name
        prefix = "NAP" if self.combination is Combination.GEOMETRIC else "Fisher"
        return f"{prefix}-{letter}"

    @property
    def candidates(self) -> tuple[BaseScore, ...]:
        """The base scores that it may take: one or none, but several for the sum."""
        if self.combination is Combination.SUM:
            return POOL
        return () if self.base is None else (self.base,)

    @property
    def has_weight(self) -> bool:
        """Whether the method weighs NAP against its base score."""
        return self.combination in _PAIRS

    @property
    def selects(self) -> bool:
        """Whether scores and their weights are chosen for each model."""
        return self.combination is Combination.SUM

    @property
    def needs_location(self) -> bool:
        """Whether the base score must be positive, and so may have to be moved."""
        return self.combination is Combination.GEOMETRIC

    @property
    def needs_reference(self) -> bool:
        """Whether the method takes p-values against a reference sample."""
        return self.combination in {Combination.FISHER, Combination.SUM}


_PAIRS = frozenset({Combination.GEOMETRIC, Combination.FISHER})


def parse_method(name: str) -> Method:
    """Read a method's name; a ValueError of another names those there are."""
    if name not in _BY_NAME:
        raise ValueError(f"expected one of {', '.join(_BY_NAME)}, got {name!r}")
    return _BY_NAME[name]


def every_method() -> tuple[Method, ...]:
    """All methods: the default, NAP, the base scores, the geometric means, Fisher's sums."""
    return (
        Method(None, Combination.SUM),
        Method(None, Combination.ALONE),
        *(Method(base, Combination.ALONE) for base in BaseScore),
        *(
            Method(base, combination)
            for combination in (Combination.GEOMETRIC, Combination.FISHER)
            for base, (_, letter) in _LABELS.items()
            if letter is not None
        ),
    )


_BY_NAME = {str(method): method for method in every_method()}


class MethodScorer:
    """Gives images their one score by a method. What does not depend on them is computed once.

    Args:
        method: How.
        weight: The base score's, in [0, 1]; the rest is NAP's. None where the method has none.
        location: What is subtracted from the base score before it is fused by the geometric
            mean: the mean logit of in-distribution images, 0 for scores that are positive.
        reference: In-distribution NAP and base scores by name, each float64 (r,), ascending,
            of images other than those scored. Unused where the method takes no p-values.
        weights: Of the scores that the sum takes, by name. None for other methods.

    Raises:
        KeyError: A reference is missing.
        ValueError: The weight, or the weights, are missing or out of range; see `LogP`, too.
    """

    def __init__(
        self,
        method: Method,
        *,
        weight: float | None,
        location: float,
        reference: Mapping[str, NDArray[np.float64]],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._method, self._location = method, location
        self._weight, self._weights = weight or 0.0, dict(weights or {})
        if method.selects and (not weights or min(weights.values()) <= 0):
            raise ValueError(f"expected weights above 0 for {method}, got {weights}")
        if method.has_weight and (weight is None or not 0 <= weight <= 1):
            raise ValueError(f"expected a weight in [0, 1] for {method}, got {weight}")
        self._log_p: dict[str, Callable[[NDArray[np.floating]], NDArray[np.float64]]] = {}
        if method.selects:
            self._log_p = {name: LogP(reference[name]) for name in self._weights}
        elif method.base is not None and method.needs_reference:
            self._log_p = {
                method.base: LogP(reference[method.base]),
                NAP: TwoSidedLogP(reference[NAP]),
            }
            self._weights = {method.base: self._weight, NAP: 1 - self._weight}

    def __call__(self, values: Values) -> NDArray[np.float64]:
        """Score N images, given NAP and base scores by name, each (N,), of any float dtype.

        Returns:
            float64 (N,), higher = in-distribution; NaN where a value is NaN. The sums are <= 0.

        Raises:
            KeyError: A value is missing.
        """
        method = self._method
        if terms := self.terms(values):
            summed: NDArray[np.float64]
            summed = np.sum([weight * log_p for weight, log_p in terms.values()], axis=0)
            return summed
        if method.base is None:
            return np.asarray(values[NAP], dtype=np.float64)
        base = np.asarray(values[method.base], dtype=np.float64)
        if not method.has_weight:
            return base
        return fuse(base - self._location, values[NAP], self._weight)

    def terms(self, values: Values) -> dict[str, tuple[float, NDArray[np.float64]]]:
        """The terms of a sum by the score's name: its weight, and its log p-values, each (N,).

        Empty for methods that sum no p-values.
        """
        return {
            name: (self._weights[name], log_p(values[name])) for name, log_p in self._log_p.items()
        }


def method_scores(
    method: Method,
    values: Values,
    *,
    weight: float | None,
    location: float,
    reference: Mapping[str, NDArray[np.float64]],
    weights: Mapping[str, float] | None = None,
) -> NDArray[np.float64]:
    """Give each of N images its one score, once: see `MethodScorer`."""
    scorer = MethodScorer(
        method, weight=weight, location=location, reference=reference, weights=weights
    )
    return scorer(values)


def fuse(base: ArrayLike, nap: ArrayLike, weight: float) -> NDArray[np.float64]:
    """Weighted geometric mean ``base ** weight * nap ** (1 - weight)``.

    The base score of the paper is positive. Energy (logsumexp of the logits) can be <= 0, which
    has no fractional power. So calibration takes the mean logit of in-distribution images off
    it first: a constant that the softmax does not see, 0 where the logits are centred
    (docs/negative-energies.md). What is still <= 0 is taken as the smallest positive normal
    float64, so that order is kept weakly and the image scores as far out-of-distribution as can
    be. For the same reason a NAP score below 0 is taken as 0. NaN in either gives NaN, at any
    weight.

    Both scores are (N,), of any float dtype, higher = in-distribution. A weight in [0, 1] of 0
    gives ``nap``, of 1 ``base``.

    Returns:
        float64 (N,), higher = in-distribution, monotone in both scores.

    Raises:
        ValueError: The shapes differ or the weight is out of range.
    """
    wide_base, wide_nap = (np.asarray(values, dtype=np.float64) for values in (base, nap))
    if wide_base.shape != wide_nap.shape:
        raise ValueError(f"expected equal shapes, got {wide_base.shape} and {wide_nap.shape}")
    if not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in [0, 1], got {weight}")
    fused = np.maximum(wide_base, _SMALLEST) ** weight * np.maximum(wide_nap, 0.0) ** (1 - weight)
    return np.where(np.isnan(wide_base) | np.isnan(wide_nap), np.nan, fused)


class LogP:
    """Log of the share of in-distribution images that score as low, continued beyond them.

    At the i-th smallest of r references it is ``log(i / (r + 1))``, linear in p between two.
    Below the smallest, x_1, it is ``-log(r + 1) - log(1 + (x_1 - x) / s)``; above the largest
    likewise towards 0, by the upper end.

    References are ascending, float64 (r,), r >= 2, finite.

    Raises:
        ValueError: There are fewer than two references, or they are not ascending or hold NaN.
    """

    def __init__(self, reference: NDArray[np.float64]) -> None:
        r = len(reference)
        # NaN compares false, so this finds NaN too.
        if r < 2 or not np.all(reference[:-1] <= reference[1:]):  # noqa: PLR2004  a scale needs two
            raise ValueError(
                f"expected two or more reference scores, ascending without NaN, got {r}"
            )
        self._reference, self._count = reference, r + 1
        self._p = np.arange(1, r + 1) / (r + 1)
        self._low, self._high = float(reference[0]), float(reference[-1])
        self._low_scale, self._high_scale = _scale(reference), _scale(-reference[::-1])

    def __call__(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Take scores of any float dtype and shape.

        Returns:
            float64 of the shape of ``scores``, <= 0, increasing in the score (strictly wherever
            the references differ); NaN where the score is NaN.
        """
        wide = np.asarray(scores, dtype=np.float64)
        below = np.maximum(self._low - wide, 0) / self._low_scale
        above = np.maximum(wide - self._high, 0) / self._high_scale
        inside = np.interp(wide, self._reference, self._p)
        log_inside = np.log(inside) - np.log1p(below)
        smoothed: NDArray[np.float64] = np.where(
            above > 0, np.log1p(-1 / (self._count * (1 + above))), log_inside
        )
        return smoothed


class TwoSidedLogP:
    """Log of twice the smaller p-value of both directions, at most 0: see `LogP`.

    It is 0 at the references' median, and falls to either side.
    """

    def __init__(self, reference: NDArray[np.float64]) -> None:
        self._low, self._high = LogP(reference), LogP(-reference[::-1])

    def __call__(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Take scores of any float dtype and shape; see `LogP`."""
        wide = np.asarray(scores, dtype=np.float64)
        smaller: NDArray[np.float64] = np.log(2) + np.minimum(self._low(wide), self._high(-wide))
        return np.minimum(0.0, smaller)


def _scale(reference: NDArray[np.float64]) -> float:
    """Mean excess of the lower tenth below its largest; 1 where they are all the same."""
    outer = reference[: max(2, int(np.ceil(OUTER_SHARE * len(reference))))]
    return float(np.mean(outer[-1] - outer[:-1])) or 1.0
