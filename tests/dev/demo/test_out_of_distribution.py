import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from nap_stream.demo.images import (
    CORRUPTIONS,
    OCCLUDED_SIDE,
    PATCH_SIDE,
    Splits,
    blurred,
    inverted,
    noisy,
    occluded,
    photo_patches,
)


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_follow_from_the_generator_and_leave_their_input(
    kind: str, splits: Splits
) -> None:
    digit = splits.stream.pixels[0]
    before = digit.copy()

    first, second = (CORRUPTIONS[kind](digit, generator()) for _ in range(2))

    assert np.array_equal(first, second)
    assert np.array_equal(digit, before)
    assert first.shape == digit.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, digit)


def test_noise_is_grey_and_as_strong_as_stated() -> None:
    middle = np.full((32, 32, 3), 128, np.uint8)

    noise = noisy(middle, generator()).astype(float)

    assert (noise[..., 0] == noise[..., 2]).all()
    assert 60 < noise.std() < 80  # 80, less what is clipped at 0 and 255


def test_inverted_black_is_white() -> None:
    assert (inverted(np.zeros((32, 32, 3), np.uint8), generator()) == 255).all()


def test_blurring_takes_the_contrast(splits: Splits) -> None:
    digit = splits.stream.pixels[0]

    assert blurred(digit, generator()).max() < digit.max() * 0.8


def test_the_occluded_square_is_of_one_grey() -> None:
    result = occluded(np.zeros((32, 32, 3), np.uint8), generator())

    covered = result[result.any(axis=2)]
    assert len(covered) == OCCLUDED_SIDE**2
    assert len(np.unique(covered)) == 1
    assert covered[0, 0] >= 64


def test_patches_are_cut_from_the_photographs() -> None:
    patches = photo_patches(3, generator())

    again = photo_patches(3, generator())
    assert all(np.array_equal(a, b) for a, b in zip(patches, again, strict=True))
    assert not np.array_equal(patches[0], patches[1])
    assert all(patch.shape == (32, 32, 3) and patch.dtype == np.uint8 for patch in patches)
    draws = generator()
    photograph = load_sample_images().images[draws.integers(2)]
    top = draws.integers(photograph.shape[0] - PATCH_SIDE + 1)
    left = draws.integers(photograph.shape[1] - PATCH_SIDE + 1)
    square = Image.fromarray(photograph[top : top + PATCH_SIDE, left : left + PATCH_SIDE])
    small = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(patches[0], small)
