"""What a search for the weight of a method found; apart, because it needs no SciPy.

Choosing the weight of a method without out-of-distribution data (arXiv 2402.18162, 3.3).

In-distribution images are transformed into pseudo-OOD ones, several ways; the weight that best
separates the two, on average over the ways, is taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

INTERVAL = 0.9
NEAR_BEST = 0.01
"""An AUROC this close to the best is as good: about what 200 images a transform can tell."""


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
    def mean_auroc(self) -> tuple[float, ...]:
        """The mean over the transforms, for each weight."""
        return tuple(float(mean) for mean in np.mean(self.auroc, axis=0))


Values = Mapping[str, NDArray[np.floating]]
Score = Callable[[Values, float], NDArray[np.float64]]

WEIGHTS = tuple(step / 20 for step in range(21))
"""0, 0.05, … 1."""

RESAMPLES = 1_000


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
            [_auroc(inner[w], score(values, weight)) for w, weight in enumerate(weights)]
            for values in pseudo.values()
        ]
    )
    mean = curves.mean(axis=0)
    near = [weight for weight, value in zip(weights, mean, strict=True) if value >= _near(mean)]
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


def _near(mean: NDArray[np.float64]) -> float:
    return float(mean.max()) - NEAR_BEST


def _interval(
    curves: NDArray[np.float64], weights: tuple[float, ...], seed: int
) -> tuple[float, float]:
    draws = np.random.default_rng(seed).integers(len(curves), size=(RESAMPLES, len(curves)))
    chosen = np.array(weights)[curves[draws].mean(axis=1).argmax(axis=1)]
    tail = (1 - INTERVAL) / 2
    low, high = np.quantile(chosen, (tail, 1 - tail), method="nearest")
    return float(low), float(high)


def _auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    if not len(inside) or not len(outside) or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError(
            f"expected scores without NaN, of at least one image each, "
            f"got {len(inside)} in-distribution and {len(outside)} pseudo-OOD ones"
        )
    u = mannwhitneyu(inside, outside, method="asymptotic").statistic
    return float(u / (len(inside) * len(outside)))
