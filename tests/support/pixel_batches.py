"""Batches of images for transforms, and the transforms applied to them."""

import pytest
import torch
from torch import Tensor

from nap_stream.calibration.pseudo_ood import transformed

SIZES = [(8, 8), (32, 32), (17, 40)]
all_sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def images(count: int, size: tuple[int, int], low: int = 0, high: int = 256) -> Tensor:
    """Random pixels, the same for the same arguments."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(low, high, (count, 3, *size), generator=generator).to(torch.uint8)


def plain(*colours: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Tensor:
    """One image of each colour."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].repeat(1, 1, *size)


def apply(name: str, batch: Tensor, first_index: int = 0) -> Tensor:
    """Apply a transform or a fault with a seed of 7."""
    return transformed(name, batch, 7, first_index)
