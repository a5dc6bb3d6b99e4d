"""How a site is read while the model runs: by a hook, or by watching a torch function.

Maps are given as (N, C, H, W) however they lie, attention as (N, patch tokens).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from nap_stream.core.prior import cls_attention, row_attention, softmax_rows
from nap_stream.errors import FeatureMapError
from nap_stream.model.facts import FeatureSite, FunctionCall, MapLayout
from nap_stream.model.sites import (
    Take,
    Watched,
    is_floating,
    module_input,
    module_output,
    submodule,
)

Reader = AbstractContextManager[None] | Watched

_PLAIN = MapLayout()
_TOKEN_DIMENSIONS = 3
_ATTENTION_DIMENSIONS = 4


def reader_of(model: nn.Module, site: FeatureSite, keep: Take, *, compiled: bool) -> Reader:
    """What gives ``keep`` a site's map or attention, once in a forward pass.

    Of ``also`` nothing is read. A tensor with another number of channels is not taken.

    Raises:
        FeatureMapError: The model is compiled, and nothing but a hook could read this site.
    """
    if site.kind == "cls_attention":
        if site.function is not None:
            return _function_attention_reader(site, keep)
        return _module_attention_reader(model, site, keep, compiled=compiled)

    def take(value: Any) -> None:
        if (found := laid_out(value, site)) is not None:
            with torch.autocast(found.device.type, enabled=False):
                keep(found)

    return raw_reader(model, site, take, compiled=compiled)


def raw_reader(model: nn.Module, site: FeatureSite, take: Take, *, compiled: bool) -> Reader:
    """What gives ``take`` the tensor of a map's site as it lies there."""
    dimensions = site.layout.dimensions
    if site.kind == "function_input":
        return Watched(FunctionCall(str(site.function), site.call), dimensions, take)
    if compiled:
        return Watched(_traced(site), dimensions, take)
    reader = module_input if site.kind == "module_input" else module_output
    return reader(submodule(model, site.module), site.call, take)


def laid_out(value: Any, site: FeatureSite) -> torch.Tensor | None:
    """A site's map as (N, C, H, W); None where the value is no such map."""
    value = value[0] if isinstance(value, tuple | list) and value else value
    layout = site.layout
    if not is_floating(value) or value.ndim != layout.dimensions:
        return None
    if value.shape[layout.channels] != site.shape[0]:
        return None
    if layout == _PLAIN:
        return value
    rows = value.movedim((layout.images, layout.channels), (0, 1)).flatten(2)[..., layout.skip :]
    count, channels, positions = rows.shape
    if layout.tiles > 1:
        if count % layout.tiles:
            return None
        if layout.tiles_first:
            rows = rows.reshape(layout.tiles, -1, channels, positions).permute(1, 2, 0, 3)
        else:
            rows = rows.reshape(-1, layout.tiles, channels, positions).transpose(1, 2)
    return rows.reshape(-1, channels, 1, positions * layout.tiles)


def _function_attention_reader(site: FeatureSite, keep: Take) -> Reader:
    function = str(site.function)
    dimensions = site.layout.dimensions
    rows = site.tokens

    def take_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        source = args[0] if args else kwargs.get("query", kwargs.get("input"))
        with torch.autocast(source.device.type, enabled=False):
            found = attention_of(site, args, kwargs)
            if found is not None and found.shape[1] == rows.first + site.shape[2]:
                keep(found[:, rows.first :])

    return Watched(FunctionCall(function, site.call), dimensions, take_call=take_call)


def attention_of(
    site: FeatureSite, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """A call's attention of a site's tokens over all, float32 (N, T), averaged over the heads.

    None where the call is of another form.
    """
    queries = site.tokens.queries
    if site.function == "softmax":
        return softmax_rows(_with_heads(args[0] if args else kwargs["input"], site), queries)
    given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | dict(kwargs)
    if given.get("is_causal"):
        return None
    query, key = _with_heads(given["query"], site), _with_heads(given["key"], site)
    mask = given.get("attn_mask")
    return row_attention(query, key, queries, scale=given.get("scale"), mask=mask)


def _with_heads(value: torch.Tensor, site: FeatureSite) -> torch.Tensor:
    """The same as (N, heads, rows, columns)."""
    if value.ndim == _ATTENTION_DIMENSIONS:
        return value
    if site.layout.channels == 1:
        # A single query: (N, heads, columns).
        return value.unsqueeze(2)
    return value.reshape(-1, site.shape[0], *value.shape[1:])


def _module_attention_reader(
    model: nn.Module, site: FeatureSite, keep: Take, *, compiled: bool
) -> Reader:
    attention = submodule(model, site.module)
    assert isinstance(attention, nn.MultiheadAttention)
    weight, bias, heads = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
    # The first of what is given is the second token.
    skipped = site.tokens.first - 1

    def take(tokens: torch.Tensor) -> None:
        with torch.autocast(tokens.device.type, enabled=False):
            keep(cls_attention(tokens, weight, bias, heads)[:, skipped:])

    def take_turned(tokens: torch.Tensor) -> None:
        take(tokens.transpose(0, 1))

    if compiled:
        # The function takes (T, N, D), whatever the module's batch_first.
        return Watched(_traced(site), _TOKEN_DIMENSIONS, take_turned)
    # A function mode would switch torch's fast path off, and with it the last bits of the output.
    taking = take if attention.batch_first else take_turned
    return module_input(attention, site.call, taking, "query")


def _traced(site: FeatureSite) -> FunctionCall:
    if site.traced is None:
        raise FeatureMapError(
            "no function takes this map first, so that a hook alone could read it, and hooks are "
            "not called in a module under torch.compile",
            str(site),
            "Name another module in model.feature_layer, or use the model without torch.compile",
        )
    return site.traced
