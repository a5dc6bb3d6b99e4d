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
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.checkpoint import fitted, prefix_advice, read_state
from nap_stream.model.sites import plain_name
from nap_stream.settings.schema import ModelSettings
from nap_stream.text import described, listed

_SCHEME = "nap-stream model 1"


def fingerprint(
    settings: ModelSettings, state: Mapping[str, Any], identity: Mapping[str, Any] | None = None
) -> str:
    """Hash everything that decides what the model computes for an image.

    That is: the factory and its arguments, the preprocessing, where the logits stand and of what
    kind they are as far as that is set, and the name, dtype, shape and bytes of each tensor of the
    state dict, in order of names; and ``identity``, what else there is. The same on every device
    and in every process: SHA-256, 64 hexadecimal digits.

    Raises:
        ModelError: The state dict holds something that has no stable bytes.
    """
    digest = hashlib.sha256()
    description: dict[str, Any] = {
        "scheme": _SCHEME,
        "factory": settings.factory,
        "kwargs": settings.kwargs,
        "preprocessing": settings.preprocessing.model_dump(mode="json"),
    }
    # Fingerprints of before there were these stay valid.
    later = {"output": settings.output, "output_kind": settings.output_kind, "identity": identity}
    description.update({key: value for key, value in later.items() if value})
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    update_digest(digest, state, settings.where)
    return digest.hexdigest()


def weights_of(module: nn.Module) -> str:
    """Hash a module's state dict alone; the same with and without ``torch.compile``.

    Raises:
        ModelError: The state dict holds something that has no stable bytes.
    """
    digest = hashlib.sha256(_SCHEME.encode())
    update_digest(digest, state_of(module), "the model")
    return digest.hexdigest()


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's state dict under its names without ``torch.compile``."""
    return {plain_name(name): value for name, value in module.state_dict().items()}


def update_digest(digest: "hashlib._Hash", state: Mapping[str, Any], where: str) -> None:
    """Hash name, dtype, shape and bytes of each tensor of a state dict, in order of names.

    Raises:
        ModelError: It holds something that has no stable bytes.
    """
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


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a state dict into a module on the CPU; every name and shape must fit.

    Batch counters of normalisation layers may be missing, as in files of old torch versions. The
    file is a .safetensors file, or a torch file of a state dict (read with weights_only); or it is
    a folder of save_pretrained. See `fitted` for names that differ by a prefix.

    Returns:
        Sentences about what was done to make it fit.

    Raises:
        ModelError: The file cannot be read, or does not fit the module.
    """
    where = f"model.weights = {path}"
    read, found_notes = read_state(path)
    expected = module.state_dict()
    state, notes = fitted(read, expected)
    misshapen = _misshapen(expected, state)
    fitting = {name: tensor for name, tensor in state.items() if name not in misshapen}
    try:
        unmatched = module.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise ModelError(f"the weights cannot be loaded ({described(error)})", where) from error
    complaints = [
        _complaint("missing", [name for name in unmatched.missing_keys if name not in misshapen]),
        _complaint("unexpected", unmatched.unexpected_keys),
        _complaint("of another shape", list(misshapen.values())),
    ]
    if any(complaints):
        raise ModelError(
            f"the weights do not fit the model: {'; '.join(filter(None, complaints))}",
            where,
            prefix_advice(state, expected)
            or "Check model.factory and model.kwargs, or export the state dict anew",
        )
    return (*found_notes, *notes)


def _misshapen(
    expected: Mapping[str, object], state: Mapping[str, torch.Tensor]
) -> Mapping[str, str]:
    return {
        name: f"{name} {tuple(state[name].shape)} (expected {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if isinstance(tensor, torch.Tensor) and name in state and tensor.shape != state[name].shape
    }


def _complaint(title: str, names: Sequence[str]) -> str:
    return f"{len(names)} {title}: {listed(names)}" if names else ""
