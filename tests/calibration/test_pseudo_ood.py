from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from tests.support.pixel_batches import all_sizes, apply, images, plain


def pixel_counts(image: Tensor) -> list[list[int]]:
    return sorted(image.flatten(1).T.tolist())


def test_names_and_their_order() -> None:
    assert list(PSEUDO_OOD) == [
        "patch_shuffle",
        "elastic",
        "gaussian_noise",
        "solarize",
        "zoomed_in",
        "plain_frame",
        "uniform_noise",
        "smooth_field",
        "shapes",
        "gradient",
        "quarter_size",
    ]
    with pytest.raises(TypeError):
        PSEUDO_OOD["own"] = PSEUDO_OOD["solarize"]  # type: ignore[index]  # that is what is tested


@all_sizes
def test_patch_shuffle_moves_whole_patches(size: tuple[int, int]) -> None:
    batch = images(3, size)
    found = apply("patch_shuffle", batch)
    height, width = size[0] // 4, size[1] // 4
    for image, shuffled in zip(batch, found, strict=True):
        assert pixel_counts(shuffled) == pixel_counts(image)
        assert patches(shuffled, height, width) == patches(image, height, width)
    left_over = batch[:, :, 4 * height :]
    assert torch.equal(found[:, :, 4 * height :], left_over)


def patches(image: Tensor, height: int, width: int) -> set[bytes]:
    cut = image[:, : 4 * height, : 4 * width]
    tiles = [tile for row in torch.split(cut, height, 1) for tile in torch.split(row, width, 2)]
    return {tile.contiguous().numpy().tobytes() for tile in tiles}


def test_gaussian_noise_has_a_fifth_of_the_range() -> None:
    batch = plain((128, 128, 128), (0, 255, 128), size=(64, 64))
    found = apply("gaussian_noise", batch).float()
    # Cut off at both ends, 2.5 standard deviations away, it loses 1.5 per cent.
    assert float(found[0].std()) == pytest.approx(0.985 * 51, rel=0.02)
    assert float(found[0].mean()) == pytest.approx(128, abs=1.5)
    # Half of the noise is cut off; the other half has the mean sd / sqrt(2 pi) = 20.3.
    assert float(found[1, 0].mean()) == pytest.approx(20.3, abs=1.5)
    assert float(found[1, 1].mean()) == pytest.approx(255 - 20.3, abs=1.5)
    channels = torch.corrcoef(found[0].flatten(1)) - torch.eye(3)
    assert float(channels.abs().max()) < 0.05


@all_sizes
def test_elastic_displaces_by_a_sixteenth_of_the_side(size: tuple[int, int]) -> None:
    # A ramp shows in each pixel where its value comes from.
    height, width = size
    ramp = torch.zeros(2, 3, height, width)
    ramp[:, 0] = 4 * torch.arange(width)
    ramp[:, 1] = 4 * torch.arange(height)[:, None]
    found = apply("elastic", ramp.to(torch.uint8)).float()
    top, left = height // 8, width // 8
    inside = (slice(None), slice(None), slice(top, height - top), slice(left, width - left))
    moved = (found - ramp)[inside] / 4
    rounding = 1 / 8
    for channel, side in enumerate((width, height)):
        furthest = moved[:, channel].abs().max()
        assert side / 16 * 0.8 < furthest < side / 16 + rounding


def test_elastic_is_as_smooth_for_a_larger_image() -> None:
    ramp = (torch.arange(224) + torch.zeros(1, 3, 224, 1)).to(torch.uint8)
    moved = apply("elastic", ramp)[:, :, 20:-20, 20:-20].float() - ramp[:, :, 20:-20, 20:-20]
    # Neighbours in one cell of 7 pixels move together, those of other cells on their own.
    near, far = (moved.roll(shift, 2).sub(moved).abs().mean() for shift in (1, 35))
    assert near < far / 2


BY_VALUE: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("solarize", lambda value: torch.where(value < 128, value, 255 - value)),
]


@pytest.mark.parametrize(("name", "expected"), BY_VALUE, ids=[name for name, _ in BY_VALUE])
def test_each_value_alone(name: str, expected: Callable[[Tensor], Tensor]) -> None:
    every = torch.arange(256).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    assert torch.equal(apply(name, every.to(torch.uint8)).int(), expected(every).int())


def test_zoomed_in_shows_the_centre_alone() -> None:
    batch = plain((255, 0, 9), size=(16, 32))
    batch[:, 0, 6:10, 12:20] = 40
    # The centre is a quarter of each side, of one colour; all around it is cut away.
    assert torch.equal(apply("zoomed_in", batch), plain((40, 0, 9), size=(16, 32)))


def test_zoomed_in_keeps_the_way_up() -> None:
    batch = plain((0, 0, 0), size=(16, 16))
    batch[:, :, 6:8] = 200
    found = apply("zoomed_in", batch)[0, 0].float()
    assert bool((found[:5] == 200).all())
    assert bool((found[-5:] == 0).all())


def test_a_plain_frame_has_a_pixel_s_colour_and_sensor_noise() -> None:
    colours = [(60, 100, 200), (128, 30, 90)]
    batch = plain(colours[0], size=(64, 64)).repeat(40, 1, 1, 1)
    batch[:, :, :, 16:] = plain(colours[1], size=(64, 48))
    found = apply("plain_frame", batch).float()
    means = [tuple(mean) for mean in found.mean((2, 3)).round().int().tolist()]
    assert set(means) == set(colours)
    # Three quarters of the pixels have the second colour.
    assert 20 <= means.count(colours[1]) <= 38
    assert float(found.std((2, 3)).mean()) == pytest.approx(0.02 * 255, rel=0.02)


def test_uniform_noise_has_every_value_equally_often() -> None:
    found = apply("uniform_noise", images(4, (64, 64)))
    counts = torch.bincount(found.flatten().long(), minlength=256)
    # 192 of each value in the mean, with a standard deviation of 14.
    assert int(counts.min()) > 192 - 70
    assert int(counts.max()) < 192 + 70


@pytest.mark.parametrize("side", [32, 224])
def test_a_smooth_field_is_smooth_and_full_of_colour(side: int) -> None:
    found = apply("smooth_field", images(10, (side, side))).float()
    # A grid of 4 x 4 points of up to 255 apart, with bicubic slopes of at most twice that.
    steps = torch.cat((found.diff(dim=2).flatten(), found.diff(dim=3).flatten())).abs()
    assert float(steps.max()) <= 2 * 255 * 3 / (side - 1) + 1
    assert bool((found.std((2, 3)) > 20).all())


def test_shapes_are_a_few_plain_colours() -> None:
    found = apply("shapes", images(20, (64, 64)))
    for image in found:
        # Eight shapes and the ground.
        assert 2 <= len(image.flatten(1).unique(dim=1).T) <= 9


def test_shapes_are_a_share_of_the_side() -> None:
    small, large = (apply("shapes", images(1, (side, side))) for side in (33, 129))
    # The same numbers come from the generator: every fourth pixel stands where the other one does.
    assert float((large[:, :, ::4, ::4] == small).float().mean()) > 0.99


def test_a_gradient_goes_evenly_from_colour_to_colour() -> None:
    found = apply("gradient", images(10, (33, 33))).float()
    # Rounding alone bends it.
    for axis in (2, 3):
        assert float(found.diff(n=2, dim=axis).abs().max()) <= 2
    corners = found[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners.amax(2), found.amax((2, 3)))
    assert torch.equal(corners.amin(2), found.amin((2, 3)))


@all_sizes
def test_quarter_size_stands_on_the_mean_colour(size: tuple[int, int]) -> None:
    batch = images(3, size)
    found = apply("quarter_size", batch)
    top, left, height, width = {
        (8, 8): (3, 3, 2, 2),
        (32, 32): (12, 12, 8, 8),
        (17, 40): (6, 15, 4, 10),
    }[size]
    whole = torch.zeros(size, dtype=torch.bool)
    whole[top : top + height, left : left + width] = True
    ground = found[:, :, ~whole]
    assert torch.equal(ground, ground[:, :, :1].expand_as(ground))
    mean = batch.float().mean((2, 3))
    assert float((ground[:, :, 0].float() - mean).abs().max()) <= 0.5
    small = found[:, :, top : top + height, left : left + width].float()
    assert float((small.mean((2, 3)) - mean).abs().max()) < 25
