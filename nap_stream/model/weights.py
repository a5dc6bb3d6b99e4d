"""The fingerprint of a model: what a calibration is valid for.

Building the model that the settings name.

Loading weights into a module. Nothing is ever unpickled beyond tensors.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.settings.schema import ModelSettings

_SCHEME = "nap-stream model 1"


def fingerprint(settings: ModelSettings, state: Mapping[str, Any]) -> str:
    """Hash everything that decides what the model computes for an image.

    That is: the factory and its arguments, the preprocessing, and the name, dtype, shape and
    bytes of each tensor of the state dict, in order of names. The same on every device and in
    every process.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        ModelError: The state dict holds something that has no stable bytes.
    """
    digest = hashlib.sha256()
    description = {
        "scheme": _SCHEME,
        "factory": settings.factory,
        "kwargs": settings.kwargs,
        "preprocessing": settings.preprocessing.model_dump(mode="json"),
    }
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    _update(digest, state, f"model.factory = {settings.factory!r}")
    return digest.hexdigest()


def weights_fingerprint(state: Mapping[str, Any]) -> str:
    """Hash the state dict alone, for a model that comes from no settings.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        ModelError: The state dict holds something that has no stable bytes.
    """
    digest = hashlib.sha256(_SCHEME.encode())
    _update(digest, state, "the model")
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", state: Mapping[str, Any], where: str) -> None:
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, torch.Tensor) or value.is_quantized or value.is_sparse:
            raise ModelError(
                f"the state dict's {name!r} is {type(value).__name__}, expected a dense tensor",
                where,
            )
        header = [name, str(value.dtype), list(value.shape)]
        digest.update(json.dumps(header).encode())
        digest.update(_bytes(value))


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


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


_LISTED = 3


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict into a module on the CPU; every name and shape must fit.

    Batch counters of normalisation layers may be missing, as in files of old torch versions.

    Args:
        module: Changed in place.
        path: A .safetensors file, or a torch file of a state dict (read with weights_only).

    Raises:
        ModelError: The file is missing, cannot be read, or does not fit the module.
    """
    where = f"model.weights = {path}"
    state = _read_state(path)
    misshapen = _misshapen(module.state_dict(), state)
    fitting = {name: tensor for name, tensor in state.items() if name not in misshapen}
    try:
        unmatched = module.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise ModelError(f"the weights cannot be loaded ({describe(error)})", where) from error
    complaints = [
        _listing("missing", [name for name in unmatched.missing_keys if name not in misshapen]),
        _listing("unexpected", unmatched.unexpected_keys),
        _listing("of another shape", list(misshapen.values())),
    ]
    if any(complaints):
        raise ModelError(
            f"the weights do not fit the model: {'; '.join(filter(None, complaints))}",
            where,
            "Check model.factory and model.kwargs, or export the state dict anew",
        )


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    where = f"model.weights = {path}"
    if not path.is_file():
        raise ModelError("there is no such file", where, "Check the path")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        raise ModelError(
            f"the file cannot be read as weights ({describe(error)})",
            where,
            "Expected a .safetensors file, or a state dict saved with torch.save",
        ) from error
    if not isinstance(state, Mapping):
        raise ModelError(f"the file holds {type(state).__name__}, expected a state dict", where)
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(
            f"the file holds more than a state dict: {_listing('not tensors', others)}",
            where,
            "Save the model's state_dict() alone",
        )
    return state


def _misshapen(
    expected: Mapping[str, object], state: Mapping[str, torch.Tensor]
) -> Mapping[str, str]:
    return {
        name: f"{name} {tuple(state[name].shape)} (expected {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if isinstance(tensor, torch.Tensor) and name in state and tensor.shape != state[name].shape
    }


def _listing(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {title}: {', '.join(names[:_LISTED])}{more}"
