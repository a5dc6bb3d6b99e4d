"""Out-of-distribution scores without Kafka: for people who have a pipeline already."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import Calibration, base_scores_of, require_sites
from nap_stream.calibration.document import ModelFacts
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.core.prior import attention_prior, nap
from nap_stream.core.score_specs import Head, needs_features, needs_head
from nap_stream.errors import FingerprintMismatchError, ModelError
from nap_stream.model.device_decode import rounded
from nap_stream.model.execution import float32_kernels
from nap_stream.model.facts import FeatureSite
from nap_stream.model.forward import BatchScores, Forward, score_forward, united
from nap_stream.model.kind_check import KindCheck
from nap_stream.model.load import LoadedModel, adopt_module
from nap_stream.model.output import as_logits, refuse_other_kind
from nap_stream.model.preprocessing import input_size, preprocess
from nap_stream.model.scripted import watchable
from nap_stream.model.weights import weights_of

_COLUMNS = ("class_id", "ood_p_value", "is_ood", "score", NAP)
_CHANNELS = 3
_DIMENSIONS = 3


@dataclass(frozen=True, slots=True, eq=False)
class OODScores:
    """The scores of N images, in their order: tensors on the CPU, each of shape (N,).

    ``class_id`` is the predicted class, int64. ``ood_p_value`` is float64 in (0, 1], small =
    out-of-distribution: the conformal p-value of the image among the calibration images.
    ``is_ood`` is bool, ``ood_p_value <= alpha``. ``score`` is float64, that of the calibration's
    method, and ``values`` are NAP and the base scores by name, float32; all higher =
    in-distribution. ``is_finite`` is bool: where it is False, the image's activations or logits
    hold NaN or infinity, its score and p-value are NaN, and it is not flagged.
    """

    class_id: torch.Tensor
    ood_p_value: torch.Tensor
    is_ood: torch.Tensor
    score: torch.Tensor
    is_finite: torch.Tensor
    values: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.class_id)


class OODScorer:
    """Scores images by a classifier and its calibration, with one forward pass.

    NAP is that of arXiv 2402.18162; the p-value is split-conformal (arXiv 2303.02770). The module
    computes exactly what it would without the scorer, in the precision that was calibrated (by
    autocast) and on images of that memory format. It keeps no hook between calls, and is never
    changed: put it in evaluation mode, and on its device, before it is given here; where
    channels_last was calibrated, ``module.to(memory_format=torch.channels_last)`` makes it quicker.
    For one thread at a time.

    It is also a callable class of ``ray.data.Dataset.map_batches``, which makes one a process, from
    ``fn_constructor_args=(artifact, build_model)``.

    Example:
        >>> scorer = OODScorer.load(artifact, model)
        >>> scores = scorer(images)
        >>> flagged = images[scores.is_ood]

    Args:
        artifact: The folder that ``nap-stream calibrate`` wrote.
        model: The module that was calibrated, eager or under ``torch.compile``, or a callable
            without arguments that builds it. Two modules are the same if their state dicts are,
            and if the feature map and the head are read at the same places; that the code between
            them is the same cannot be checked.
        column: Where images stand in a batch of columns.
        head: The last linear layer's weight (K, D) and bias (K,), for `score_outputs` without a
            model, where the calibration has scores that take them.

    Raises:
        CalibrationError: There is no calibration, or it is damaged.
        FingerprintMismatchError: It was made with other weights, or the feature map or the head
            is read elsewhere in this module.
        ModelError: The module is in training mode, or does not return logits (N, classes), or the
            callable returns something else, or the module's device does not have the precision
            that was calibrated.
        FeatureMapError: The pre-pooling map was not found.
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str],
        model: nn.Module | Callable[[], nn.Module] | None,
        *,
        column: str = "image",
        head: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._calibration = load_calibration(Path(artifact))
        self._column = column
        self._kinds = KindCheck(self._calibration.document.model.output.kind)
        if model is None:
            self._loaded = None
            self._base_scores = _base_scores_without_model(self._calibration, head)
            return
        module = model if isinstance(model, nn.Module) else model()
        self._loaded = _loaded(self._calibration, module)
        self._base_scores = base_scores_of(self._calibration, self._loaded)

    @classmethod
    def load(
        cls,
        artifact: str | os.PathLike[str],
        model: nn.Module | Callable[[], nn.Module] | None,
        *,
        column: str = "image",
        head: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Self:
        """Make a scorer; the same as calling the class."""
        return cls(artifact, model, column=column, head=head)

    @overload
    def __call__(self, images: torch.Tensor | Sequence[torch.Tensor]) -> OODScores: ...

    @overload
    def __call__(self, images: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...

    def __call__(
        self, images: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, NDArray[Any]]
    ) -> OODScores | dict[str, NDArray[Any]]:
        """Score images, or a batch of columns.

        Args:
            images: One of

                - the model's own input: floating-point, (N, 3, H, W) of the size that was
                  calibrated. It is used as it is, after a move to the module's device, dtype and
                  memory format;
                - RGB pixels: uint8, (N, 3, h, w), or a sequence of uint8 tensors (3, h, w) of any
                  sizes. They go through the calibration's resize, crop and normalisation. Where
                  JPEGs were decoded by nvJPEG, decode yours so, too;
                - a mapping of columns, of which ``column`` holds RGB pixels: a uint8 array
                  (N, h, w, 3), or N uint8 arrays (h, w, 3) of any sizes.

        Returns:
            The scores of the N images; for a mapping, a new one of all its columns and the arrays
            ``class_id``, ``ood_p_value``, ``is_ood``, ``score`` and ``nap``, as in `OODScores`.

        Raises:
            ValueError: The images are something else, the mapping has no such column, or it has
                one of the names that would be added.
            ModelError: The module is in training mode, or returned something other than logits
                (N, classes).
            FeatureMapError: The forward pass did not reach the feature map.
        """
        if not isinstance(images, Mapping):
            return self._score(images)
        self._check_columns(images)
        scores = self._score([_rgb_tensor(image) for image in images[self._column]])
        added = {name: getattr(scores, name).numpy() for name in _COLUMNS if name != NAP}
        return {**images, **added, NAP: scores.values[NAP].numpy()}

    def score_outputs(
        self, logits: Any, features: Any = None, feature_map: Any = None
    ) -> OODScores:
        """Score what the calibrated model has given elsewhere, as in Triton or TensorRT.

        The model and its preprocessing must be those that were calibrated: that cannot be checked.
        Arrays and tensors are taken, of N images.

        Args:
            logits: What the model returns, floating-point (N, K).
            features: What enters the last linear layer, (N, D). Null where the model has none, or
                none of the scores takes any.
            feature_map: What enters the last pooling, (N, C, H, W). Where the prior is that of a
                CLS token, its attention weights over the patch tokens, averaged over heads, (N, T).
                Where several maps reach the logits, a sequence of all, in the order in which the
                calibration names them; where an image is several rows of the map, the positions of
                all its rows side by side, (N, C, 1, positions).

        Returns:
            What calling the scorer on the images returns, but for rounding.

        Raises:
            ValueError: One of them is missing, or has another shape than at calibration.
            ModelError: The logits are none: probabilities, say. Some kinds are told from 20 images
                on, in whatever calls. Once 20 one after the other are logits, none is looked at any
                more, but where the model is calibrated with an output_kind.
        """
        facts = self._calibration.document.model
        device = self._base_scores_device
        returned = torch.as_tensor(logits, device=device)
        given = as_logits(returned, facts.output.kind)
        seen = _forward_of(
            given.float(),
            None if features is None else torch.as_tensor(features, device=device).float(),
            [torch.as_tensor(one, device=device).float() for one in _maps_of(feature_map, facts)],
            facts,
            needs_features=any(needs_features(name) for name in self._base_scores.names),
        )
        self._require_logits(returned, seen.logits)
        with float32_kernels(device, tf32=False):
            return self._judged(score_forward(seen, self._base_scores))

    def _require_logits(self, returned: torch.Tensor, logits: torch.Tensor) -> None:
        """Refuse what a model gave elsewhere that is of another kind than at calibration."""
        kind = self._kinds.kind
        if kind is None and returned.shape[1] == 1:
            refuse_other_kind(returned, kind, "logits")
        finite = returned[torch.isfinite(logits).all(dim=1)]
        if not len(finite):
            return
        problems = self._kinds(finite.float().cpu().numpy())
        wrong = [problem for problem in problems if problem]
        # Without a kind, one row may look like another by chance.
        if wrong and (kind is not None or len(wrong) == len(problems)):
            # What was refused is told once, and does not count against what is given next.
            self._kinds = KindCheck(kind)
            raise ModelError(wrong[0], "logits")

    @property
    def _base_scores_device(self) -> torch.device:
        return torch.device("cpu") if self._loaded is None else self._loaded.device

    def _score(self, images: torch.Tensor | Sequence[torch.Tensor]) -> OODScores:
        if self._loaded is None:
            raise ValueError("the scorer was made without a model: use score_outputs")
        batch = _one_batch(images, self._loaded)
        if len(batch):
            seen = self._loaded.forward(batch)
            return self._judged(self._loaded.scores(seen, self._base_scores))
        nothing = dict.fromkeys((NAP, *self._base_scores.names), np.zeros(0, np.float32))
        return self._judged(BatchScores(np.zeros(0, np.int64), nothing))

    def _judged(self, found: BatchScores) -> OODScores:
        judged = self._calibration.judge(found.values, found.class_id)
        finite = found.is_finite() & np.isfinite(judged.fused)
        return OODScores(
            class_id=torch.from_numpy(found.class_id),
            ood_p_value=torch.from_numpy(np.where(finite, judged.ood_p_value, np.nan)),
            is_ood=torch.from_numpy(finite & judged.is_ood),
            score=torch.from_numpy(np.where(finite, judged.fused, np.nan)),
            is_finite=torch.from_numpy(finite),
            values={name: torch.from_numpy(column) for name, column in found.values.items()},
        )

    def _check_columns(self, batch: Mapping[str, NDArray[Any]]) -> None:
        if self._column not in batch:
            raise ValueError(
                f"expected images in the column {self._column!r}, got the columns {sorted(batch)}: "
                "name another with column="
            )
        taken = [name for name in _COLUMNS if name in batch]
        if taken:
            raise ValueError(f"the batch has {', '.join(taken)} already, which would be added")


def _base_scores_without_model(
    calibration: Calibration, head: tuple[torch.Tensor, torch.Tensor] | None
) -> BaseScores:
    document = calibration.document
    taking = [name for name in document.scores if needs_head(name)]
    if taking and head is None:
        raise ValueError(f"{taking[0]} takes the last linear layer: give the model, or head=")
    given = None
    if head is not None:
        weight, bias = (torch.as_tensor(one).detach().to("cpu", torch.float32) for one in head)
        given = Head(weight.numpy(), bias.numpy())
    device = torch.device("cpu")
    return BaseScores(document.scores, document.parameters, given, calibration.fits, device)


def _maps_of(given: Any, facts: ModelFacts) -> Sequence[Any]:
    """The maps that one gave, one for each part of the site."""
    parts = len(facts.feature_site.parts)
    if given is None:
        return ()
    if parts == 1:
        return (given,)
    if not isinstance(given, list | tuple) or len(given) != parts:
        raise ValueError(
            f"the prior is of {parts} maps ({facts.feature_site}): expected feature_map to be a "
            f"sequence of all, in this order"
        )
    return given


def _forward_of(
    logits: torch.Tensor,
    features: torch.Tensor | None,
    maps: Sequence[torch.Tensor],
    facts: ModelFacts,
    *,
    needs_features: bool,
) -> Forward:
    """Make a pass of what one gave, once its shapes are seen to be those of calibration."""
    images, site, classes = len(logits), facts.feature_site, len(facts.class_names)
    is_attention = site.kind == "cls_attention"
    _require_shape("logits", logits, (images, classes))
    for number, part in enumerate(site.parts):
        found = maps[number] if maps else None
        _require_shape("feature_map", found, (images, *_map_shape(part, found)))
    elsewhere = facts.elsewhere
    if elsewhere is not None and not elsewhere.are_means:
        if needs_features:
            _require_shape("features", features, (images, elsewhere.features or 0))
    elif facts.head is None:
        means = [] if is_attention else [one.mean(dim=(2, 3)) for one in maps]
        features = torch.cat(means, dim=1) if means else None
    elif features is not None or needs_features:
        _require_shape("features", features, (images, facts.head.shape[1]))
    if is_attention:
        return Forward(logits, features, attention_prior(maps[0]))
    prior, _ = united([(nap(one), None) for one in maps], site)
    return Forward(logits, features, prior)


def _map_shape(site: FeatureSite, found: torch.Tensor | None) -> tuple[int, ...]:
    """What an image's part of a map, or its attention, is like."""
    if site.kind == "elsewhere" and not site.positions and found is not None:
        # Its channels' maxima and means were calibrated, of as many positions as there may be.
        return (site.shape[0], *found.shape[2:])
    if site.kind == "cls_attention":
        return site.shape[2:]
    tiles = site.layout.tiles
    return site.shape if tiles == 1 else (site.shape[0], 1, site.positions * tiles)


def _require_shape(name: str, value: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    if value is None or tuple(value.shape) != shape:
        found = "nothing" if value is None else f"{tuple(value.shape)}"
        raise ValueError(f"expected {name} of shape {shape}, as at calibration, got {found}")


def _loaded(calibration: Calibration, module: nn.Module) -> LoadedModel:
    facts = calibration.document.model
    where = f"calibration {calibration.fingerprint} of {facts.factory}"
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the callable returned {type(module).__name__}, expected a torch.nn.Module", where
        )
    if facts.preprocessing is None:
        raise FingerprintMismatchError(
            "the calibration was made of a model's outputs elsewhere, and not with a module",
            where,
            "Give the model as None, and its outputs to score_outputs; or calibrate on images",
        )
    if isinstance(module, torch.jit.ScriptModule):
        module = watchable(module, where)
    weights = weights_of(module)
    if weights != facts.weights_fingerprint:
        raise FingerprintMismatchError(
            f"the calibration was made with the weights {facts.weights_fingerprint}, the module's "
            f"are {weights}: a name, a shape, a dtype or a value of its state dict differs",
            where,
            "Give the module that was calibrated, with its trained weights, or calibrate this one",
        )
    loaded = adopt_module(
        module,
        facts.preprocessing,
        facts.class_names,
        feature_site=facts.feature_site,
        fingerprint=facts.fingerprint,
        output=facts.output,
        execution=calibration.document.execution,
    )
    require_sites(calibration, loaded)
    return loaded


def _one_batch(images: torch.Tensor | Sequence[torch.Tensor], loaded: LoadedModel) -> torch.Tensor:
    """Recognise images by dtype and shape, as `OODScorer.__call__` says.

    Returns:
        (N, 3, H, W): the floating-point tensor itself, or uint8 pixels, resized and cropped.
    """
    preprocessing = loaded.preprocessing
    size = input_size(preprocessing)
    if isinstance(images, torch.Tensor) and images.is_floating_point():
        if images.shape[1:] != (_CHANNELS, *size):
            raise _unexpected(images, size)
        return images
    is_batch = isinstance(images, torch.Tensor) and images.ndim == _DIMENSIONS + 1
    if not (is_batch or isinstance(images, Sequence)) or not all(map(_is_pixels, images)):
        raise _unexpected(images, size)
    if preprocessing.jpeg_decoder == "nvjpeg":
        placed = [image.to(loaded.device).contiguous() for image in images]
        pixels = [preprocess(image, preprocessing, rounded) for image in placed]
    else:
        pixels = [preprocess(image.contiguous(), preprocessing) for image in images]
    return torch.stack(pixels) if pixels else torch.zeros(0, _CHANNELS, *size, dtype=torch.uint8)


def _rgb_tensor(image: Any) -> torch.Tensor:
    array = np.array(image, order="C")
    if array.dtype != np.uint8 or array.ndim != _DIMENSIONS or array.shape[2] != _CHANNELS:
        raise ValueError(
            f"expected RGB pixels, uint8 of shape (h, w, 3), got {array.dtype} of {array.shape}: "
            'read images with mode="RGB"'
        )
    return torch.from_numpy(array).permute(2, 0, 1)


def _is_pixels(image: Any) -> bool:
    return (
        isinstance(image, torch.Tensor)
        and image.dtype == torch.uint8
        and image.ndim == _DIMENSIONS
        and image.shape[0] == _CHANNELS
        and image.numel() > 0
    )


def _unexpected(images: Any, size: tuple[int, int]) -> ValueError:
    return ValueError(
        f"expected the model's input, one floating-point tensor (N, 3, {size[0]}, {size[1]}), or "
        "pixels, a uint8 tensor (N, 3, h, w) or a sequence of uint8 tensors (3, h, w), "
        f"got {_described(images)}"
    )


def _described(images: Any) -> str:
    if isinstance(images, torch.Tensor):
        return f"{images.dtype} of {tuple(images.shape)}"
    if isinstance(images, Sequence) and not isinstance(images, str):
        wrong = next(image for image in images if not _is_pixels(image))
        return f"a {type(images).__name__} with {_described(wrong)}"
    return type(images).__name__
