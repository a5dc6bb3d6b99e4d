"""What a call of a torch function does to a feature map (N, C, H, W)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nap_stream.model.watching import is_image_like, is_map

ADAPTIVE_POOLINGS = frozenset({"adaptive_avg_pool2d", "adaptive_max_pool2d"})
POOLING_FUNCTIONS = ADAPTIVE_POOLINGS | {"avg_pool2d", "max_pool2d", "mean", "amax"}

_SPATIAL_DIMENSIONS = {2, 3}
_FLATTENING = frozenset({"flatten", "reshape", "view"})
_CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d"})
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
_REORDERING = _FLATTENING | {
    "permute",
    "transpose",
    "movedim",
    "moveaxis",
    "swapaxes",
    "swapdims",
    "unflatten",
    "view_as",
    "reshape_as",
}


def shape_of(value: torch.Tensor) -> tuple[int, int, int]:
    """Return (C, H, W) of a map."""
    _, channels, height, width = value.shape
    return channels, height, width


def pools_globally(
    function: str,
    source: torch.Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    result: Any,
) -> bool:
    """Whether a call reduced all positions of each channel, and nothing else, to one value."""
    if function not in POOLING_FUNCTIONS:
        return False
    if not isinstance(result, torch.Tensor) or result.shape[:2] != source.shape[:2]:
        return False
    if result.numel() != source.shape[0] * source.shape[1]:
        return False
    if function not in {"mean", "amax"}:
        return True
    named = kwargs or {}
    reduced = args[1] if len(args) > 1 else named.get("dim", named.get("axis", ()))
    dimensions = reduced if isinstance(reduced, Sequence) else (reduced,)
    return {dimension % source.ndim for dimension in dimensions} == _SPATIAL_DIMENSIONS


def flattens(function: str, source: torch.Tensor, result: Any) -> bool:
    """Whether a call laid each map of more than one position of a batch out as one vector."""
    images, *sides = source.shape
    return (
        function in _FLATTENING
        and is_map(source)
        and isinstance(result, torch.Tensor)
        and tuple(result.shape) == (images, torch.Size(sides).numel())
    )


def keeps_channels_second(
    function: str, args: Sequence[Any], result: Any, known: torch.Tensor | None
) -> bool:
    """Whether the result is a map with its channels in dimension 1, made by a convolution.

    That is so of a convolution's result, and of what keeps the channels of ``known``, the last
    tensor of which it was so. Channels-last tensors (N, H, W, C) have four dimensions too, and
    pixels are no features.
    """
    if not is_image_like(result) or function in _REORDERING:
        return False
    if function in _CONVOLUTIONS:
        return True
    if known is None:
        return False
    if function in _CONCATENATIONS:
        joined = any(part is known for part in args[0])
        return joined and (result.shape[0], *result.shape[2:]) == (
            known.shape[0],
            *known.shape[2:],
        )
    return any(part is known for part in args) and result.shape[:2] == known.shape[:2]
