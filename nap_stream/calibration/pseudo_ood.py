"""Pseudo-OOD images, made from in-distribution ones.

The weight of NAP against a base score is chosen without out-of-distribution data: on
in-distribution images that were transformed until they are no longer in-distribution (the NAP
paper, arXiv 2402.18162, section 3.3). Sizes are relative to the image, so that a transform does
to 224 x 224 pixels what it does to 32 x 32; what is random comes from the generator alone.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from types import MappingProxyType

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""From uint8 (N, 3, H, W) to a new tensor of the same shape, dtype and device."""

VERSION = 1
"""Changes when the output of a transform does; part of cache keys."""

MIN_SIDE = 8
"""Pixels: below it, the patches of a 4 x 4 grid are single pixels."""

_GRID = 4
_NOISE_SD = 0.2 * 255
_ELASTIC_REACH = 0.125
_ELASTIC_CELLS = 32


def transformed(name: str, batch: Tensor, seed: int, first_index: int) -> Tensor:
    """Apply the transform of that name to one batch.

    The generator is derived per batch, from ``seed``, ``name`` and ``first_index``: the same
    batch gives the same bytes whichever batches came before it. An image's bytes do depend on
    its batch, whose other images are also its partners in ``mixup`` and ``cutmix``.

    ``batch`` is uint8 (N, 3, H, W), N >= 1, H and W >= 8, and is left as it is; the result has
    its shape, dtype and device. ``first_index`` is the number of the batch's first image among
    all images.

    Raises:
        KeyError: The name is not one of `PSEUDO_OOD`.
        ValueError: The batch has another shape or dtype.
    """
    _require_images(batch)
    digest = hashlib.sha256(f"{seed}/{name}/{first_index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]))
    return PSEUDO_OOD[name](batch, generator)


def _patch_shuffle(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle the patches of a 4 x 4 grid; up to 3 rows and columns left over stay in place."""
    images, channels, height, width = batch.shape
    rows, columns = height // _GRID, width // _GRID
    inner = batch[:, :, : rows * _GRID, : columns * _GRID]
    patches = inner.reshape(images, channels, _GRID, rows, _GRID, columns)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = _uniform((images, _GRID**2), generator, batch.device).argsort(dim=1)
    patches = patches[torch.arange(images, device=batch.device)[:, None], order]
    patches = patches.reshape(images, _GRID, _GRID, channels, rows, columns)
    shuffled = batch.clone()
    shuffled[:, :, : rows * _GRID, : columns * _GRID] = patches.permute(0, 3, 1, 4, 2, 5).reshape(
        inner.shape
    )
    return shuffled


def _elastic(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Displace by up to 1/16 of the side, independently every 1/32; black comes in from outside."""
    height, width = batch.shape[2:]
    cells = (2, min(height, _ELASTIC_CELLS), min(width, _ELASTIC_CELLS))
    # torchvision measures in half sides.
    coarse = _uniform((len(batch), *cells), generator, batch.device).sub_(0.5)
    coarse *= 2 * _ELASTIC_REACH
    fields = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    fields = fields.permute(0, 2, 3, 1)
    return torch.stack(
        [transforms.elastic(image, field[None]) for image, field in zip(batch, fields, strict=True)]
    )


def _gaussian_noise(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of standard deviation 0.2 of the range, independently by pixel and channel."""
    # torchvision's gaussian_noise takes no generator.
    noise = torch.randn(batch.shape, generator=generator, device=generator.device)
    return _uint8(batch + _NOISE_SD * noise.to(batch.device))


def _gaussian_blur(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Blur with a standard deviation of 1/16 of the side, cut off at three of them."""
    sigmas = [side / 16 for side in batch.shape[2:]]
    tall, wide = (2 * ceil(3 * sigma) + 1 for sigma in sigmas)
    # One axis after the other: torchvision's kernel is not separated, and takes 17 times as long
    # at 224 x 224 pixels.
    blurred = transforms.gaussian_blur(batch.float(), [1, tall], sigmas[0])
    return _uint8(transforms.gaussian_blur(blurred, [wide, 1], sigmas[1]))


def _mixup(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Average two images, rounding down."""
    return ((batch.to(torch.int16) + _partners(batch, 2)) // 2).to(torch.uint8)


def _cutmix(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Compose each image of the quadrants of four."""
    top, left = batch.shape[2] // 2, batch.shape[3] // 2
    mixed = batch.clone()
    mixed[:, :, :top, left:] = _partners(batch, 1)[:, :, :top, left:]
    mixed[:, :, top:, :left] = _partners(batch, 2)[:, :, top:, :left]
    mixed[:, :, top:, left:] = _partners(batch, 3)[:, :, top:, left:]
    return mixed


def _tiled_patch(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Repeat a random patch of a quarter of the side over the whole image."""
    images, channels, height, width = batch.shape
    device = batch.device
    places = _uniform((2, images, 1), generator, device)
    rows = _repeated(places[0], height, device)[:, None, :, None]
    columns = _repeated(places[1], width, device)[:, None, None, :]
    image = torch.arange(images, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return batch[image, channel, rows, columns]


def _phase_scramble(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Add random phases to the spectrum, the same in all channels; amplitude and mean stay."""
    size = batch.shape[2:]
    noise = _uniform((len(batch), 1, *size), generator, batch.device)
    # The spectrum of real noise has the symmetry that keeps the image real, and that of positive
    # noise has phase 0 at frequency 0, which keeps the mean.
    phase = torch.fft.rfft2(noise).angle()
    spectrum = torch.fft.rfft2(batch.float())
    scrambled = torch.polar(spectrum.abs(), spectrum.angle() + phase)
    return _uint8(torch.fft.irfft2(scrambled, s=size))


def _zoomed_in(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Scale the central quarter of the side up to the whole."""
    height, width = batch.shape[2:]
    centre = transforms.center_crop(batch, [height // 4, width // 4])
    zoomed: Tensor = transforms.resize(centre, [height, width], antialias=True)
    return zoomed


def _shrunk(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Scale to half the side, centred on a ground of the top left pixel's colour."""
    height, width = (side // 2 for side in batch.shape[2:])
    top, left = (batch.shape[2] - height) // 2, (batch.shape[3] - width) // 2
    ground = batch[:, :, :1, :1].repeat(1, 1, *batch.shape[2:])
    small = transforms.resize(batch, [height, width], antialias=True)
    ground[:, :, top : top + height, left : left + width] = small
    return ground


def _alike(operation: Callable[[Tensor], Tensor]) -> Transform:
    """Do the same to every image, without chance."""
    return lambda batch, _generator: operation(batch)


def _partners(batch: Tensor, quarters: int) -> Tensor:
    """Images to mix with: the batch rolled by quarters of it.

    By quarters, because neighbours in a folder are often of one class. A batch too small to
    roll is turned by 180 degrees instead, so that nothing is mixed with itself unchanged.
    """
    shift = quarters * len(batch) // 4
    return batch.roll(shift, dims=0) if shift else batch.flip((2, 3))


def _repeated(places: Tensor, side: int, device: torch.device) -> Tensor:
    """Indices (N, side) that repeat a quarter of the side, begun at places in [0, 1), (N, 1)."""
    length = ceil(side / 4)
    starts = (places * (side - length + 1)).long()
    return starts + torch.arange(side, device=device) % length


def _uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def _uint8(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).round().to(torch.uint8)


def _require_images(batch: Tensor) -> None:
    match tuple(batch.shape):
        case (images, 3, height, width) if images and min(height, width) >= MIN_SIDE:
            fits = batch.dtype == torch.uint8
        case _:
            fits = False
    if not fits:
        raise ValueError(
            f"expected uint8 (N, 3, H, W), N >= 1, H and W >= {MIN_SIDE}, "
            f"got {batch.dtype} {tuple(batch.shape)}"
        )


PSEUDO_OOD: Mapping[str, Transform] = MappingProxyType(
    {
        "patch_shuffle": _patch_shuffle,
        "elastic": _elastic,
        "gaussian_noise": _gaussian_noise,
        "gaussian_blur": _gaussian_blur,
        # A fifth of each pixel's distance from the image's mean grey is kept.
        "low_contrast": _alike(partial(transforms.adjust_contrast, contrast_factor=0.2)),
        "mixup": _mixup,
        "cutmix": _cutmix,
        "tiled_patch": _tiled_patch,
        "phase_scramble": _phase_scramble,
        "invert": _alike(transforms.invert),
        "solarize": _alike(partial(transforms.solarize, threshold=128)),
        # The highest bit of each value is kept: 0 or 128.
        "posterize": _alike(partial(transforms.posterize, bits=1)),
        "zoomed_in": _zoomed_in,
        "shrunk": _shrunk,
    }
)
"""The transforms by name, in a fixed order."""
