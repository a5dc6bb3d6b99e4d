"""The base scores by name: fitting them, and computing several at once."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.core.nearest import knn, unit_rows
from nap_stream.core.rows import evenly_spaced
from nap_stream.core.score_specs import (
    BaseScore,
    Fits,
    Head,
    ScoreParameters,
    check_float32,
    needs_features,
    needs_fit,
    needs_head,
)
from nap_stream.core.scores import energy, max_logit, msp
from nap_stream.core.shaping import ash, dice, dice_weight, react, react_clip, scale

Fit = TypeVar("Fit", float, NDArray[np.float32])


_OF_LOGITS: dict[BaseScore, Callable[[torch.Tensor], torch.Tensor]] = {
    BaseScore.MSP: msp,
    BaseScore.MAX_LOGIT: max_logit,
    BaseScore.ENERGY: energy,
}


def fit_scores(
    names: Iterable[BaseScore], features: NDArray[np.float32], parameters: ScoreParameters
) -> Fits:
    """Take from in-distribution images what the named scores need.

    The images must be others than those whose scores calibrate p-values: an image in KNN's bank
    is its own neighbour.

    Args:
        names: The scores; those that need nothing are passed over.
        features: float32 (n, D), finite.
        parameters: See `ScoreParameters`.

    Raises:
        ValueError: The features are of another dtype or shape, are not finite, or are fewer
            than a score needs.
    """
    wanted = set(names)
    if not any(needs_fit(name) for name in wanted):
        return Fits()
    check_float32("features", features, 2)
    return Fits(
        react_clip=(
            react_clip(features, parameters.react_percentile) if BaseScore.REACT in wanted else None
        ),
        feature_mean=(
            features.mean(axis=0, dtype=np.float64).astype(np.float32)
            if BaseScore.DICE in wanted
            else None
        ),
        knn_bank=_knn_bank(features, parameters) if BaseScore.KNN in wanted else None,
    )


class BaseScores:
    """Computes the named scores of a batch.

    Args:
        names: The scores to compute; a repeated one counts once.
        parameters: As at `fit_scores`.
        head: The model's last linear layer; None for a model that ends otherwise.
        fits: From `fit_scores`.
        device: Where logits and features will lie.
        centred: Compute the scores as if the logits (of the shaped features, of the sparse head)
            had a mean of 0 over the classes, for each image.

    Raises:
        ValueError: A score lacks its head or its fit, or they do not go together.
    """

    def __init__(
        self,
        names: Iterable[BaseScore],
        parameters: ScoreParameters,
        head: Head | None,
        fits: Fits,
        device: torch.device | str,
        *,
        centred: bool = False,
    ) -> None:
        self._centred = centred
        self.names = tuple(dict.fromkeys(names))
        self._of_features = {
            name: _prepare(name, parameters, head, fits, torch.device(device), centred=centred)
            for name in self.names
            if needs_features(name)
        }

    def __call__(
        self, logits: torch.Tensor, features: torch.Tensor | None
    ) -> dict[BaseScore, torch.Tensor]:
        """Score a batch.

        Args:
            logits: Any floating dtype, shape (N, K).
            features: The head's input, any floating dtype, shape (N, D); None if no score
                needs it.

        Returns:
            float32 (N,) for each name, in the order of the names.

        Raises:
            ValueError: A score needs features and there are none.
        """
        scores = {}
        for name in self.names:
            if name in _OF_LOGITS:
                mean = logits.float().mean(dim=1, keepdim=True) if self._centred else 0
                scores[name] = _OF_LOGITS[name](logits - mean)
            elif features is None:
                raise ValueError(f"{name} needs the penultimate features, got None")
            else:
                scores[name] = self._of_features[name](features)
        return scores


def _prepare(
    name: BaseScore,
    parameters: ScoreParameters,
    head: Head | None,
    fits: Fits,
    device: torch.device,
    *,
    centred: bool,
) -> Callable[[torch.Tensor], torch.Tensor]:
    if name is BaseScore.KNN:
        bank = _fitted(name, fits.knn_bank)
        if len(bank) < parameters.knn_k:
            raise ValueError(f"knn needs {parameters.knn_k} rows in its bank, got {len(bank)}")
        return partial(knn, bank=torch.tensor(bank, device=device), k=parameters.knn_k)
    if head is None:
        raise ValueError(
            f"{name} needs the model's last linear layer, and this model has none: choose among "
            f"{', '.join(score for score in BaseScore if not needs_head(score))}"
        )
    weight = torch.tensor(head.weight, device=device)
    bias = torch.tensor(head.bias, device=device)
    if name is BaseScore.DICE:
        mean = torch.tensor(_fitted(name, fits.feature_mean), device=device)
        if len(mean) != weight.shape[1]:
            raise ValueError(
                f"dice was fitted on {len(mean)} features, the head takes {weight.shape[1]}"
            )
        weight = dice_weight(weight, mean, parameters.dice_sparsity)
    if centred:
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    match name:
        case BaseScore.REACT:
            clip = _fitted(name, fits.react_clip)
            return partial(react, clip=clip, weight=weight, bias=bias)
        case BaseScore.ASH:
            return partial(ash, percentile=parameters.ash_percentile, weight=weight, bias=bias)
        case BaseScore.SCALE:
            return partial(scale, percentile=parameters.scale_percentile, weight=weight, bias=bias)
        case _:
            return partial(dice, masked_weight=weight, bias=bias)


def _fitted(name: BaseScore, fit: Fit | None) -> Fit:
    if fit is None:
        raise ValueError(f"{name} must be fitted on in-distribution features first (fit_scores)")
    return fit


def _knn_bank(features: NDArray[np.float32], parameters: ScoreParameters) -> NDArray[np.float32]:
    # A vector of zeros has no direction that could be near to another's.
    usable = features[features.any(axis=1)]
    if len(usable) < parameters.knn_k:
        raise ValueError(
            f"knn with k = {parameters.knn_k} needs as many in-distribution images, "
            f"got {len(usable)} with features other than 0: give more, or lower knn_k"
        )
    rows = usable[evenly_spaced(len(usable), parameters.knn_bank_size)]
    return unit_rows(torch.tensor(rows)).numpy()
