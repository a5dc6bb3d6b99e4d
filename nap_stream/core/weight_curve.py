"""What a search for the weight of a method found; apart, because it needs no SciPy."""

from dataclasses import dataclass

import numpy as np

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
