"""The handwritten digits that scikit-learn ships, as images, in three disjoint splits.

They are a part of the "Optical Recognition of Handwritten Digits" data set (UCI): 1,797 scans of
8 x 8 pixels, 17 grey levels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 32
DIGIT_SIDE = 24
TRAINING = 500
CALIBRATION = 500
_LEVELS = 16


@dataclass(frozen=True, slots=True)
class Digits:
    """N digits. ``number`` (N,) are rows of scikit-learn's data set, ``label`` (N,) the digits.

    ``pixels`` is uint8 (N, SIDE, SIDE, 3): white on black, with a black margin.
    """

    number: NDArray[np.int64]
    label: NDArray[np.int64]
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, chosen: slice) -> "Digits":
        return Digits(self.number[chosen], self.label[chosen], self.pixels[chosen])


@dataclass(frozen=True, slots=True)
class Splits:
    """Which digits serve for what. No digit is in two of them, so all but training's are new."""

    training: Digits
    calibration: Digits
    stream: Digits


def load_splits(seed: int) -> Splits:
    """Deal the digits out at random: calibration and stream are exchangeable."""
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    pixels = np.stack([_enlarged(found.images[number]) for number in order])
    digits = Digits(order, found.target[order].astype(np.int64), pixels)
    end = TRAINING + CALIBRATION
    return Splits(digits[:TRAINING], digits[TRAINING:end], digits[end:])


def _enlarged(scan: NDArray[np.float64]) -> NDArray[np.uint8]:
    grey = Image.fromarray((scan * 255 / _LEVELS).round().astype(np.uint8))
    large = np.asarray(grey.resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC))
    framed = np.pad(large, (SIDE - DIGIT_SIDE) // 2)
    return np.repeat(framed[..., None], 3, axis=2)
