"""Where labels say that a model is bad: would it be good under another preprocessing?

Wrong means and deviations, and red and blue exchanged, raise no error: they cost accuracy alone.
A few images are run through the model in the usual alternatives.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from nap_stream.clock import Clock, Progress
from nap_stream.core.base_scores import evenly_spaced
from nap_stream.core.labels import Labelled
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.errors import ModelError
from nap_stream.feed import on_cpu
from nap_stream.image_files import ImageFile, chosen_images, count_images
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import Normaliser
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

LOW = 0.8
"""An accuracy below which it is worth the time."""
MAX_IMAGES = 100
_LEAST_IMAGES = 20
_BUDGET_S = 30.0
"""For all passes together, on a model so slow that the images take longer; but for the least."""
_SIGNIFICANCE = 0.001
_LEAST_GAIN = 0.1
_BATCH = 10

Three = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Way:
    """Another preprocessing: its words, mean and std, and whether red and blue change places.

    Null means are those that are configured. ``own_size`` leaves the images as large as they are.
    """

    words: str
    mean: Three | None = None
    std: Three | None = None
    bgr: bool = False
    own_size: bool = False


_IMAGENET = PreprocessingSettings()
_NONE: Three = (0.0, 0.0, 0.0)
_BYTE = 1 / 255
MAX_OWN_SIDE = 512
WAYS = (
    _Way("the images in their own size, not resized", own_size=True),
    _Way("red and blue exchanged (BGR)", bgr=True),
    _Way("mean and std of ImageNet", _IMAGENET.mean, _IMAGENET.std),
    _Way("mean and std 0.5", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    _Way("mean 0 and std 1 (pixels in [0, 1])", _NONE, (1.0, 1.0, 1.0)),
    _Way("mean 0 and std 1/255 (pixels in [0, 255])", _NONE, (_BYTE, _BYTE, _BYTE)),
    _Way(
        "BGR, pixels in [0, 255] less ImageNet's mean (Caffe)",
        (123.68 / 255, 116.78 / 255, 103.94 / 255),
        (_BYTE, _BYTE, _BYTE),
        bgr=True,
    ),
)


def trial_warning(
    labelled: Labelled | None,
    loaded: LoadedModel,
    images: Path,
    limits: LimitSettings,
    *,
    clock: Clock,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Name the preprocessing under which a model of low accuracy does far better, if one does.

    It costs at most `MAX_IMAGES` images through the model in each of `WAYS`, and nothing where
    labels are not class names or the accuracy, names put right, is not low.

    Raises:
        InputDataError: See `nap_stream.image_files.iter_images`.
        ModelError: See `run_forward`.
    """
    if labelled is None or labelled.accuracy_as_taken >= LOW:
        return ()
    files, truth = _sample(labelled, images)
    configured = _pixels(files, loaded.preprocessing, limits)
    is_read = np.array([one is not None for one in configured], np.bool_)
    pixels = [one for one in configured if one is not None]
    files = [file for file, good in zip(files, is_read, strict=True) if good]
    truth = truth[is_read]
    if not pixels:
        return ()
    right, count = _right(loaded, pixels, truth, _Way(""), clock=clock)
    gains = []
    ways = [way for way in WAYS if not _is_configured(way, loaded.preprocessing)]
    for done, way in enumerate(ways):
        if progress is not None:
            progress(done * count, len(ways) * count)
        batch = _in_own_size(files[:count], pixels, limits) if way.own_size else pixels[:count]
        # A model may be made for one size alone.
        with suppress(ModelError):
            found, _ = _right(loaded, batch, truth[: len(batch)], way)
            if len(found) == count:
                gains.append((found, way))
    if progress is not None:
        progress(len(ways) * count, len(ways) * count)
    if not gains:
        return ()
    best, _ = max(gains, key=lambda one: int(one[0].sum()))
    words = " or ".join(way.words for found, way in gains if found.sum() == best.sum())
    gained, lost = int((best & ~right).sum()), int((right & ~best).sum())
    # Of the images that only one of both gets right: a sign test, for each of the ways.
    chance = binomtest(gained, gained + lost, alternative="greater").pvalue if gained else 1.0
    if chance * len(ways) > _SIGNIFICANCE or gained - lost < _LEAST_GAIN * count:
        return ()
    warning = (
        f"the preprocessing looks wrong: with {words} the accuracy is {best.mean():.2f} on "
        f"{count} of the images, and as configured {right.mean():.2f}. Compare "
        "model.preprocessing with that of training"
    )
    return (warning,)


def _is_configured(way: _Way, preprocessing: PreprocessingSettings) -> bool:
    same = (way.mean, way.std) == (preprocessing.mean, preprocessing.std)
    return same and not (way.bgr or way.own_size)


def _sample(labelled: Labelled, images: Path) -> tuple[list[ImageFile], NDArray[np.int64]]:
    """Some of the images, and the numbers of the classes that their labels stand for."""
    numbers = {name: number for number, name in enumerate(labelled.names)}
    taken = labelled.taken_for
    chosen = evenly_spaced(count_images(images), MAX_IMAGES)
    files = list(chosen_images(images, set(chosen.tolist())))
    # In no order: a cut in time then keeps the shares of the classes.
    mixed = [files[number] for number in np.random.default_rng(0).permutation(len(files))]
    known = [file for file in mixed if file.label in numbers]
    found = [numbers[file.label] for file in known if file.label is not None]
    return known, np.array([taken.get(number, number) for number in found], np.int64)


def _pixels(
    files: Sequence[ImageFile], preprocessing: PreprocessingSettings, limits: LimitSettings
) -> list[torch.Tensor | None]:
    """The model's inputs; null for what cannot be decoded."""
    decoded = (on_cpu(file.data, limits, preprocessing) for file in files)
    return [None if isinstance(one, Refusal) else one for one in decoded]


def _in_own_size(
    files: Sequence[ImageFile], pixels: Sequence[torch.Tensor], limits: LimitSettings
) -> list[torch.Tensor]:
    """Images that are all of one size, other than the model's input; else none."""
    decoded = [decode_image(file.data, limits) for file in files]
    pictures = [one.pixels for one in decoded if not isinstance(one, Refusal)]
    sizes = {one.shape for one in pictures}
    if len(sizes) != 1 or pixels[0].shape in sizes or max(pictures[0].shape) > MAX_OWN_SIDE:
        return []
    return pictures


def _right(
    loaded: LoadedModel,
    pixels: Sequence[torch.Tensor],
    truth: NDArray[np.int64],
    way: _Way,
    *,
    clock: Clock | None = None,
) -> tuple[NDArray[np.bool_], int]:
    """Which predictions are right, and of how many images.

    With a clock, it ends where as many images in each of all ways would take too long.
    """
    preprocessing = loaded.preprocessing.model_copy(
        update={
            "mean": way.mean or loaded.preprocessing.mean,
            "std": way.std or loaded.preprocessing.std,
        }
    )
    normalise = Normaliser(preprocessing, loaded.device, loaded.input_dtype)
    model = replace(loaded, normalise=normalise)
    predicted: list[int] = []
    start = None if clock is None else clock.monotonic()
    for first in range(0, len(pixels), _BATCH):
        batch = torch.stack([*pixels[first : first + _BATCH]])
        logits = model.forward(batch.flip(1) if way.bgr else batch).logits
        predicted += logits.argmax(dim=1).tolist()
        if clock is not None and start is not None and len(predicted) >= _LEAST_IMAGES:
            taken_s = clock.monotonic() - start
            if taken_s * (len(WAYS) + 1) > _BUDGET_S:
                break
    return np.array(predicted, np.int64) == truth[: len(predicted)], len(predicted)
