"""Choosing the weights of scores without out-of-distribution data.

In-distribution images are transformed into pseudo-OOD ones, several ways (arXiv 2402.18162,
section 3.3). What best separates the two, on average over the ways, is taken: a weight of a base
score against NAP, or scores and their weights for the sum of log p-values.

The sum is built by greedy selection with replacement (Caruana et al., "Ensemble selection from
libraries of models", ICML 2004): in each step the score is added that helps most, and a score's
weight is the number of steps that added it. No score may have more than `LARGEST_WEIGHT`: what
pseudo-OOD images say of a single score is not to be trusted alone.

A score that is no better than chance, and adds nothing to the others, is not to choose from.
Otherwise that limit would give it what the best score may not have: noise got a weight of 0.4
beside one score that tells images apart. Where a single score does, it has all the weight.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.methods import Values

WEIGHTS = tuple(step / 20 for step in range(21))
"""0, 0.05, … 1."""
RESAMPLES = 1_000
INTERVAL = 0.9
NEAR_BEST = 0.01
"""An AUROC this close to the best is as good: about what 200 images a transform can tell."""
STEPS = 20
LARGEST_WEIGHT = 0.6
MOST_EQUAL = 0.5
"""A score with the same value for more of the images than this tells them apart too seldom."""
CHANCE = 0.5
"""The AUROC of a score that tells nothing."""

_ERRORS_ABOVE = 2
_MOST_ABOVE = 0.1
"""Above chance is an AUROC that is so many standard errors of noise above it, or, where few images
make these wide, this much."""

_ROUNDING = 1e-9
_DIGITS = 12
"""Of a mean area: in another order of the transforms it differs in the last ones."""

Score = Callable[[Values, float], NDArray[np.float64]]
LogP = Mapping[str, NDArray[np.float64]]


class NoScoreError(ValueError):
    """No score tells images apart."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which scores the sum takes, and how well they separate pseudo-OOD images.

    ``weights`` are those of the chosen scores by name; they sum to 1. ``auroc[name][t]`` is the
    area under the ROC curve, 0 to 1, of a score alone on transform ``transforms[t]``, for every
    score that was to choose from, and ``sum_auroc[t]`` that of the sum. ``left_out`` says of other
    scores why they were not to choose from. ``inside_images`` is the number of in-distribution
    images, ``pseudo_images`` that of pseudo-OOD images of the transform that has the fewest.

    Where there were none of these, nothing was chosen: there is no transform, and no area.
    """

    weights: dict[str, float]
    transforms: tuple[str, ...]
    auroc: dict[str, tuple[float, ...]]
    sum_auroc: tuple[float, ...]
    left_out: dict[str, str]
    inside_images: int
    pseudo_images: int

    @property
    def is_chosen(self) -> bool:
        """Whether there were pseudo-OOD images to choose on."""
        return bool(self.transforms)

    @property
    def means(self) -> dict[str, float]:
        """The mean over the transforms of each score's area."""
        return {name: float(np.mean(areas)) for name, areas in self.auroc.items()}

    @property
    def mean(self) -> float:
        """The mean over the transforms of the sum's area."""
        return float(np.mean(self.sum_auroc))


def select(inside: LogP, pseudo: Mapping[str, LogP]) -> Selection:
    """Choose scores and weights for the sum of log p-values.

    The best of the sums that `STEPS` steps pass is taken, of those in which no score has more than
    `LARGEST_WEIGHT`, unless it is the only one that helps. A score that is the same for most of the
    in-distribution images is left out.

    Args:
        inside: Of in-distribution images, by score, each float64 (n,).
        pseudo: The same of pseudo-OOD images, by transform, each (m,).

    Raises:
        NoScoreError: All scores are left out.
        ValueError: There is no transform or image, or a value is NaN.
    """
    if not pseudo or not inside:
        raise ValueError("expected at least one transform and one score")
    if any(np.isnan(values).any() for values in inside.values()):
        raise ValueError("expected log p-values without NaN")
    constant = [name for name, values in inside.items() if _most_common(values) > MOST_EQUAL]
    names = [name for name in inside if name not in constant]
    if not names:
        raise NoScoreError(f"every score is the same for most images: {', '.join(constant)}")
    alone = {
        name: tuple(auroc(inside[name], outside[name]) for outside in pseudo.values())
        for name in names
    }
    helpful = _helpful(alone, inside, pseudo)
    largest = LARGEST_WEIGHT if len(helpful) > 1 else 1.0
    _, counts = _greedy(helpful, inside, pseudo, largest)
    total = sum(counts.values())
    weights = {name: count / total for name, count in counts.items()}
    summed = _sum(weights, inside)
    return Selection(
        weights=weights,
        transforms=tuple(pseudo),
        auroc=alone,
        sum_auroc=tuple(auroc(summed, _sum(weights, outside)) for outside in pseudo.values()),
        left_out=dict.fromkeys(constant, "the same for most images"),
        inside_images=len(summed),
        pseudo_images=min(len(outside[names[0]]) for outside in pseudo.values()),
    )


def equal_weights(inside: LogP) -> Selection:
    """Give all scores the same weight, where there are no pseudo-OOD images to choose on.

    A score that is the same for most of the in-distribution images is left out. ``inside`` is as
    `select` takes it.

    Raises:
        NoScoreError: All scores are left out.
    """
    constant = [name for name, values in inside.items() if _most_common(values) > MOST_EQUAL]
    names = [name for name in inside if name not in constant]
    if not names:
        raise NoScoreError(f"every score is the same for most images: {', '.join(constant)}")
    return Selection(
        weights=dict.fromkeys(names, 1 / len(names)),
        transforms=(),
        auroc={},
        sum_auroc=(),
        left_out=dict.fromkeys(constant, "the same for most images"),
        inside_images=len(inside[names[0]]),
        pseudo_images=0,
    )


def _helpful(
    alone: Mapping[str, tuple[float, ...]], inside: LogP, pseudo: Mapping[str, LogP]
) -> list[str]:
    """Scores that are above chance alone, and those that add to the best sum of these.

    All of them where none is above chance. See `NEAR_BEST` for what counts as adding: less is told
    by luck.
    """
    n = len(next(iter(inside.values())))
    m = min(len(next(iter(outside.values()))) for outside in pseudo.values())
    error = np.sqrt((n + m + 1) / (12 * n * m))  # of Mann and Whitney's U, without a difference
    enough = CHANCE + min(_ERRORS_ABOVE * error, _MOST_ABOVE)
    able = [name for name, areas in alone.items() if np.mean(areas) > enough]
    if len(able) in {0, len(alone)}:
        return list(alone)
    best, _ = _greedy(able, inside, pseudo, 1.0)
    return [
        name
        for name in alone
        if name in able or _greedy([*able, name], inside, pseudo, 1.0)[0] > best + NEAR_BEST
    ]


def _greedy(
    names: Sequence[str], inside: LogP, pseudo: Mapping[str, LogP], largest: float
) -> tuple[float, dict[str, int]]:
    """The best sum's mean area, and how many of the steps up to it added each score.

    No score has more than the share ``largest`` of the steps. Scores that none added are left out.
    """
    counts = dict.fromkeys(names, 0)
    best, best_counts = -1.0, counts
    for step in range(1, STEPS + 1):
        areas = {
            name: _mean_area({**counts, name: counts[name] + 1}, inside, pseudo)
            for name in names
            if counts[name] + 1 <= largest * STEPS + _ROUNDING
        }
        added = max(areas, key=areas.__getitem__)
        counts = {**counts, added: counts[added] + 1}
        if max(counts.values()) <= largest * step + _ROUNDING and areas[added] > best:
            best, best_counts = areas[added], counts
    return best, {name: count for name, count in best_counts.items() if count}


def _mean_area(counts: Mapping[str, int], inside: LogP, pseudo: Mapping[str, LogP]) -> float:
    own = _sum(counts, inside)
    mean = np.mean([auroc(own, _sum(counts, outside)) for outside in pseudo.values()])
    return round(float(mean), _DIGITS)


def _sum(weights: Mapping[str, float], values: LogP) -> NDArray[np.float64]:
    terms = [weight * values[name] for name, weight in weights.items() if weight]
    summed: NDArray[np.float64] = np.sum(terms, axis=0)
    return summed


def _most_common(values: NDArray[np.float64]) -> float:
    """The share of the most frequent value."""
    return float(np.unique(values, return_counts=True)[1].max() / len(values))


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

    @property
    def mean(self) -> float:
        """The mean over the transforms of the area at the chosen weight."""
        return float(np.mean(self.auroc, axis=0).max())


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
            [auroc(own, score(values, w)) for own, w in zip(inner, weights, strict=True)]
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


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Area under the ROC curve, 0 to 1.

    Mann and Whitney's U, with ties counted half, over the number of pairs.
    """
    if not len(inside) or not len(outside) or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError(
            f"expected scores without NaN, of at least one image each, "
            f"got {len(inside)} in-distribution and {len(outside)} pseudo-OOD ones"
        )
    ascending = np.sort(outside)
    below = np.searchsorted(ascending, inside, side="left").sum()
    at_most = np.searchsorted(ascending, inside, side="right").sum()
    return float((below + at_most) / 2 / (len(inside) * len(outside)))
