"""Loading weights into a module. Nothing is ever unpickled beyond tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.factory import describe

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
