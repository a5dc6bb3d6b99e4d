"""The demo's stream: digits, then digits among images of other kinds, then digits again.

No image comes twice, corrupted or not, so that the records of a window are exchangeable with the
calibration images for as long as only digits come.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nap_stream.dev.demo.digits import Digits
from nap_stream.dev.demo.out_of_distribution import CORRUPTIONS, PHOTO, Pixels, photo_patches

DIGIT = "digit"
KIND_HEADER = "kind"
"""The message header that says what an image is; the monitor keeps it and does not look at it."""
BEFORE = 300
MIXED = 200
OOD_SHARE = 0.5
"""Of the mixed phase; half of them photographs, half of them corrupted digits."""


@dataclass(frozen=True, slots=True)
class StreamImage:
    """An image to send. ``kind`` is `DIGIT`, `PHOTO` or one of `CORRUPTIONS`."""

    name: str
    kind: str
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the stream."""

    title: str
    images: tuple[StreamImage, ...]

    def description(self) -> str:
        """The title, and how many images of which kind there are."""
        counts = Counter(image.kind for image in self.images)
        return f"{self.title} ({', '.join(f'{n} {kind}' for kind, n in counts.most_common())})"


def plan_stream(digits: Digits, seed: int) -> tuple[Phase, Phase, Phase]:
    """Lay out the stream, with every digit in it once.

    Args:
        digits: Neither trained nor calibrated on.
        seed: Of the photographs' patches, the corruptions and the order.
    """
    generator = np.random.default_rng(seed)
    others = round(MIXED * OOD_SHARE)
    corrupted = others // 2
    before = digits[:BEFORE]
    among = digits[BEFORE : BEFORE + MIXED - others]
    spoilt = digits[BEFORE + MIXED - others : BEFORE + MIXED - others + corrupted]
    after = digits[BEFORE + MIXED - others + corrupted :]
    mixed = [
        *_plain(among),
        *_corrupted(spoilt, generator),
        *_photos(others - corrupted, generator),
    ]
    return (
        Phase("digits", tuple(_plain(before))),
        Phase("mixed", tuple(_shuffled(mixed, generator))),
        Phase("digits again", tuple(_plain(after))),
    )


def png(pixels: Pixels) -> bytes:
    """Encode an image, uint8 (H, W, 3), as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_digits(digits: Digits, folder: Path) -> None:
    """Write digits as PNG files, in a sub-folder for each label."""
    for number, label, pixels in zip(digits.number, digits.label, digits.pixels, strict=True):
        _write(folder / str(label) / f"{number:04}.png", png(pixels))


def write_stream(phases: Sequence[Phase], folder: Path, parquet: Path) -> None:
    """Write the stream's images as PNG files, and the same bytes as Parquet in sending order."""
    images = [image for phase in phases for image in phase.images]
    files = [png(image.pixels) for image in images]
    for image, data in zip(images, files, strict=True):
        _write(folder / image.name, data)
    columns = {
        "image": pa.array(files, pa.binary()),
        "label": pa.array([image.kind for image in images], pa.string()),
        "name": pa.array([image.name for image in images], pa.string()),
    }
    pq.write_table(pa.table(columns), parquet)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _plain(digits: Digits) -> list[StreamImage]:
    return [
        StreamImage(f"{DIGIT}/{label}-{number:04}.png", DIGIT, pixels)
        for number, label, pixels in zip(digits.number, digits.label, digits.pixels, strict=True)
    ]


def _corrupted(digits: Digits, generator: np.random.Generator) -> list[StreamImage]:
    kinds = list(CORRUPTIONS)
    images = []
    for position, plain in enumerate(_plain(digits)):
        kind = kinds[position % len(kinds)]
        name = plain.name.replace(DIGIT, kind, 1)
        images.append(StreamImage(name, kind, CORRUPTIONS[kind](plain.pixels, generator)))
    return images


def _photos(count: int, generator: np.random.Generator) -> list[StreamImage]:
    patches = photo_patches(count, generator)
    return [
        StreamImage(f"{PHOTO}/{number:04}.png", PHOTO, patch)
        for number, patch in enumerate(patches)
    ]


def _shuffled(images: list[StreamImage], generator: np.random.Generator) -> list[StreamImage]:
    return [images[position] for position in generator.permutation(len(images))]
