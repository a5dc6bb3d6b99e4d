"""From the settings to a model that is ready to score.

One forward pass, all scores.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.find import Probe, choose_site, probe
from nap_stream.model.forward import Forward, refuse_training, require_logits, run_forward
from nap_stream.model.preprocessing import Normaliser, input_size
from nap_stream.model.sites import FeatureSite, HeadSite, plain_name, unwrapped
from nap_stream.model.weights import (
    build_module,
    describe,
    fingerprint,
    importable,
    load_weights,
    weights_fingerprint,
)
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings

_PROBE_IMAGES = 2


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
    def weights_fingerprint(self) -> str:
        """`weights_of` the module: hashed when asked, for only calibration asks."""
        return weights_of(self.module)

    def forward(self, batch: torch.Tensor) -> Forward:
        """Run the model once on a uint8 batch (N, 3, H, W) of its input size.

        Raises:
            ModelError: See `run_forward`.
            FeatureMapError: See `run_forward`.
        """
        return self.forward_input(self.normalise(batch))

    def forward_input(self, images: torch.Tensor) -> Forward:
        """Run the model once on what it takes itself, floating-point (N, 3, H, W).

        Raises:
            ModelError: See `run_forward`.
            FeatureMapError: See `run_forward`.
        """
        return run_forward(
            self.module,
            self.feature_site,
            self.head,
            images.to(self.device, _input_dtype(self.module)),
            classes=len(self.class_names),
        )


def load_model(settings: ModelSettings, device: torch.device) -> LoadedModel:
    """Build the model, load its weights, and find its prior and its head by a probing pass.

    A factory may return a module under ``torch.compile``: sites and fingerprint are those of the
    module without it.

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
            load_weights(unwrapped(module), settings.weights)
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

    Args:
        module: In evaluation mode; eager, or under ``torch.compile``.
        preprocessing: From pixels to its input.
        class_names: In order of its logits.
        feature_site: Where the prior was read before. It is taken again where finding the map,
            or naming its module, leads there; otherwise what is found now is taken.
        fingerprint: Of the model as it was loaded from settings before.

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


def weights_of(module: nn.Module) -> str:
    """Hash a module's state dict; the same with and without ``torch.compile``.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        ModelError: The state dict holds something that has no stable bytes.
    """
    return weights_fingerprint(_state(module))


def _state(module: nn.Module) -> dict[str, Any]:
    return {plain_name(name): value for name, value in module.state_dict().items()}


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
            f"the model fails on an input of shape {shape} ({describe(error)})",
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


@dataclass(frozen=True, slots=True)
class BatchScores:
    """The scores of a batch of N images, in its order.

    ``class_id`` is the predicted class, int64 (N,). ``values`` are NAP and the base scores by
    name, each float32 (N,), all higher for in-distribution images. Rows can hold NaN or infinity
    where the model yields them.
    """

    class_id: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        shapes = {self.class_id.shape} | {column.shape for column in self.values.values()}
        if len(shapes) != 1 or self.class_id.ndim != 1:
            raise ValueError(f"expected arrays of one shape (N,), got {shapes}")

    def is_finite(self) -> NDArray[np.bool_]:
        """Which rows hold finite values alone, shape (N,)."""
        finite = np.ones(self.class_id.shape, dtype=np.bool_)
        for column in self.values.values():
            finite &= np.isfinite(column)
        return finite


class OnePassScorer:
    """Score batches with one forward pass each. For one thread at a time.

    The model computes exactly what it would without the scorer, and keeps no hook between
    calls.

    Args:
        loaded: The model, from `load_model`.
        base_scores: What is computed beside NAP, for the model's device.
    """

    def __init__(self, loaded: LoadedModel, base_scores: BaseScores) -> None:
        self._loaded = loaded
        self._base_scores = base_scores
        self._size = input_size(loaded.preprocessing)

    @property
    def preprocessing(self) -> PreprocessingSettings:
        """What images must go through before they are scored."""
        return self._loaded.preprocessing

    def __call__(self, batch: torch.Tensor) -> BatchScores:
        """Score preprocessed images.

        Args:
            batch: uint8, shape (N, 3, H, W), as `preprocess` gives each; on any device.

        Raises:
            ValueError: The batch has another dtype or shape.
            ModelError: The model is in training mode, or returned something other than logits
                (N, classes).
            FeatureMapError: The forward pass did not reach the feature map.
        """
        if batch.dtype != torch.uint8 or batch.shape[1:] != (3, *self._size):
            raise ValueError(
                f"expected a uint8 batch of shape (N, 3, {self._size[0]}, {self._size[1]}), "
                f"got {batch.dtype} of {tuple(batch.shape)}"
            )
        return score_forward(self._loaded.forward(batch), self._base_scores)


def score_forward(seen: Forward, base_scores: BaseScores) -> BatchScores:
    """Compute the scores of a forward pass, and bring them to the CPU in one piece."""
    with torch.inference_mode():
        found = {NAP: seen.nap} | {
            str(name): score for name, score in base_scores(seen.logits, seen.features).items()
        }
        columns = torch.stack(tuple(found.values())).cpu().numpy()
        class_id = seen.logits.argmax(dim=1).cpu().numpy()
    return BatchScores(class_id, dict(zip(found, columns, strict=True)))
