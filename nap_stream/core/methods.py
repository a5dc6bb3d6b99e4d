"""Methods: which score of an image is calibrated and flagged, and how its weight is chosen.

A method is the Neural Activation Prior alone, a base score alone, or both together:

- ``nap-<base>``: the weighted geometric mean of arXiv 2402.18162, section 3.3, one-sided. The
  paper's NAP-M, -E, -R, -A, -D and -K are ``nap-msp``, ``nap-energy``, ``nap-react``,
  ``nap-ash``, ``nap-dice`` and ``nap-knn``.
- ``fisher-<base>``: ``w log p_base + (1 - w) log p_nap`` (Good's weighting of Fisher's sum),
  where NAP's p-value is two-sided: an image whose prior is higher than that of all
  in-distribution images is as suspicious as one whose prior is lower. The sum's own p-value is
  taken against a calibration set.

All are higher for in-distribution images.

The terms of Fisher's sum are smoothed p-values against a reference sample. A conformal p-value
against r reference scores takes r + 1 values, the smallest 1 / (r + 1). In a sum of logarithms
that makes ties, and a least value that no image can go below: a threshold that stands there
flags nothing. So between the references these p-values are interpolated, and beyond them they
fall on as the tail of a generalised Pareto distribution of shape 1, whose scale is the mean
excess of the outer tenth. They need not be valid: the sum that they go into is only a score.

The weight is chosen without out-of-distribution data (arXiv 2402.18162, section 3.3):
in-distribution images are transformed into pseudo-OOD ones, several ways; the weight that best
separates the two, on average over the ways, is taken.

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
}
"""In a paper's table: the base score's name, and its letter after NAP-."""


OUTER_SHARE = 0.1
"""Of the references, from which the scale beyond them is taken."""
_SMALLEST = float(np.finfo(np.float64).tiny)

WEIGHTS = tuple(step / 20 for step in range(21))
"""0, 0.05, … 1."""
RESAMPLES = 1_000
INTERVAL = 0.9
NEAR_BEST = 0.01
"""An AUROC this close to the best is as good: about what 200 images a transform can tell."""

Values = Mapping[str, NDArray[np.floating]]
Score = Callable[[Values, float], NDArray[np.float64]]


class Combination(StrEnum):
    """How NAP and a base score are put together."""

    ALONE = "alone"
    GEOMETRIC = "nap"
    FISHER = "fisher"


@dataclass(frozen=True, slots=True)
class Method:
    """How an image gets its one score. ``base`` is null for NAP alone."""

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
        name, letter = _LABELS[self.base]
        if self.combination is Combination.ALONE:
            return name
        prefix = "NAP" if self.combination is Combination.GEOMETRIC else "Fisher"
        return f"{prefix}-{letter}"

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
    """Read a method's name; a ValueError of another names those there are."""
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


def log_p(reference: NDArray[np.float64], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log of the share of in-distribution images that score as low, continued beyond them.

    At the i-th smallest of r references it is ``log(i / (r + 1))``, linear in p between two.
    Below the smallest, x_1, it is ``-log(r + 1) - log(1 + (x_1 - x) / s)``; above the largest
    likewise towards 0, by the upper end.

    References are ascending, float64 (r,), r >= 2, finite; scores of any float dtype and shape.

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
    """Log of twice the smaller p-value of both directions, at most 0; see `log_p`.

    It is 0 at the references' median, and falls to either side.
    """
    low = log_p(reference, scores)
    high = log_p(-reference[::-1], -np.asarray(scores, dtype=np.float64))
    smaller: NDArray[np.float64] = np.log(2) + np.minimum(low, high)
    return np.minimum(0.0, smaller)


def _scale(reference: NDArray[np.float64]) -> float:
    """Mean excess of the lower tenth below its largest; 1 where they are all the same."""
    outer = reference[: max(2, int(np.ceil(OUTER_SHARE * len(reference))))]
    return float(np.mean(outer[-1] - outer[:-1])) or 1.0


@dataclass(frozen=True, slots=True)
class WeightSearch:
    """How well each weight separates pseudo-OOD images from in-distribution ones.

    ``auroc[t][w]`` is the area under the ROC curve, 0 to 1, of transform ``transforms[t]`` at
    ``weights[w]``. ``chosen`` has the highest mean over the transforms, the smallest such weight
    where several do. ``interval`` holds the chosen weight for a share `INTERVAL` of bootstrap
    resamples of the transforms: it is wide where the choice hangs on which transforms stand for
    what is to come. ``near_best`` is the range of weights whose mean is within `NEAR_BEST` of
    the best: where it is wide, the choice matters little.
    """

    transforms: tuple[str, ...]
    weights: tuple[float, ...]
    auroc: tuple[tuple[float, ...], ...]
    inside_images: int
    pseudo_images: int
    chosen: float
    interval: tuple[float, float]
    near_best: tuple[float, float]


def search_weight(
    score: Score,
    inside: Values,
    pseudo: Mapping[str, Values],
    *,
    weights: tuple[float, ...] = WEIGHTS,
    seed: int = 0,
) -> WeightSearch:
    """Search the weight that best separates pseudo-OOD images from in-distribution ones.

    Args:
        score: From the values of N images and a weight to their scores (N,), higher =
            in-distribution.
        inside: NAP and base scores of in-distribution images by name, each (n,).
        pseudo: The same of pseudo-OOD images, by transform.
        weights: What is tried, ascending, in [0, 1].
        seed: Of the bootstrap.

    Raises:
        ValueError: There is no transform, no weight or no image, or a score is NaN.
    """
    if not pseudo or not weights:
        raise ValueError("expected at least one transform and one weight")
    inner = [score(inside, weight) for weight in weights]
    curves = np.array(
        [
            [_auroc(own, score(values, w)) for own, w in zip(inner, weights, strict=True)]
            for values in pseudo.values()
        ]
    )
    mean = curves.mean(axis=0)
    enough = float(mean.max()) - NEAR_BEST
    near = [weight for weight, value in zip(weights, mean, strict=True) if value >= enough]
    return WeightSearch(
        transforms=tuple(pseudo),
        weights=tuple(weights),
        auroc=tuple(tuple(float(value) for value in curve) for curve in curves),
        inside_images=len(inner[0]),
        pseudo_images=max(len(next(iter(values.values()))) for values in pseudo.values()),
        chosen=weights[int(mean.argmax())],
        interval=_interval(curves, weights, seed),
        near_best=(near[0], near[-1]),
    )


def _interval(
    curves: NDArray[np.float64], weights: tuple[float, ...], seed: int
) -> tuple[float, float]:
    draws = np.random.default_rng(seed).integers(len(curves), size=(RESAMPLES, len(curves)))
    chosen = np.array(weights)[curves[draws].mean(axis=1).argmax(axis=1)]
    tail = (1 - INTERVAL) / 2
    low, high = np.quantile(chosen, (tail, 1 - tail), method="nearest")
    return float(low), float(high)


def _auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Mann and Whitney's U, with ties counted half, over the number of pairs."""
    if not len(inside) or not len(outside) or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError(
            f"expected scores without NaN, of at least one image each, "
            f"got {len(inside)} in-distribution and {len(outside)} pseudo-OOD ones"
        )
    ascending = np.sort(outside)
    below = np.searchsorted(ascending, inside, side="left").sum()
    at_most = np.searchsorted(ascending, inside, side="right").sum()
    return float((below + at_most) / 2 / (len(inside) * len(outside)))
