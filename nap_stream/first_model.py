"""What is known of a model by its factory or folder: its preprocessing, its classes' names.

Nothing is downloaded, and no weights are read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nap_stream.settings.schema import PreprocessingSettings

IMAGENET_CLASSES = 1_000
_PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, slots=True)
class KnownPreprocessing:
    """The preprocessing that a model was made for, and who says so."""

    settings: PreprocessingSettings
    source: str
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class KnownNames:
    """The names of classes, in order of the logits, and who says so."""

    names: tuple[str, ...]
    source: str


def known_preprocessing(
    factory: str | None, kwargs: Mapping[str, Any], weights: Path | None
) -> KnownPreprocessing | None:
    """What torchvision, timm or the folder of a Hugging Face model says; None where none does."""
    for found in (
        _of_folder(_folder(kwargs, weights)),
        _of_torchvision(factory, kwargs),
        _of_timm(factory, kwargs),
    ):
        if found is not None:
            values, source = found
            try:
                return KnownPreprocessing(PreprocessingSettings.model_validate(values), source)
            except ValidationError:
                continue
    return None


def known_names(
    factory: str | None, kwargs: Mapping[str, Any], weights: Path | None, classes: int
) -> KnownNames | None:
    """The names of a Hugging Face folder, or those of ImageNet where there are as many classes."""
    folder = _folder(kwargs, weights)
    labels = {} if folder is None else _json(folder / "config.json").get("id2label") or {}
    try:
        names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    except (TypeError, ValueError, AttributeError):
        names = ()
    if folder is not None and len(names) == classes:
        return KnownNames(names, f"id2label of {folder.name}/config.json")
    library = (factory or "").partition(":")[0].partition(".")[0]
    if classes == IMAGENET_CLASSES and library in {"torchvision", "timm"}:
        from torchvision.models import ResNet18_Weights  # noqa: PLC0415  takes a second to import

        categories = ResNet18_Weights.DEFAULT.meta["categories"]
        return KnownNames(tuple(categories), "ImageNet's, as there are 1,000 classes")
    return None


def names_of_folders(images: Path, classes: int) -> KnownNames | None:
    """The sub-folders of labelled images, sorted as torchvision's ImageFolder numbers them."""
    if not images.is_dir():
        return None
    names = sorted(
        one.name for one in images.iterdir() if one.is_dir() and not one.name.startswith(".")
    )
    if len(names) != classes:
        return None
    return KnownNames(tuple(names), f"the sub-folders of {images.name}, sorted")


Found = tuple[dict[str, Any], str]


def _folder(kwargs: Mapping[str, Any], weights: Path | None) -> Path | None:
    """The folder of a model that Hugging Face's save_pretrained has written."""
    named = kwargs.get("pretrained_model_name_or_path")
    candidates = (weights, Path(named) if isinstance(named, str) else None)
    return next((one for one in candidates if one is not None and one.is_dir()), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_folder(folder: Path | None) -> Found | None:
    config = {} if folder is None else _json(folder / "preprocessor_config.json")
    size = config.get("size")
    if folder is None or not size:
        return None
    values: dict[str, Any] = {
        "interpolation": _PILLOW_FILTERS.get(config.get("resample", 2), "bilinear")
    }
    sides = _sides(size)
    crop = _sides(config["crop_size"]) if config.get("do_center_crop", False) else None
    # ConvNeXt's processors resize to the size over crop_pct, and crop to the size.
    share = config.get("crop_pct")
    if share and isinstance(sides, int):
        values |= {"resize": floor(sides / share), "crop": sides}
    elif crop is not None:
        values |= {"resize": sides, "crop": crop}
    else:
        whole = sides if isinstance(sides, list) else [sides, sides]
        values |= {"resize": whole, "crop": whole}
    if not config.get("do_resize", True):
        values["resize"] = None
    is_normalised = config.get("do_normalize", True)
    values["mean"] = config.get("image_mean") if is_normalised else [0.0] * 3
    values["std"] = config.get("image_std") if is_normalised else [1.0] * 3
    return values, f"{folder.name}/preprocessor_config.json"


def _sides(size: Any) -> Any:
    """One side for both, or the short one, as a number; height and width as a list."""
    if not isinstance(size, dict):
        return size
    if "shortest_edge" in size:
        return size["shortest_edge"]
    return [size.get("height"), size.get("width")]


def _of_torchvision(factory: str | None, kwargs: Mapping[str, Any]) -> Found | None:
    module, _, name = (factory or "").partition(":")
    if module.partition(".")[0] != "torchvision":
        return None
    from torchvision import models  # noqa: PLC0415  takes a second to import

    try:
        enum = models.get_model_weights(name)
        given = kwargs.get("weights")
        weights = enum[given.rpartition(".")[2]] if isinstance(given, str) else enum.DEFAULT
        preset = weights.transforms()
        values = {
            "resize": preset.resize_size[0],
            "crop": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
            "mean": preset.mean,
            "std": preset.std,
        }
    except (ValueError, KeyError, AttributeError, IndexError, TypeError):
        return None
    return values, f"torchvision's {weights}"


def _of_timm(factory: str | None, kwargs: Mapping[str, Any]) -> Found | None:
    module, _, function = (factory or "").partition(":")
    if module.partition(".")[0] != "timm":
        return None
    name = kwargs.get("model_name") if function == "create_model" else function
    try:
        from timm.data.config import resolve_data_config  # noqa: PLC0415  takes seconds to import
        from timm.models import get_pretrained_cfg  # noqa: PLC0415

        known = get_pretrained_cfg(str(name))
        if known is None:
            return None
        as_dict = known.to_dict()  # type: ignore[no-untyped-call]  # timm leaves it untyped
        config = resolve_data_config(pretrained_cfg=as_dict)  # type: ignore[no-untyped-call]
    except (ImportError, RuntimeError, ValueError, KeyError):
        return None
    _, height, width = config["input_size"]
    crop = height if height == width else [height, width]
    scaled = [floor(side / config["crop_pct"]) for side in (height, width)]
    values = {
        # With the crop mode squash, both sides are scaled.
        "resize": scaled if config.get("crop_mode") == "squash" or height != width else scaled[0],
        "crop": crop,
        "interpolation": config["interpolation"],
        "mean": config["mean"],
        "std": config["std"],
    }
    return values, f"timm's data config of {name}"
