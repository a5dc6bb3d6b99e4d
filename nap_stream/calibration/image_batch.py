"""From what people hold images in to one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nap_stream.model.preprocessing import input_size, preprocess
from nap_stream.settings import PreprocessingSettings

_CHANNELS = 3
_DIMENSIONS = 3


def one_batch(
    images: torch.Tensor | Sequence[torch.Tensor], preprocessing: PreprocessingSettings
) -> torch.Tensor:
    """Recognise images by dtype and shape, and bring pixels to the model's input size.

    Args:
        images: The model's own input, floating-point (N, 3, H, W); or RGB pixels, uint8
            (N, 3, h, w), or a sequence of uint8 tensors (3, h, w) of any sizes.
        preprocessing: What pixels go through.

    Returns:
        (N, 3, H, W): the floating-point tensor itself, or uint8 pixels, resized and cropped.

    Raises:
        ValueError: The images are something else, or the floating-point ones have another size.
    """
    size = input_size(preprocessing)
    if isinstance(images, torch.Tensor) and images.is_floating_point():
        if images.shape[1:] != (_CHANNELS, *size):
            raise _unexpected(images, size)
        return images
    is_batch = isinstance(images, torch.Tensor) and images.ndim == _DIMENSIONS + 1
    if not (is_batch or isinstance(images, Sequence)) or not all(map(_is_pixels, images)):
        raise _unexpected(images, size)
    pixels = [preprocess(image.contiguous(), preprocessing) for image in images]
    return torch.stack(pixels) if pixels else torch.zeros(0, _CHANNELS, *size, dtype=torch.uint8)


def rgb_tensor(image: Any) -> torch.Tensor:
    """Copy an array of RGB pixels, uint8 (h, w, 3), to a tensor (3, h, w).

    Raises:
        ValueError: It has another dtype or shape.
    """
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
