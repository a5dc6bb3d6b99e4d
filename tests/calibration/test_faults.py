import pytest
import torch
from torch import Tensor

from nap_stream.calibration.faults import FAULTS
from tests.support.pixel_batches import all_sizes, apply, images, plain


def ramp(size: tuple[int, int]) -> Tensor:
    """Values of 0 to 255 from left to right."""
    values = torch.linspace(0, 255, size[1]).round().to(torch.uint8)
    return values.expand(1, 3, *size).clone()


def test_names_and_their_order() -> None:
    assert list(FAULTS) == [
        "blank frame",
        "saturated frame",
        "covered lens",
        "haze",
        "fogged lens",
        "dirt spots",
        "defocus",
        "motion blur",
        "over-exposure",
        "under-exposure",
        "darker by half",
        "sensor noise",
        "wrong white balance",
        "swapped channels",
        "stuck rows",
        "striped rows",
    ]
    with pytest.raises(TypeError):
        FAULTS["own"] = FAULTS["haze"]  # type: ignore[index]  # that is what is tested


@pytest.mark.parametrize(("name", "value"), [("blank frame", 0), ("saturated frame", 255)])
def test_frames_of_one_value(name: str, value: int) -> None:
    assert bool((apply(name, images(2, (17, 40))) == value).all())


def test_a_covered_lens_is_dark_and_nearly_plain() -> None:
    found = apply("covered lens", images(20, (64, 64))).float()
    # From 5.1 to 20.4, and four standard deviations of noise of 2.55.
    assert float(found.max()) <= 31
    assert float(found.mean()) == pytest.approx(12.75, abs=0.5)
    # Averaged over 8 x 8 pixels, the noise has a standard deviation of 0.3 and the gradient stays.
    calm = torch.nn.functional.avg_pool2d(found, 8)
    ranges = calm.amax((2, 3)) - calm.amin((2, 3))
    assert bool(((ranges > 10) & (ranges < 16)).all())


def test_haze_halves_contrast_towards_light_grey() -> None:
    batch = images(2, (17, 40))
    found = apply("haze", batch).float()
    assert float((found - (batch.float() / 2 + 102)).abs().max()) <= 0.5
    assert float(found.std() / batch.float().std()) == pytest.approx(0.5, abs=0.005)


@all_sizes
def test_a_fogged_lens_is_hazy_and_blurred(size: tuple[int, int]) -> None:
    # A plain image can only become hazy.
    assert torch.equal(
        apply("fogged lens", plain((0, 100, 255), size=size)), plain((102, 152, 230), size=size)
    )
    batch = images(2, size)
    hazy, fogged = apply("haze", batch).float(), apply("fogged lens", batch).float()
    assert float(fogged.std()) < float(hazy.std())


def test_fog_blurs_by_a_thirty_second_of_the_side() -> None:
    edge = plain((0, 0, 0), size=(64, 64))
    edge[:, :, :, 32:] = 255
    row = apply("fogged lens", edge)[0, 0, 32].float()
    # A standard deviation of 2 pixels: 84 per cent of the way two pixels past the edge.
    height = (row - row[0]) / (row[-1] - row[0])
    assert float(height[33:35].mean()) == pytest.approx(0.84, abs=0.02)


def test_dirt_spots_take_light_here_and_there() -> None:
    found = apply("dirt spots", plain((200, 200, 200), size=(128, 128)).repeat(20, 1, 1, 1))
    assert torch.equal(found[:, 0], found[:, 2])
    # A spot in the image, whose centre is less than a pixel away, takes 0.9 at the most.
    darkest = found.amin((1, 2, 3)).float()
    assert bool((darkest < 30).all())
    # Twelve spots of 2 pi s^2 times 0.9, with s^2 of 0.0023 in the mean, less what is cut off.
    dark = 1 - found.float().mean() / 200
    assert 0.08 < float(dark) < 0.16
    # Each takes next to nothing three standard deviations away.
    assert float((found >= 198).float().mean()) > 0.4


def test_defocus_averages_over_a_disc() -> None:
    point = plain((0, 0, 0), size=(32, 48))
    point[:, :, 16, 20] = 255
    found = apply("defocus", point)[0, 0]
    # A radius of 2 pixels: rows of 3, 5, 5, 5 and 3.
    disc = torch.ones(5, 5)
    disc[[0, 0, -1, -1], [0, -1, 0, -1]] = 0
    assert torch.equal(found[14:19, 18:23].float(), disc * round(255 / 21))
    assert int((found > 0).sum()) == 21


@all_sizes
def test_blurs_leave_a_plain_image_as_it_is(size: tuple[int, int]) -> None:
    batch = plain((0, 100, 255), (7, 8, 9), size=size)
    for name in ("defocus", "motion blur"):
        assert torch.equal(apply(name, batch), batch)


@pytest.mark.parametrize(("width", "length"), [(8, 3), (32, 5), (80, 11), (224, 29)])
def test_motion_blur_is_a_line(width: int, length: int) -> None:
    point = plain((0, 0, 0), size=(8, width))
    point[:, :, 4, width // 2] = 255
    found = apply("motion blur", point)[0, 0]
    reach = length // 2
    line = found[4, width // 2 - reach : width // 2 + reach + 1]
    assert line.tolist() == [round(255 / length)] * length
    assert int((found > 0).sum()) == length


@pytest.mark.parametrize(("name", "factor"), [("over-exposure", 2), ("darker by half", 0.5)])
def test_exposure_multiplies_each_value(name: str, factor: float) -> None:
    batch = ramp((8, 256))
    expected = (factor * batch.float()).clamp(max=255)
    assert float((apply(name, batch).float() - expected).abs().max()) <= 0.5


def test_under_exposure_quarters_and_is_noisy() -> None:
    found = apply("under-exposure", plain((200, 200, 200), size=(64, 64))).float()
    assert float(found.mean()) == pytest.approx(50, abs=0.2)
    assert float(found.std()) == pytest.approx(0.02 * 255, rel=0.05)


def test_sensor_noise_has_a_tenth_of_the_range() -> None:
    found = apply("sensor noise", plain((128, 128, 128), size=(64, 64))).float()
    assert float(found.mean()) == pytest.approx(128, abs=1)
    assert float(found.std()) == pytest.approx(25.5, rel=0.03)
    channels = torch.corrcoef(found[0].flatten(1)) - torch.eye(3)
    assert float(channels.abs().max()) < 0.05


def test_wrong_white_balance_by_hand() -> None:
    found = apply("wrong white balance", plain((100, 100, 100), (200, 20, 255)))
    assert torch.equal(found, plain((140, 100, 60), (255, 20, 153)))


@all_sizes
def test_swapped_channels_twice_are_as_before(size: tuple[int, int]) -> None:
    batch = images(3, size)
    found = apply("swapped channels", batch)
    assert torch.equal(apply("swapped channels", found), batch)
    assert torch.equal(found[:, 0], batch[:, 2])
    assert torch.equal(found[:, 1], batch[:, 1])


@all_sizes
def test_stuck_rows_repeat_the_one_in_the_middle(size: tuple[int, int]) -> None:
    batch = images(3, size)
    found = apply("stuck rows", batch)
    middle = {8: 4, 32: 16, 17: 8}[size[0]]
    assert torch.equal(found[:, :, : middle + 1], batch[:, :, : middle + 1])
    lower = found[:, :, middle:]
    assert torch.equal(lower, lower[:, :, :1].expand_as(lower))


@pytest.mark.parametrize(("height", "band"), [(8, 1), (17, 1), (32, 1), (64, 2), (224, 7)])
def test_striped_rows_lack_every_other_band(height: int, band: int) -> None:
    batch = images(1, (height, 8), low=1)
    found = apply("striped rows", batch)
    dark = torch.tensor([row % (2 * band) >= band for row in range(height)])
    assert not found[:, :, dark].any()
    assert torch.equal(found[:, :, ~dark], batch[:, :, ~dark])
