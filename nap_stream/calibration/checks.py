"""What a run over images needs, and warnings where images and model seem not to belong together.

What a run requires is checked before it costs anything, and again after images were read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.fit import FIT_SHARE, FOLDS, FitPart
from nap_stream.calibration.pixels import MIN_SIDE
from nap_stream.calibration.read import Reading, ScoredImages
from nap_stream.core.conformal import Group, Rule
from nap_stream.core.labels import Labelled, label_warnings
from nap_stream.core.methods import AUTO, NAP, Method
from nap_stream.core.score_specs import BaseScore, needs_features, needs_fit, needs_head
from nap_stream.core.selection import CHANCE, Selection, WeightSearch
from nap_stream.errors import CalibrationError, ConfigError
from nap_stream.model.load import KnownModel, LoadedModel
from nap_stream.model.preprocessing import input_size

SKILL = 0.2
"""A share this much of the way from guessing to certainty; below it a model and its images do
not belong together."""


def mean_confidence(scored: ScoredImages) -> float:
    """The mean probability of the predicted class; MSP must be among the values."""
    return float(scored.values[BaseScore.MSP].mean(dtype=np.float64))


def labelled(scored: ScoredImages, class_names: tuple[str, ...]) -> Labelled | None:
    """What the labels of images tell, where all are class names."""
    return Labelled.of(scored.labels, scored.class_id, class_names)


def skill_warnings(scored: ScoredImages, class_names: tuple[str, ...]) -> Iterator[str]:
    """In-distribution images on which the model is hardly better than guessing.

    Class names in another order are told instead of the accuracy that follows from it.
    """
    found = labelled(scored, class_names)
    classes = len(class_names)
    low = 1 / classes + SKILL * (1 - 1 / classes)
    advice = "are these images what the model was trained on, and is the preprocessing its own?"
    for what, share in (
        ("accuracy", None if found is None else found.accuracy_as_taken),
        ("mean confidence", mean_confidence(scored)),
    ):
        if share is not None and share < low:
            yield f"{what} {share:.3f} is near that of guessing ({1 / classes:.3f}): {advice}"
    if found is None:
        yield from label_warnings(scored.labels, scored.class_id, class_names)
    else:
        yield from found.swap_warnings()


def decoding_warnings(what: str, read: Reading | ScoredImages | None) -> Iterator[str]:
    """Images that cannot be decoded, or are with a warning; none where nothing was read."""
    if read is None:
        return
    every = read.undecodable + len(read)
    if read.undecodable:
        yield f"{read.undecodable} of {every} {what} cannot be decoded; first {read.first_problem}"
    if read.warned.images:
        yield (
            f"of {read.warned.images} of {every} {what} the decoder warns, so that pixels may "
            "not be what was encoded, and what is odd in them is taken for usual: leave them out, "
            f"or set limits.damaged: refuse; first {'; '.join(read.warned.examples)}"
        )


def copy_warnings(copies: int, images: int) -> Iterator[str]:
    """Images that are byte for byte some that are fitted on."""
    if copies:
        yield (
            f"{copies} of {images} images are copies of images that are fitted on, so that new "
            "images will score lower: give images of another recording to fit on"
        )


def tie_warnings(
    scores: NDArray[np.float64], class_id: NDArray[np.int64], groups: Iterable[Group]
) -> Iterator[str]:
    """Thresholds that stand at the lowest of several equal scores: little can be below."""
    for group in groups:
        own = scores if group.class_id is None else scores[class_id == group.class_id]
        tied = int((own == own.min()).sum())
        if tied > 1 and group.lower == own.min():
            whose = "" if group.class_id is None else f" of class {group.class_id}"
            yield (
                f"{tied} of {group.size} calibration scores{whose} tie at the lowest, and the "
                "threshold stands there: fewer images are flagged than alpha says. Are many of "
                "the images copies of each other?"
            )


def one_class_warnings(scored: ScoredImages, class_names: tuple[str, ...]) -> Iterator[str]:
    """Images that are all predicted as one class."""
    if len(class_names) > 1 and len(np.unique(scored.class_id)) == 1:
        yield f"all images are predicted as one class, number {scored.class_id[0]}"


def power_warnings(
    method: Method,
    weight: float | None,
    location: float,
    scored: ScoredImages,
    fit_reading: Reading | None,
) -> Iterator[str]:
    """Base scores that the geometric mean has no power of."""
    if method.base is None or not method.needs_location:
        return
    undefined = int((scored.values[method.base] - location <= 0).sum())
    if undefined:
        advice = "" if fit_reading is not None else ": give images to fit on, so that it moves"
        yield (
            f"the {method.base} of {undefined} of {len(scored)} images is at or below "
            f"{location:g}, which has no power {weight:g}{advice}"
        )


WORSE_THAN_BEST = 0.02
"""An AUROC so much below that of a single score is more than the choice of a sum may cost."""
POOR_AUROC = 0.75
FEW_IMAGES = 40
NEIGHBOURS_OF_A_CLASS = 10


def separation_warnings(
    what: str, found: WeightSearch | Selection | None, alone: Mapping[str, float]
) -> Iterator[str]:
    """How badly pseudo-OOD images are separated by what was chosen on them; by name, by one score.

    Nothing where nothing was chosen: then there are no such images.
    """
    if found is None or not alone:
        return
    best = max(alone, key=alone.__getitem__)
    if found.mean < alone[best] - WORSE_THAN_BEST:
        yield (
            f"{what} separates pseudo-OOD images with a mean AUROC of {found.mean:.3f}, {best} "
            f"alone with {alone[best]:.3f}: compare both with nap-stream evaluate"
        )
    if found.mean < POOR_AUROC:
        yield (
            f"pseudo-OOD images are poorly separated (mean AUROC {found.mean:.3f}): expect little "
            "of this detector on images that differ as much, and try it on some of yours"
        )


def selection_warnings(selection: Selection | None) -> Iterator[str]:
    """What is odd about the scores that were chosen, and what was not to choose from."""
    if selection is None:
        return
    if not selection.is_chosen:
        yield (
            f"the {len(selection.weights)} scores of the sum have equal weights: they are chosen "
            "on transformed images, and here are no images. Where you can, calibrate on images "
            "with the model loaded here, and set model.elsewhere.calibrated_on_images"
        )
    means = selection.means
    if selection.is_chosen and selection.mean < CHANCE:
        yield (
            "what was chosen takes pseudo-OOD images for more in-distribution than not (mean "
            f"AUROC {selection.mean:.3f}): choose a method, and try it with nap-stream evaluate"
        )
    for name in means.keys() & selection.weights if len(selection.weights) > 1 else ():
        if means[name] < CHANCE:
            yield (
                f"{name} alone takes pseudo-OOD images for more in-distribution than not (mean "
                f"AUROC {means[name]:.3f}); it was chosen for what it adds to the others"
            )
    if not any(_is_of_features(name) for name in means or selection.weights):
        lost = (f"{n}: {why}" for n, why in selection.left_out.items() if _is_of_features(n))
        yield (
            f"no score of features is to choose from, so that images that are odd in their "
            f"features alone go unseen ({'; '.join(lost)})"
        )


def _is_of_features(name: str) -> bool:
    return name != NAP and needs_features(BaseScore(name))


_MORE = {True: "Raise scoring.fit_limit", False: "Give more images"}
"""What to do about too few images to fit on, by `FitPart.limited`."""


def few_warnings(
    fit_reading: Reading | None, found: WeightSearch | Selection | None, *, limited: bool
) -> Iterator[str]:
    """Few images to fit on, or few pseudo-OOD images."""
    if fit_reading is None:
        return
    images = len(fit_reading)
    if isinstance(found, WeightSearch) or (found is not None and found.is_chosen):
        images = min(found.inside_images, found.pseudo_images)
    if images < FEW_IMAGES:
        yield (
            f"there are {images} images to fit on, and what is fitted or chosen on fewer than "
            f"{FEW_IMAGES} is mostly chance. {_MORE[limited]}"
        )


def neighbour_warnings(
    names: Iterable[BaseScore], fit_reading: Reading | None, classes: int, *, limited: bool
) -> Iterator[str]:
    """KNN with so few images that an image's neighbours are of other classes."""
    images = 0 if fit_reading is None else len(fit_reading)
    if BaseScore.KNN in names and images < NEIGHBOURS_OF_A_CLASS * classes:
        yield (
            f"knn has {images} images of {classes} classes: with fewer than about "
            f"{NEIGHBOURS_OF_A_CLASS} a class, the nearest are of other classes. "
            f"{_MORE[limited]}, or choose another method"
        )


def training_warnings(scored: ScoredImages, class_names: tuple[str, ...]) -> Iterator[str]:
    """Images that the model predicts without an error, as it does those it was trained on."""
    found = labelled(scored, class_names)
    is_told = len(scored) >= FEW_IMAGES and len(class_names) > 1
    if is_told and found is not None and found.accuracy == 1:
        yield (
            f"all {len(scored)} predictions are right: was the model trained on these images? New "
            "images would then be flagged more often than alpha says"
        )


LEAST_IMAGES = 2
"""Against which p-values are taken, or of which one is left where a fold is left out."""
LEAST_FITTED = 2 * FOLDS
"""Images below which a method that selects its scores does without those that are fitted."""


def left_out(method: Method, loaded: KnownModel, images: int) -> dict[str, str]:
    """Base scores that a method which selects does without, and why, with so many to fit on."""
    reasons = {}
    for name in method.candidates if method.selects else ():
        if needs_head(name) and loaded.head is None:
            reasons[str(name)] = "needs a model whose logits come from a linear layer"
        elif not is_possible(name, loaded):
            reasons[str(name)] = "needs features, which this model does not give"
        elif needs_fit(name) and images < LEAST_FITTED:
            reasons[str(name)] = f"needs {LEAST_FITTED} images to fit on, and there are {images}"
    return reasons


def require_weight(method: Method | None, weight: float | None) -> None:
    """Refuse a weight that the method does not take; the default method, null, takes none.

    Raises:
        ConfigError: The method has no weight, or it is out of range.
    """
    if weight is None:
        return
    if method is None or not method.has_weight:
        raise ConfigError(
            f"the method {AUTO if method is None else method} has no weight, got {weight:g}",
            "--weight",
            "Leave it out, or choose a method nap-… or fisher-…",
        )
    if not 0 <= weight <= 1:
        raise ConfigError(f"expected a weight in [0, 1], got {weight:g}", "--weight")


def require_head(names: Iterable[BaseScore], loaded: KnownModel, factory: str) -> None:
    """Refuse base scores that the model does not allow.

    Raises:
        CalibrationError: The model has no linear head, and a score needs one; or no features.
    """
    lacking = [name for name in names if not is_possible(name, loaded)]
    if lacking:
        verb = "needs" if len(lacking) == 1 else "need"
        others = ", ".join(name for name in BaseScore if is_possible(name, loaded))
        raise CalibrationError(
            f"{', '.join(lacking)} {verb} a model whose logits come from a linear layer, and this "
            "model's do not",
            factory,
            f"Choose auto, nap, or a method of {others}",
        )


def require_drawable(searching: Iterable[Method], loaded: LoadedModel, factory: str) -> None:
    """Refuse methods that choose on pseudo-OOD images where these cannot be drawn.

    Raises:
        CalibrationError: The model's input is too small.
    """
    choosing = [str(method) for method in searching]
    if choosing and not is_drawable(loaded):
        height, width = input_size(loaded.preprocessing)
        raise CalibrationError(
            f"{choosing[0]} chooses on pseudo-OOD images, which need {MIN_SIDE} pixels a side, and "
            f"the model's input has {height} x {width}",
            factory,
            "Choose a method of one score, or give the weight with --weight",
        )


def is_drawable(loaded: LoadedModel) -> bool:
    """Whether the model's input has room for transforms and faults."""
    return min(input_size(loaded.preprocessing)) >= MIN_SIDE


def is_possible(name: BaseScore, loaded: KnownModel) -> bool:
    """Whether a base score can be computed of the model."""
    if needs_head(name):
        return loaded.head is not None
    return loaded.has_features or not needs_features(name)


def require_fittable(
    names: Iterable[BaseScore],
    methods: Iterable[Method],
    part: FitPart,
    neighbours: int,
    reading: Reading | None = None,
) -> None:
    """Refuse a part that is too small, by its files or, once they were read, by its reading.

    Raises:
        CalibrationError: See `require_neighbours` and `require_images`.
    """
    with_features = len(part) if reading is None else reading.with_features
    require_neighbours(names, with_features, part, neighbours)
    images = len(part) if reading is None else len(reading)
    taking = [str(method) for method in methods if method.needs_reference]
    require_images((*taking, *(str(name) for name in names if needs_fit(name))), images, part)


def require_neighbours(
    names: Iterable[BaseScore], images: int, part: FitPart, neighbours: int
) -> None:
    """Refuse fewer images to fit on than KNN needs: its k neighbours where a fold is left out.

    Nothing is required where KNN is not among the names.

    Raises:
        CalibrationError: Naming how many there are, and how many are needed.
    """
    needed = next(n for n in count(neighbours + 1) if n - ceil(n / FOLDS) >= neighbours)
    if BaseScore.KNN not in names or images >= needed:
        return
    if len(part) >= needed:
        raise CalibrationError(
            f"knn with k = {neighbours} needs {needed} images to fit on that can be decoded and "
            f"whose features are not all 0, and of {len(part)} there are {images}",
            str(part.source),
            f"{_MORE[part.limited]}; if these can be decoded, check the weights and the "
            "preprocessing",
        )
    there = f"{images} images to fit on" if part.own else f"{images}, a third of the images"
    enough = needed if part.own else round(needed / FIT_SHARE)
    more = f"Give at least {enough} images {'to fit on' if part.own else 'in all'}"
    if part.limited:
        there, more = f"{images} by scoring.fit_limit", f"Raise that to {needed} at least"
    raise CalibrationError(
        f"knn with k = {neighbours} needs {needed} images to fit on, and there are {there}",
        str(part.source),
        f"{more}, or a smaller scoring.knn_k, or another method",
    )


def require_images(taking: Sequence[str], images: int, part: FitPart) -> None:
    """Refuse fewer images to fit on than methods and scores that take any can do with.

    Raises:
        CalibrationError: Naming how many there are, and how many are needed.
    """
    if taking and images < LEAST_IMAGES:
        raise CalibrationError(
            f"{taking[0]} needs {LEAST_IMAGES} or more images to fit on, and there are {images}",
            str(part.source),
            f"{_MORE[part.limited]}, or another method",
        )


def require_apart(part: FitPart, images: Path) -> list[tuple[str, str]]:
    """Refuse images that were given to fit on and that calibrate too, under any name.

    Returns:
        Where a share of the images is fitted on: the others that are copies of those.

    Raises:
        CalibrationError: Naming how many there are, and the first.
        InputDataError: See `nap_stream.image_files.iter_images`.
    """
    copies = part.copies(images)
    if part.own and copies:
        name, fitted_on = copies[0]
        raise CalibrationError(
            f"{len(copies)} of the images are also among those to fit on, first {name}, there as "
            f"{fitted_on}: what is fitted on cannot judge others",
            f"{images} and {part.source}",
            "Name other images to fit on, or none: then a third of these is fitted on",
        )
    return copies


def require_enough(images: int, rule: Rule, source: Path, *, fitted_on: int = 0) -> None:
    """Refuse fewer images than the rule needs to flag anything.

    Raises:
        CalibrationError: Naming how many there are, and how many are needed.
    """
    needed = rule.required_size
    if images < needed:
        besides = f" beside {fitted_on} that are fitted on" if fitted_on else ""
        raise CalibrationError(
            f"the images are {images}{besides}, and alpha = {rule.alpha:g} needs at least {needed}",
            str(source),
            "Give more held-out images, or a larger alpha",
        )
