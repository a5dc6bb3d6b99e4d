"""Building the model that the settings name."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn

from nap_stream.errors import ModelError
from nap_stream.settings import ModelSettings


def build_module(settings: ModelSettings) -> nn.Module:
    """Import the factory and call it with its keyword arguments.

    Raises:
        ModelError: It does not import, is not callable, raises, or returns no module.
    """
    where = f"model.factory = {settings.factory!r}"
    factory = _import_factory(settings.factory, where)
    try:
        module = factory(**settings.kwargs)
    except Exception as error:
        given = ", ".join(settings.kwargs) or "none"
        raise ModelError(
            f"the factory raised {describe(error)} (arguments given: {given})",
            where,
            "Check model.kwargs",
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory returned {type(module).__name__}, expected a torch.nn.Module",
            where,
            "Name a callable that builds the model",
        )
    return module


@contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Put folders first on ``sys.path``, as Python does with a script's own folder."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def describe(error: BaseException) -> str:
    """Name an error in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _import_factory(name: str, where: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"{module_name} cannot be imported ({describe(error)})",
            where,
            "Install it, or name its folder in model.python_path",
        ) from error
    try:
        factory = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ModelError(
            f"{module_name} has no {attribute!r}", where, "Write package.module:name"
        ) from error
    if not callable(factory):
        raise ModelError(
            f"it is {type(factory).__name__}, which cannot be called",
            where,
            "Name a callable that builds the model",
        )
    return factory
