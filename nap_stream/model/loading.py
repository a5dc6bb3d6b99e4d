"""From the settings to a model that is ready to score."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.factory import build_module, describe, importable
from nap_stream.model.feature_search import Probe, choose_site, probe
from nap_stream.model.feature_site import FeatureSite
from nap_stream.model.fingerprint import fingerprint
from nap_stream.model.preprocessing import Normaliser, input_size
from nap_stream.model.weights import load_weights
from nap_stream.settings import ModelSettings, PreprocessingSettings

_PROBE_IMAGES = 2
_LOGITS_DIMENSIONS = 2


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier in eval mode, without gradients, on its device.

    ``class_names`` are in order of the logits. ``fingerprint`` is SHA-256 in hexadecimal
    digits. ``feature_site`` is where the pre-pooling feature map passes.
    """

    module: nn.Module
    device: torch.device
    preprocessing: PreprocessingSettings
    normalise: Normaliser
    class_names: tuple[str, ...]
    fingerprint: str
    feature_site: FeatureSite


def load_model(settings: ModelSettings, device: torch.device) -> LoadedModel:
    """Build the model, load its weights, and find its pre-pooling map with one forward pass.

    Where ``settings.weights`` is null, the weights are those that the factory gives: a factory
    that initialises at random gives another fingerprint each time.

    Args:
        settings: What to build; paths are taken as they are.
        device: Where the model will run.

    Raises:
        ModelError: The model cannot be imported, built or loaded, fails on its input, returns
            something other than logits (N, classes), or has another number of classes than
            there are names.
        FeatureMapError: The pre-pooling map was not found.
    """
    with importable(settings.python_path):
        module = build_module(settings)
        if settings.weights is not None:
            load_weights(module, settings.weights)
        module = module.eval().requires_grad_(requires_grad=False)
        identity = fingerprint(settings, module.state_dict())
        module = module.to(device)
        normalise = Normaliser(settings.preprocessing, device, _input_dtype(module))
        seen = _probe(module, normalise, settings)
    classes = _classes(seen.output, settings)
    return LoadedModel(
        module=module,
        device=device,
        preprocessing=settings.preprocessing,
        normalise=normalise,
        class_names=_class_names(settings, classes),
        fingerprint=identity,
        feature_site=choose_site(seen, settings.feature_layer),
    )


def _input_dtype(module: nn.Module) -> torch.dtype:
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, torch.float32)


def _probe(module: nn.Module, normalise: Normaliser, settings: ModelSettings) -> Probe:
    height, width = input_size(settings.preprocessing)
    shape = (_PROBE_IMAGES, 3, height, width)
    pixels = torch.arange(_PROBE_IMAGES * 3 * height * width).remainder(256)
    try:
        return probe(module, normalise(pixels.to(torch.uint8).reshape(shape)))
    except Exception as error:
        raise ModelError(
            f"the model fails on an input of shape {shape} ({describe(error)})",
            f"model.factory = {settings.factory!r}",
            "Check that model.preprocessing.crop is the input size it was made for",
        ) from error


def _classes(output: Any, settings: ModelSettings) -> int:
    if (
        isinstance(output, torch.Tensor)
        and output.ndim == _LOGITS_DIMENSIONS
        and output.is_floating_point()
        and output.shape[0] == _PROBE_IMAGES
        and output.shape[1] > 0
    ):
        return output.shape[1]
    shape = f" of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else ""
    raise ModelError(
        f"the model returned {type(output).__name__}{shape} for {_PROBE_IMAGES} images, "
        "expected a tensor of logits (N, classes)",
        f"model.factory = {settings.factory!r}",
        "Wrap the model so that its forward pass returns the logits alone",
    )


def _class_names(settings: ModelSettings, classes: int) -> tuple[str, ...]:
    names, where = settings.class_names, "model.class_names"
    if settings.class_names_file is not None:
        where = f"model.class_names_file = {settings.class_names_file}"
        try:
            text = settings.class_names_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"the file cannot be read ({describe(error)})", where) from error
        names = tuple(line.strip() for line in text.rstrip().splitlines())
    if names is None:
        return tuple(str(number) for number in range(classes))
    if len(names) != classes:
        raise ModelError(
            f"there are {len(names)} class names, and the model has {classes} logits",
            where,
            "Give one name for each logit, in their order",
        )
    return names
