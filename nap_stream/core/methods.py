"""The fused score: a base score and the Neural Activation Prior (arXiv 2402.18162, section 3.3).

Methods: which score of an image is calibrated and flagged.

A method is the Neural Activation Prior alone, a base score alone, or both together:

- ``nap-<base>``: the weighted geometric mean of arXiv 2402.18162, section 3.3, one-sided. The
  paper's NAP-M, -E, -R, -A, -D and -K are ``nap-msp``, ``nap-energy``, ``nap-react``,
  ``nap-ash``, ``nap-dice`` and ``nap-knn``.
- ``fisher-<base>``: ``w log p_base + (1 - w) log p_nap`` (Good's weighting of Fisher's sum),
  where NAP's p-value is two-sided: an image whose prior is higher than that of all
  in-distribution images is as suspicious as one whose prior is lower. The p-values are taken
  against a reference sample, smoothed (`nap_stream.core.tails`); the sum's own p-value against a
  calibration set.

All are higher for in-distribution images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nap_stream.core.score_specs import BaseScore
from nap_stream.core.tails import log_p, log_two_sided_p

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


NAP = "nap"
"""The prior's name among the values of an image."""

_LETTERS = {
    BaseScore.MSP: "M",
    BaseScore.MAX_LOGIT: "L",
    BaseScore.ENERGY: "E",
    BaseScore.REACT: "R",
    BaseScore.ASH: "A",
    BaseScore.SCALE: "S",
    BaseScore.DICE: "D",
    BaseScore.KNN: "K",
}
_BASE_LABELS = {
    BaseScore.MSP: "MSP",
    BaseScore.MAX_LOGIT: "MaxLogit",
    BaseScore.ENERGY: "Energy",
    BaseScore.REACT: "ReAct",
    BaseScore.ASH: "ASH",
    BaseScore.SCALE: "SCALE",
    BaseScore.DICE: "DICE",
    BaseScore.KNN: "KNN",
}


class Combination(StrEnum):
    """How NAP and a base score are put together."""

    ALONE = "alone"
    GEOMETRIC = "nap"
    FISHER = "fisher"


@dataclass(frozen=True, slots=True)
class Method:
    """A way to one score an image. ``base`` is null for NAP alone."""

    base: BaseScore | None
    combination: Combination

    def __post_init__(self) -> None:
        if self.base is None and self.combination is not Combination.ALONE:
            raise ValueError("a combination needs a base score")

    def __str__(self) -> str:
        if self.base is None:
            return NAP
        if self.combination is Combination.ALONE:
            return str(self.base)
        return f"{self.combination}-{self.base}"

    @property
    def label(self) -> str:
        """The name in a paper's table, such as NAP-E."""
        if self.base is None:
            return "NAP"
        if self.combination is Combination.ALONE:
            return _BASE_LABELS[self.base]
        prefix = "NAP" if self.combination is Combination.GEOMETRIC else "Fisher"
        return f"{prefix}-{_LETTERS[self.base]}"

    @property
    def has_weight(self) -> bool:
        """Whether the method weighs NAP against its base score."""
        return self.combination is not Combination.ALONE

    @property
    def needs_location(self) -> bool:
        """Whether the base score must be positive, and so may have to be moved."""
        return self.combination is Combination.GEOMETRIC

    @property
    def needs_reference(self) -> bool:
        """Whether the method takes p-values against a reference sample."""
        return self.combination is Combination.FISHER


def parse_method(name: str) -> Method:
    """Read a method's name.

    Raises:
        ValueError: There is no such method; names those there are.
    """
    if name not in _BY_NAME:
        raise ValueError(f"expected one of {', '.join(_BY_NAME)}, got {name!r}")
    return _BY_NAME[name]


def every_method() -> tuple[Method, ...]:
    """All methods: NAP, the base scores, the geometric means, Fisher's sums."""
    return (
        Method(None, Combination.ALONE),
        *(Method(base, combination) for combination in Combination for base in BaseScore),
    )


_BY_NAME = {str(method): method for method in every_method()}


def method_scores(
    method: Method,
    values: Mapping[str, NDArray[np.floating]],
    *,
    weight: float | None,
    location: float,
    reference: Mapping[str, NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Give each image its one score.

    Args:
        method: How.
        values: NAP and base scores by name, each (N,), any float dtype.
        weight: The base score's, in [0, 1]; the rest is NAP's. None where the method has none.
        location: What is subtracted from the base score before it is fused by the geometric
            mean: the mean logit of in-distribution images, 0 for scores that are positive.
        reference: In-distribution NAP and base scores by name, each float64 (r,), ascending,
            of images other than those scored. Unused where the method takes no p-values.

    Returns:
        float64 (N,), higher = in-distribution; NaN where a value is NaN. Fisher's sum is <= 0.

    Raises:
        KeyError: A value or reference is missing.
        ValueError: The weight is missing or out of range.
    """
    if method.base is None:
        return np.asarray(values[NAP], dtype=np.float64)
    base = np.asarray(values[method.base], dtype=np.float64)
    if not method.has_weight:
        return base
    if weight is None or not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in [0, 1] for {method}, got {weight}")
    if method.combination is Combination.GEOMETRIC:
        return fuse(base - location, values[NAP], weight)
    log_base_p = log_p(reference[method.base], base)
    log_nap_p = log_two_sided_p(reference[NAP], values[NAP])
    return weight * log_base_p + (1 - weight) * log_nap_p
