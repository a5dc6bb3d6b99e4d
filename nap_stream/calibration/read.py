"""From image files to what the model makes of them, batch by batch.

The outputs of each batch can be kept in a cache on disk: two cores are slow, and a run can be
cut off.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from nap_stream.calibration.artifact import versions
from nap_stream.calibration.pseudo_ood import VERSION, transformed
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.decode import Refusal, decode_image
from nap_stream.errors import CalibrationError
from nap_stream.files import replacing
from nap_stream.image_files import ImageFile, iter_images
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.schema import LimitSettings
from nap_stream.text import encodable

Arrays = dict[str, NDArray[Any]]
Values = dict[str, NDArray[np.float32]]
Advance = Callable[[int], None]
"""Told how many more images were read."""

PSEUDO_SEED = 0
PSEUDO_BATCH = 50
"""Pseudo-OOD images are mixed within a batch: what they are must not depend on its size."""

_KEY_SCHEME = 1
_ROUNDING = ("torch", "torchvision", "pillow", "numpy")
"""What decodes, resizes and computes: another version rounds otherwise."""


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
    def not_finite(self) -> list[str]:
        """The names of the images of which something is not finite."""
        finite = np.isfinite(self.logits).all(axis=1) & np.isfinite(self.nap)
        if self.features is not None:
            finite &= np.isfinite(self.features).all(axis=1)
        return [self.names[row] for row in np.flatnonzero(~finite)]

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
    cache: "FeatureCache | None" = None

    def files(self) -> Iterator[ImageFile]:
        """The images of the source."""
        return iter_images(self.source)

    def read(self, files: Iterable[ImageFile], batch_size: int, advance: Advance) -> Reading:
        """Read all images as they are, and keep all logits and features."""
        check = _ReadingCheck(self.source)
        parts = list(check.counted(self._batches(files, None, batch_size, advance)))
        check.require_usable()
        return Reading.join(parts)

    def score(
        self,
        files: Iterable[ImageFile],
        base_scores: BaseScores,
        batch_size: int,
        advance: Advance,
    ) -> ScoredImages:
        """Score all images as they are; logits and features of one batch at a time are kept."""
        return self._score(self._batches(files, None, batch_size, advance), base_scores)

    def score_transformed(
        self, files: Iterable[ImageFile], transform: str, base_scores: BaseScores, advance: Advance
    ) -> ScoredImages:
        """Score all images as pseudo-OOD ones; see `nap_stream.calibration.pseudo_ood`."""
        return self._score(self._batches(files, transform, PSEUDO_BATCH, advance), base_scores)

    def _score(self, parts: Iterator[Reading], base_scores: BaseScores) -> ScoredImages:
        check = _ReadingCheck(self.source)
        scored = [ScoredImages.of(part, base_scores) for part in check.counted(parts) if len(part)]
        check.require_usable()
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

    def _batches(
        self,
        files: Iterable[ImageFile],
        transform: str | None,
        batch_size: int,
        advance: Advance,
    ) -> Iterator[Reading]:
        outputs = _ModelOutputs(self.loaded, self.limits, self.cache, _identity(self))
        first, iterator = 0, iter(files)
        while batch := list(islice(iterator, batch_size)):
            yield _reading(batch, outputs.batch(batch, transform, first), self.limits)
            first += len(batch)
            advance(len(batch))


class _ReadingCheck:
    """Counts what was read of a source, to tell whether anything can be concluded from it."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._decoded = 0
        self._not_finite: list[str] = []
        self.undecodable = 0
        self.first_problem = ""

    def counted(self, parts: Iterator[Reading]) -> Iterator[Reading]:
        """Pass the parts on, and count them."""
        for part in parts:
            self._decoded += len(part)
            self._not_finite += part.not_finite
            self.undecodable += part.undecodable
            self.first_problem = self.first_problem or part.first_problem
            yield part

    def require_usable(self) -> None:
        """Refuse images that nothing can be concluded from.

        Raises:
            CalibrationError: Half of them or more cannot be decoded, or the model's outputs are
                not finite.
        """
        if not self._decoded:
            raise CalibrationError(
                f"none of the {self.undecodable} images could be decoded; first "
                f"{self.first_problem or 'there are none'}",
                str(self._source),
                "Name a folder of JPEG, PNG or WebP files, or a Parquet file",
            )
        if self.undecodable >= self._decoded:
            raise CalibrationError(
                f"{self.undecodable} of {self.undecodable + self._decoded} images cannot be "
                f"decoded; first {self.first_problem}",
                str(self._source),
                "Name a folder of images alone: what is left may not be like the stream",
            )
        if self._not_finite:
            raise CalibrationError(
                f"the model's activations or logits are not finite for {len(self._not_finite)} of "
                f"{self._decoded} images, first {self._not_finite[0]}",
                str(self._source),
                "Check the weights and the preprocessing",
            )


def _reading(files: list[ImageFile], arrays: Arrays, limits: LimitSettings) -> Reading:
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


def _identity(reader: Reader) -> dict[str, Any]:
    """All of a cache key that is the same for every batch: what decides the outputs."""
    found, loaded = versions(), reader.loaded
    return {
        "model": loaded.fingerprint,
        "versions": {name: found[name] for name in _ROUNDING},
        "device": loaded.device.type,
        "site": str(loaded.feature_site),
        "head": str(loaded.head),
        "limits": reader.limits.model_dump(mode="json"),
    }


@dataclass(frozen=True, slots=True)
class _ModelOutputs:
    """Gives the outputs of a model for a batch of files: computed, or taken from the cache."""

    loaded: LoadedModel
    limits: LimitSettings
    cache: "FeatureCache | None"
    identity: dict[str, Any]

    def batch(self, files: list[ImageFile], transform: str | None, first_index: int) -> Arrays:
        """The outputs for n files, of which k can be decoded.

        Args:
            files: The batch.
            transform: What makes pseudo-OOD images of them; None leaves them as they are.
            first_index: The number of the batch's first image among all images.

        Returns:
            ``decoded`` bool (n,); where k is not 0, ``logits`` float32 (k, K), ``nap``
            float32 (k,), and ``features`` float32 (k, D) where the model has a linear head.

        Raises:
            CalibrationError: The cache cannot be written.
        """
        if self.cache is None:
            return self._compute(files, transform, first_index)
        seeded = [transform, VERSION, PSEUDO_SEED, first_index] if transform else None
        images = [hashlib.sha256(file.data).hexdigest() for file in files]
        key = cache_key({**self.identity, "transform": seeded, "images": images})
        kept = self.cache.get(key)
        if kept is None or not self._is_whole(kept, len(files)):
            kept = self._compute(files, transform, first_index)
            self.cache.put(key, kept)
        return kept

    def _is_whole(self, arrays: Arrays, files: int) -> bool:
        """Whether a file of the cache holds what `batch` returns."""
        if "decoded" not in arrays or arrays["decoded"].shape != (files,):
            return False
        decoded = int(arrays["decoded"].sum())
        expected = {"decoded"}
        if decoded:
            expected |= {"logits", "nap"} | ({"features"} if self.loaded.head else set())
        rows = {len(arrays[name]) for name in arrays if name != "decoded"}
        return arrays.keys() == expected and rows <= {decoded}

    def _compute(self, files: list[ImageFile], transform: str | None, first_index: int) -> Arrays:
        decoded = [decode_image(file.data, self.limits) for file in files]
        pixels = [
            preprocess(result.pixels, self.loaded.preprocessing)
            for result in decoded
            if not isinstance(result, Refusal)
        ]
        arrays: Arrays = {
            "decoded": np.array([not isinstance(result, Refusal) for result in decoded])
        }
        if not pixels:
            return arrays
        batch = torch.stack(pixels)
        if transform is not None:
            batch = transformed(transform, batch, PSEUDO_SEED, first_index)
        found = self.loaded.forward(batch)
        arrays |= {"logits": found.logits.cpu().numpy(), "nap": found.nap.cpu().numpy()}
        if found.features is not None:
            arrays["features"] = found.features.cpu().numpy()
        return arrays


def cache_key(parts: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON tree: everything that decides what the arrays are."""
    canonical = json.dumps({"scheme": _KEY_SCHEME, **parts}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """A folder of safetensors files, each under the hash of what it was computed from.

    Other weights, images, batches or versions of the libraries that decode and compute have
    other keys. The code of the model is in no key (its fingerprint covers the factory's name and
    the weights): delete the folder where that changes. It may be deleted at any time, and several
    processes may share it.
    """

    folder: Path

    def get(self, key: str) -> Arrays | None:
        """Arrays by name; None where they are not there. A damaged file counts as not there."""
        path = self._path(key)
        try:
            return load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError) as error:
            # safetensors answers a dtype that numpy does not have, such as BF16, with KeyError.
            structlog.get_logger().warning(
                "feature_cache_file_unreadable", path=str(path), error=str(error)
            )
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays, so that a half-written file never stands under the key.

        Raises:
            CalibrationError: The folder cannot be written.
        """
        try:
            with replacing(self._path(key)) as unfinished:
                save_file(dict(arrays), unfinished)
        except (OSError, SafetensorError) as error:
            raise CalibrationError(
                f"the feature cache cannot be written ({error})",
                str(self.folder),
                "Choose another folder with --cache, or make room",
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
