"""Where a model's prior and penultimate features are read, and how its modules are watched.

A site names a place in the forward pass in terms that survive JSON. It is read by a hook on a
module, or by watching a torch function: hooks are not called in modules under ``torch.compile``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.errors import ModelError
from nap_stream.model.facts import FeatureSite, FunctionCall, HeadSite

Take = Callable[[Any], None]

_TOKEN_DIMENSIONS = 3
_VECTOR_DIMENSIONS = 2
_FEWEST_TOKENS = 3
_MASKS = ("key_padding_mask", "attn_mask")
_WRAPPED = "_orig_mod"
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 3e-2
"""Largest difference from weight @ features + bias, as a part of the largest logit."""


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it runs under ``torch.compile``.

    Hooks that are registered on such a part after its first call are silently ignored.
    """
    return any(_is_compiled_itself(module) for module in model.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside what ``torch.compile(model)`` returned, or the model as it is."""
    # named_children() takes ten times as long, and this is asked of every part at each pass.
    parts = vars(model).get("_modules")
    # Scripted modules keep their parts elsewhere.
    inner: nn.Module | None = parts.get(_WRAPPED) if isinstance(parts, dict) else None
    return model if inner is None else inner


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a dotted name as it is without ``torch.compile``.

    Raises:
        AttributeError: There is none.
    """
    return unwrapped(model.get_submodule(name))


def plain_name(name: str) -> str:
    """Return a dotted name as it is without ``torch.compile``."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


@contextmanager
def run_eagerly(model: nn.Module) -> Iterator[None]:
    """Let compiled modules run their Python code, so that hooks are called."""
    if not is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_compiled_itself(module: nn.Module) -> bool:
    return (
        getattr(module, "_compiled_call_impl", None) is not None
        or unwrapped(module) is not module
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )


def is_floating(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a floating-point tensor."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def first_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any] | None, name: str = "input"
) -> Any:
    """Return what a call works on: its first argument, by position or by name."""
    if args:
        return args[0]
    named = kwargs or {}
    return named.get(name, named.get("query"))


@contextmanager
def module_input(module: nn.Module, call: int, take: Take, name: str = "input") -> Iterator[None]:
    """Give ``take`` the first argument of one call of a module, counted from 0."""
    calls = count()

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if next(calls) == call:
            take(first_argument(args, kwargs, name))

    with module.register_forward_pre_hook(before, with_kwargs=True):
        yield


@contextmanager
def module_output(module: nn.Module, call: int, take: Take) -> Iterator[None]:
    """Give ``take`` the output of one call of a module, counted from 0."""
    calls = count()

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if next(calls) == call:
            take(output)

    with module.register_forward_hook(after):
        yield


@dataclass(slots=True)
class Watched:
    """A call whose first argument ``take`` is given, a tensor of so many dimensions.

    ``take_call`` is given all arguments, by position and by name; ``change`` replaces the result.
    """

    call: FunctionCall
    dimensions: int
    take: Take | None = None
    take_call: Callable[[Sequence[Any], Mapping[str, Any]], None] | None = None
    change: Callable[[Any], Any] | None = None
    calls: int = 0


class FunctionInputs(TorchFunctionMode):
    """Watch for calls of torch functions, in compiled modules too.

    A mode is traced into the compiled graph. Where that graph runs as Python
    (``backend="eager"``), the mode sees its calls once more: no ``take`` may call what is watched
    for after it.
    """

    def __init__(self, watched: Sequence[Watched]) -> None:
        super().__init__()
        self._watched = tuple(watched)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        reached = self._reached(getattr(func, "__name__", None), first_argument(args, kwargs))
        for watched in reached:
            if watched.take is not None:
                watched.take(first_argument(args, kwargs))
            if watched.take_call is not None:
                watched.take_call(args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        for watched in reached:
            if watched.change is not None:
                result = watched.change(result)
        return result

    def _reached(self, function: str | None, source: Any) -> list[Watched]:
        reached = []
        for watched in self._watched:
            if (
                function == watched.call.function
                and is_floating(source)
                and source.ndim == watched.dimensions
            ):
                if watched.calls == watched.call.call:
                    reached.append(watched)
                watched.calls += 1
        return reached


def head_parameters(model: nn.Module, head: HeadSite) -> tuple[torch.Tensor, torch.Tensor]:
    """Return copies of the head's weight (classes, D) and bias (classes,), on its device.

    Float32; zeros for a layer without a bias.

    Raises:
        ModelError: The model has no such linear module.
    """
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
    return _parameters(module)


def _parameters(linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    weight = linear.weight.detach().to(torch.float32, copy=True)
    # The annotation in torch leaves out that bias=False registers None.
    bias: torch.Tensor | None = linear.bias
    if bias is None:
        return weight, torch.zeros(len(weight), device=weight.device)
    return weight, bias.detach().to(torch.float32, copy=True)


@dataclass(frozen=True, slots=True)
class LinearCall:
    """A call of ``linear`` by an ``nn.Linear``: what went in, as a copy, and what came out."""

    module: nn.Linear
    site: HeadSite
    source: torch.Tensor
    output: torch.Tensor


def find_head(linears: Sequence[LinearCall], output: Any) -> HeadSite | None:
    """Find the linear module whose output is the model's, from one forward pass.

    The tensor must be the same, and still hold weight @ features + bias: a later in-place
    operation, or a subclass that computes something else, is no linear head. ``linears`` are the
    calls of the pass, in order, and ``output`` what the model returned.
    """
    for seen in reversed(linears):
        if _is_same(seen.output, output) and _is_affine(seen):
            return seen.site
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
    weight, bias = _parameters(seen.module)
    expected = nn.functional.linear(seen.source.float(), weight, bias)
    difference = (expected - seen.output.float()).abs().max()
    tolerance = _TOLERANCE.get(seen.output.dtype, _HALF_TOLERANCE)
    return bool(difference <= tolerance * expected.abs().max())


def attention_site(
    module: nn.MultiheadAttention,
    name: str,
    calls: tuple[int, int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> FeatureSite | None:
    """Return the site of a call of an attention module, if its CLS row can be computed.

    That takes unmasked self-attention over three tokens or more, whose query and key are
    projections of the same tokens. ``name`` is the module's; ``calls`` are the numbers of this
    call, of the module's and of those of ``multi_head_attention_forward``.
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
    shape = (module.num_heads, 1, tokens - 1)
    function = FunctionCall("multi_head_attention_forward", calls[1])
    return FeatureSite("cls_attention", name, None, calls[0], shape, function)
