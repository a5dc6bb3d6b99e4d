"""What methods take from in-distribution images before they are calibrated.

Which images those are, and fitting base scores on them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.calibration import head_of
from nap_stream.calibration.read import Reading, Values
from nap_stream.core.base_scores import BaseScores, drawn_from_blocks, fit_scores
from nap_stream.core.methods import NAP, Method
from nap_stream.core.score_specs import BaseScore, Fits, ScoreParameters, needs_fit
from nap_stream.image_files import ImageFile, count_images, iter_images
from nap_stream.model.load import LoadedModel

ALWAYS = (BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY)
"""What a run computes of any model: they cost nothing beside the forward pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Base scores ready to compute, and what they give for the images they were fitted on.

    ``values`` are NAP and base scores of those images, each image left out of its own
    neighbours; ``locations`` are the mean logits behind each base score, 0 for scores that do
    not grow with all logits. Both are empty where nothing had to be fitted.
    """

    base_scores: BaseScores
    fits: Fits
    values: Values
    locations: Mapping[str, float]

    def location(self, method: Method) -> float:
        """What the method takes off its base score before it fuses it; 0 if it takes none."""
        return self.locations.get(str(method.base), 0.0) if method.needs_location else 0.0

    def references(self, method: Method) -> dict[str, NDArray[np.float64]]:
        """What the method's p-values are taken against, ascending; empty if it takes none."""
        if method.base is None or not method.needs_reference:
            return {}
        return {
            name: np.sort(self.values[name].astype(np.float64)) for name in (NAP, str(method.base))
        }


def in_order(names: Iterable[BaseScore]) -> tuple[BaseScore, ...]:
    """Each name once, in the enumeration's order."""
    wanted = set(names)
    return tuple(name for name in BaseScore if name in wanted)


def unfitted(
    names: tuple[BaseScore, ...], loaded: LoadedModel, parameters: ScoreParameters
) -> Fitted:
    """Base scores that take nothing from images.

    Raises:
        ValueError: One of them does, or needs a head that the model does not have.
    """
    return Fitted(BaseScores(names, parameters, head_of(loaded), Fits(), "cpu"), Fits(), {}, {})


def fit(
    names: tuple[BaseScore, ...], reading: Reading, loaded: LoadedModel, parameters: ScoreParameters
) -> Fitted:
    """Fit base scores on in-distribution images other than those that calibrate.

    Raises:
        ValueError: A score needs a head or features that the model does not have, or more
            images.
    """
    head = head_of(loaded)
    fits = Fits()
    if any(needs_fit(name) for name in names):
        if reading.features is None:
            lacking = " and ".join(name for name in names if needs_fit(name))
            raise ValueError(f"no {lacking} without a linear layer that the logits come from")
        fits = fit_scores(names, reading.features, parameters)
    # An image of the bank is its own first neighbour, so that the next one is taken.
    left_out = replace(
        parameters,
        knn_k=parameters.knn_k + 1,
        knn_bank_size=max(parameters.knn_bank_size, parameters.knn_k + 1),
    )
    values = reading.values(BaseScores(names, left_out, head, fits, "cpu"))
    centred = reading.values(BaseScores(names, left_out, head, fits, "cpu", centred=True))
    return Fitted(
        BaseScores(names, parameters, head, fits, "cpu"),
        fits,
        values,
        {name: float((values[name] - centred[name]).mean(dtype=np.float64)) for name in names},
    )


FIT_SHARE = 1 / 3
"""Of the images, where none are given to fit on."""

FIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class FitPart:
    """The images to fit on: those of ``source`` where the mask ``rows`` is true.

    ``own`` says that they were given for it; else they are a share of the other images, which
    must then leave them out.
    """

    source: Path
    own: bool
    rows: NDArray[np.bool_]

    @classmethod
    def choose(cls, images: Path, fit_images: Path | None, limit: int) -> Self:
        """Draw images, at most ``limit``; a third of ``images`` if none are given.

        One of each block of neighbours is drawn, with a fixed seed: the images that are left
        must be like those that come, whatever their order in the folder.

        Raises:
            InputDataError: See `count_images`.
        """
        source = images if fit_images is None else fit_images
        count = count_images(source)
        share = count if fit_images is not None else round(count * FIT_SHARE)
        rows = np.zeros(count, dtype=bool)
        rows[drawn_from_blocks(count, max(1, min(limit, share)), FIT_SEED)] = True
        return cls(source, fit_images is not None, rows)

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
