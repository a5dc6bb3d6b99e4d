"""Images that the classifier was never meant for: patches of photographs, corrupted digits.

All are uint8 (SIDE, SIDE, 3) and follow from the random generator alone.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from nap_stream.dev.demo.digits import SIDE

Pixels = NDArray[np.uint8]
Corruption = Callable[[Pixels, np.random.Generator], Pixels]

PHOTO = "photo"
PATCH_SIDE = 64
"""Pixels of a square cut from a photograph of 427 x 640, before it is made smaller."""
NOISE_SD = 80
BLUR_RADIUS = 4
OCCLUDED_SIDE = 14


def photo_patches(count: int, generator: np.random.Generator) -> list[Pixels]:
    """Cut squares at random from the two photographs that scikit-learn ships."""
    photographs = load_sample_images().images
    patches = []
    for _ in range(count):
        photograph = photographs[generator.integers(len(photographs))]
        top = generator.integers(photograph.shape[0] - PATCH_SIDE + 1)
        left = generator.integers(photograph.shape[1] - PATCH_SIDE + 1)
        square = photograph[top : top + PATCH_SIDE, left : left + PATCH_SIDE]
        small = Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        patches.append(np.asarray(small))
    return patches


def noisy(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Add grey Gaussian noise with a standard deviation of `NOISE_SD` of 255 levels."""
    noise = generator.normal(0, NOISE_SD, (*pixels.shape[:2], 1))
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def inverted(pixels: Pixels, _generator: np.random.Generator) -> Pixels:
    """Black on white."""
    return 255 - pixels


def blurred(pixels: Pixels, _generator: np.random.Generator) -> Pixels:
    """Blur with a Gaussian of `BLUR_RADIUS` pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR_RADIUS)))


def occluded(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Cover a square of `OCCLUDED_SIDE` pixels with one grey, not black."""
    result = pixels.copy()
    top, left = generator.integers(0, SIDE - OCCLUDED_SIDE + 1, 2)
    grey = generator.integers(64, 256)
    result[top : top + OCCLUDED_SIDE, left : left + OCCLUDED_SIDE] = grey
    return result


CORRUPTIONS: Mapping[str, Corruption] = {
    "noisy": noisy,
    "inverted": inverted,
    "blurred": blurred,
    "occluded": occluded,
}
"""By the name that the images' header bears."""
