"""The base scores of an image, by name: fitting them, and computing several of a batch at once.

All are higher for in-distribution images. Some are of the logits, (N, K). The others are of the
features, (N, D): the input of the model's last linear layer (the head), or, without one, the means
of its map. Some of those change features or head, then take the energy of
``features @ weight.T + bias``; the rest, in `nap_stream.core.feature_scores`, ask where the
features lie. Everything is computed in float32, under autocast too. A row of features that is not
finite scores NaN: clipping or pruning could hide it.
"""

from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nap_stream.core.feature_scores import Fdbd, Mahalanobis, knn, nci, unit_gaussian, unit_rows
from nap_stream.core.score_specs import (
    BaseScore,
    Fits,
    Head,
    ScoreParameters,
    TooFewImagesError,
    check_float32,
    fits_of,
    needs_features,
    needs_head,
)

Fit = TypeVar("Fit")
_Score = Callable[..., torch.Tensor]

LARGEST_EXPONENT = 64.0
"""Where the exponent of ASH-S and SCALE stops: exp(64) = 6e27, times a logit, is a float32.

The exponent is at most D divided by the number of kept activations, so the limit is reached
only where fewer than one activation in 64 is kept.
"""


def fit_scores(
    names: Iterable[BaseScore], features: NDArray[np.float32], parameters: ScoreParameters
) -> Fits:
    """Take from in-distribution images what the named scores need.

    The images must be others than those whose scores calibrate p-values: an image in KNN's bank
    is its own neighbour.

    ``features`` are float32 (n, D), finite. Scores that need nothing are passed over.

    Raises:
        TooFewImagesError: The features are fewer than KNN needs.
        ValueError: The features are of another dtype or shape, or are not finite.
    """
    wanted = fits_of(names)
    if not wanted:
        return Fits()
    check_float32("features", features, 2)
    clip, mean, bank, gaussian = None, None, None, None
    if "react_clip" in wanted:
        clip = react_clip(features, parameters.react_percentile)
    if "feature_mean" in wanted:
        mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    if "knn_bank" in wanted:
        bank = _knn_bank(features, parameters)
    if "gaussian" in wanted:
        gaussian = unit_gaussian(features, parameters.mahalanobis_rank)
    return Fits(react_clip=clip, feature_mean=mean, knn_bank=bank, gaussian=gaussian)


class BaseScores:
    """Computes the named scores of a batch.

    A name that is repeated counts once. ``head`` is the model's last linear layer; None for a model
    that ends otherwise. Logits and features will lie on ``device``. Where ``centred``, the scores
    are computed as if the logits (of the shaped features, of the sparse head) had a mean of 0 over
    the classes, for each image.

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
        self._prepare = partial(
            _prepare, parameters=parameters, head=head, device=torch.device(device), centred=centred
        )
        self.names = tuple(dict.fromkeys(names))
        entropy = partial(gen, gamma=parameters.gen_gamma, classes=parameters.gen_classes)
        self._of_logits: dict[BaseScore, _Score] = {**_FORMULAS, BaseScore.GEN: entropy}
        self._of_features = {
            name: self._prepare(name, fits=fits) for name in self.names if needs_features(name)
        }

    def refitted(self, fits: Fits) -> Self:
        """The same scores by other fits. fDBD's table, of the head alone, is not made anew."""
        other = copy(self)
        other._of_features = {  # noqa: SLF001  of its own class
            name: score.refitted(_fitted(name, fits.feature_mean))
            if isinstance(score, Fdbd)
            else self._prepare(name, fits=fits)
            for name, score in self._of_features.items()
        }
        return other

    def __call__(
        self, logits: torch.Tensor, features: torch.Tensor | None
    ) -> dict[BaseScore, torch.Tensor]:
        """Score a batch of logits, (N, K), and features, the head's input, (N, D).

        They are of any floating dtype; features are None if no score needs them.

        Returns:
            float32 (N,) for each name, in the order of the names.

        Raises:
            ValueError: A score needs features and there are none.
        """
        scores = {}
        for name in self.names:
            if name in self._of_logits:
                mean = logits.float().mean(dim=1, keepdim=True) if self._centred else 0
                scores[name] = self._of_logits[name](logits - mean)
            elif features is None:
                raise ValueError(f"{name} needs the penultimate features, got None")
            else:
                scores[name] = self._of_features[name](features)
        return scores


def _prepare(
    name: BaseScore,
    *,
    parameters: ScoreParameters,
    head: Head | None,
    fits: Fits,
    device: torch.device,
    centred: bool,
) -> _Score:
    if name is BaseScore.KNN:
        bank = _fitted(name, fits.knn_bank)
        if len(bank) < parameters.knn_k:
            raise ValueError(f"knn needs {parameters.knn_k} rows in its bank, got {len(bank)}")
        return partial(knn, bank=torch.tensor(bank, device=device), k=parameters.knn_k)
    if name is BaseScore.MAHALANOBIS:
        return Mahalanobis(_fitted(name, fits.gaussian), device)
    if head is None:
        raise ValueError(
            f"{name} needs the model's last linear layer, and this model has none: choose among "
            f"{', '.join(score for score in BaseScore if not needs_head(score))}"
        )
    weight = torch.tensor(head.weight, device=device)
    bias = torch.tensor(head.bias, device=device)
    if name is BaseScore.DICE:
        weight = dice_weight(weight, _mean(name, fits, weight), parameters.dice_sparsity)
    if centred:
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    return _of_head(name, parameters, fits, weight, bias)


def _of_head(
    name: BaseScore,
    parameters: ScoreParameters,
    fits: Fits,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> _Score:
    match name:
        case BaseScore.REACT:
            score: _Score = partial(react, clip=_fitted(name, fits.react_clip))
        case BaseScore.ASH:
            score = partial(ash, percentile=parameters.ash_percentile)
        case BaseScore.SCALE:
            score = partial(scale, percentile=parameters.scale_percentile)
        case BaseScore.DICE:
            return partial(dice, masked_weight=weight, bias=bias)
        case BaseScore.FDBD:
            return Fdbd(weight, bias, _mean(name, fits, weight))
        case BaseScore.NCI:
            score = partial(nci, mean=_mean(name, fits, weight))
        case _:
            raise ValueError(f"there is no formula for the score {name}")
    return partial(score, weight=weight, bias=bias)


def _mean(name: BaseScore, fits: Fits, weight: torch.Tensor) -> torch.Tensor:
    mean = _fitted(name, fits.feature_mean)
    if len(mean) != weight.shape[1]:
        raise ValueError(
            f"{name} was fitted on {len(mean)} features, the head takes {weight.shape[1]}"
        )
    return torch.tensor(mean, device=weight.device)


def _fitted(name: BaseScore, fit: Fit | None) -> Fit:
    if fit is None:
        raise ValueError(f"{name} must be fitted on in-distribution features first (fit_scores)")
    return fit


def msp(logits: torch.Tensor) -> torch.Tensor:
    """Maximum softmax probability (Hendrycks and Gimpel, arXiv 1610.02136).

    The confidence of the predicted class in [1/K, 1], float32, shape (N,). As in all scores of
    logits, these are of any floating dtype, shape (N, K).
    """
    return torch.softmax(logits.float(), dim=1).amax(dim=1)


def max_logit(logits: torch.Tensor) -> torch.Tensor:
    """Largest logit (Hendrycks et al., arXiv 1911.11132), float32, shape (N,); can be negative."""
    return logits.float().amax(dim=1)


def energy(logits: torch.Tensor) -> torch.Tensor:
    """Negative free energy at temperature 1 (Liu et al., arXiv 2010.03759), float32, shape (N,).

    The logsumexp over the classes. The paper's energy is its negative; here as everywhere higher
    is in-distribution.
    """
    return torch.logsumexp(logits.float(), dim=1)


def gen(logits: torch.Tensor, gamma: float, classes: int) -> torch.Tensor:
    """GEN: the negative generalised entropy (Liu, Lochman and Zach, CVPR 2023, equation 3).

    ``-sum(p**gamma * (1 - p)**gamma)`` over the ``classes`` most probable classes, or all where
    there are fewer. At most 0, float32, shape (N,).
    """
    p = torch.softmax(logits.float(), dim=1)
    p = torch.topk(p, min(classes, p.shape[1]), dim=1, sorted=False).values
    return -(p.pow(gamma) * (1 - p).pow(gamma)).sum(dim=1)


_FORMULAS: dict[BaseScore, Callable[[torch.Tensor], torch.Tensor]] = {
    BaseScore.MSP: msp,
    BaseScore.MAX_LOGIT: max_logit,
    BaseScore.ENERGY: energy,
}


def react(
    features: torch.Tensor, clip: float, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """ReAct: the energy with every activation limited to ``clip`` (Sun et al., arXiv 2111.12797).

    Args:
        features: Any floating dtype, shape (N, D).
        clip: Largest activation, from `react_clip`; infinity gives the plain energy.
        weight: The head's weight, float32, shape (K, D); the same in all scores of the head.
        bias: The head's bias, float32, shape (K,).

    Returns:
        float32 (N,), as from all scores of the head.
    """
    return _energy_of_head(features, features.float().clamp_max(clip), weight, bias)


def ash(
    features: torch.Tensor, percentile: float, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """ASH-S: prune small activations, sharpen the rest (Djurisic et al., arXiv 2209.09858).

    Row by row, the fraction ``percentile`` of the smallest activations becomes 0 and the others
    are multiplied by exp(s1 / s2), where s1 is the sum before and s2 the sum after pruning. The
    paper shapes a feature map; here it is the pooled vector, as in OpenOOD.

    The sums are over positive activations alone. After a ReLU that changes nothing; elsewhere
    (tanh, LayerNorm) the paper's s2 can pass zero and the factor with it from 0 to infinity. A
    row without a positive activation has the factor exp(1). The exponent stops at
    `LARGEST_EXPONENT`. At least one activation is kept. ``percentile`` lies in (0, 1).
    """
    activations = features.float()
    kept, index = _largest(activations, percentile)
    pruned = torch.zeros_like(activations).scatter_(1, index, kept)
    return _energy_of_head(features, pruned * _factor(activations, kept), weight, bias)


def scale(
    features: torch.Tensor, percentile: float, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """SCALE: ASH-S without the pruning (Xu et al., arXiv 2310.00227).

    Every activation is multiplied by exp(s1 / s2), with s1, s2 and the policy for negative
    activations of `ash`; s2 leaves the fraction ``percentile`` of the smallest out.
    """
    activations = features.float()
    kept, _ = _largest(activations, percentile)
    return _energy_of_head(features, activations * _factor(activations, kept), weight, bias)


def dice(features: torch.Tensor, masked_weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """DICE: the energy of a sparse head, from `dice_weight` (Sun and Li, arXiv 2111.09805)."""
    return _energy_of_head(features, features.float(), masked_weight, bias)


def react_clip(features: NDArray[np.float32], percentile: float) -> float:
    """Give ReAct's clip: a percentile, in (0, 1), of all activations of in-distribution images.

    ``features`` is float32 (n, D), n >= 1. Linear between activations.
    """
    return float(np.quantile(features, percentile))


def dice_weight(weight: torch.Tensor, mean_features: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Give DICE's head: weights that contribute little on in-distribution images become 0.

    The contribution of a weight is itself times the mean of its feature; the weights with a
    contribution above the percentile ``sparsity`` of all K·D stay.

    Args:
        weight: The head's weight, float32, shape (K, D).
        mean_features: Mean features of in-distribution images, float32, shape (D,).
        sparsity: Fraction in (0, 1) to mask.

    Returns:
        float32 (K, D), on the weight's device.
    """
    contribution = weight * mean_features
    # Not torch.quantile, which refuses more than 2^24 elements.
    threshold = float(np.quantile(contribution.detach().cpu().numpy(), sparsity))
    return torch.where(contribution > threshold, weight, 0.0)


def _largest(activations: torch.Tensor, percentile: float) -> tuple[torch.Tensor, torch.Tensor]:
    count = activations.shape[1]
    kept = max(1, count - round(count * percentile))
    values, index = torch.topk(activations, kept, dim=1, sorted=False)
    return values, index


def _factor(activations: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    before = activations.clamp_min(0).sum(dim=1, keepdim=True)
    after = kept.clamp_min(0).sum(dim=1, keepdim=True)
    ratio = torch.where(after == 0, 1.0, before / after)
    return ratio.clamp_max(LARGEST_EXPONENT).exp()


def _energy_of_head(
    features: torch.Tensor, shaped: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    with torch.autocast(shaped.device.type, enabled=False):
        score = energy(functional.linear(shaped, weight, bias))
    return score.where(features.isfinite().all(dim=1), torch.nan)


def _knn_bank(features: NDArray[np.float32], parameters: ScoreParameters) -> NDArray[np.float32]:
    # A vector of zeros has no direction that could be near to another's.
    usable = features[features.any(axis=1)]
    if len(usable) < parameters.knn_k:
        raise TooFewImagesError(
            f"knn with k = {parameters.knn_k} needs as many in-distribution images, "
            f"got {len(usable)} with features other than 0: give more, or lower knn_k"
        )
    rows = usable[evenly_spaced(len(usable), parameters.knn_bank_size)]
    return unit_rows(torch.tensor(rows)).numpy()


def evenly_spaced(count: int, limit: int) -> NDArray[np.int64]:
    """Choose at most ``limit`` of ``count`` rows, evenly spaced; ``limit`` is at least 1.

    They are int64 (min(count, limit),), ascending, each row once. Where the rows are sorted by
    class, the classes keep their shares.
    """
    chosen = min(count, limit)
    return np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)


def drawn_from_blocks(count: int, limit: int, seed: int) -> NDArray[np.int64]:
    """Draw at most ``limit`` of ``count`` rows: one at random of each of as many equal blocks.

    Where rows are sorted by class, the classes keep about their shares; where something recurs
    every few rows, such as one of several cameras, no row is preferred. The same seed draws the
    same rows; the rest is as in `evenly_spaced`.
    """
    starts = evenly_spaced(count, limit)
    ends = np.append(starts[1:], count)
    return np.random.default_rng(seed).integers(starts, ends[: len(starts)])
