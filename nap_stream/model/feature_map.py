"""Reading the prior's map, and the head's input, during the forward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from nap_stream.core.attention_prior import cls_attention
from nap_stream.errors import FeatureMapError
from nap_stream.model.compiled import is_compiled, submodule
from nap_stream.model.feature_site import FeatureSite, FunctionCall, HeadSite
from nap_stream.model.watching import (
    FunctionInputs,
    Watched,
    is_image_like,
    module_input,
    module_output,
)

T = TypeVar("T")
Reader = AbstractContextManager[None] | Watched

_MAP_DIMENSIONS = 4
_TOKEN_DIMENSIONS = 3
_VECTOR_DIMENSIONS = 2


@dataclass(slots=True)
class Captured(Generic[T]):
    """What ``reduce`` made of the map, and the head's input; None until they are reached.

    ``features`` is a copy, float32, shape (N, D).
    """

    value: T | None = None
    features: torch.Tensor | None = None


@contextmanager
def capture(
    model: nn.Module,
    site: FeatureSite,
    reduce: Callable[[torch.Tensor], T],
    head: HeadSite | None = None,
) -> Iterator[Captured[T]]:
    """Apply ``reduce`` to the map while the model runs, and leave the model as it was.

    The map is reduced at once, before a later in-place operation can change it, without
    autocast, and no reference to it is kept. The model computes exactly what it would without.
    For ``cls_attention`` the attention weights over the patch tokens, float32 (N, T - 1), stand
    for the map. A tensor with another number of channels than the site's is not taken for it.

    Raises:
        FeatureMapError: The model is compiled, and nothing but a hook could read this site.
    """
    captured: Captured[T] = Captured()
    compiled = is_compiled(model)
    prior_reader = _attention_reader if site.kind == "cls_attention" else _map_reader
    readers = [prior_reader(model, site, reduce, captured, compiled=compiled)]
    if head is not None:
        readers.append(_head_reader(model, head, captured, compiled=compiled))
    watched = [reader for reader in readers if isinstance(reader, Watched)]
    with ExitStack() as active:
        for reader in readers:
            if not isinstance(reader, Watched):
                active.enter_context(reader)
        if watched:
            active.enter_context(FunctionInputs(watched))
        yield captured


def _map_reader(
    model: nn.Module,
    site: FeatureSite,
    reduce: Callable[[torch.Tensor], T],
    captured: Captured[T],
    *,
    compiled: bool,
) -> Reader:
    def take(value: Any) -> None:
        if is_image_like(value) and value.shape[1] == site.shape[0]:
            with torch.autocast(value.device.type, enabled=False):
                captured.value = reduce(value)

    if site.kind == "function_input":
        return Watched(FunctionCall(str(site.function), site.call), _MAP_DIMENSIONS, take)
    if compiled:
        return Watched(_traced(site), _MAP_DIMENSIONS, take)
    module = submodule(model, site.module)
    reader = module_input if site.kind == "module_input" else module_output
    return reader(module, site.call, take)


def _attention_reader(
    model: nn.Module,
    site: FeatureSite,
    reduce: Callable[[torch.Tensor], T],
    captured: Captured[T],
    *,
    compiled: bool,
) -> Reader:
    attention = submodule(model, site.module)
    assert isinstance(attention, nn.MultiheadAttention)
    weight, bias, heads = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads

    def take(tokens: torch.Tensor) -> None:
        with torch.autocast(tokens.device.type, enabled=False):
            captured.value = reduce(cls_attention(tokens, weight, bias, heads))

    def take_turned(tokens: torch.Tensor) -> None:
        take(tokens.transpose(0, 1))

    if compiled:
        # The function takes (T, N, D), whatever the module's batch_first.
        return Watched(_traced(site), _TOKEN_DIMENSIONS, take_turned)
    # A function mode would switch torch's fast path off, and with it the last bits of the output.
    taking = take if attention.batch_first else take_turned
    return module_input(attention, site.call, taking, "query")


def _head_reader(
    model: nn.Module, head: HeadSite, captured: Captured[Any], *, compiled: bool
) -> Reader:
    def take(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.shape[1:] == (head.shape[1],):
            captured.features = value.detach().to(torch.float32, copy=True)

    if compiled:
        return Watched(FunctionCall("linear", head.traced_call), _VECTOR_DIMENSIONS, take)
    return module_input(submodule(model, head.module), head.call, take)


def _traced(site: FeatureSite) -> FunctionCall:
    if site.traced is None:
        raise FeatureMapError(
            "no function takes this map first, so that a hook alone could read it, and hooks are "
            "not called in a module under torch.compile",
            str(site),
            "Name another module in model.feature_layer, or use the model without torch.compile",
        )
    return site.traced
