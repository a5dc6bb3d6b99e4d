"""Whether images can be gone on with, from what was read of them.

From image files to what the model makes of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.images import Arrays, FeatureCache, ModelOutputs, PseudoBatch
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.decode import Refusal, decode_image
from nap_stream.errors import CalibrationError
from nap_stream.image_files import ImageFile, iter_images
from nap_stream.model.load import LoadedModel
from nap_stream.settings.schema import LimitSettings
from nap_stream.text import encodable


@dataclass(slots=True)
class ReadingCheck:
    """Counts images, batch by batch. ``not_finite`` are names."""

    decoded: int = 0
    undecodable: int = 0
    first_problem: str = ""
    not_finite: list[str] = field(default_factory=list)

    def add(
        self,
        names: Sequence[str],
        finite: NDArray[np.bool_],
        undecodable: int,
        first_problem: str,
    ) -> None:
        """Count a batch.

        Args:
            names: Of the n decoded images.
            finite: Whether all that the model made of each is finite, (n,).
            undecodable: How many more there are.
            first_problem: About the first of those; empty if there is none.
        """
        self.decoded += len(names)
        self.undecodable += undecodable
        self.first_problem = self.first_problem or first_problem
        self.not_finite += [names[int(row)] for row in np.flatnonzero(~finite)]

    def require_usable(self, source: Path) -> None:
        """Refuse images that nothing can be concluded from.

        Raises:
            CalibrationError: Half of them or more cannot be decoded, or the model's outputs are
                not finite.
        """
        if not self.decoded:
            raise CalibrationError(
                f"none of the {self.undecodable} images could be decoded; first "
                f"{self.first_problem or 'there are none'}",
                str(source),
                "Name a folder of JPEG, PNG or WebP files, or a Parquet file",
            )
        if self.undecodable >= self.decoded:
            raise CalibrationError(
                f"{self.undecodable} of {self.undecodable + self.decoded} images cannot be "
                f"decoded; first {self.first_problem}",
                str(source),
                "Name a folder of images alone: what is left may not be like the stream",
            )
        if self.not_finite:
            raise CalibrationError(
                f"the model's activations or logits are not finite for {len(self.not_finite)} of "
                f"{self.decoded} images, first {self.not_finite[0]}",
                str(source),
                "Check the weights and the preprocessing",
            )


Values = dict[str, NDArray[np.float32]]
Advance = Callable[[int], None]
"""Told how many more images were read."""

PSEUDO_SEED = 0
PSEUDO_BATCH = 50
"""Pseudo-OOD images are mixed within a batch: what they are must not depend on its size."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the model makes of n images; ``undecodable`` more could not be decoded.

    ``logits`` is float32 (n, K), ``features`` float32 (n, D) or null where the model has no
    linear head, ``nap`` float32 (n,). ``first_problem`` is about the first undecodable image.
    """

    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None
    nap: NDArray[np.float32]
    undecodable: int
    first_problem: str

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put readings of one model behind each other; at least one."""
        features = [part.features for part in parts if part.features is not None]
        # A part of which nothing could be decoded does not know the number of classes.
        logits = [part.logits for part in parts if len(part)]
        return cls(
            tuple(name for part in parts for name in part.names),
            tuple(label for part in parts for label in part.labels),
            np.concatenate(logits) if logits else parts[0].logits,
            np.concatenate(features) if features else None,
            np.concatenate([part.nap for part in parts]),
            sum(part.undecodable for part in parts),
            next((part.first_problem for part in parts if part.first_problem), ""),
        )

    @property
    def class_id(self) -> NDArray[np.int64]:
        """Predicted classes, int64 (n,)."""
        class_id: NDArray[np.int64] = self.logits.argmax(axis=1).astype(np.int64)
        return class_id

    @property
    def finite(self) -> NDArray[np.bool_]:
        """For which images everything is finite, (n,)."""
        finite: NDArray[np.bool_] = np.isfinite(self.logits).all(axis=1) & np.isfinite(self.nap)
        return finite if self.features is None else finite & np.isfinite(self.features).all(axis=1)

    @property
    def with_features(self) -> int:
        """How many images have features other than 0; 0 where the model has no linear head."""
        return 0 if self.features is None else int(self.features.any(axis=1).sum())

    def values(self, base_scores: BaseScores) -> Values:
        """NAP and base scores by name, each float32 (n,)."""
        features = None if self.features is None else torch.from_numpy(self.features)
        found = base_scores(torch.from_numpy(self.logits), features)
        return {NAP: self.nap} | {str(name): score.numpy() for name, score in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class ScoredImages:
    """The scores of n images; ``undecodable`` more could not be decoded.

    ``class_id`` is int64 (n,), ``values`` are NAP and base scores by name, each float32 (n,).
    ``first_problem`` is about the first undecodable image. Takes a few bytes an image, where a
    `Reading` takes all its logits and features.
    """

    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    class_id: NDArray[np.int64]
    values: Values
    undecodable: int
    first_problem: str

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, reading: Reading, base_scores: BaseScores) -> Self:
        """Score what was read."""
        return cls(
            reading.names,
            reading.labels,
            reading.class_id,
            reading.values(base_scores),
            reading.undecodable,
            reading.first_problem,
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Runs a model over image files, batch by batch.

    Every method that reads raises `CalibrationError` where half the images or more cannot be
    decoded, where the model's outputs are not finite, and where the cache cannot be written;
    and `InputDataError` as `nap_stream.image_files.iter_images` does.

    Args:
        loaded: The model.
        limits: What is refused before it is decoded.
        source: Where the images come from.
        cache: Where outputs are kept; None keeps none.
    """

    loaded: LoadedModel
    limits: LimitSettings
    source: Path
    cache: FeatureCache | None = None

    def files(self) -> Iterator[ImageFile]:
        """The images of the source."""
        return iter_images(self.source)

    def read(self, files: Iterable[ImageFile], batch_size: int, advance: Advance) -> Reading:
        """Read all images as they are, and keep all logits and features."""
        return self._joined(self._parts(files, None, batch_size, advance))

    def score(
        self,
        files: Iterable[ImageFile],
        base_scores: BaseScores,
        batch_size: int,
        advance: Advance,
    ) -> ScoredImages:
        """Score all images as they are; logits and features of one batch at a time are kept."""
        return self._score(self._parts(files, None, batch_size, advance), base_scores)

    def score_transformed(
        self, files: Iterable[ImageFile], transform: str, base_scores: BaseScores, advance: Advance
    ) -> ScoredImages:
        """Score all images as pseudo-OOD ones; see `nap_stream.calibration.pseudo_ood`."""
        return self._score(self._parts(files, transform, PSEUDO_BATCH, advance), base_scores)

    def _joined(self, parts: Iterator[Reading]) -> Reading:
        check = ReadingCheck()
        found = list(_checked(parts, check))
        check.require_usable(self.source)
        return Reading.join(found)

    def _score(self, parts: Iterator[Reading], base_scores: BaseScores) -> ScoredImages:
        check = ReadingCheck()
        scored = [
            ScoredImages.of(part, base_scores) for part in _checked(parts, check) if len(part)
        ]
        check.require_usable(self.source)
        return ScoredImages(
            tuple(name for part in scored for name in part.names),
            tuple(label for part in scored for label in part.labels),
            np.concatenate([part.class_id for part in scored]),
            {
                name: np.concatenate([part.values[name] for part in scored])
                for name in scored[0].values
            },
            check.undecodable,
            check.first_problem,
        )

    def _parts(
        self,
        files: Iterable[ImageFile],
        transform: str | None,
        batch_size: int,
        advance: Advance,
    ) -> Iterator[Reading]:
        outputs = ModelOutputs.of(self.loaded, self.limits, self.cache)
        first, iterator = 0, iter(files)
        while batch := list(islice(iterator, batch_size)):
            pseudo = PseudoBatch(transform, PSEUDO_SEED, first) if transform else None
            yield _from_arrays(batch, outputs.batch(batch, pseudo), self.limits)
            first += len(batch)
            advance(len(batch))


def _checked(parts: Iterator[Reading], check: ReadingCheck) -> Iterator[Reading]:
    for part in parts:
        check.add(part.names, part.finite, part.undecodable, part.first_problem)
        yield part


def _from_arrays(files: list[ImageFile], arrays: Arrays, limits: LimitSettings) -> Reading:
    decoded = arrays["decoded"]
    kept = [file for file, good in zip(files, decoded, strict=True) if good]
    refused = [file for file, good in zip(files, decoded, strict=True) if not good]
    empty = np.zeros(0, np.float32)
    return Reading(
        tuple(encodable(file.name) for file in kept),
        tuple(file.label for file in kept),
        arrays.get("logits", empty.reshape(0, 0)),
        arrays.get("features"),
        arrays.get("nap", empty),
        len(refused),
        _problem(refused[0], limits) if refused else "",
    )


def _problem(file: ImageFile, limits: LimitSettings) -> str:
    result = decode_image(file.data, limits)
    name = encodable(file.name)
    return f"{name}: {result.error}" if isinstance(result, Refusal) else name
