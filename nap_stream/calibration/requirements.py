"""What a run over images needs, checked before it costs anything."""

from collections.abc import Iterable
from pathlib import Path

from nap_stream.calibration.fit_part import FIT_SHARE, FitPart
from nap_stream.core.judging import Rule
from nap_stream.core.methods import Method
from nap_stream.core.score_specs import BaseScore, needs_features
from nap_stream.errors import CalibrationError, ConfigError
from nap_stream.model.loading import LoadedModel

LEAST_REFERENCES = 2


def require_weight(method: Method | None, weight: float | None) -> None:
    """Refuse a weight that the method does not take.

    Args:
        method: Null for the default method, which has a weight.
        weight: Null where none is given.

    Raises:
        ConfigError: The method has no weight, or it is out of range.
    """
    if weight is None:
        return
    if method is not None and not method.has_weight:
        raise ConfigError(
            f"the method {method} has no weight, got {weight:g}",
            "--weight",
            "Leave it out, or choose a method nap-… or fisher-…",
        )
    if not 0 <= weight <= 1:
        raise ConfigError(f"expected a weight in [0, 1], got {weight:g}", "--weight")


def require_head(names: Iterable[BaseScore], loaded: LoadedModel, factory: str) -> None:
    """Refuse base scores that the model does not allow.

    Raises:
        CalibrationError: The model has no linear head, and a score needs one or its input.
    """
    lacking = [name for name in names if needs_features(name)]
    if lacking and loaded.head is None:
        verb = "needs" if len(lacking) == 1 else "need"
        others = ", ".join(name for name in BaseScore if not needs_features(name))
        raise CalibrationError(
            f"{', '.join(lacking)} {verb} a model whose logits come from a linear layer, and this "
            "model's do not",
            factory,
            f"Choose nap, or a method of {others}",
        )


def require_neighbours(
    names: Iterable[BaseScore], images: int, part: FitPart, neighbours: int
) -> None:
    """Refuse fewer images to fit on than KNN needs: its k neighbours, and the image itself.

    Args:
        names: The base scores; nothing is required where KNN is not among them.
        images: How many there are to fit on.
        part: Where they come from.
        neighbours: Which neighbour the distance is to, k.

    Raises:
        CalibrationError: Naming how many there are, and how many are needed.
    """
    needed = neighbours + 1
    if BaseScore.KNN not in names or images >= needed:
        return
    if len(part) >= needed:
        raise CalibrationError(
            f"knn with k = {neighbours} needs {needed} images to fit on that can be decoded and "
            f"whose features are not all 0, and of {len(part)} there are {images}",
            str(part.source),
            "Give more images; if these can be decoded, check the weights and the preprocessing",
        )
    there = f"{images} images to fit on" if part.own else f"{images}, a third of the images"
    enough = needed if part.own else round(needed / FIT_SHARE)
    where = "to fit on" if part.own else "in all"
    raise CalibrationError(
        f"knn with k = {neighbours} needs {needed} images to fit on, and there are {there}",
        str(part.source),
        f"Give at least {enough} images {where}, or a smaller scoring.knn_k, or another method",
    )


def require_references(methods: Iterable[Method], images: int, part: FitPart) -> None:
    """Refuse fewer images to fit on than p-values can be taken against.

    Raises:
        CalibrationError: Naming how many there are, and how many are needed.
    """
    taking = [str(method) for method in methods if method.needs_reference]
    if taking and images < LEAST_REFERENCES:
        raise CalibrationError(
            f"{taking[0]} needs {LEAST_REFERENCES} or more images to fit on, and there are "
            f"{images}",
            str(part.source),
            "Give more images, or another method",
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
