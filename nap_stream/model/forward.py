"""One forward pass of a classifier: its logits, penultimate features and prior, and all scores.

The prior's map and the head's input are read on the way: by hooks, or, in a compiled model, by
watching torch functions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.core.prior import attention_prior, nap
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.facts import FeatureSite, FunctionCall, HeadSite
from nap_stream.model.reading import Reader, reader_of
from nap_stream.model.sites import (
    FunctionInputs,
    Take,
    Watched,
    is_compiled,
    module_input,
    plain_name,
    submodule,
)

T = TypeVar("T")

_MATRIX_DIMENSIONS = 2
_NOT_REACHED = "the forward pass did not reach"
_ONE_WAY = "The model must take the same way for every image"


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward pass of N images gives, in their order, float32, on the model's device.

    ``logits`` is (N, K), ``features`` (N, D), what enters the linear head; in a model without one
    the means of the prior's map, by channel; None where that is a Vision Transformer's attention.
    ``nap`` is (N,), the Neural Activation Prior. Rows can hold NaN or infinity where the
    model yields them.
    """

    logits: torch.Tensor
    features: torch.Tensor | None
    nap: torch.Tensor

    def first(self, images: int) -> Self:
        """Return what it says of the first images alone."""
        features = None if self.features is None else self.features[:images]
        return type(self)(self.logits[:images], features, self.nap[:images])

    def cpu(self) -> Self:
        """Return the same on the CPU, once it is computed."""
        features = None if self.features is None else self.features.cpu()
        return type(self)(self.logits.cpu(), features, self.nap.cpu())

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put passes of one model behind each other; at least one."""
        features = [part.features for part in parts if part.features is not None]
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat(features) if features else None,
            torch.cat([part.nap for part in parts]),
        )


def run_forward(
    module: nn.Module,
    site: FeatureSite,
    head: HeadSite | None,
    pixels: torch.Tensor,
    *,
    classes: int,
) -> Forward:
    """Run a classifier once, and read features and prior on the way.

    The model computes exactly what it would without, under autocast too; no hook stays on it.
    Everything else is computed in float32. For one thread at a time.

    ``module`` is eager or under ``torch.compile``; ``pixels`` are its input, (N, 3, H, W), of its
    dtype and on its device. ``site`` is from `choose_site`, ``head`` from `probe`. ``classes`` is
    K, the number of logits that it must give.

    Raises:
        ModelError: The module is in training mode, returned something other than logits (N, K),
            or did not reach its head.
        FeatureMapError: The forward pass did not reach the feature map, or the site cannot be
            read in a compiled module.
    """
    refuse_training(module)
    with torch.inference_mode(), capture(module, site, _reduction(site, head), head) as captured:
        output = module(pixels)
    logits = require_logits(output, images=len(pixels), classes=classes).float()
    if len(captured.parts) < len(site.parts):
        raise FeatureMapError(f"{_NOT_REACHED} the feature map", str(site), _ONE_WAY)
    if head is not None and captured.features is None:
        raise ModelError(f"{_NOT_REACHED} the linear head", str(head), _ONE_WAY)
    prior, means = united([captured.parts[number] for number in range(len(site.parts))], site)
    if len(prior) != len(pixels):
        raise FeatureMapError(
            f"the feature map has {len(prior)} rows for {len(pixels)} images", str(site), _ONE_WAY
        )
    return Forward(logits, means if head is None else captured.features, prior)


def united(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]], site: FeatureSite
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """NAP over the channels of all parts, and their means by channel behind each other."""
    if len(parts) == 1:
        return parts[0]
    channels = [part.shape[0] for part in site.parts]
    weighted = [prior * count for (prior, _), count in zip(parts, channels, strict=True)]
    means = [part for _, part in parts if part is not None]
    with torch.inference_mode():
        prior = torch.stack(weighted).sum(dim=0) / sum(channels)
        return prior, torch.cat(means, dim=1) if means else None


def _reduction(
    site: FeatureSite, head: HeadSite | None
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]:
    """What is kept of the map: the prior, and without a head the means by channel."""

    def reduce(feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if site.kind == "cls_attention":
            return attention_prior(feature_map), None
        means = None if head is not None else feature_map.float().mean(dim=(2, 3))
        return nap(feature_map), means

    return reduce


def require_logits(
    output: Any, *, images: int, classes: int | None = None, where: str = "the forward pass"
) -> torch.Tensor:
    """Return a model's output if it is logits, one row for each of ``images``.

    Each row must have ``classes`` logits; None for any number. ``where`` is for the error.

    Raises:
        ModelError: It is a tuple, a dict or the like, or has another shape or dtype.
    """
    if (
        isinstance(output, torch.Tensor)
        and output.ndim == _MATRIX_DIMENSIONS
        and output.is_floating_point()
        and output.shape[0] == images
        and output.shape[1] == (classes or max(1, output.shape[1]))
    ):
        return output
    shape = f" of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else ""
    raise ModelError(
        f"the model returned {type(output).__name__}{shape} for {images} images, expected "
        f"floating-point logits of shape ({images}, {classes or 'classes'})",
        where,
        "Wrap the model so that its forward pass returns the logits alone, one row of logits an "
        "image, whatever the batch's size",
    )


def refuse_training(module: nn.Module) -> None:
    """Refuse a module of which any part is in training mode.

    Raises:
        ModelError: Naming the part.
    """
    training = [plain_name(name) for name, part in module.named_modules() if part.training]
    if training:
        raise ModelError(
            "the model is in training mode: dropout and batch normalisation would make scores "
            "depend on chance and on the other images of the batch",
            f"module {training[0]!r}" if training[0] else "the model",
            "Call model.eval() first",
        )


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

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put the scores of batches behind each other; of at least one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.class_id for part in parts]),
            {
                name: np.concatenate([part.values[name] for part in parts])
                for name in parts[0].values
            },
        )

    def is_finite(self) -> NDArray[np.bool_]:
        """Which rows hold finite values alone, shape (N,)."""
        finite = np.ones(self.class_id.shape, dtype=np.bool_)
        for column in self.values.values():
            finite &= np.isfinite(column)
        return finite


def score_forward(seen: Forward, base_scores: BaseScores) -> BatchScores:
    """Compute the scores of a forward pass, and bring them to the CPU in one piece.

    That copy is all that waits for the device.
    """
    with torch.inference_mode():
        base = base_scores(seen.logits, seen.features)
        found = {NAP: seen.nap} | {str(name): score for name, score in base.items()}
        columns = torch.stack(tuple(found.values())).view(torch.int32)
        class_id = seen.logits.argmax(dim=1, keepdim=True).T.to(torch.int32)
        rows = torch.cat((columns, class_id)).cpu().numpy()
    values = rows[:-1].view(np.float32)
    return BatchScores(rows[-1].astype(np.int64), dict(zip(found, values, strict=True)))


@dataclass(slots=True)
class Captured(Generic[T]):
    """What ``reduce`` made of each part of a site, by its number, and the head's input.

    ``features`` is a copy, float32, shape (N, D); None until it is reached.
    """

    parts: dict[int, T] = field(default_factory=dict)
    features: torch.Tensor | None = None


@contextmanager
def capture(
    model: nn.Module,
    site: FeatureSite,
    reduce: Callable[[torch.Tensor], T],
    head: HeadSite | None = None,
) -> Iterator[Captured[T]]:
    """Apply ``reduce`` to the map while the model runs, and leave the model as it was.

    The map is reduced at once, before a later in-place operation can change it, without
    autocast, and no reference to it is kept. The model computes exactly what it would without.
    For ``cls_attention`` the attention weights over the patch tokens, float32 (N, T - 1), stand
    for the map. A tensor with another number of channels than the site's is not taken for it.

    Raises:
        FeatureMapError: The model is compiled, and nothing but a hook could read this site.
    """
    captured: Captured[T] = Captured()

    def keep_part(part: int) -> Take:
        def keep(value: torch.Tensor) -> None:
            captured.parts[part] = reduce(value)

        return keep

    def keep_features(value: torch.Tensor) -> None:
        captured.features = value

    compiled = is_compiled(model)
    readers = [
        reader_of(model, part, keep_part(number), compiled=compiled)
        for number, part in enumerate(site.parts)
    ]
    if head is not None:
        readers.append(_head_reader(model, head, keep_features, compiled=compiled))
    watched = [reader for reader in readers if isinstance(reader, Watched)]
    with ExitStack() as active:
        for reader in readers:
            if not isinstance(reader, Watched):
                active.enter_context(reader)
        if watched:
            active.enter_context(FunctionInputs(watched))
        yield captured


def _head_reader(model: nn.Module, head: HeadSite, keep: Take, *, compiled: bool) -> Reader:
    def take(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.shape[1:] == (head.shape[1],):
            keep(value.detach().to(torch.float32, copy=True))

    if compiled:
        return Watched(FunctionCall("linear", head.traced_call), _MATRIX_DIMENSIONS, take)
    return module_input(submodule(model, head.module), head.call, take)
