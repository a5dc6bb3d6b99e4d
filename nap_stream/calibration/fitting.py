"""What methods take from in-distribution images before they are calibrated."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.reading import Reading, Values
from nap_stream.core.base_scores import BaseScores, fit_scores
from nap_stream.core.methods import NAP, Method, method_scores
from nap_stream.core.score_specs import BaseScore, Fits, Head, ScoreParameters, needs_fit
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.core.weight_search import search_weight
from nap_stream.model.head import head_bias, head_weight
from nap_stream.model.loading import LoadedModel

ALWAYS = (BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY)
"""What a run computes of any model: they cost nothing beside the forward pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Base scores ready to compute, and what they give for the images they were fitted on.

    ``values`` are NAP and base scores of those images, each image left out of its own
    neighbours; ``locations`` are the mean logits behind each base score, 0 for scores that do
    not grow with all logits. Both are empty where nothing had to be fitted.
    """

    base_scores: BaseScores
    fits: Fits
    values: Values
    locations: Mapping[str, float]

    def location(self, method: Method) -> float:
        """What the method takes off its base score before it fuses it."""
        return self.locations.get(str(method.base), 0.0)

    def references(self, method: Method) -> dict[str, NDArray[np.float64]]:
        """What the method's p-values are taken against, ascending; empty if it takes none."""
        if method.base is None or not method.needs_reference:
            return {}
        return {
            name: np.sort(self.values[name].astype(np.float64)) for name in (NAP, str(method.base))
        }

    def search_weight(self, method: Method, pseudo: Mapping[str, Values]) -> WeightSearch:
        """Choose the method's weight on pseudo-OOD values, by transform."""
        reference, location = self.references(method), self.location(method)

        def score(values: Mapping[str, NDArray[np.floating]], weight: float) -> NDArray[np.float64]:
            return method_scores(
                method, values, weight=weight, location=location, reference=reference
            )

        return search_weight(score, self.values, pseudo)


def head_of(loaded: LoadedModel) -> Head | None:
    """The model's last linear layer, as base scores take it; None where there is none."""
    if loaded.head is None:
        return None
    return Head(
        head_weight(loaded.module, loaded.head).cpu().numpy(),
        head_bias(loaded.module, loaded.head).cpu().numpy(),
    )


def base_scores_of(calibration: Calibration, loaded: LoadedModel) -> BaseScores:
    """The base scores that a calibration was made with, ready to compute on the model's device."""
    document = calibration.document
    return BaseScores(
        document.scores,
        document.parameters,
        head_of(loaded),
        calibration.fits,
        loaded.device,
    )


def in_order(names: Iterable[BaseScore]) -> tuple[BaseScore, ...]:
    """Each name once, in the enumeration's order."""
    wanted = set(names)
    return tuple(name for name in BaseScore if name in wanted)


def unfitted(
    names: tuple[BaseScore, ...], loaded: LoadedModel, parameters: ScoreParameters
) -> Fitted:
    """Base scores that take nothing from images.

    Raises:
        ValueError: One of them does, or needs a head that the model does not have.
    """
    return Fitted(BaseScores(names, parameters, head_of(loaded), Fits(), "cpu"), Fits(), {}, {})


def fit(
    names: tuple[BaseScore, ...],
    reading: Reading,
    loaded: LoadedModel,
    parameters: ScoreParameters,
) -> Fitted:
    """Fit base scores on in-distribution images other than those that calibrate.

    Raises:
        ValueError: A score needs a head or features that the model does not have, or more
            images.
    """
    head = head_of(loaded)
    fits = Fits()
    if any(needs_fit(name) for name in names):
        if reading.features is None:
            lacking = " and ".join(name for name in names if needs_fit(name))
            raise ValueError(f"no {lacking} without a linear layer that the logits come from")
        fits = fit_scores(names, reading.features, parameters)
    # An image of the bank is its own first neighbour, so that the next one is taken.
    left_out = replace(
        parameters,
        knn_k=parameters.knn_k + 1,
        knn_bank_size=max(parameters.knn_bank_size, parameters.knn_k + 1),
    )
    values = reading.values(BaseScores(names, left_out, head, fits, "cpu"))
    centred = reading.values(BaseScores(names, left_out, head, fits, "cpu", centred=True))
    return Fitted(
        BaseScores(names, parameters, head, fits, "cpu"),
        fits,
        values,
        {name: float((values[name] - centred[name]).mean(dtype=np.float64)) for name in names},
    )
