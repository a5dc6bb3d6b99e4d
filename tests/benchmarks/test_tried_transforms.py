from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from benchmarks.tried_transforms import TRIED, transformed
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from tests.support.pixel_batches import all_sizes, images, plain


def apply(name: str, batch: Tensor) -> Tensor:
    return transformed(name, batch, 7, 0)


def test_those_that_take_part_are_not_among_them() -> None:
    assert not TRIED.keys() & PSEUDO_OOD.keys()
    batch = images(2, (8, 8))
    assert torch.equal(apply("solarize", batch), PSEUDO_OOD["solarize"](batch, torch.Generator()))


def test_low_contrast_by_hand() -> None:
    batch = plain((100, 100, 100))
    batch[:, :, :, 4:] = 200
    # torchvision's grey rounds down, and its weights sum to 0.9999: 99 and 199, whose mean is 149.
    # 0.2 * 100 + 0.8 * 149 = 139.2, and 0.2 * 200 + 0.8 * 149 = 159.2.
    found = apply("low_contrast", batch)
    assert found[0, 0, 0].tolist() == [139] * 4 + [159] * 4


def test_mixup_by_hand() -> None:
    batch = plain((0, 10, 255), (100, 11, 255), (50, 0, 0), (60, 1, 1))
    # Each with the one half a batch away: the first with the third, the second with the fourth.
    found = apply("mixup", batch)
    expected = [[25, 5, 127], [80, 6, 128], [25, 5, 127], [80, 6, 128]]
    assert found[:, :, 3, 5].tolist() == expected
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found))


def test_cutmix_by_hand() -> None:
    batch = plain(*[(10 * image, 10 * image, 10 * image) for image in range(1, 5)])
    found = apply("cutmix", batch)[:, 0]
    corners = found[:, [0, 0, 7, 7], [0, 7, 0, 7]].tolist()
    assert corners == [[10, 40, 30, 20], [20, 10, 40, 30], [30, 20, 10, 40], [40, 30, 20, 10]]
    for image in found:
        for quadrant in (image[:4, :4], image[:4, 4:], image[4:, :4], image[4:, 4:]):
            assert len(quadrant.unique()) == 1


def test_partners_stand_quarters_of_the_batch_apart() -> None:
    batch = plain(*[(10 * image, 10 * image, 10 * image) for image in range(8)])
    assert apply("mixup", batch)[:, 0, 0, 0].tolist() == [20, 30, 40, 50, 20, 30, 40, 50]
    mixed = apply("cutmix", batch)[0, 0]
    assert mixed[[0, 0, 7, 7], [0, 7, 0, 7]].tolist() == [0, 60, 40, 20]


@all_sizes
def test_one_image_is_mixed_with_itself_upside_down(size: tuple[int, int]) -> None:
    batch = images(1, size)
    turned = torch.rot90(batch, 2, (2, 3))
    mean = (batch.int() + turned.int()).div(2, rounding_mode="floor")
    assert torch.equal(apply("mixup", batch).int(), mean)
    top, left = size[0] // 2, size[1] // 2
    expected = turned.clone()
    expected[:, :, :top, :left] = batch[:, :, :top, :left]
    assert torch.equal(apply("cutmix", batch), expected)


@all_sizes
def test_tiled_patch_is_a_patch_and_its_repetitions(size: tuple[int, int]) -> None:
    batch = images(3, size)
    found = apply("tiled_patch", batch)
    height, width = {(8, 8): (2, 2), (32, 32): (8, 8), (17, 40): (5, 10)}[size]
    assert torch.equal(found[:, :, height:], found[:, :, :-height])
    assert torch.equal(found[:, :, :, width:], found[:, :, :, :-width])
    for image, tiled in zip(batch, found, strict=True):
        windows = image.unfold(1, height, 1).unfold(2, width, 1)
        same = windows == tiled[:, None, None, :height, :width]
        assert same.all(dim=(0, 3, 4)).any()


def test_tiled_patch_comes_from_anywhere() -> None:
    position = torch.arange(8 * 8).reshape(1, 1, 8, 8).expand(400, 3, 8, 8).to(torch.uint8)
    starts = apply("tiled_patch", position)[:, 0, 0, 0]
    # Patches of 2 x 2 pixels begin in rows and columns 0 to 6.
    assert set(starts.tolist()) == {8 * row + column for row in range(7) for column in range(7)}


@all_sizes
def test_phase_scramble_keeps_amplitudes_and_means(size: tuple[int, int]) -> None:
    # So little contrast that nothing is cut off at 0 and 255; what remains is rounding, which
    # by Parseval moves the amplitudes by half the root of the pixel count in the root mean square.
    batch = images(2, size, low=108, high=149)
    found = apply("phase_scramble", batch)
    assert found.min() > 0
    assert found.max() < 255
    before, after = torch.fft.fft2(batch.float()), torch.fft.fft2(found.float())
    error = (before.abs() - after.abs()).square().mean(dim=(2, 3)).sqrt()
    most = 0.5 * (size[0] * size[1]) ** 0.5
    assert bool((error <= most).all())
    assert bool(((before - after).abs().square().mean(dim=(2, 3)).sqrt() > 5 * most).all())
    means = batch.float().mean(dim=(2, 3)) - found.float().mean(dim=(2, 3))
    assert bool((means.abs() <= 0.5).all())


def test_phase_scramble_moves_the_channels_together() -> None:
    grey = images(2, (32, 32), low=108, high=149)[:, :1].expand(-1, 3, -1, -1)
    found = apply("phase_scramble", grey)
    assert torch.equal(found, found[:, :1].expand_as(found))


@all_sizes
def test_shrunk_stands_on_the_corner_s_colour(size: tuple[int, int]) -> None:
    batch = images(3, size)
    found = apply("shrunk", batch)
    top, left, height, width = {
        (8, 8): (2, 2, 4, 4),
        (32, 32): (8, 8, 16, 16),
        (17, 40): (4, 10, 8, 20),
    }[size]
    whole = torch.zeros(size, dtype=torch.bool)
    whole[top : top + height, left : left + width] = True
    ground = found[:, :, ~whole]
    assert torch.equal(ground, batch[:, :, :1, 0].expand_as(ground))
    small = found[:, :, top : top + height, left : left + width].float()
    # Half the size keeps the mean, up to the weights that are cut off at the border.
    assert float((small.mean((2, 3)) - batch.float().mean((2, 3))).abs().max()) < 20


def test_shrunk_by_hand() -> None:
    batch = plain((80, 80, 80))
    batch[:, :, :, 4:] = 160
    row = apply("shrunk", batch)[0, 0, 4].tolist()
    # Antialiased halving weighs 1/8, 3/8, 3/8, 1/8, and 3/7, 3/7, 1/7 at the border.
    assert row == [80, 80, 80, 90, 150, 160, 80, 80]


@all_sizes
def test_gaussian_blur_is_that_of_torchvision(size: tuple[int, int]) -> None:
    batch = images(2, size)
    sigma_tall, sigma_wide = size[0] / 16, size[1] / 16
    tall, wide = {(8, 8): (5, 5), (32, 32): (13, 13), (17, 40): (9, 17)}[size]
    expected = transforms.gaussian_blur(batch, [wide, tall], [sigma_wide, sigma_tall])
    assert int((apply("gaussian_blur", batch).int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("size", "cells"), [((8, 8), (4, 4)), ((17, 40), (8, 16)), ((224, 50), (16, 16))]
)
def test_pixelated_has_few_cells(size: tuple[int, int], cells: tuple[int, int]) -> None:
    found = apply("pixelated", images(2, size))
    changes = [int(found.diff(dim=axis).any(dim=(0, 1, 5 - axis)).sum()) for axis in (2, 3)]
    assert changes == [count - 1 for count in cells]


def test_pixelated_by_hand() -> None:
    batch = plain((0, 0, 0))
    batch[:, :, 2, 4], batch[:, :, 3, 5] = 200, 40
    expected = plain((0, 0, 0))
    expected[:, :, 2:4, 4:6] = 60
    assert torch.equal(apply("pixelated", batch), expected)


BY_VALUE: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("invert", lambda value: 255 - value),
    ("posterize", lambda value: torch.where(value < 128, 0, 128)),
]


@pytest.mark.parametrize(("name", "expected"), BY_VALUE, ids=[name for name, _ in BY_VALUE])
def test_each_value_alone(name: str, expected: Callable[[Tensor], Tensor]) -> None:
    every = torch.arange(256).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    assert torch.equal(apply(name, every.to(torch.uint8)).int(), expected(every).int())
