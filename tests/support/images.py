"""Real image files, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.image_bytes import encoded

SIDE = 16


def smooth_image(seed: int) -> Image.Image:
    """A soft random pattern: what the tests call in-distribution."""
    random = np.random.default_rng(seed)
    coarse = random.integers(60, 200, size=(3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def flat_image(seed: int) -> Image.Image:
    """One random colour: what the tests call out-of-distribution.

    Nothing stands out of such an image's feature maps, so its NAP score is low with any weights.
    """
    colour = np.random.default_rng(seed).integers(0, 256, size=3, dtype=np.uint8)
    return Image.fromarray(np.broadcast_to(colour, (SIDE, SIDE, 3)).copy())


def write_images(folder: Path, count: int, *, first_seed: int = 0, flat: bool = False) -> Path:
    """Write ``count`` JPEG files that differ from each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + count):
        image = flat_image(seed) if flat else smooth_image(seed)
        (folder / f"{seed:06}.jpg").write_bytes(encoded(image))
    return folder
