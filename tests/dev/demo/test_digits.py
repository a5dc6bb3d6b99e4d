import numpy as np
from sklearn.datasets import load_digits

from nap_stream.demo.images import DIGIT_SIDE, SIDE, Digits, Splits, load_splits


def test_each_digit_is_in_exactly_one_split(splits: Splits) -> None:
    numbers = [set(part.number.tolist()) for part in parts(splits)]

    assert [len(part) for part in parts(splits)] == [500, 500, 797]
    assert sum(len(found) for found in numbers) == len(set.union(*numbers)) == 1_797


def test_labels_and_pixels_are_those_of_the_data_set(splits: Splits) -> None:
    original = load_digits()
    stream = splits.stream

    assert np.array_equal(stream.label, original.target[stream.number])
    brightness = original.images[stream.number].mean(axis=(1, 2)) / 16 * 255
    enlarged = stream.pixels.mean(axis=(1, 2, 3)) * (SIDE / DIGIT_SIDE) ** 2
    assert np.abs(brightness - enlarged).max() < 8


def test_images_are_grey_rgb_with_a_black_margin(splits: Splits) -> None:
    pixels = splits.training.pixels
    inner = slice(4, 28)

    assert pixels.shape == (500, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.sum() == pixels[:, inner, inner].sum()


def test_the_seed_alone_decides_how_digits_are_dealt_out(splits: Splits) -> None:
    again, other = load_splits(seed=3), load_splits(seed=4)

    assert np.array_equal(again.stream.number, splits.stream.number)
    assert not np.array_equal(other.stream.number, splits.stream.number)


def parts(splits: Splits) -> tuple[Digits, Digits, Digits]:
    return splits.training, splits.calibration, splits.stream
