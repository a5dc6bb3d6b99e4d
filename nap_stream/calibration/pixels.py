"""What a transform of images is, and what transforms are made of.

Sizes are relative to the image, so that a transform does to 224 x 224 pixels what it does to
32 x 32; what is random comes from the generator alone.
"""

import hashlib
from collections.abc import Callable
from math import ceil, pi

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""From uint8 (N, 3, H, W) to a new tensor of the same shape, dtype and device."""

MIN_SIDE = 8
"""Pixels: below it, the patches of a 4 x 4 grid are single pixels."""


def apply(transform: Transform, name: str, batch: Tensor, seed: int, first_index: int) -> Tensor:
    """Apply a transform of that name to one batch; see `pseudo_ood.transformed`."""
    _require_images(batch)
    digest = hashlib.sha256(f"{seed}/{name}/{first_index}".encode()).digest()
    return transform(batch, torch.Generator().manual_seed(int.from_bytes(digest[:8])))


def alike(operation: Callable[[Tensor], Tensor]) -> Transform:
    """Do the same to every image, without chance."""
    return lambda batch, _generator: operation(batch)


def uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def uint8(pixels: Tensor) -> Tensor:
    """Cut off at both ends of the range, and round."""
    return pixels.clamp(0, 255).round().to(torch.uint8)


def noisy(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Add noise whose standard deviation is that share of the range, by pixel and channel."""
    # torchvision's gaussian_noise takes no generator.
    noise = torch.randn(pixels.shape, generator=generator, device=generator.device)
    return uint8(pixels + 255 * share * noise.to(pixels.device))


def blurred(batch: Tensor, share: float) -> Tensor:
    """Blur with a standard deviation of that share of the side, cut off at three of them."""
    sigmas = [side * share for side in batch.shape[2:]]
    tall, wide = (2 * ceil(3 * sigma) + 1 for sigma in sigmas)
    # One axis after the other: torchvision's kernel is not separated, and takes 17 times as long
    # at 224 x 224 pixels.
    once = transforms.gaussian_blur(batch.float(), [1, tall], sigmas[0])
    twice: Tensor = transforms.gaussian_blur(once, [wide, 1], sigmas[1])
    return twice


def places(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Where rows (H, 1) and columns (1, W) stand in the image, from 0 to 1."""
    rows, columns = (torch.linspace(0, 1, side, device=batch.device) for side in batch.shape[2:])
    return rows[:, None], columns[None, :]


def ramps(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Rise evenly from 0 to 1, each image in a direction of its own: (N, 1, H, W)."""
    rows, columns = places(batch)
    angle = 2 * pi * uniform((len(batch), 1, 1, 1), generator, batch.device)
    down, across = angle.sin(), angle.cos()
    along = (rows - 0.5) * down + (columns - 0.5) * across
    return along / (down.abs() + across.abs()) + 0.5


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
