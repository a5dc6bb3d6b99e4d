"""Weights of scores, chosen on pseudo-OOD images.

Those are made of the images that are fitted on. No out-of-distribution image takes part.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.fit import FitPart, Fitted, Folds
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import Advance, Reader, Values
from nap_stream.core import selection
from nap_stream.core.methods import NAP, Method, log_p, method_scores
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.selection import Selection, WeightSearch


def pseudo_passes(part: FitPart) -> int:
    """Forward passes, in images, that `pseudo_values` takes."""
    return len(PSEUDO_OOD) * sum(len(block) for block in Folds.choose(len(part)).blocks)


def pseudo_values(
    part: FitPart, folds: Folds, reader: Reader, fitted: Fitted, advance: Advance
) -> dict[str, Values]:
    """NAP and base scores of pseudo-OOD images, by transform."""
    wanted = {int(number) for block in folds.blocks for number in block}
    files = {number: file for number, file in enumerate(part.files()) if number in wanted}
    blocks = [[files[int(number)] for number in block] for block in folds.blocks]
    left_out = fitted.left_out[: len(blocks)]
    return {
        name: reader.score_transformed(blocks, name, left_out, advance).values
        for name in PSEUDO_OOD
    }


def search_weight(method: Method, fitted: Fitted, pseudo: Mapping[str, Values]) -> WeightSearch:
    """Choose the method's weight on pseudo-OOD values, by transform."""
    reference, location = fitted.references(method), fitted.location(method)

    def score(values: Mapping[str, NDArray[np.floating]], weight: float) -> NDArray[np.float64]:
        return method_scores(method, values, weight=weight, location=location, reference=reference)

    return selection.search_weight(score, fitted.values, pseudo)


def select(
    candidates: Sequence[BaseScore], fitted: Fitted, pseudo: Mapping[str, Values]
) -> Selection:
    """Choose scores and weights among NAP and base scores, on pseudo-OOD values, by transform.

    Raises:
        ValueError: Every score is the same for most images.
    """
    names = (*(str(name) for name in candidates), NAP)
    reference = {name: np.sort(fitted.values[name].astype(np.float64)) for name in names}

    def log_p_of(values: Values) -> dict[str, NDArray[np.float64]]:
        return {name: log_p(reference[name], values[name]) for name in names}

    outside = {transform: log_p_of(values) for transform, values in pseudo.items()}
    return selection.select(log_p_of(fitted.values), outside)
