"""The demo's stream: digits from some cameras, two of which show other things for a while.

No image comes twice, corrupted or not, so that the records of a window are exchangeable with the
calibration images for as long as only digits come.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nap_stream.dev.demo.digits import Digits
from nap_stream.dev.demo.out_of_distribution import CORRUPTIONS, PHOTO, Pixels, photo_patches

DIGIT = "digit"
CAMERA_HEADER = "camera"
"""The message header that names the camera; each has a monitor of its own."""
CAMERAS = tuple(f"camera-{number}" for number in range(1, 7))
BROKEN = (CAMERAS[1], CAMERAS[4])
"""They show what is out-of-distribution in the mixed phase, and nothing else then."""
BEFORE = 300
MIXED = 200
OOD_SHARE = 0.5
"""Of the mixed phase; half of them photographs, half of them corrupted digits."""


@dataclass(frozen=True, slots=True)
class StreamImage:
    """An image to send. ``kind`` is `DIGIT`, `PHOTO` or of `CORRUPTIONS`; ``name`` begins so."""

    name: str
    kind: str
    camera: str
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
    healthy = tuple(camera for camera in CAMERAS if camera not in BROKEN)
    ood = [*_corrupted(spoilt, generator), *_photos(others - corrupted, generator)]
    mixed = [*_plain(among, healthy), *_shared(_shuffled(ood, generator), BROKEN)]
    return (
        Phase("digits", tuple(_plain(before, CAMERAS))),
        Phase("two cameras broken", tuple(_shuffled(mixed, generator))),
        Phase("digits again", tuple(_plain(after, CAMERAS))),
    )


def kind_of(name: str) -> str:
    """What an image really shows, by its name."""
    return name.partition("/")[0]


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
    """Write the stream's images as PNG files, and the same bytes as Parquet in sending order.

    The label in the Parquet file is the camera.
    """
    images = [image for phase in phases for image in phase.images]
    files = [png(image.pixels) for image in images]
    for image, data in zip(images, files, strict=True):
        _write(folder / image.name, data)
    columns = {
        "image": pa.array(files, pa.binary()),
        "label": pa.array([image.camera for image in images], pa.string()),
        "name": pa.array([image.name for image in images], pa.string()),
    }
    pq.write_table(pa.table(columns), parquet)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _plain(digits: Digits, cameras: Sequence[str]) -> list[StreamImage]:
    images = [
        StreamImage(f"{DIGIT}/{label}-{number:04}.png", DIGIT, cameras[0], pixels)
        for number, label, pixels in zip(digits.number, digits.label, digits.pixels, strict=True)
    ]
    return _shared(images, cameras)


def _shared(images: Sequence[StreamImage], cameras: Sequence[str]) -> list[StreamImage]:
    """The images, taken by the cameras in turn."""
    return [
        replace(image, camera=cameras[position % len(cameras)])
        for position, image in enumerate(images)
    ]


def _corrupted(digits: Digits, generator: np.random.Generator) -> list[StreamImage]:
    kinds = list(CORRUPTIONS)
    images = []
    for position, plain in enumerate(_plain(digits, BROKEN)):
        kind = kinds[position % len(kinds)]
        name = plain.name.replace(DIGIT, kind, 1)
        pixels = CORRUPTIONS[kind](plain.pixels, generator)
        images.append(StreamImage(name, kind, plain.camera, pixels))
    return images


def _photos(count: int, generator: np.random.Generator) -> list[StreamImage]:
    patches = photo_patches(count, generator)
    return [
        StreamImage(f"{PHOTO}/{number:04}.png", PHOTO, BROKEN[0], patch)
        for number, patch in enumerate(patches)
    ]


def _shuffled(images: list[StreamImage], generator: np.random.Generator) -> list[StreamImage]:
    return [images[position] for position in generator.permutation(len(images))]
