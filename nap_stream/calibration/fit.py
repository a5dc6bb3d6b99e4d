"""What methods take from in-distribution images before they are calibrated.

Which images those are, fitting base scores on them, and choosing weights on pseudo-OOD images that
are made of them. No out-of-distribution image takes part.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from math import ceil
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import PSEUDO_SEED, Advance, Reader, Reading, Values
from nap_stream.core import selection
from nap_stream.core.base_scores import BaseScores, drawn_from_blocks, evenly_spaced, fit_scores
from nap_stream.core.methods import NAP, LogP, Method, method_scores
from nap_stream.core.score_specs import BaseScore, Fits, ScoreParameters, needs_fit
from nap_stream.core.selection import Selection, WeightSearch
from nap_stream.image_files import ImageFile, count_images, iter_images
from nap_stream.model.load import KnownModel

ALWAYS = (BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY)
"""What a run computes of any model: they cost nothing beside the forward pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Base scores ready to compute, and what they give for the images they were fitted on.

    ``values`` are NAP and base scores of those images, each by a fit that left out the image's
    fold; ``left_out`` are the base scores of those fits, by fold. ``locations`` are the mean logits
    behind each base score, 0 for scores that do not grow with all logits. All of these are empty
    where nothing had to be fitted.
    """

    base_scores: BaseScores
    fits: Fits
    values: Values
    left_out: tuple[BaseScores, ...]
    locations: Mapping[str, float]

    def only(
        self, names: tuple[BaseScore, ...], loaded: KnownModel, parameters: ScoreParameters
    ) -> Self:
        """The same with some of its base scores alone; what no other needs is not kept."""
        fits = self.fits.only(names)
        base_scores = BaseScores(names, parameters, loaded.linear_head(), fits, "cpu")
        return replace(self, base_scores=base_scores, fits=fits)

    def location(self, method: Method) -> float:
        """What the method takes off its base score before it fuses it; 0 if it takes none."""
        return self.locations.get(str(method.base), 0.0) if method.needs_location else 0.0

    def references(
        self, method: Method, selection: Selection | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """What the method's p-values are taken against, ascending; empty if it takes none.

        ``selection`` is that of a method that selects.
        """
        if not method.needs_reference:
            return {}
        names = (NAP, str(method.base)) if selection is None else tuple(selection.weights)
        return {name: np.sort(self.values[name].astype(np.float64)) for name in names}


def in_order(names: Iterable[BaseScore]) -> tuple[BaseScore, ...]:
    """Each name once, in the enumeration's order."""
    wanted = set(names)
    return tuple(name for name in BaseScore if name in wanted)


def unfitted(
    names: tuple[BaseScore, ...], loaded: KnownModel, parameters: ScoreParameters
) -> Fitted:
    """Base scores that take nothing from images.

    Raises:
        ValueError: One of them does, or needs a head that the model does not have.
    """
    base_scores = BaseScores(names, parameters, loaded.linear_head(), Fits(), "cpu")
    return Fitted(base_scores, Fits(), {}, (), {})


FOLDS = 5
PSEUDO_IMAGES = 200
"""Images that each pseudo-OOD transform is applied to, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Folds:
    """How n images to fit on are divided, so that none is scored by a fit that holds it.

    ``fold`` is int64 (n,), 0 to `FOLDS` - 1. ``blocks`` are the numbers of the images that
    pseudo-OOD ones are made of, evenly spaced and in random order. A block lies in one fold, and a
    transform sees a block alone: so no pseudo-OOD image is scored by a fit that holds its source.
    """

    fold: NDArray[np.int64]
    blocks: tuple[NDArray[np.int64], ...]

    @classmethod
    def choose(cls, count: int) -> Self:
        """Divide so many images, at least one."""
        chosen = evenly_spaced(count, PSEUDO_IMAGES)
        order = np.random.default_rng(PSEUDO_SEED).permutation(chosen)
        size = ceil(len(order) / FOLDS)
        blocks = tuple(order[start : start + size] for start in range(0, len(order), size))
        others = np.setdiff1d(np.arange(count), order)
        fold = np.zeros(count, dtype=np.int64)
        fold[others] = np.arange(len(others)) % FOLDS
        for number, block in enumerate(blocks):
            fold[block] = number
        return cls(fold, blocks)


def fit(
    names: tuple[BaseScore, ...],
    reading: Reading,
    folds: Folds,
    loaded: KnownModel,
    parameters: ScoreParameters,
) -> Fitted:
    """Fit base scores on in-distribution images other than those that calibrate.

    ``folds`` divide the images that were given, whether they could be read or not.

    Raises:
        TooFewImagesError: A score needs more images than are left without a fold.
        ValueError: A score needs a head or features that the model does not have.
    """
    head = loaded.linear_head()
    fits = _fits(names, reading, np.ones(len(reading), bool), parameters)
    base_scores = BaseScores(names, parameters, head, fits, "cpu")
    values = plain = reading.values(base_scores)
    left_out = (base_scores,) * FOLDS
    if any(needs_fit(name) for name in names):
        fold = folds.fold[reading.positions]
        left_out = tuple(
            base_scores.refitted(_fits(names, reading, fold != n, parameters)) for n in range(FOLDS)
        )
        by_fold = [reading.values(own) for own in left_out]
        values = {name: np.choose(fold, [found[name] for found in by_fold]) for name in plain}
    centred = reading.values(BaseScores(names, parameters, head, fits, "cpu", centred=True))
    locations = {
        str(name): float((plain[name] - centred[name]).mean(dtype=np.float64)) for name in names
    }
    return Fitted(base_scores, fits, values, left_out, locations)


def _fits(
    names: tuple[BaseScore, ...],
    reading: Reading,
    rows: NDArray[np.bool_],
    parameters: ScoreParameters,
) -> Fits:
    """Fit on some of the images."""
    if not any(needs_fit(name) for name in names):
        return Fits()
    if reading.features is None:
        lacking = " and ".join(name for name in names if needs_fit(name))
        raise ValueError(f"no {lacking} without features, which this model does not give")
    return fit_scores(names, reading.features[rows], parameters)


FIT_SHARE = 1 / 3
"""Of the images, where none are given to fit on."""

FIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class FitPart:
    """The images to fit on: those of ``source`` where the mask ``rows`` is true.

    ``own`` says that they were given for it; else they are a share of the other images, which
    must then leave them out. ``limited`` says that there would be more without a limit.
    """

    source: Path
    own: bool
    rows: NDArray[np.bool_]
    limited: bool = False

    @classmethod
    def choose(cls, images: Path, fit_images: Path | None, limit: int) -> Self:
        """Draw images, at most ``limit``; a third of ``images`` if none are given.

        One of each block of neighbours is drawn, with a fixed seed: the images that are left
        must be like those that come, whatever their order in the folder.

        Raises:
            InputDataError: See `count_images`.
        """
        source = images if fit_images is None else fit_images
        return cls.of_count(count_images(source), source, limit, own=fit_images is not None)

    @classmethod
    def of_count(cls, count: int, source: Path, limit: int, *, own: bool) -> Self:
        """Draw from so many images, at least one."""
        share = count if own else round(count * FIT_SHARE)
        rows = np.zeros(count, dtype=bool)
        rows[drawn_from_blocks(count, max(1, min(limit, share)), FIT_SEED)] = True
        return cls(source, own, rows, limited=share > limit)

    def __len__(self) -> int:
        return int(self.rows.sum())

    def files(self) -> Iterator[ImageFile]:
        """The images to fit on."""
        return compress(iter_images(self.source), self.rows)

    def others(self, images: Path) -> Iterator[ImageFile]:
        """Those of ``images`` that are not fitted on."""
        return iter_images(images) if self.own else compress(iter_images(images), ~self.rows)

    def copies(self, images: Path) -> list[tuple[str, str]]:
        """Other images that are byte for byte one that is fitted on: both names.

        Raises:
            InputDataError: See `iter_images`.
        """
        fitted_on = {_sha256(file): file.name for file in self.files() if file.data}
        return [
            (file.name, fitted_on[_sha256(file)])
            for file in self.others(images)
            if _sha256(file) in fitted_on
        ]


def _sha256(file: ImageFile) -> bytes:
    return hashlib.sha256(file.data).digest()


def pseudo_passes(part: FitPart) -> int:
    """Forward passes, in images, that `pseudo_values` takes."""
    return len(PSEUDO_OOD) * sum(len(block) for block in Folds.choose(len(part)).blocks)


def pseudo_values(
    part: FitPart,
    folds: Folds,
    reader: Reader,
    fitted: Fitted,
    advance: Advance,
    *,
    batch_size: int | None = None,
) -> dict[str, Values]:
    """NAP and base scores of pseudo-OOD images, by transform; see `Reader.score_transformed`."""
    wanted = {int(number) for block in folds.blocks for number in block}
    files = {number: file for number, file in enumerate(part.files()) if number in wanted}
    blocks = [[files[int(number)] for number in block] for block in folds.blocks]
    left_out = fitted.left_out[: len(blocks)]
    return {
        name: reader.score_transformed(blocks, name, left_out, advance, batch_size).values
        for name in PSEUDO_OOD
    }


def search_weight(method: Method, fitted: Fitted, pseudo: Mapping[str, Values]) -> WeightSearch:
    """Choose the method's weight on pseudo-OOD values, by transform."""
    reference, location = fitted.references(method), fitted.location(method)

    def score(values: Mapping[str, NDArray[np.floating]], weight: float) -> NDArray[np.float64]:
        return method_scores(method, values, weight=weight, location=location, reference=reference)

    return selection.search_weight(score, fitted.values, pseudo)


def areas_alone(fitted: Fitted, pseudo: Mapping[str, Values]) -> dict[str, float]:
    """How well NAP and each base score separate pseudo-OOD values, on average over transforms."""
    found = {}
    for name, values in fitted.values.items():
        own = values.astype(np.float64)
        outside = (one[name].astype(np.float64) for one in pseudo.values())
        found[name] = float(np.mean([selection.auroc(own, one) for one in outside]))
    return found


def with_equal_weights(method: Method, fitted: Fitted, left_out: Mapping[str, str]) -> Selection:
    """What `select` gives where there are no pseudo-OOD values to choose on.

    Raises:
        NoScoreError: Every score is the same for most images.
    """
    names = (*(str(name) for name in method.candidates if name not in left_out), NAP)
    values = {name: fitted.values[name].astype(np.float64) for name in names}
    inside = {name: LogP(np.sort(own))(own) for name, own in values.items()}
    found = selection.equal_weights(inside)
    return replace(found, left_out={**left_out, **found.left_out})


def select(
    method: Method, fitted: Fitted, pseudo: Mapping[str, Values], left_out: Mapping[str, str]
) -> Selection:
    """Choose scores and weights of a method that selects, on pseudo-OOD values, by transform.

    It chooses among NAP and the method's candidates. ``left_out`` says of those that are not to
    choose from why not.

    Raises:
        NoScoreError: Every score is the same for most images.
    """
    names = (*(str(name) for name in method.candidates if name not in left_out), NAP)
    reference = {name: np.sort(fitted.values[name].astype(np.float64)) for name in names}

    def log_p_of(values: Values) -> dict[str, NDArray[np.float64]]:
        return {name: LogP(reference[name])(values[name]) for name in names}

    outside = {transform: log_p_of(values) for transform, values in pseudo.items()}
    found = selection.select(log_p_of(fitted.values), outside)
    return replace(found, left_out={**left_out, **found.left_out})
