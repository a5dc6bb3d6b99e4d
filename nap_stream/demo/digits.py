"""The demo's images and its classifier: digits, what comes among them, and a small network.

The digits are those that scikit-learn ships, a part of the "Optical Recognition of Handwritten
Digits" data set (UCI): 1,797 scans of 8 x 8 pixels, 17 grey levels. They are dealt out in three
disjoint splits. What the classifier was never meant for are patches of photographs and corrupted
digits. All images are uint8 (SIDE, SIDE, 3) and follow from the random generator alone.

In the stream, no image comes twice, corrupted or not, so that the records of a window are
exchangeable with the calibration images for as long as only digits come.

The network has ReLU and global average pooling, because NAP reads the map before them; no batch
normalisation and no biases, and inputs whose black is exactly zero, so that an empty background
stays silent in every layer and an image that fills its frame does not. The last map has 128
channels of 4 x 4 positions.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import nn

SIDE = 32
DIGIT_SIDE = 24
TRAINING = 500
CALIBRATION = 500
_LEVELS = 16

Pixels = NDArray[np.uint8]
Corruption = Callable[[Pixels, np.random.Generator], Pixels]

PHOTO = "photo"
PATCH_SIDE = 64
"""Pixels of a square cut from a photograph of 427 x 640, before it is made smaller."""
NOISE_SD = 80
BLUR_RADIUS = 4
OCCLUDED_SIDE = 14

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

FACTORY = f"{__name__}:DigitsNet"
MEAN = (0.0, 0.0, 0.0)
STD = (0.5, 0.5, 0.5)
CLASS_NAMES = (*("zero", "one", "two", "three", "four"), *("five", "six", "seven", "eight", "nine"))

EPOCHS = 40
BATCH = 64
LEARNING_RATE = 6e-3
WEIGHT_DECAY = 1e-3
MAX_SHIFT = 2
"""Pixels by which training images are moved about at random; they have a black margin."""


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
    # Not above: the monitor's workers import this module for the network alone.
    from sklearn.datasets import load_digits  # noqa: PLC0415

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


def photo_patches(count: int, generator: np.random.Generator) -> list[Pixels]:
    """Cut squares at random from the two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

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

    The digits were neither trained nor calibrated on. The seed is of the photographs' patches, the
    corruptions and the order.
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
    mixed = [*_of_digits(among, healthy), *_in_turn(_shuffled(ood, generator), BROKEN)]
    return (
        Phase("digits", tuple(_of_digits(before, CAMERAS))),
        Phase("two cameras broken", tuple(_shuffled(mixed, generator))),
        Phase("digits again", tuple(_of_digits(after, CAMERAS))),
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


def _of_digits(digits: Digits, cameras: Sequence[str]) -> list[StreamImage]:
    images = [
        StreamImage(f"{DIGIT}/{label}-{number:04}.png", DIGIT, cameras[0], pixels)
        for number, label, pixels in zip(digits.number, digits.label, digits.pixels, strict=True)
    ]
    return _in_turn(images, cameras)


def _in_turn(images: Sequence[StreamImage], cameras: Sequence[str]) -> list[StreamImage]:
    """The images, taken by the cameras in turn."""
    return [
        replace(image, camera=cameras[position % len(cameras)])
        for position, image in enumerate(images)
    ]


def _corrupted(digits: Digits, generator: np.random.Generator) -> list[StreamImage]:
    kinds = list(CORRUPTIONS)
    images = []
    for position, plain in enumerate(_of_digits(digits, BROKEN)):
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


class DigitsNet(nn.Module):
    """Logits of the ten digits, float (N, 10), for images float (N, 3, H, W), H and W >= 16."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 16, stride=2),
            *_convolution(16, 32, stride=2),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 128, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(128, len(CLASS_NAMES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify a batch."""
        logits: torch.Tensor = self.classify(self.pool(self.features(images)).flatten(1))
        return logits


def train(pixels: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> DigitsNet:
    """Train a network; the same arguments give the same one on the same machine.

    ``pixels`` is uint8 (N, H, W, 3), ``labels`` int64 (N,). The seed is of weights and order.

    Returns:
        The network in eval mode, on the CPU.
    """
    images, targets = as_input(pixels), torch.from_numpy(labels)
    with one_torch_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNet().train()
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for chosen in torch.split(torch.randperm(len(images)), BATCH):
                logits = network(_shifted(images[chosen]))
                loss = nn.functional.cross_entropy(logits, targets[chosen])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimiser.step()
                schedule.step()
    return network.eval()


def accuracy(network: DigitsNet, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Give the share of images, uint8 (N, H, W, 3), whose digit the network tells."""
    with torch.inference_mode():
        predicted = network(as_input(pixels)).argmax(dim=1).numpy()
    return float((predicted == labels).mean())


def as_input(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Give images, uint8 (N, H, W, 3), as float32 (N, 3, H, W), normalised as the monitor does."""
    scaled = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Have torch use one thread while the block runs.

    For so small a network several gain little, and wait for each other, ten times as long and
    more, where other processes want the cores too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _convolution(channels: int, filters: int, *, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution, nn.ReLU()


def _shifted(images: torch.Tensor) -> torch.Tensor:
    down, right = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,)).tolist()
    return torch.roll(images, (down, right), dims=(2, 3))
