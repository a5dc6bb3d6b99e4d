"""The Neural Activation Prior of an image (arXiv 2402.18162), higher for in-distribution images.

It is read from the feature map that enters global pooling, or, in a Vision Transformer, from the
CLS token's attention in the last block. Where several maps reach the logits by poolings of their
own, it is over the channels of all of them: the mean of their NAPs, weighted by channels.
"""

from collections.abc import Sequence

import torch

EPSILON = 1.0
"""ε of the paper. It is no numerical nicety: with 1e-6 the score inverts."""

_MAP_DIMENSIONS = 4
_TOKEN_DIMENSIONS = 3
_FEWEST_TOKENS = 2


def nap(feature_map: torch.Tensor) -> torch.Tensor:
    """Score images by the feature map A that enters global pooling.

    S_NAP = (1/C) Σ_j (Max(A_j) / (Mean(A_j) + ε))², ε = 1.0, over the C channels A_j of H·W
    positions (Neural Activation Prior, arXiv 2402.18162), for a map after a ReLU.

    Elsewhere (SiLU, GELU, layer norm, residual streams) activations can be negative and Mean + ε
    can pass zero. There Max(A_j) is clamped at zero and the mean is that of |A_j|: negative
    activations count as background. Of the policies measured, in docs/negative-activations.md,
    it has the best average AUROC. Without negative activations it is the paper's formula. Since
    Max ≤ H·W·Mean of |A_j|, the score lies in [0, (H·W)²]. The map is of any floating dtype, shape
    (N, C, H, W).

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
    return channel_prior(activations.amax(dim=2), activations.abs().mean(dim=2))


def channel_prior(peak: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Score images by what `nap` takes from a map: each channel's maximum, and its mean of |A_j|.

    Both are of any floating dtype, (N, C), and are computed with in float32. Channels of several
    maps may stand side by side.

    Returns:
        Scores, float32, shape (N,), as `nap` gives them.
    """
    mean = mean.float()
    ratio = peak.float().clamp_min(0) / (mean + EPSILON)
    # A mean that overflows would turn the ratio into a finite, wrong zero.
    return ratio.where(mean < torch.inf, torch.nan).square().mean(dim=1)


def nap_by_position(feature_map: torch.Tensor) -> torch.Tensor:
    """Where on the map NAP comes from: each channel's part, at the place of its maximum.

    Of a floating dtype, (N, C, H, W).

    Returns:
        float32 (N, H, W), at least 0; the sum of an image is its `nap`, but for rounding.
    """
    activations = feature_map.flatten(start_dim=2).float()
    peak, place = activations.max(dim=2)
    ratio = peak.clamp_min(0) / (activations.abs().mean(dim=2) + EPSILON)
    parts = activations.new_zeros(activations.shape[0], activations.shape[2])
    parts.scatter_add_(1, place, ratio.square() / activations.shape[1])
    return parts.reshape(-1, *feature_map.shape[2:])


def attention_prior(attention: torch.Tensor) -> torch.Tensor:
    """Score images by the attention weights of the CLS token in the last block.

    S_NAP = the maximum over the patch tokens (Neural Activation Prior, arXiv 2402.18162). The
    mean of a softmax is constant, so it drops out. The weights are of any floating dtype, shape
    (N, patch tokens), as `cls_attention` gives them.

    Returns:
        Scores in [0, 1], float32, shape (N,), higher = in-distribution; NaN where a weight is.
    """
    return attention.amax(dim=1).float()


def cls_attention(
    tokens: torch.Tensor,
    in_proj_weight: torch.Tensor,
    in_proj_bias: torch.Tensor | None,
    heads: int,
) -> torch.Tensor:
    """Attention weights of the CLS token over the patch tokens, averaged over the heads.

    softmax(q_h K_h^T / √d) of token 0's query, over all T tokens, as scaled dot-product
    self-attention computes it (arXiv 1706.03762, equation 1; arXiv 2010.11929). Only that row is
    computed: q_h K_h^T = (q_h W_k,h) X^T, so that the keys of the tokens are never made. The key
    bias adds the same to all logits of a row, and drops out.

    Args:
        tokens: What enters the self-attention, any floating dtype, shape (N, T, D), CLS first.
        in_proj_weight: The projections of query, key and value one above the other, shape
            (3 D, D), as in ``torch.nn.MultiheadAttention``.
        in_proj_bias: Their biases, shape (3 D,), or None.
        heads: The number of heads; D is a multiple of it.

    Returns:
        float32, shape (N, T - 1), on the device of the tokens. Computed in float32 whatever the
        dtypes. The rows sum to 1 less CLS's attention to itself.

    Raises:
        ValueError: The shapes do not fit, or there is no patch token.
    """
    _check(tokens, in_proj_weight, in_proj_bias, heads)
    images, _, width = tokens.shape
    each = width // heads
    x = tokens.float()
    query = x[:, 0] @ in_proj_weight[:width].float().T
    if in_proj_bias is not None:
        query = query + in_proj_bias[:width].float()
    query = query.reshape(images, heads, each) / each**0.5
    key_weight = in_proj_weight[width : 2 * width].float().reshape(heads, each, width)
    directions = torch.einsum("nhe,hed->nhd", query, key_weight)
    attention = torch.softmax(directions @ x.transpose(1, 2), dim=2)
    return attention.mean(dim=1)[:, 1:]


def row_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    queries: Sequence[int],
    *,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of some tokens over all, averaged over heads and over these tokens.

    softmax(q K^T · scale + mask) as ``torch.nn.functional.scaled_dot_product_attention`` computes
    it inside (arXiv 1706.03762, equation 1), of the rows ``queries`` alone.

    Args:
        query: Any floating dtype, shape (N, heads, Q, d).
        key: Shape (N, heads, T, d).
        queries: Which of the Q rows.
        scale: What the products are multiplied by; None for 1 / √d.
        mask: Added to the logits, or, where it is boolean, false for what is left out; its shape
            broadcasts to (N, heads, Q, T).

    Returns:
        float32, shape (N, T), computed in float32 whatever the dtypes.
    """
    rows = list(queries)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = query[:, :, rows].float() @ key.float().transpose(2, 3) * factor
    if mask is not None:
        picked = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        logits = (
            logits.masked_fill(~picked, -torch.inf)
            if mask.dtype == torch.bool
            else logits + picked.float()
        )
    return torch.softmax(logits, dim=-1).mean(dim=(1, 2))


def softmax_rows(logits: torch.Tensor, queries: Sequence[int]) -> torch.Tensor:
    """Attention of some tokens over all, from the logits (N, heads, Q, T) of a model's softmax.

    Returns:
        float32, shape (N, T), averaged over heads and over the rows ``queries``.
    """
    return torch.softmax(logits[:, :, list(queries)].float(), dim=-1).mean(dim=(1, 2))


def _check(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, heads: int
) -> None:
    shape = tuple(tokens.shape)
    fits = (
        len(shape) == _TOKEN_DIMENSIONS
        and shape[1] >= _FEWEST_TOKENS
        and tokens.is_floating_point()
        and heads > 0
        and shape[2] % heads == 0
        and tuple(weight.shape) == (3 * shape[2], shape[2])
        and (bias is None or tuple(bias.shape) == (3 * shape[2],))
    )
    if not fits:
        raise ValueError(
            f"expected floating-point tokens (N, T, D), T > 1, D a multiple of the {heads} heads, "
            f"and projections (3 D, D), got {tokens.dtype} of {shape} and {tuple(weight.shape)}"
        )
