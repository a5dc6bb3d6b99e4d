"""The weight of a base score against NAP, chosen on pseudo-OOD images.

Those are made of the images that are fitted on. No out-of-distribution image takes part.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.fit import FitPart, Fitted
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import PSEUDO_SEED, Advance, Reader, Values
from nap_stream.core import methods
from nap_stream.core.base_scores import evenly_spaced
from nap_stream.core.methods import Method, WeightSearch, method_scores

PSEUDO_IMAGES = 200
"""Images that each pseudo-OOD transform is applied to, at most."""


def pseudo_passes(part: FitPart) -> int:
    """Forward passes, in images, that `pseudo_values` takes."""
    return len(PSEUDO_OOD) * min(len(part), PSEUDO_IMAGES)


def pseudo_values(
    part: FitPart, reader: Reader, fitted: Fitted, advance: Advance
) -> dict[str, Values]:
    """NAP and base scores of pseudo-OOD images, by transform."""
    wanted = set(evenly_spaced(len(part), PSEUDO_IMAGES).tolist())
    files = [file for number, file in enumerate(part.files()) if number in wanted]
    # Images are mixed with others of their batch: in order they may all be of one class.
    order = np.random.default_rng(PSEUDO_SEED).permutation(len(files))
    shuffled = [files[row] for row in order]
    return {
        name: reader.score_transformed(shuffled, name, fitted.base_scores, advance).values
        for name in PSEUDO_OOD
    }


def search_weight(method: Method, fitted: Fitted, pseudo: Mapping[str, Values]) -> WeightSearch:
    """Choose the method's weight on pseudo-OOD values, by transform."""
    reference, location = fitted.references(method), fitted.location(method)

    def score(values: Mapping[str, NDArray[np.floating]], weight: float) -> NDArray[np.float64]:
        return method_scores(method, values, weight=weight, location=location, reference=reference)

    return methods.search_weight(score, fitted.values, pseudo)
