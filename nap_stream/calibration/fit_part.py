"""Which in-distribution images are fitted on, and reading them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.fitting import Fitted
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.reading import PSEUDO_SEED, Advance, Reader, Values
from nap_stream.core.rows import drawn_from_blocks, evenly_spaced
from nap_stream.image_files import ImageFile, count_images, iter_images

FIT_SHARE = 1 / 3
"""Of the images, where none are given to fit on."""

FIT_SEED = 0

PSEUDO_IMAGES = 200
"""Images that each pseudo-OOD transform is applied to, at most."""


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

    @property
    def pseudo_passes(self) -> int:
        """Forward passes, in images, that `pseudo_values` takes."""
        return len(PSEUDO_OOD) * min(len(self), PSEUDO_IMAGES)

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

    def pseudo_values(self, reader: Reader, fitted: Fitted, advance: Advance) -> dict[str, Values]:
        """NAP and base scores of pseudo-OOD images, by transform."""
        wanted = set(evenly_spaced(len(self), PSEUDO_IMAGES).tolist())
        files = [file for number, file in enumerate(self.files()) if number in wanted]
        # Images are mixed with others of their batch: in order they may all be of one class.
        shuffled = [
            files[row] for row in np.random.default_rng(PSEUDO_SEED).permutation(len(files))
        ]
        return {
            name: reader.score_transformed(shuffled, name, fitted.base_scores, advance).values
            for name in PSEUDO_OOD
        }


def _sha256(file: ImageFile) -> bytes:
    return hashlib.sha256(file.data).digest()
