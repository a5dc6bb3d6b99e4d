"""The weights of a model: read from a file, loaded into a module, and hashed.

Nothing is ever unpickled beyond tensors. The fingerprint of a model says what a calibration is
valid for.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.sites import plain_name
from nap_stream.settings.schema import ModelSettings
from nap_stream.text import described

_SCHEME = "nap-stream model 1"
_LISTED = 3


def fingerprint(settings: ModelSettings, state: Mapping[str, Any]) -> str:
    """Hash everything that decides what the model computes for an image.

    That is: the factory and its arguments, the preprocessing, and the name, dtype, shape and
    bytes of each tensor of the state dict, in order of names. The same on every device and in
    every process: SHA-256, 64 hexadecimal digits.

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


def weights_of(module: nn.Module) -> str:
    """Hash a module's state dict alone; the same with and without ``torch.compile``.

    Raises:
        ModelError: The state dict holds something that has no stable bytes.
    """
    digest = hashlib.sha256(_SCHEME.encode())
    _update(digest, state_of(module), "the model")
    return digest.hexdigest()


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's state dict under its names without ``torch.compile``."""
    return {plain_name(name): value for name, value in module.state_dict().items()}


def _update(digest: "hashlib._Hash", state: Mapping[str, Any], where: str) -> None:
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, torch.Tensor) or value.is_quantized or value.is_sparse:
            raise ModelError(
                f"the state dict's {name!r} is {type(value).__name__}, expected a dense tensor",
                where,
            )
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict into a module on the CPU; every name and shape must fit.

    Batch counters of normalisation layers may be missing, as in files of old torch versions. The
    file is a .safetensors file, or a torch file of a state dict (read with weights_only).

    Raises:
        ModelError: The file cannot be read, or does not fit the module.
    """
    where = f"model.weights = {path}"
    state = _read_state(path)
    misshapen = _misshapen(module.state_dict(), state)
    fitting = {name: tensor for name, tensor in state.items() if name not in misshapen}
    try:
        unmatched = module.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise ModelError(f"the weights cannot be loaded ({described(error)})", where) from error
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
            f"the file cannot be read as weights ({described(error)})",
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
