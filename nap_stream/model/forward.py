"""One forward pass of a classifier: logits, penultimate features and the prior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nap_stream.core.prior import attention_prior, nap
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.sites import FeatureSite, HeadSite, capture, plain_name

_LOGITS_DIMENSIONS = 2


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward pass of N images gives, in their order, float32, on the model's device.

    ``logits`` is (N, K), ``features`` (N, D), what enters the linear head, None where the model
    has none, ``nap`` (N,), the Neural Activation Prior. Rows can hold NaN or infinity where the
    model yields them.
    """

    logits: torch.Tensor
    features: torch.Tensor | None
    nap: torch.Tensor


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

    Args:
        module: In evaluation mode; eager, or under ``torch.compile``.
        site: Where the prior is read, from `choose_site`.
        head: Its linear head, from `find_head`, or None.
        pixels: The model's input, (N, 3, H, W), of its dtype and on its device.
        classes: The number of logits that it must give, K.

    Raises:
        ModelError: The module is in training mode, returned something other than logits (N, K),
            or did not reach its head.
        FeatureMapError: The forward pass did not reach the feature map, or the site cannot be
            read in a compiled module.
    """
    refuse_training(module)
    reduce = attention_prior if site.kind == "cls_attention" else nap
    with torch.inference_mode(), capture(module, site, reduce, head) as captured:
        output = module(pixels)
    logits = require_logits(output, images=len(pixels), classes=classes).float()
    if captured.value is None:
        raise FeatureMapError(
            "the forward pass did not reach the feature map",
            str(site),
            "The model must take the same way for every image",
        )
    if head is not None and captured.features is None:
        raise ModelError(
            "the forward pass did not reach the linear head",
            f"{head}",
            "The model must take the same way for every image",
        )
    return Forward(logits, captured.features, captured.value)


def require_logits(
    output: Any, *, images: int, classes: int | None = None, where: str = "the forward pass"
) -> torch.Tensor:
    """Return a model's output if it is logits, one row an image.

    Args:
        output: What the model returned.
        images: How many images it was given.
        classes: How many logits each row must have; None for any number.
        where: For the error.

    Raises:
        ModelError: It is a tuple, a dict or the like, or has another shape or dtype.
    """
    if (
        isinstance(output, torch.Tensor)
        and output.ndim == _LOGITS_DIMENSIONS
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
