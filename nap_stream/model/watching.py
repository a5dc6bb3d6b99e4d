"""Watching what enters and leaves modules and functions during a forward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.model.feature_site import FunctionCall

Take = Callable[[Any], None]

_MAP_DIMENSIONS = 4


def is_floating(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a floating-point tensor."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def is_image_like(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a floating-point tensor (N, C, H, W)."""
    return is_floating(value) and value.ndim == _MAP_DIMENSIONS


def is_map(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a floating-point tensor (N, C, H, W) with more than one position."""
    return is_image_like(value) and value.shape[2] * value.shape[3] > 1


def first_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any] | None, name: str = "input"
) -> Any:
    """Return what a call works on: its first argument, by position or by name."""
    return args[0] if args else (kwargs or {}).get(name)


@contextmanager
def module_input(module: nn.Module, call: int, take: Take, name: str = "input") -> Iterator[None]:
    """Give ``take`` the first argument of one call of a module, counted from 0."""
    calls = 0

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        if calls == call:
            take(first_argument(args, kwargs, name))
        calls += 1

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def module_output(module: nn.Module, call: int, take: Take) -> Iterator[None]:
    """Give ``take`` the output of one call of a module, counted from 0."""
    calls = 0

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        nonlocal calls
        if calls == call:
            take(output)
        calls += 1

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@dataclass(slots=True)
class Watched:
    """A call whose first argument ``take`` is given, a tensor of so many dimensions."""

    call: FunctionCall
    dimensions: int
    take: Take
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
        self._watch(getattr(func, "__name__", None), first_argument(args, kwargs))
        return func(*args, **(kwargs or {}))

    def _watch(self, function: str | None, source: Any) -> None:
        for watched in self._watched:
            if (
                function == watched.call.function
                and is_floating(source)
                and source.ndim == watched.dimensions
            ):
                if watched.calls == watched.call.call:
                    watched.take(source)
                watched.calls += 1
