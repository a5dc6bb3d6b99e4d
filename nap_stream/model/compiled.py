"""Modules under torch.compile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_WRAPPED = "_orig_mod"


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it runs under ``torch.compile``.

    Hooks that are registered on such a part after its first call are silently ignored.
    """
    return any(_is_compiled_itself(module) for module in model.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside what ``torch.compile(model)`` returned, or the model as it is."""
    # named_children() takes ten times as long, and this is asked of every part at each pass.
    inner: nn.Module | None = vars(model)["_modules"].get(_WRAPPED)
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
