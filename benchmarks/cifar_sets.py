"""CIFAR-10 test images and the out-of-distribution sets made from the shared test data."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

DATA = Path(os.environ.get("NAP_STREAM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
DENSENET = DATA / "checkpoints" / "densenet_bc100_12_cifar10.safetensors"
RESNET = DATA / "checkpoints" / "resnet20_cifar10.safetensors"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDE = 32
IN_DISTRIBUTION = 3_000
CORRUPTED = 600
NOISE_IMAGES = 500
SIGNS = 1_000

Images = torch.Tensor


class Normalise:
    """From uint8 images to float32 input, by the mean and standard deviation of RGB / 255."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean).reshape(1, 3, 1, 1)
        self.std = torch.tensor(std).reshape(1, 3, 1, 1)

    def __call__(self, images: Images) -> torch.Tensor:
        """Return the input, shape (N, 3, H, W), of images of that shape."""
        return (images / 255 - self.mean) / self.std


def densenet_input() -> Normalise:
    return Normalise((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))


def resnet_input() -> Normalise:
    return Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load(name: str, start: int = 0, rows: int | None = None) -> tuple[Images, torch.Tensor]:
    """Decode a file's images, short side scaled to 32 and centre-cropped.

    Returns:
        uint8 (N, 3, 32, 32), and the CIFAR-10 class of each, int64 (N,), -1 where it has none.
    """
    table = pq.read_table(DATA / name).slice(start, rows)
    decoded = []
    for data in table["image"].to_pylist():
        image = decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
        )
        if image.shape[1:] != (SIDE, SIDE):
            image = transforms.resize(image, [SIDE], antialias=True)
        decoded.append(transforms.center_crop(image, [SIDE, SIDE]))
    class_ids = {name: index for index, name in enumerate(CLASSES)}
    labels = [class_ids.get(label, -1) for label in table["label"].to_pylist()]
    return torch.stack(decoded), torch.tensor(labels)


def out_of_distribution(seed: int) -> dict[str, Images]:
    """Give the eight sets by name; corruptions are of test images that are not in-distribution."""
    generator = torch.Generator().manual_seed(seed)
    test, _ = load("cifar10_test.parquet", IN_DISTRIBUTION, CORRUPTED)
    scaled = test / 255
    noise = torch.randint(256, (NOISE_IMAGES, 3, SIDE, SIDE), generator=generator)
    return {
        "textures": load("textures_dtd5.parquet")[0],
        "ImageNet": load("imagenet_sample200.parquet")[0],
        "signs": load("sign_language_digits.parquet", rows=SIGNS)[0],
        "noise": noise.to(torch.uint8),
        "+ noise 0.1": _pixels(scaled + 0.1 * torch.randn(scaled.shape, generator=generator)),
        "blur": _pixels(_mean_blur(scaled)),
        "contrast": _pixels((scaled - _grey(scaled)) * 0.3 + _grey(scaled)),
        "bright": _pixels(scaled * 1.6),
    }


def _pixels(scaled: torch.Tensor) -> Images:
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


def _mean_blur(scaled: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(scaled, (1, 1, 1, 1), mode="reflect")
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1)


def _grey(scaled: torch.Tensor) -> torch.Tensor:
    grey: torch.Tensor = transforms.rgb_to_grayscale(scaled).mean(dim=(1, 2, 3), keepdim=True)
    return grey
