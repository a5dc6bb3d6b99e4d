"""What breaks in the field, done to images: what a camera that fails makes of them.

Each fault has one fixed strength, which its function states; values are shares of the range from
black to white. They describe what a calibrated detector can see: how many images of each fault it
flags. See `nap_stream.calibration.pixels` for what holds of all of them.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from nap_stream.calibration.pixels import (
    Transform,
    alike,
    blurred,
    noisy,
    places,
    ramps,
    uint8,
    uniform,
)

_COVERED_FROM, _COVERED_TO = 0.02, 0.08
_COVERED_NOISE = 0.01
_HAZE_KEEPS = 0.5
_HAZE_GREY = 0.8
_FOG_BLUR = 1 / 32
_SPOTS = 12
_SMALLEST_SPOT, _LARGEST_SPOT = 1 / 32, 1 / 16
_SPOT_TAKES = 0.9
_DEFOCUS_RADIUS = 1 / 16
_MOTION_LENGTH = 1 / 8
_SHORTEST_MOTION = 3
_OVER, _UNDER, _DARKER = 2.0, 0.25, 0.5
_UNDER_NOISE = 0.02
_SENSOR_NOISE = 0.1
_WARM = (1.4, 1.0, 0.6)
_STRIPE = 1 / 32


def _blank_frame(batch: Tensor) -> Tensor:
    """Black."""
    return torch.zeros_like(batch)


def _saturated_frame(batch: Tensor) -> Tensor:
    """White."""
    return torch.full_like(batch, 255)


def _covered_lens(batch: Tensor, generator: torch.Generator) -> Tensor:
    """From 0.02 to 0.08 across, in a random direction, with noise of standard deviation 0.01."""
    light = _COVERED_FROM + (_COVERED_TO - _COVERED_FROM) * ramps(batch, generator)
    return noisy((255 * light).expand(batch.shape), _COVERED_NOISE, generator)


def _haze(pixels: Tensor) -> Tensor:
    """Half the image, and half a light grey of 0.8."""
    return uint8(_HAZE_KEEPS * pixels + (1 - _HAZE_KEEPS) * _HAZE_GREY * 255)


def _fogged_lens(batch: Tensor) -> Tensor:
    """Blur with a standard deviation of 1/32 of the side, and haze."""
    return _haze(blurred(batch, _FOG_BLUR))


def _dirt_spots(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Twelve soft spots anywhere, each of which takes up to 0.9 of the light.

    They are Gaussian, with standard deviations of 1/32 to 1/16 of the side.
    """
    rows, columns = places(batch)
    light = torch.ones((len(batch), 1, *batch.shape[2:]), device=batch.device)
    for _ in range(_SPOTS):
        down, across, spread = uniform((3, len(batch), 1, 1, 1), generator, batch.device)
        size = _SMALLEST_SPOT + (_LARGEST_SPOT - _SMALLEST_SPOT) * spread
        distance = ((rows - down) / size).square() + ((columns - across) / size).square()
        light *= 1 - _SPOT_TAKES * (-distance / 2).exp()
    return uint8(light * batch)


def _defocus(batch: Tensor) -> Tensor:
    """Average over a disc whose radius is 1/16 of the shorter side, at least 1 pixel."""
    radius = max(1, round(_DEFOCUS_RADIUS * min(batch.shape[2:])))
    offsets = torch.arange(-radius, radius + 1, device=batch.device)
    distance = offsets[:, None].square() + offsets.square()
    # A disc reaches to the far edge of its last pixel, not to that pixel's centre.
    return _averaged(batch, distance <= (radius + 0.5) ** 2)


def _motion_blur(batch: Tensor) -> Tensor:
    """Average over a horizontal line of 1/8 of the width, at least 3 pixels."""
    reach = max(_SHORTEST_MOTION, round(_MOTION_LENGTH * batch.shape[3])) // 2
    return _averaged(batch, torch.ones((1, 2 * reach + 1), dtype=torch.bool, device=batch.device))


def _averaged(batch: Tensor, neighbours: Tensor) -> Tensor:
    """Average over neighbours, bool and of odd sides; the border goes on outside."""
    tall, wide = (side // 2 for side in neighbours.shape)
    framed = torch.nn.functional.pad(batch.float(), (wide, wide, tall, tall), mode="replicate")
    kernel = neighbours.float().expand(3, 1, *neighbours.shape)
    # Sums of whole numbers are exact, and do not depend on their order.
    return uint8(torch.nn.functional.conv2d(framed, kernel, groups=3) / neighbours.sum())


def _over_exposure(batch: Tensor) -> Tensor:
    """Twice each value, cut off at white."""
    return uint8(_OVER * batch)


def _under_exposure(batch: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of each value, with noise of standard deviation 0.02."""
    return noisy(_UNDER * batch, _UNDER_NOISE, generator)


def _darker_by_half(batch: Tensor) -> Tensor:
    """Half of each value."""
    return uint8(_DARKER * batch)


def _sensor_noise(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of standard deviation 0.1, independently by pixel and channel."""
    return noisy(batch, _SENSOR_NOISE, generator)


def _wrong_white_balance(batch: Tensor) -> Tensor:
    """1.4 times red and 0.6 times blue: lamplight taken for daylight."""
    return uint8(batch * torch.tensor(_WARM, device=batch.device)[:, None, None])


def _swapped_channels(batch: Tensor) -> Tensor:
    """BGR for RGB."""
    return batch.flip(1)


def _stuck_rows(batch: Tensor) -> Tensor:
    """The lower half repeats the row in the middle."""
    middle = batch.shape[2] // 2
    stuck = batch.clone()
    stuck[:, :, middle:] = batch[:, :, middle : middle + 1]
    return stuck


def _striped_rows(batch: Tensor) -> Tensor:
    """Every other band of rows is black; a band is 1/32 of the height, at least one row."""
    height = batch.shape[2]
    band = max(1, round(_STRIPE * height))
    is_lit = torch.arange(height, device=batch.device) // band % 2 == 0
    return batch * is_lit[:, None]


FAULTS: Mapping[str, Transform] = MappingProxyType(
    {
        "blank frame": alike(_blank_frame),
        "saturated frame": alike(_saturated_frame),
        "covered lens": _covered_lens,
        "haze": alike(_haze),
        "fogged lens": alike(_fogged_lens),
        "dirt spots": _dirt_spots,
        "defocus": alike(_defocus),
        "motion blur": alike(_motion_blur),
        "over-exposure": alike(_over_exposure),
        "under-exposure": _under_exposure,
        "darker by half": alike(_darker_by_half),
        "sensor noise": _sensor_noise,
        "wrong white balance": alike(_wrong_white_balance),
        "swapped channels": alike(_swapped_channels),
        "stuck rows": alike(_stuck_rows),
        "striped rows": alike(_striped_rows),
    }
)
"""The faults by their names in tables, in a fixed order."""
