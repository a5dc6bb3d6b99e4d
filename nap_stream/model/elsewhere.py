"""A model that runs elsewhere, as in Triton, KServe or TensorRT: what is known of it here.

Its outputs come in messages. Its weights, its preprocessing and its precision are not known, and
nothing is loaded but, where it is given, the last linear layer, which some scores take.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.core.score_specs import Head
from nap_stream.errors import ModelError
from nap_stream.model.checkpoint import read_state
from nap_stream.model.factory import class_names_of
from nap_stream.model.facts import UNKNOWN, Execution, FeatureSite, HeadSite, LogitsHook
from nap_stream.model.weights import update_digest
from nap_stream.settings.elsewhere import ElsewhereSettings
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings

_SCHEME = "nap-stream model elsewhere 1"
_MATRIX_DIMENSIONS = 2
_SHARED_ERROR, _OWN_ERRORS = 0.05, 0.15
"""See `are_of_head`."""
_UNKNOWN = (
    "the model runs elsewhere: its weights, its preprocessing and its precision are not known "
    "here, and a change of them is not seen. Give each version another model.elsewhere.name, and "
    "calibrate it"
)


@dataclass(frozen=True, slots=True, eq=False)
class ElsewhereModel:
    """A model that runs elsewhere. ``class_names`` are in order of the logits.

    ``fingerprint`` is SHA-256 of its name, of what its outputs are, and of the head. It stands for
    the weights as far as the name does. ``feature_site`` says of what shape the map is, ``head`` of
    what shape the last linear layer is, null where ``parameters`` does not hold it. ``features`` is
    D, null where no features come with the outputs. ``notes`` must be said of any calibration.
    """

    class_names: tuple[str, ...]
    fingerprint: str
    feature_site: FeatureSite
    parameters: Head | None
    features: int | None
    output: LogitsHook
    execution: Execution = UNKNOWN
    preprocessing: PreprocessingSettings | None = None
    notes: tuple[str, ...] = (_UNKNOWN,)

    @property
    def device(self) -> torch.device:
        """Where scores are computed."""
        return torch.device("cpu")

    @property
    def head(self) -> HeadSite | None:
        """The last linear layer, as a calibration states it."""
        if self.parameters is None:
            return None
        classes, features = self.parameters.weight.shape
        return HeadSite("", (classes, features))

    @property
    def has_features(self) -> bool:
        """Whether features come with its outputs."""
        return self.features is not None

    def linear_head(self) -> Head | None:
        """The last linear layer, as base scores take it; None where it was not given."""
        return self.parameters


def elsewhere_of(settings: ModelSettings) -> ElsewhereSettings:
    """The section of a model that runs elsewhere, of settings that have it."""
    assert settings.elsewhere is not None, "these settings are of a model that runs here"
    return settings.elsewhere


def elsewhere_fingerprint(settings: ModelSettings, head: Head | None) -> str:
    """Hash what is known of a model that runs elsewhere: 64 hexadecimal digits."""
    description = {
        "scheme": _SCHEME,
        "name": elsewhere_of(settings).name,
        "output_kind": settings.output_kind,
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    if head is not None:
        tensors = {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
        update_digest(digest, tensors, settings.where)
    return digest.hexdigest()


def describe_elsewhere(
    settings: ModelSettings,
    head: Head | None,
    *,
    classes: int,
    map_shape: tuple[int, ...],
    features: int | None,
) -> ElsewhereModel:
    """Put together what settings say of a model, and what its outputs are like.

    ``map_shape`` is (C, H, W), H and W 0 where they are not known, or (T,) of attention.

    Raises:
        ModelError: The head, or the class names, are of another number of classes or features.
    """
    if head is not None and head.weight.shape != (classes, features):
        raise ModelError(
            f"the last linear layer is of shape {head.weight.shape}, and the outputs have "
            f"{classes} logits and {features or 'no'} features",
            f"model.elsewhere.head = {elsewhere_of(settings).head}",
            "Give the layer whose input the features are, or leave it out",
        )
    is_attention = len(map_shape) == 1
    shape = (1, 1, map_shape[0]) if is_attention else (map_shape[0], map_shape[1], map_shape[2])
    return ElsewhereModel(
        class_names=class_names_of(settings, None, classes),
        fingerprint=elsewhere_fingerprint(settings, head),
        feature_site=FeatureSite(
            "cls_attention" if is_attention else "elsewhere", "elsewhere", None, 0, shape
        ),
        parameters=head,
        features=features,
        output=LogitsHook((), settings.output_kind),
    )


def are_of_head(
    head: Head, features: NDArray[np.float32], logits: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Whether features (n, D) @ weight.T + bias is each row's logits (n, K): (n,).

    Reduced precisions err in two ways. What all terms of a logit share, such as a wrong scale,
    grows with the logit: 5 % of the row's largest. What each term rounds by itself adds up like a
    random walk, and shows where terms cancel and logits are small: 15 % of the root of the terms'
    squares, the largest of the row's classes. int8 errs by some hundredths of it, and the terms of
    another layer differ by 1.4 of it. No row has a part in another's limit.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.abs(features @ head.weight.T + head.bias - logits).max(axis=1)
        # Of features divided by their largest, the squares are finite.
        peak = np.maximum(np.abs(features).max(axis=1, keepdims=True), np.float32(1e-30))
        squares = (features / peak) ** 2 @ (head.weight**2).T
        terms = np.hypot(peak * np.sqrt(squares), head.bias).max(axis=1)
        limit = _SHARED_ERROR * np.abs(logits).max(axis=1) + _OWN_ERRORS * terms
        found: NDArray[np.bool_] = np.isfinite(difference) & (difference <= limit)
    return found


def load_head(settings: ElsewhereSettings) -> Head | None:
    """The last linear layer of a file; None where none is named.

    Raises:
        ModelError: The file cannot be read, or has no such layer.
    """
    if settings.head is None:
        return None
    where = f"model.elsewhere.head = {settings.head}"
    state, _ = read_state(Path(settings.head), "model.elsewhere.head")
    prefix = f"{settings.head_layer}." if settings.head_layer else ""
    weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
    if not isinstance(weight, torch.Tensor) or weight.ndim != _MATRIX_DIMENSIONS:
        listed = ", ".join(sorted(state)[-4:])
        raise ModelError(
            f"there is no matrix {prefix}weight in it; the last of its tensors are {listed}",
            where,
            "Name the last linear layer in model.elsewhere.head_layer, as in fc",
        )
    if bias is None:
        bias = torch.zeros(len(weight))
    try:
        return Head(weight.float().numpy(), bias.float().numpy())
    except ValueError as error:
        raise ModelError(f"it is no linear layer: {error}", where) from error
