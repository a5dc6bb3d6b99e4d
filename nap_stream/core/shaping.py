"""Scores that change the penultimate features or the head, then take the energy.

The features are the input of the model's last linear layer (the head), shape (N, D); the
logits are ``features @ weight.T + bias``. Everything is computed in float32, under autocast
too. A row of features that is not finite scores NaN: clipping or pruning could hide it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nap_stream.core.scores import energy

LARGEST_EXPONENT = 64.0
"""Where the exponent of ASH-S and SCALE stops: exp(64) = 6e27, times a logit, is a float32.

The exponent is at most D divided by the number of kept activations, so the limit is reached
only where fewer than one activation in 64 is kept.
"""


def react(
    features: torch.Tensor, clip: float, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """ReAct: the energy with every activation limited to ``clip`` (Sun et al., arXiv 2111.12797).

    Args:
        features: Any floating dtype, shape (N, D).
        clip: Largest activation, from `react_clip`; infinity gives the plain energy.
        weight: The head's weight, float32, shape (K, D).
        bias: The head's bias, float32, shape (K,).

    Returns:
        float32 (N,), higher = in-distribution.
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
    row without a positive activation has the factor exp(1).

    Args:
        features: Any floating dtype, shape (N, D).
        percentile: Fraction in (0, 1) to prune. At least one activation is kept.
        weight: The head's weight, float32, shape (K, D).
        bias: The head's bias, float32, shape (K,).

    Returns:
        float32 (N,), higher = in-distribution: the energy of the shaped features. The exponent
        stops at `LARGEST_EXPONENT`.
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
    activations of `ash`.

    Args:
        features: Any floating dtype, shape (N, D).
        percentile: Fraction in (0, 1) of the smallest activations that s2 leaves out.
        weight: The head's weight, float32, shape (K, D).
        bias: The head's bias, float32, shape (K,).

    Returns:
        float32 (N,), higher = in-distribution: the energy of the scaled features.
    """
    activations = features.float()
    kept, _ = _largest(activations, percentile)
    return _energy_of_head(features, activations * _factor(activations, kept), weight, bias)


def dice(features: torch.Tensor, masked_weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """DICE: the energy of a sparse head (Sun and Li, arXiv 2111.09805).

    Args:
        features: Any floating dtype, shape (N, D).
        masked_weight: From `dice_weight`, float32, shape (K, D).
        bias: The head's bias, float32, shape (K,).

    Returns:
        float32 (N,), higher = in-distribution.
    """
    return _energy_of_head(features, features.float(), masked_weight, bias)


def react_clip(features: NDArray[np.float32], percentile: float) -> float:
    """Give ReAct's clip: a percentile of all activations of in-distribution images.

    Args:
        features: float32 (n, D), n >= 1.
        percentile: Fraction in (0, 1); linear between activations.
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
