"""The first pass of a model: what makes logits of what it returns, or why it fails."""

import re

import torch
from torch import nn

from nap_stream.errors import ModelError, NapStreamError
from nap_stream.model.facts import LogitsHook
from nap_stream.model.output import logits_hook
from nap_stream.model.preprocessing import Normaliser, input_size
from nap_stream.model.sites import run_eagerly, unwrapped
from nap_stream.settings.schema import OutputKind, PreprocessingSettings
from nap_stream.text import described

TRIAL_IMAGES = 2
_OTHER_SIDES = (224, 256, 384, 299, 448, 192, 128, 96, 64, 32)
_ABOUT_SHAPES = re.compile(
    r"shape|size|dimension|\bdims?\b|cannot be multiplied|broadcast|must match|expected \d+|"
    r"divisible|too small",
    re.IGNORECASE,
)


def trial_batch(normalise: Normaliser, preprocessing: PreprocessingSettings) -> torch.Tensor:
    """Two odd images of the model's input size, (2, 3, H, W), as the model takes them."""
    return _batch(normalise, (TRIAL_IMAGES, 3, *input_size(preprocessing)))


def logits_of(
    module: nn.Module,
    batch: torch.Tensor,
    path: str | None,
    kind: OutputKind | None,
    *,
    normalise: Normaliser,
    where: str,
) -> LogitsHook | None:
    """Run a model once on a trial batch, and say what makes logits of what it returns.

    Raises:
        ModelError: It fails, and why as far as further passes tell; or see `logits_hook`.
    """
    try:
        with torch.inference_mode(), run_eagerly(module):
            output = unwrapped(module)(batch)
    except NapStreamError:
        raise
    except Exception as error:
        shape = tuple(batch.shape)
        dtype = str(batch.dtype).removeprefix("torch.")
        raise ModelError(
            f"the model fails on an input of shape {shape} and {dtype} ({described(error)})",
            where,
            _advice(module, normalise, shape, error),
        ) from error
    return logits_hook(output, path, kind, images=len(batch), where=where)


def _advice(
    module: nn.Module, normalise: Normaliser, shape: tuple[int, ...], error: Exception
) -> str:
    images, channels, *sides = shape
    if _runs(module, _batch(normalise, (1, channels, *sides))):
        return (
            "It takes one image at a time and not two: make it for batches of any size. An export "
            "needs a dynamic batch dimension"
        )
    working = next(
        (
            side
            for side in _OTHER_SIDES
            if [side, side] != sides
            and _runs(module, _batch(normalise, (images, channels, side, side)))
        ),
        None,
    )
    if working is not None:
        return f"It takes {working} x {working}: set model.preprocessing.crop to the size it is for"
    if not isinstance(error, TypeError) and _ABOUT_SHAPES.search(str(error)):
        return "Check that model.preprocessing.crop is the input size it was made for"
    return (
        "No other size of input helps: it is the model itself that fails. Call it by itself on "
        f"torch.zeros({images}, {channels}, {', '.join(map(str, sides))})"
    )


def _runs(module: nn.Module, batch: torch.Tensor) -> bool:
    try:
        with torch.inference_mode(), run_eagerly(module):
            unwrapped(module)(batch)
    except Exception:  # noqa: BLE001  a user's model raises what it likes
        return False
    return True


def _batch(normalise: Normaliser, shape: tuple[int, ...]) -> torch.Tensor:
    pixels = torch.arange(torch.Size(shape).numel()).remainder(256)
    return normalise(pixels.to(torch.uint8).reshape(shape))
