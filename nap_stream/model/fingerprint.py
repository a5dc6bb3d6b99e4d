"""The fingerprint of a model: what a calibration is valid for."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from nap_stream.errors import ModelError
from nap_stream.settings import ModelSettings

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
