"""Whether a Vision Transformer's CLS attention can be read, and speaks for the image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nap_stream.model.compiled import submodule
from nap_stream.model.feature_site import FeatureSite, FunctionCall, HeadSite
from nap_stream.model.watching import first_argument, module_input

_TOKEN_DIMENSIONS = 3
_FEWEST_TOKENS = 3
_MASKS = ("key_padding_mask", "attn_mask")


def attention_site(
    module: nn.MultiheadAttention,
    name: str,
    calls: tuple[int, int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> FeatureSite | None:
    """Return the site of a call of an attention module, if its CLS row can be computed.

    That takes unmasked self-attention over three tokens or more, whose query and key are
    projections of the same tokens.

    Args:
        module: What is called.
        name: Its dotted name.
        calls: The number of this call, of the module and of ``multi_head_attention_forward``.
        args: Of the call.
        kwargs: Of the call.
    """
    query = first_argument(args, kwargs, "query")
    key = args[1] if len(args) > 1 else kwargs.get("key")
    masks = [*args[3:4], *args[5:6], *(kwargs.get(mask) for mask in _MASKS)]
    is_plain = (
        isinstance(query, torch.Tensor)
        and query.ndim == _TOKEN_DIMENSIONS
        and key is query
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and all(mask is None for mask in masks)
    )
    tokens = query.shape[1 if module.batch_first else 0] if is_plain else 0
    if tokens < _FEWEST_TOKENS:
        return None
    own, traced = calls
    return FeatureSite(
        "cls_attention",
        name,
        None,
        own,
        (module.num_heads, 1, tokens - 1),
        FunctionCall("multi_head_attention_forward", traced),
    )


def cls_alone_decides(
    model: nn.Module, site: FeatureSite, head: HeadSite | None, batch: torch.Tensor
) -> bool:
    """Whether of an attention's output the first token alone reaches the classifier.

    Measured: changing all other tokens must leave what enters the head as it is, bit for bit,
    and changing the first must not. Where there is no linear head, the model's output is looked
    at. Runs the model three times, eagerly, on a batch (N, 3, H, W).
    """
    attention = submodule(model, site.module)
    assert isinstance(attention, nn.MultiheadAttention)

    def run(changed: slice) -> Any:
        features: list[torch.Tensor] = []
        with ExitStack() as hooks:
            hooks.enter_context(_changed_tokens(attention, site.call, changed))
            if head is not None:
                module = submodule(model, head.module)
                hooks.enter_context(module_input(module, head.call, features.append))
            output = model(batch)
        # A head that is still all zeros hides what enters it.
        return features[0] if features else output

    plain = run(slice(0, 0))
    return (
        isinstance(plain, torch.Tensor)
        and torch.equal(run(slice(1, None)), plain)
        and not torch.equal(run(slice(0, 1)), plain)
    )


@contextmanager
def _changed_tokens(attention: nn.MultiheadAttention, call: int, changed: slice) -> Iterator[None]:
    calls = 0

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != call:
            return None
        tokens = output[0].clone()
        part = tokens[:, changed] if attention.batch_first else tokens[changed]
        part.mul_(-3).add_(1)
        return tokens, output[1]

    handle = attention.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
