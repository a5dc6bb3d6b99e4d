"""Transforms that were tried for pseudo-OOD images, and that do not take part in the choice.

`benchmarks.selection_rules` measures what each of them would change. See
`nap_stream.calibration.pseudo_ood` for those that do take part.
"""

from collections.abc import Mapping
from functools import partial
from math import ceil
from types import MappingProxyType

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from nap_stream.calibration import pseudo_ood
from nap_stream.calibration.pixels import Transform, alike, apply, blurred, uint8, uniform

_PIXEL_CELLS = 16


def transformed(name: str, batch: Tensor, seed: int, first_index: int) -> Tensor:
    """As `pseudo_ood.transformed`, of these transforms too."""
    if name in TRIED:
        return apply(TRIED[name], name, batch, seed, first_index)
    return pseudo_ood.transformed(name, batch, seed, first_index)


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
    begun = uniform((2, images, 1), generator, device)
    rows = _repeated(begun[0], height, device)[:, None, :, None]
    columns = _repeated(begun[1], width, device)[:, None, None, :]
    image = torch.arange(images, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return batch[image, channel, rows, columns]


def _phase_scramble(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Add random phases to the spectrum, the same in all channels; amplitude and mean stay."""
    size = batch.shape[2:]
    noise = uniform((len(batch), 1, *size), generator, batch.device)
    # The spectrum of real noise has the symmetry that keeps the image real, and that of positive
    # noise has phase 0 at frequency 0, which keeps the mean.
    phase = torch.fft.rfft2(noise).angle()
    spectrum = torch.fft.rfft2(batch.float())
    scrambled = torch.polar(spectrum.abs(), spectrum.angle() + phase)
    return uint8(torch.fft.irfft2(scrambled, s=size))


def _shrunk(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Scale to half the side, centred on a ground of the top left pixel's colour."""
    height, width = (side // 2 for side in batch.shape[2:])
    top, left = (batch.shape[2] - height) // 2, (batch.shape[3] - width) // 2
    ground = batch[:, :, :1, :1].repeat(1, 1, *batch.shape[2:])
    small = transforms.resize(batch, [height, width], antialias=True)
    ground[:, :, top : top + height, left : left + width] = small
    return ground


def _partners(batch: Tensor, quarters: int) -> Tensor:
    """Images to mix with: the batch rolled by quarters of it.

    A batch too small to
    roll is turned by 180 degrees instead, so that nothing is mixed with itself unchanged.
    """
    shift = quarters * len(batch) // 4
    return batch.roll(shift, dims=0) if shift else batch.flip((2, 3))


def _repeated(begun: Tensor, side: int, device: torch.device) -> Tensor:
    """Indices (N, side) that repeat a quarter of the side, begun in [0, 1), (N, 1)."""
    length = ceil(side / 4)
    starts = (begun * (side - length + 1)).long()
    return starts + torch.arange(side, device=device) % length


def _gaussian_blur(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Blur with a standard deviation of 1/16 of the side, cut off at three of them."""
    return uint8(blurred(batch, 1 / 16))


def _pixelated(batch: Tensor, _generator: torch.Generator) -> Tensor:
    """Average over 16 cells a side, or fewer: a cell has at least two pixels a side."""
    height, width = batch.shape[2:]
    cells = min(_PIXEL_CELLS, height // 2), min(_PIXEL_CELLS, width // 2)
    means = torch.nn.functional.adaptive_avg_pool2d(batch.float().contiguous(), cells)
    return uint8(torch.nn.functional.interpolate(means, (height, width), mode="nearest"))


TRIED: Mapping[str, Transform] = MappingProxyType(
    {
        # A fifth of each pixel's distance from the image's mean grey is kept.
        "low_contrast": alike(partial(transforms.adjust_contrast, contrast_factor=0.2)),
        "gaussian_blur": _gaussian_blur,
        "mixup": _mixup,
        "cutmix": _cutmix,
        "tiled_patch": _tiled_patch,
        "phase_scramble": _phase_scramble,
        "invert": alike(transforms.invert),
        # The highest bit of each value is kept: 0 or 128.
        "posterize": alike(partial(transforms.posterize, bits=1)),
        "shrunk": _shrunk,
        "pixelated": _pixelated,
    }
)
"""By name."""
