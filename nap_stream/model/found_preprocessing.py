"""The preprocessing that a model states of itself, beside the one that is configured.

Three say it: timm's data configuration, preprocessor_config.json of a Hugging Face folder, and
torchvision's enumerations of weights. None of them is guessed from.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from nap_stream.text import described

KEYS = ("resize", "crop", "interpolation", "mean", "std")
_PILLOW = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_TOLERANCE = 1e-4
_CONVNEXT_WARPS = 384
_CONVNEXT_SHARE = 224 / 256


@dataclass(frozen=True, slots=True)
class FoundPreprocessing:
    """What a model states: the values of `KEYS`, and where they stand.

    ``values`` lacks what is stated and cannot be done, of which ``problem`` tells; it is empty
    where all can.
    """

    values: Mapping[str, Any]
    source: str
    problem: str = ""


def found_preprocessing(
    settings: ModelSettings, module: nn.Module | None = None
) -> FoundPreprocessing | None:
    """What the model states of its preprocessing; None where it states nothing.

    ``module`` is the model that the settings build: timm's stands on it. The others need none.

    Raises:
        ModelError: A file that states it cannot be read.
    """
    config = getattr(module, "pretrained_cfg", None)
    if config is not None and module is not None:
        return _of_timm(module, settings)
    named = settings.kwargs.get("pretrained_model_name_or_path")
    for folder in (settings.weights, Path(str(named)) if named else None):
        if folder is not None and (folder / "preprocessor_config.json").is_file():
            return _of_hugging_face(folder / "preprocessor_config.json")
    if (settings.factory or "").startswith("torchvision.models"):
        return _of_torchvision(settings)
    return None


def resolved(settings: ModelSettings, module: nn.Module) -> PreprocessingSettings:
    """The preprocessing, written out: of the model where it is asked for, but for what is given.

    Raises:
        ModelError: The model states none, or one that cannot be done.
    """
    configured = settings.preprocessing
    if not configured.from_model:
        return configured
    found = found_preprocessing(settings, module)
    given = configured.model_fields_set - {"from_model"}
    missing = [key for key in KEYS if key not in given and (not found or key not in found.values)]
    if missing:
        stated = "the model states no preprocessing" if found is None else found.problem
        raise ModelError(
            f"{stated}, and {', '.join(missing)} are to be those of the model",
            "model.preprocessing",
            "Write them out. Models of timm, folders of Hugging Face and torchvision's kwargs."
            "weights state them",
        )
    assert found is not None
    values = {key: getattr(configured, key) for key in given}
    try:
        return PreprocessingSettings(**{**found.values, **values})
    except ValidationError as error:
        raise ModelError(
            f"what {found.source} states does not go with what is given "
            f"({error.errors()[0]['msg']})",
            "model.preprocessing",
            "Write out what has to differ from it",
        ) from error


def doubts(
    settings: ModelSettings, preprocessing: PreprocessingSettings, module: nn.Module
) -> Iterator[str]:
    """See `disagreements`; or a sentence that says why what the model states cannot be read."""
    try:
        found = found_preprocessing(settings, module)
    except ModelError as error:
        yield f"{error.where}: {error.problem}"
        return
    yield from disagreements(preprocessing, found)


def disagreements(
    configured: PreprocessingSettings, found: FoundPreprocessing | None
) -> Iterator[str]:
    """A sentence where the configured preprocessing is not that of the model."""
    if found is None:
        return
    differing = [
        f"{key} is {_shown(getattr(configured, key))}, the model's {_shown(found.values[key])}"
        for key in KEYS
        if key in found.values and not _is_same(getattr(configured, key), found.values[key])
    ]
    if differing:
        yield (
            f"the preprocessing is not the one that {found.source} states: {'; '.join(differing)}. "
            "Was the model trained so? model.preprocessing: from_model takes the model's"
        )


def _of_timm(module: nn.Module, settings: ModelSettings) -> FoundPreprocessing:
    try:
        config = importlib.import_module("timm.data").resolve_model_data_config(module)
    except Exception as error:  # a user's own module may have an attribute of this name
        raise ModelError(
            f"its pretrained_cfg is not one that timm reads ({described(error)})",
            f"the model, a {type(module).__name__}",
            "Write model.preprocessing out",
        ) from error
    side = settings.kwargs.get("img_size")
    sides = config["input_size"][1:] if side is None else (side, side)[:2]
    if isinstance(side, list | tuple):
        sides = tuple(side)
    sides = tuple(int(one) for one in sides)
    scaled = tuple(floor(one / config["crop_pct"]) for one in sides)
    mode = config.get("crop_mode") or "center"
    values = {
        "resize": scaled if mode == "squash" else _side(scaled),
        "crop": _side(sides),
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
    odd = [] if mode in {"center", "squash"} else [("resize", f"crop_mode {mode}")]
    name = getattr(module, "pretrained_cfg", None) or {}
    architecture = name.get("architecture", "") if isinstance(name, Mapping) else ""
    return _checked(values, f"timm's data configuration of {architecture or 'the model'}", odd)


def _of_hugging_face(path: Path) -> FoundPreprocessing:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        odd: list[tuple[str, str]] = []
        normalises = config.get("do_normalize", True)
        values: dict[str, Any] = {
            "interpolation": _PILLOW.get(config.get("resample", 2), config.get("resample")),
            "mean": tuple(config["image_mean"]) if normalises else (0.0, 0.0, 0.0),
            "std": tuple(config["image_std"]) if normalises else (1.0, 1.0, 1.0),
        }
        values |= _sizes(config)
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
        if abs(factor * 255 - 1) > _TOLERANCE:
            what = f"pixels that are scaled by {factor:g} and not by 1/255"
            odd += [("mean", what), ("std", what)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the file states no preprocessing ({described(error)})",
            str(path),
            "Write model.preprocessing out",
        ) from error
    odd += [(key, "a size that is not fixed") for key in ("resize", "crop") if key not in values]
    return _checked(values, f"{path.parent.name}/{path.name}", odd)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Resize and crop of a preprocessor_config.json; less where the input's size is not fixed."""
    size = config.get("size")
    size = {"height": size, "width": size} if isinstance(size, int) else dict(size or {})
    short, share = size.get("shortest_edge"), config.get("crop_pct")
    if not config.get("do_resize", True):
        resize: Any = None
    elif short is not None:
        # With a crop beside it, crop_pct is PoolFormer's: the size is that of the crop.
        resize = int(short / share) if share and config.get("do_center_crop") else int(short)
    else:
        resize = (int(size["height"]), int(size["width"]))
    if config.get("do_center_crop"):
        crop = config["crop_size"]
        sides = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        return {"resize": resize, "crop": _side(sides)}
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type")))
    if short is not None and (share is not None or "ConvNext" in kind):
        if short >= _CONVNEXT_WARPS:
            return {"resize": (short, short), "crop": short}
        return {"resize": int(short / (share or _CONVNEXT_SHARE)), "crop": short}
    return {"resize": resize, "crop": _side(resize)} if isinstance(resize, tuple) else {}


def _of_torchvision(settings: ModelSettings) -> FoundPreprocessing | None:
    asked = settings.kwargs.get("weights")
    name = (settings.factory or "").rpartition(":")[2].rpartition(".")[2]
    if not isinstance(asked, str):
        return None
    models = importlib.import_module("torchvision.models")
    try:
        weights = models.get_model_weights(name)[asked.rpartition(".")[2]]
        transform = weights.transforms()
        values = {
            "resize": _one(transform.resize_size),
            "crop": _one(transform.crop_size),
            "interpolation": transform.interpolation.value,
            "mean": tuple(transform.mean),
            "std": tuple(transform.std),
        }
    except (KeyError, ValueError, AttributeError, IndexError, TypeError):
        return None
    return _checked(values, f"torchvision's {weights}", [])


def _checked(values: dict[str, Any], source: str, odd: list[tuple[str, str]]) -> FoundPreprocessing:
    """Leave out what this program does not do."""
    odd = [*odd]
    for key, value in values.items():
        try:
            PreprocessingSettings.model_validate({key: value})
        except ValidationError:
            odd.append((key, f"{key} {value}"))
    stated = dict.fromkeys(what for _, what in odd)
    problem = f"{source} states {', '.join(stated)}" if odd else ""
    left = {key for key, _ in odd}
    return FoundPreprocessing({k: v for k, v in values.items() if k not in left}, source, problem)


def _one(sides: list[int]) -> Any:
    return sides[0] if len(sides) == 1 else tuple(sides)


def _side(sides: tuple[int, ...]) -> Any:
    return sides[0] if sides[0] == sides[1] else tuple(sides)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return torch.allclose(torch.tensor(one).double(), torch.tensor(other).double(), atol=1e-3)
    if isinstance(one, tuple) or isinstance(other, tuple):
        # A square crop may be written as one number; resizing to one is of the short side.
        return False
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{one:g}" for one in value) + ")"
    return str(value)
