"""From image files to what the model makes of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.feature_cache import FeatureCache, cache_key
from nap_stream.calibration.pseudo_ood import VERSION, transformed
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.decode import Refusal, decode_image
from nap_stream.errors import CalibrationError
from nap_stream.image_files import ImageFile, iter_images
from nap_stream.model.loading import LoadedModel
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings import LimitSettings

Values = dict[str, NDArray[np.float32]]
Advance = Callable[[int], None]
"""Told how many more images were read."""

PSEUDO_SEED = 0


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

    def values(self, base_scores: BaseScores) -> Values:
        """NAP and base scores by name, each float32 (n,)."""
        features = None if self.features is None else torch.from_numpy(self.features)
        found = base_scores(torch.from_numpy(self.logits), features)
        return {NAP: self.nap} | {str(name): score.numpy() for name, score in found.items()}


@dataclass(frozen=True, slots=True)
class Reader:
    """Runs a model over image files, batch by batch.

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
        """Read all images, as they are.

        Raises:
            CalibrationError: Half of them or more cannot be decoded, or the model's outputs are
                not finite.
            InputDataError: See `nap_stream.image_files.iter_images`.
        """
        parts = []
        for batch in _batches(files, batch_size):
            parts.append(self._batch(batch, None, 0))
            advance(len(batch))
        return self._checked(parts)

    def read_transformed(
        self, files: Sequence[ImageFile], transform: str, batch_size: int, advance: Advance
    ) -> Reading:
        """Read all images as pseudo-OOD ones; see `nap_stream.calibration.pseudo_ood`.

        Raises:
            CalibrationError: As `read`.
        """
        parts, first = [], 0
        for batch in _batches(files, batch_size):
            parts.append(self._batch(batch, transform, first))
            first += len(batch)
            advance(len(batch))
        return self._checked(parts)

    def _checked(self, parts: list[Reading]) -> Reading:
        whole = Reading.join(parts) if parts else None
        if whole is None or not len(whole):
            problem = whole.first_problem if whole is not None else "there are none"
            count = whole.undecodable if whole is not None else 0
            raise CalibrationError(
                f"none of the {count} images could be decoded; first {problem}",
                str(self.source),
                "Name a folder of JPEG, PNG or WebP files, or a Parquet file",
            )
        if whole.undecodable >= len(whole):
            raise CalibrationError(
                f"{whole.undecodable} of {whole.undecodable + len(whole)} images cannot be "
                f"decoded; first {whole.first_problem}",
                str(self.source),
                "Name a folder of images alone: what is left may not be like the stream",
            )
        finite = np.isfinite(whole.logits).all(axis=1) & np.isfinite(whole.nap)
        if whole.features is not None:
            finite &= np.isfinite(whole.features).all(axis=1)
        bad = np.flatnonzero(~finite)
        if len(bad):
            raise CalibrationError(
                f"the model's activations or logits are not finite for {len(bad)} of "
                f"{len(whole)} images, first {whole.names[bad[0]]}",
                str(self.source),
                "Check the weights and the preprocessing",
            )
        return whole

    def _batch(self, files: list[ImageFile], transform: str | None, first: int) -> Reading:
        key = self._key(files, transform, first)
        if self.cache is not None:
            kept = self.cache.get(key)
            if kept is not None:
                return _from_arrays(files, kept, self.limits)
        arrays = self._compute(files, transform, first)
        if self.cache is not None:
            self.cache.put(key, arrays)
        return _from_arrays(files, arrays, self.limits)

    def _key(self, files: list[ImageFile], transform: str | None, first: int) -> str:
        if self.cache is None:
            return ""
        return cache_key(
            {
                "model": self.loaded.fingerprint,
                # Other kernels round otherwise.
                "torch": [torch.__version__, self.loaded.device.type],
                "site": str(self.loaded.feature_site),
                "head": str(self.loaded.head),
                "limits": self.limits.model_dump(mode="json"),
                "transform": [transform, VERSION, PSEUDO_SEED, first] if transform else None,
                "images": [hashlib.sha256(file.data).hexdigest() for file in files],
            }
        )

    def _compute(
        self, files: list[ImageFile], transform: str | None, first: int
    ) -> dict[str, NDArray[Any]]:
        decoded = [decode_image(file.data, self.limits) for file in files]
        pixels = [
            preprocess(result.pixels, self.loaded.preprocessing)
            for result in decoded
            if not isinstance(result, Refusal)
        ]
        arrays: dict[str, NDArray[Any]] = {
            "decoded": np.array([not isinstance(result, Refusal) for result in decoded])
        }
        if not pixels:
            return arrays
        batch = torch.stack(pixels)
        if transform is not None:
            batch = transformed(transform, batch, PSEUDO_SEED, first)
        found = self.loaded.forward(batch)
        arrays |= {"logits": found.logits.cpu().numpy(), "nap": found.nap.cpu().numpy()}
        if found.features is not None:
            arrays["features"] = found.features.cpu().numpy()
        return arrays


def _from_arrays(
    files: list[ImageFile], arrays: dict[str, NDArray[Any]], limits: LimitSettings
) -> Reading:
    decoded = arrays["decoded"]
    kept = [file for file, good in zip(files, decoded, strict=True) if good]
    refused = [file for file, good in zip(files, decoded, strict=True) if not good]
    empty = np.zeros(0, np.float32)
    return Reading(
        tuple(file.name for file in kept),
        tuple(file.label for file in kept),
        arrays.get("logits", empty.reshape(0, 0)),
        arrays.get("features"),
        arrays.get("nap", empty),
        len(refused),
        _problem(refused[0], limits) if refused else "",
    )


def _problem(file: ImageFile, limits: LimitSettings) -> str:
    result = decode_image(file.data, limits)
    return f"{file.name}: {result.error}" if isinstance(result, Refusal) else file.name


def _batches(files: Iterable[ImageFile], size: int) -> Iterator[list[ImageFile]]:
    iterator = iter(files)
    while batch := list(islice(iterator, size)):
        yield batch
