"""Pseudo-OOD images, made from in-distribution ones.

What scores a method sums, and with which weights, is chosen without out-of-distribution data: on
in-distribution images that were transformed until they are no longer in-distribution, as the NAP
paper chooses its one weight (arXiv 2402.18162, section 3.3). The transforms differ in what they
leave of an image: its shapes, its colours, or nothing at all. No one of them resembles what will
come; a choice that holds on average over all of them is less likely to hang on one. Those that
made the choice worse on some networks are not among them, such as two images mixed, or inverted
ones: docs/methods.md has the figures. See `nap_stream.calibration.pixels` for what holds of all of
them.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.pixels import (
    Transform,
    alike,
    apply,
    noisy,
    places,
    ramps,
    uint8,
    uniform,
)

VERSION = 2
"""Changes when the output of a transform or a fault does; part of cache keys."""

_GRID = 4
_NOISE = 0.2
_ELASTIC_REACH = 0.125
_ELASTIC_CELLS = 32
_PLAIN_NOISE = 0.02
_SHAPES = 8
_SMALLEST_SHAPE, _LARGEST_SHAPE = 1 / 16, 1 / 4


def transformed(name: str, batch: Tensor, seed: int, first_index: int) -> Tensor:
    """Apply the transform or the fault of that name to one batch.

    The generator is derived per batch, from ``seed``, ``name`` and ``first_index``: the same
    batch gives the same bytes whichever batches came before it. What is random for an image does
    depend on its place in the batch, and on the images before it.

    ``batch`` is uint8 (N, 3, H, W), N >= 1, H and W >= 8, and is left as it is; the result has
    its shape, dtype and device. ``first_index`` is the number of the batch's first image among
    all images.

    Raises:
        KeyError: The name is not one of `PSEUDO_OOD` or `nap_stream.calibration.faults.FAULTS`.
        ValueError: The batch has another shape or dtype.
    """
    transform = PSEUDO_OOD[name] if name in PSEUDO_OOD else FAULTS[name]
    return apply(transform, name, batch, seed, first_index)


def _patch_shuffle(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffle the patches of a 4 x 4 grid; up to 3 rows and columns left over stay in place."""
    images, channels, height, width = batch.shape
    rows, columns = height // _GRID, width // _GRID
    inner = batch[:, :, : rows * _GRID, : columns * _GRID]
    patches = inner.reshape(images, channels, _GRID, rows, _GRID, columns)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = uniform((images, _GRID**2), generator, batch.device).argsort(dim=1)
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
    coarse = uniform((len(batch), *cells), generator, batch.device).sub_(0.5)
    coarse *= 2 * _ELASTIC_REACH
    fields = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    fields = fields.permute(0, 2, 3, 1)
    return torch.stack(
        [transforms.elastic(image, field[None]) for image, field in zip(batch, fields, strict=True)]
    )


def _gaussian_noise(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of standard deviation 0.2 of the range, independently by pixel and channel."""
    return noisy(batch, _NOISE, generator)


def _zoomed_in(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Scale the central quarter of the side up to the whole."""
    height, width = batch.shape[2:]
    centre = transforms.center_crop(batch, [height // 4, width // 4])
    zoomed: Tensor = transforms.resize(centre, [height, width], antialias=True)
    return zoomed


def _plain_frame(batch: Tensor, generator: torch.Generator) -> Tensor:
    """One pixel's colour all over, with noise of standard deviation 0.02 of the range."""
    pixels = batch.flatten(2)
    chosen = uniform((len(batch), 1, 1), generator, batch.device) * pixels.shape[2]
    colour = pixels.gather(2, chosen.long().expand(-1, 3, -1))
    return noisy(colour[..., None].expand(batch.shape), _PLAIN_NOISE, generator)


def _uniform_noise(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Any value with equal chance, independently by pixel and channel."""
    return (256 * uniform(tuple(batch.shape), generator, batch.device)).to(torch.uint8)


def _smooth_field(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Random colours at the points of a 4 x 4 grid, and smoothly in between."""
    points = 255 * uniform((len(batch), 3, _GRID, _GRID), generator, batch.device)
    size = batch.shape[2:]
    return uint8(torch.nn.functional.interpolate(points, size, mode="bicubic", align_corners=True))


def _shapes(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Four boxes and four ellipses of random colours, on ground of a random colour.

    They stand anywhere, and reach 1/16 to 1/4 of the side from their centres.
    """
    rows, columns = places(batch)
    drawn = _random_colours(batch, generator).expand(batch.shape)
    for number in range(_SHAPES):
        numbers = uniform((4, len(batch), 1, 1, 1), generator, batch.device)
        reach = _SMALLEST_SHAPE + (_LARGEST_SHAPE - _SMALLEST_SHAPE) * numbers[2:]
        down = (rows - numbers[0]).abs() / reach[0]
        across = (columns - numbers[1]).abs() / reach[1]
        edge = torch.maximum(down, across) if number % 2 else down.square() + across.square()
        drawn = torch.where(edge <= 1, _random_colours(batch, generator), drawn)
    return uint8(drawn)


def _gradient(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Go evenly from one random colour to another, in a random direction."""
    first, last = (_random_colours(batch, generator) for _ in range(2))
    return uint8(torch.lerp(first, last, ramps(batch, generator)))


def _quarter_size(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Scale to a quarter of the side, centred on a ground of the mean colour."""
    height, width = (side // 4 for side in batch.shape[2:])
    top, left = (batch.shape[2] - height) // 2, (batch.shape[3] - width) // 2
    colour = uint8(batch.float().mean((2, 3), keepdim=True))
    framed = colour.repeat(1, 1, *batch.shape[2:])
    small = transforms.resize(batch, [height, width], antialias=True)
    framed[:, :, top : top + height, left : left + width] = small
    return framed


def _random_colours(batch: Tensor, generator: torch.Generator) -> Tensor:
    """One for each image: (N, 3, 1, 1)."""
    return 255 * uniform((len(batch), 3, 1, 1), generator, batch.device)


PSEUDO_OOD: Mapping[str, Transform] = MappingProxyType(
    {
        "patch_shuffle": _patch_shuffle,
        "elastic": _elastic,
        "gaussian_noise": _gaussian_noise,
        "solarize": alike(partial(transforms.solarize, threshold=128)),
        "zoomed_in": _zoomed_in,
        "plain_frame": _plain_frame,
        "uniform_noise": _uniform_noise,
        "smooth_field": _smooth_field,
        "shapes": _shapes,
        "gradient": _gradient,
        "quarter_size": _quarter_size,
    }
)
"""The transforms by name, in a fixed order."""
