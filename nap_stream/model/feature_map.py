"""Where a model's pre-pooling feature map is, and reading it during the forward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeGuard, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.model.feature_site import FeatureSite

T = TypeVar("T")

_MAP_DIMENSIONS = 4


def is_map(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a floating-point tensor (N, C, H, W) with more than one position."""
    return is_image_like(value) and value.shape[2] * value.shape[3] > 1


def is_image_like(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a floating-point tensor (N, C, H, W)."""
    return (
        isinstance(value, torch.Tensor)
        and value.ndim == _MAP_DIMENSIONS
        and value.is_floating_point()
    )


def first_argument(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Return what a pooling call works on: its first argument, by position or as ``input``."""
    return args[0] if args else (kwargs or {}).get("input")


@dataclass(slots=True)
class Captured(Generic[T]):
    """What ``reduce`` made of the map; None until the forward pass has reached it."""

    value: T | None = None


@contextmanager
def capture(
    model: nn.Module, site: FeatureSite, reduce: Callable[[torch.Tensor], T]
) -> Iterator[Captured[T]]:
    """Apply ``reduce`` to the map while the model runs, and leave the model as it was.

    The map is reduced at once, before a later in-place operation can change it, and no
    reference to it is kept. The model computes exactly what it would without.
    """
    captured: Captured[T] = Captured()
    if site.kind == "function_input":
        with _FunctionCapture(site, reduce, captured):
            yield captured
        return
    module = model.get_submodule(site.module)
    calls = 0

    def take(value: Any) -> None:
        nonlocal calls
        if calls == site.call:
            captured.value = reduce(value)
        calls += 1

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(first_argument(args, kwargs))

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        take(output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if site.kind == "module_input"
        else module.register_forward_hook(after)
    )
    try:
        yield captured
    finally:
        handle.remove()


class _FunctionCapture(TorchFunctionMode, Generic[T]):
    """Watch for one call of one function."""

    def __init__(
        self, site: FeatureSite, reduce: Callable[[torch.Tensor], T], captured: Captured[T]
    ) -> None:
        super().__init__()
        self._function = site.function
        self._call = site.call
        self._reduce = reduce
        self._captured = captured
        self._calls = 0

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", None) == self._function:
            source = first_argument(args, kwargs)
            if is_image_like(source):
                if self._calls == self._call:
                    self._captured.value = self._reduce(source)
                self._calls += 1
        return func(*args, **(kwargs or {}))
