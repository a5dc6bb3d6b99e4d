"""The linear head of a classifier: from penultimate features to logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.compiled import submodule
from nap_stream.model.feature_site import HeadSite

_VECTOR_DIMENSIONS = 2
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 3e-2
"""Largest difference from weight @ features + bias, as a part of the largest logit."""


def head_weight(model: nn.Module, head: HeadSite) -> torch.Tensor:
    """Return a copy of the head's weight, float32, shape (classes, D), on its device.

    Raises:
        ModelError: The model has no such linear module.
    """
    return _linear(model, head).weight.detach().to(torch.float32, copy=True)


def head_bias(model: nn.Module, head: HeadSite) -> torch.Tensor:
    """Return a copy of the head's bias, float32, shape (classes,); zeros where it has none.

    Raises:
        ModelError: The model has no such linear module.
    """
    linear = _linear(model, head)
    # The annotation in torch leaves out that bias=False registers None.
    bias: torch.Tensor | None = linear.bias
    if bias is None:
        return torch.zeros(head.shape[0], device=linear.weight.device)
    return bias.detach().to(torch.float32, copy=True)


@dataclass(frozen=True, slots=True)
class LinearCall:
    """A call of ``linear`` by an ``nn.Linear``: what went in, as a copy, and what came out.

    ``call`` and ``traced_call`` count as in `HeadSite`.
    """

    module: nn.Linear
    name: str
    call: int
    traced_call: int
    source: torch.Tensor
    output: torch.Tensor


def find_head(linears: Sequence[LinearCall], output: Any) -> HeadSite | None:
    """Find the linear module whose output is the model's, from one forward pass.

    The tensor must be the same, and still hold weight @ features + bias: a later in-place
    operation, or a subclass that computes something else, is no linear head.

    Args:
        linears: The calls of the pass, in order.
        output: What the model returned.
    """
    for seen in reversed(linears):
        if _is_same(seen.output, output) and _is_affine(seen):
            classes, width = seen.module.weight.shape
            return HeadSite(seen.name, (classes, width), seen.call, seen.traced_call)
    return None


def _is_same(first: torch.Tensor, second: Any) -> bool:
    if not isinstance(second, torch.Tensor):
        return False
    # Dropout in evaluation mode may return another tensor over the same memory.
    return first is second or (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )


def _is_affine(seen: LinearCall) -> bool:
    if seen.source.ndim != _VECTOR_DIMENSIONS:
        return False
    site = HeadSite("", (seen.module.out_features, seen.module.in_features))
    weight, bias = head_weight(seen.module, site), head_bias(seen.module, site)
    expected = nn.functional.linear(seen.source.float(), weight, bias)
    difference = (expected - seen.output.float()).abs().max()
    tolerance = _TOLERANCE.get(seen.output.dtype, _HALF_TOLERANCE)
    return bool(difference <= tolerance * expected.abs().max())


def _linear(model: nn.Module, head: HeadSite) -> nn.Linear:
    try:
        module = submodule(model, head.module)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear) or tuple(module.weight.shape) != head.shape:
        raise ModelError(
            f"the model has no linear module of shape {head.shape} there",
            f"head {head.module!r}",
            "Use the head that was found on this very model",
        )
    return module
