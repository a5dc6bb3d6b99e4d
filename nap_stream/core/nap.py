"""The Neural Activation Prior: a feature map's score, higher for in-distribution images."""

import torch

EPSILON = 1.0
"""ε of the paper. It is no numerical nicety: with 1e-6 the score inverts."""

_MAP_DIMENSIONS = 4


def nap(feature_map: torch.Tensor) -> torch.Tensor:
    """Score images by the feature map A that enters global pooling.

    S_NAP = (1/C) Σ_j (Max(A_j) / (Mean(A_j) + ε))², ε = 1.0, over the C channels A_j of H·W
    positions (Neural Activation Prior, arXiv 2402.18162), for a map after a ReLU.

    Elsewhere (SiLU, GELU, layer norm, residual streams) activations can be negative and Mean + ε
    can pass zero. There Max(A_j) is clamped at zero and the mean is that of |A_j|: negative
    activations count as background. Of the policies measured, in docs/negative-activations.md,
    it has the best average AUROC. Without negative activations it is the paper's formula. Since
    Max ≤ H·W·Mean of |A_j|, the score lies in [0, (H·W)²].

    Args:
        feature_map: Activations, any floating dtype, shape (N, C, H, W).

    Returns:
        Scores, float32, shape (N,), on the map's device; reduced in float32 whatever the map's
        dtype. A row with NaN, infinity or a mean beyond float32's range is NaN.

    Raises:
        ValueError: If the map is not floating-point or not 4-D, or has no position or channel.
    """
    if (
        feature_map.ndim != _MAP_DIMENSIONS
        or not feature_map.is_floating_point()
        or 0 in feature_map.shape[1:]
    ):
        raise ValueError(
            f"expected a floating-point feature map of shape (N, C, H, W), "
            f"got {feature_map.dtype} of {tuple(feature_map.shape)}"
        )
    # Reducing over one flattened dimension takes about half the time of reducing over two, and
    # the maximum of 16-bit activations ten times that of their float32 copy on a CPU.
    activations = feature_map.flatten(start_dim=2).float()
    peak = activations.amax(dim=2).clamp_min(0)
    mean = activations.abs().mean(dim=2)
    ratio = peak / (mean + EPSILON)
    # A mean that overflows would turn the ratio into a finite, wrong zero.
    return ratio.where(mean.isfinite(), torch.nan).square().mean(dim=1)
