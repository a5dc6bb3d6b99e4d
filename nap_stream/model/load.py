"""From the settings to a model that is ready to score.

The factory is imported and called, its weights are loaded, and a probing forward pass finds where
the prior and the features are read. Nothing is ever unpickled beyond tensors. The fingerprint of a
model says what a calibration is valid for.
"""

import hashlib
import importlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nap_stream.core.base_scores import BaseScores
from nap_stream.errors import FeatureMapError, GpuUnavailableError, ModelError
from nap_stream.model.find import Probe, choose_site, probe
from nap_stream.model.forward import (
    BatchScores,
    Forward,
    refuse_training,
    require_logits,
    run_forward,
    score_forward,
)
from nap_stream.model.preprocessing import Normaliser, input_size
from nap_stream.model.sites import FeatureSite, HeadSite, plain_name, unwrapped
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings

_PROBE_IMAGES = 2
_SCHEME = "nap-stream model 1"
_LISTED = 3


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier in eval mode, without gradients, on its device.

    ``class_names`` are in order of the logits. ``fingerprint`` is SHA-256 in hexadecimal
    digits. ``feature_site`` is where the prior is read, ``head`` the linear module whose output
    is the logits, None where there is none.
    """

    module: nn.Module
    device: torch.device
    preprocessing: PreprocessingSettings
    normalise: Normaliser
    class_names: tuple[str, ...]
    fingerprint: str
    feature_site: FeatureSite
    head: HeadSite | None

    @property
    def has_features(self) -> bool:
        """Whether a forward pass gives features: the head's input, or the means of a map."""
        return self.head is not None or self.feature_site.kind != "cls_attention"

    def forward(self, batch: torch.Tensor) -> Forward:
        """Run the model once on a batch (N, 3, H, W) of its input size.

        The batch is uint8 pixels, which are normalised, or floating-point, what the model takes.

        Raises:
            ModelError: See `run_forward`.
            FeatureMapError: See `run_forward`.
        """
        images = batch if batch.is_floating_point() else self.normalise(batch)
        images = images.to(self.device, _input_dtype(self.module))
        site, classes = self.feature_site, len(self.class_names)
        return run_forward(self.module, site, self.head, images, classes=classes)


class OnePassScorer:
    """Score batches with one forward pass each. For one thread at a time.

    ``base_scores`` are computed beside NAP; they are for the model's device.
    """

    def __init__(self, loaded: LoadedModel, base_scores: BaseScores) -> None:
        self._loaded, self._base_scores = loaded, base_scores
        self._size = input_size(loaded.preprocessing)

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        """Score preprocessed images: uint8 (N, 3, H, W), as `preprocess` gives each; on any device.

        Raises:
            ValueError: The batch has another dtype or shape.
            ModelError: See `run_forward`.
            FeatureMapError: See `run_forward`.
        """
        if batch.dtype != torch.uint8 or batch.shape[1:] != (3, *self._size):
            raise ValueError(
                f"expected a uint8 batch of shape (N, 3, {self._size[0]}, {self._size[1]}), "
                f"got {batch.dtype} of {tuple(batch.shape)}"
            )
        return score_forward(self._loaded.forward(batch), self._base_scores)


def choose_device(num_gpus: float) -> torch.device:
    """The device of a worker that has ``num_gpus`` GPUs from Ray.

    Raises:
        GpuUnavailableError: If GPUs are asked for and torch sees none.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise GpuUnavailableError(
            f"worker.num_gpus is {num_gpus:g}, but torch {torch.__version__} sees no GPU",
            f"host {platform.node()}, CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
            "Install a CUDA build of torch and the driver, or set worker.num_gpus: 0",
        )
    return torch.device("cuda")


def load_model(settings: ModelSettings, device: torch.device) -> LoadedModel:
    """Build the model, load its weights, and find its prior and its head by a probing pass.

    A factory may return a module under ``torch.compile``: sites and fingerprint are those of the
    module without it. Where ``settings.weights`` is null, the weights are those that the factory
    gives: one that initialises at random gives another fingerprint each time.

    Raises:
        ModelError: The model cannot be imported, built or loaded, fails on its input, returns
            something other than logits (N, classes), or has another number of classes than
            there are names.
        FeatureMapError: The pre-pooling map was not found.
    """
    with _importable(settings.python_path):
        module = _build_module(settings)
        if settings.weights is not None:
            _load_weights(unwrapped(module), settings.weights)
        module = module.eval().requires_grad_(requires_grad=False)
        identity = fingerprint(settings, _state(module))
        module = module.to(device)
        normalise = Normaliser(settings.preprocessing, device, _input_dtype(module))
        where = f"model.factory = {settings.factory!r}"
        seen = _probe(module, normalise, settings.preprocessing, where)
    classes = require_logits(seen.output, images=_PROBE_IMAGES, where=where).shape[1]
    return LoadedModel(
        module=module,
        device=device,
        preprocessing=settings.preprocessing,
        normalise=normalise,
        class_names=_class_names(settings, classes),
        fingerprint=identity,
        feature_site=choose_site(seen, settings.feature_layer),
        head=seen.head,
    )


def adopt_module(
    module: nn.Module,
    preprocessing: PreprocessingSettings,
    class_names: tuple[str, ...],
    *,
    feature_site: FeatureSite,
    fingerprint: str,
) -> LoadedModel:
    """Make a model of a user's own module, which stays as it is, on its device.

    It is in evaluation mode; eager, or under ``torch.compile``. ``class_names`` are in order of its
    logits. ``feature_site`` is where the prior was read before. It is taken again where finding
    the map, or naming its module, leads there; otherwise what is found now is taken.
    ``fingerprint`` is that of the model as it was loaded from settings before.

    Raises:
        ModelError: The module is in training mode, fails on its input, or returns something
            other than logits (N, classes).
        FeatureMapError: The pre-pooling map was not found.
    """
    refuse_training(module)
    tensors = chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    normalise = Normaliser(preprocessing, device, _input_dtype(module))
    where = f"the model, a {type(unwrapped(module)).__name__}"
    seen = _probe(module, normalise, preprocessing, where)
    require_logits(seen.output, images=_PROBE_IMAGES, classes=len(class_names), where=where)
    return LoadedModel(
        module=module,
        device=device,
        preprocessing=preprocessing,
        normalise=normalise,
        class_names=class_names,
        fingerprint=fingerprint,
        feature_site=_site_again(seen, feature_site),
        head=seen.head,
    )


def _site_again(seen: Probe, before: FeatureSite) -> FeatureSite:
    with suppress(FeatureMapError):
        named = choose_site(seen, before.module)
        if named == before:
            return named
    return choose_site(seen, None)


def _input_dtype(module: nn.Module) -> torch.dtype:
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, torch.float32)


def _probe(
    module: nn.Module, normalise: Normaliser, preprocessing: PreprocessingSettings, where: str
) -> Probe:
    height, width = input_size(preprocessing)
    shape = (_PROBE_IMAGES, 3, height, width)
    pixels = torch.arange(_PROBE_IMAGES * 3 * height * width).remainder(256)
    try:
        return probe(module, normalise(pixels.to(torch.uint8).reshape(shape)))
    except Exception as error:
        raise ModelError(
            f"the model fails on an input of shape {shape} ({_described(error)})",
            where,
            "Check that model.preprocessing.crop is the input size it was made for",
        ) from error


def _class_names(settings: ModelSettings, classes: int) -> tuple[str, ...]:
    names, where = settings.class_names, "model.class_names"
    if settings.class_names_file is not None:
        where = f"model.class_names_file = {settings.class_names_file}"
        try:
            text = settings.class_names_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"the file cannot be read ({_described(error)})", where) from error
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
    _update(digest, _state(module), "the model")
    return digest.hexdigest()


def _state(module: nn.Module) -> dict[str, Any]:
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


def _build_module(settings: ModelSettings) -> nn.Module:
    where = f"model.factory = {settings.factory!r}"
    factory = _import_factory(settings.factory, where)
    try:
        module = factory(**settings.kwargs)
    except Exception as error:
        given = ", ".join(settings.kwargs) or "none"
        raise ModelError(
            f"the factory raised {_described(error)} (arguments given: {given})",
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
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    """Put folders first on ``sys.path``, as Python does with a script's own folder."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _described(error: BaseException) -> str:
    """Name an error in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _import_factory(name: str, where: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"{module_name} cannot be imported ({_described(error)})",
            where,
            "Install it, or name its folder in model.python_path",
        ) from error
    try:
        factory = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        what = f"{module_name} has no {attribute!r}"
        raise ModelError(what, where, "Write package.module:name") from error
    if not callable(factory):
        raise ModelError(
            f"it is {type(factory).__name__}, which cannot be called",
            where,
            "Name a callable that builds the model",
        )
    return factory


def _load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict into a module on the CPU; every name and shape must fit.

    Batch counters of normalisation layers may be missing, as in files of old torch versions. The
    file is a .safetensors file, or a torch file of a state dict (read with weights_only).
    """
    where = f"model.weights = {path}"
    state = _read_state(path)
    misshapen = _misshapen(module.state_dict(), state)
    fitting = {name: tensor for name, tensor in state.items() if name not in misshapen}
    try:
        unmatched = module.load_state_dict(fitting, strict=False)
    except Exception as error:
        raise ModelError(f"the weights cannot be loaded ({_described(error)})", where) from error
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
            f"the file cannot be read as weights ({_described(error)})",
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
