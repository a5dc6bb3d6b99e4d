"""From a decoded image to the model's input: resize and crop as uint8, normalise as a batch."""

from collections.abc import Callable, Sequence
from math import ceil

import torch
from torch.nn import functional

from nap_stream.settings.schema import PreprocessingSettings

Interpolate = Callable[[torch.Tensor, Sequence[int], str], torch.Tensor]
"""(uint8 (C, h, w), [H, W], mode) → uint8 (C, H, W), antialiased but for the mode nearest."""

_BATCH_PIXELS = 32 * 224 * 224
LARGEST_BATCH = 128
_CACHED_VALUES = 2**18
"""Of float32: 1 MiB."""
_MAX_ASPECT = 16
"""Side ratio beyond which an image is cut before its short side is scaled: 1 x 60,000 pixels
scaled to a short side of 256 would take 12 GB."""


def preprocess(
    pixels: torch.Tensor,
    settings: PreprocessingSettings,
    interpolate: Interpolate | None = None,
) -> torch.Tensor:
    """Resize and centre-crop one image, as torchvision's evaluation transforms do.

    Resizing is antialiased, on uint8 pixels. An image that is smaller than the crop after
    resizing (or without it, where ``resize`` is null) is padded with zeros, centred, as
    torchvision's CenterCrop does. An image whose sides differ by more than a factor of 16 (or
    twice what the crop needs) is first cut to its central part, so that memory stays bounded.

    ``pixels`` are RGB, uint8, shape (3, h, w), or n images of one size behind each other,
    (3 n, h, w). Of the settings, ``mean`` and ``std`` are for `Normaliser`. ``interpolate`` is for
    devices other than the CPU.

    Returns:
        uint8, shape (3, H, W) of the crop, dense in memory: interleaved where ``pixels`` are, as
        `decode_image` gives them, else one channel after the other. It is ``pixels`` itself where
        nothing is to be done.
    """
    crop_height, crop_width = input_size(settings)
    if settings.resize is not None:
        sides = settings.resize
        if isinstance(sides, int):
            longest = max(_MAX_ASPECT, 2 * ceil(max(crop_height, crop_width) / sides))
            pixels = _cut_long_side(pixels, longest)
        size = _new_size(pixels, sides)
        if size != list(pixels.shape[1:]):
            pixels = (interpolate or _interpolated)(pixels, size, settings.interpolation)
    return _dense(_centre(pixels, crop_height, crop_width))


def input_size(settings: PreprocessingSettings) -> tuple[int, int]:
    """Height and width of the model's input, in pixels."""
    return (settings.crop, settings.crop) if isinstance(settings.crop, int) else settings.crop


def decoded_size(settings: PreprocessingSettings) -> tuple[int, int] | None:
    """The height and width, in pixels, that a decoded image needs at least; None for all of it."""
    sides = settings.resize
    if not settings.scaled_decoding or sides is None:
        return None
    return (sides, sides) if isinstance(sides, int) else sides


def default_batch_size(settings: PreprocessingSettings) -> int:
    """How many images a batch has unless told otherwise: 32, or up to 128 that are small.

    They have no more pixels than 32 images of 224 x 224. What a batch costs beside its pixels is
    then shared by more of them.
    """
    height, width = input_size(settings)
    return min(LARGEST_BATCH, max(32, _BATCH_PIXELS // (height * width)))


class Normaliser:
    """From a uint8 batch to the model's floating-point input, on the model's device.

    ``mean`` and ``std`` of the settings are per channel, of pixels scaled to [0, 1]. The batch is
    moved to the device before it is normalised, as uint8 is a quarter of float32. The arithmetic is
    float32, and ``dtype`` the model's floating-point type.
    """

    def __init__(
        self, settings: PreprocessingSettings, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._mean = torch.tensor(settings.mean, device=device)
        self._std = torch.tensor(settings.std, device=device)
        self._device, self._dtype = device, dtype
        # A row of interleaved pixels: of three channels side by side, a CPU would take each
        # subtraction by itself.
        self._row = input_size(settings)[1] * 3
        self._row_mean, self._row_std = (
            channels.repeat(self._row // 3) for channels in (self._mean, self._std)
        )

    def __call__(
        self, batch: torch.Tensor, layout: torch.memory_format = torch.preserve_format
    ) -> torch.Tensor:
        """Return (pixels / 255 - mean) / std, shape (N, 3, H, W), of a uint8 batch.

        ``layout`` is the memory format of what is returned; that of ``batch`` unless given.
        """
        there = batch.to(self._device)
        found = torch.empty_like(there, dtype=torch.float32, memory_format=layout)
        images = len(batch)
        if self._device.type == "cpu":
            # What stays in the processor's cache: three passes over a whole batch wait for memory.
            images = max(1, _CACHED_VALUES // batch.shape[1:].numel())
        for pixels, part in zip(
            torch.split(there, images), torch.split(found, images), strict=True
        ):
            self._normalise(part.copy_(pixels))
        return found.to(self._dtype)

    def _normalise(self, pixels: torch.Tensor) -> None:
        interleaved = pixels.permute(0, 2, 3, 1)
        if interleaved.is_contiguous() and interleaved.shape[2] * 3 == self._row:
            interleaved.flatten(2).div_(255).sub_(self._row_mean).div_(self._row_std)
            return
        mean, std = (channels.reshape(1, 3, 1, 1) for channels in (self._mean, self._std))
        pixels.div_(255).sub_(mean).div_(std)


def _cut_long_side(pixels: torch.Tensor, max_aspect: int) -> torch.Tensor:
    _, height, width = pixels.shape
    longest = max_aspect * min(height, width)
    if max(height, width) <= longest:
        return pixels
    return _centre(pixels, min(height, longest), min(width, longest))


# torchvision's own transforms are not used: importing them imports torch's compiler too, which
# costs each worker two seconds of processor time.
def _interpolated(pixels: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    image = pixels[None]
    if image.is_contiguous(memory_format=torch.channels_last):
        # One image of interleaved pixels fits both layouts: its strides say which one is meant, or
        # the result would be laid out anew.
        image = image.as_strided(image.shape, (image.numel(), *image.stride()[1:]))
    resized = antialiased(image, size, mode)
    return resized.reshape(len(pixels), *size)


def antialiased(images: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """Resize (N, C, h, w) to height and width, antialiased unless the mode is ``nearest``."""
    smooth = {} if mode == "nearest" else {"align_corners": False, "antialias": True}
    return functional.interpolate(images, size=list(size), mode=mode, **smooth)


def _new_size(pixels: torch.Tensor, sides: int | tuple[int, int]) -> list[int]:
    """Both sides, or the short side's number of pixels and the other in proportion."""
    old = pixels.shape[1:]
    return [sides * side // min(old) for side in old] if isinstance(sides, int) else list(sides)


def _centre(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cut out the centre; what is missing is padded with zeros."""
    _, old_height, old_width = pixels.shape
    if (old_height, old_width) == (height, width):
        return pixels
    down, across = max(0, height - old_height), max(0, width - old_width)
    if down or across:
        sides = (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)
        pixels = _padded(pixels, sides)
    top = round((old_height + down - height) / 2)
    left = round((old_width + across - width) / 2)
    return pixels[:, top : top + height, left : left + width]


def _padded(pixels: torch.Tensor, sides: tuple[int, int, int, int]) -> torch.Tensor:
    if not _is_interleaved(pixels):
        return functional.pad(pixels, sides)
    return functional.pad(pixels.permute(1, 2, 0), (0, 0, *sides)).permute(2, 0, 1)


def _dense(pixels: torch.Tensor) -> torch.Tensor:
    """Copy what is a part of a larger image, in the layout that it has."""
    if pixels.untyped_storage().nbytes() == pixels.nbytes:
        return pixels
    # Rows that follow each other need no copy, but would keep the whole image in memory.
    if not _is_interleaved(pixels):
        return pixels.clone(memory_format=torch.contiguous_format)
    interleaved = pixels.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    return interleaved.permute(2, 0, 1)


def _is_interleaved(pixels: torch.Tensor) -> bool:
    return pixels.stride(0) == 1
