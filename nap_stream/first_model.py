"""What is known of a model by itself, its factory or its folder: preprocessing, class names.

Nothing is downloaded beside what the model's factory downloads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_stream.model.exported import fixed_size
from nap_stream.model.factory import build, importable
from nap_stream.model.found_preprocessing import KEYS, FoundPreprocessing, found_preprocessing
from nap_stream.model.onnx_model import OnnxModel
from nap_stream.model.preprocessing import input_size
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings

IMAGENET_CLASSES = 1_000
FROM_MODEL: dict[str, Any] = {"from_model": True}


@dataclass(frozen=True, slots=True)
class KnownPreprocessing:
    """The preprocessing that a model was made for, written out, and who says so.

    ``is_guess`` says that the model does not state it. ``added`` are the keys of a preprocessing
    that it states for which it states nothing that can be done.
    """

    settings: PreprocessingSettings
    source: str
    is_guess: bool = False
    added: tuple[str, ...] = ()

    @property
    def written(self) -> dict[str, Any]:
        """The keys of model.preprocessing, as YAML has them."""
        values = self.settings.model_dump(mode="json")
        if self.is_guess:
            return values
        return FROM_MODEL | {key: values[key] for key in self.added}


@dataclass(frozen=True, slots=True)
class KnownNames:
    """The names of classes, in order of the logits, and who says so."""

    names: tuple[str, ...]
    source: str


def known_preprocessing(settings: ModelSettings) -> KnownPreprocessing | None:
    """What the model states; else that of the newest weights of torchvision for it; else None.

    Of a file that is for one size of image alone, that size.

    A factory is called, as its model may state it.

    Raises:
        ModelError: See `build` and `found_preprocessing`.
    """
    found = _stated(settings)
    if found is not None and found.values:
        added = tuple(key for key in KEYS if key not in found.values)
        source = found.source
        if added:
            source += f", but for {', '.join(added)}, guessed as for ImageNet: {found.problem}"
        return KnownPreprocessing(PreprocessingSettings(**found.values), source, added=added)
    if (fixed := _of_fixed_size(settings)) is not None:
        return fixed
    newest = settings.model_copy(update={"kwargs": {**settings.kwargs, "weights": "DEFAULT"}})
    if found is None and (usual := found_preprocessing(newest)) is not None:
        return KnownPreprocessing(
            PreprocessingSettings(**usual.values),
            f"as for {usual.source}",
            is_guess=True,
        )
    return None


def _of_fixed_size(settings: ModelSettings) -> KnownPreprocessing | None:
    if settings.factory is not None or settings.weights is None or settings.weights.is_dir():
        return None
    module = build(settings).module
    sides = module.fixed_size if isinstance(module, OnnxModel) else fixed_size(module)
    if sides is None:
        return None
    usual = PreprocessingSettings()
    height, width = sides
    if sides != input_size(usual):
        side = height if height == width else sides
        usual = PreprocessingSettings(resize=side, crop=side)
    return KnownPreprocessing(
        usual,
        f"{settings.weights.name} takes images of {height} x {width} alone; mean and std as for "
        "ImageNet",
        is_guess=True,
    )


def _stated(settings: ModelSettings) -> FoundPreprocessing | None:
    if settings.factory is None:
        return found_preprocessing(settings)
    with importable(settings.python_path):
        return found_preprocessing(settings, build(settings).module)


def names_of_imagenet(factory: str | None, classes: int) -> KnownNames | None:
    """Those of ImageNet, where there are as many classes and the library trains on it."""
    library = (factory or "").partition(":")[0].partition(".")[0]
    if classes != IMAGENET_CLASSES or library not in {"torchvision", "timm"}:
        return None
    from torchvision.models import ResNet18_Weights  # noqa: PLC0415  takes a second to import

    categories = ResNet18_Weights.DEFAULT.meta["categories"]
    return KnownNames(tuple(categories), "ImageNet's, as there are 1,000 classes")


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
