"""From image files to what the model makes of them, batch by batch.

The outputs of each batch can be kept in a cache on disk, see `nap_stream.calibration.cache`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.artifact import versions
from nap_stream.calibration.cache import Arrays, FeatureCache, cache_key
from nap_stream.calibration.pseudo_ood import VERSION, transformed
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.methods import NAP
from nap_stream.decode.picture import Refusal
from nap_stream.errors import CalibrationError
from nap_stream.feed import Input, input_on_cpu, model_inputs
from nap_stream.image_files import ImageFile, iter_images
from nap_stream.model.device_decode import DeviceDecoder, device_decoder
from nap_stream.model.facts import Execution
from nap_stream.model.load import LoadedModel
from nap_stream.model.output import OutputFacts, wrong_kind
from nap_stream.settings.schema import LimitSettings
from nap_stream.text import encodable

Values = dict[str, NDArray[np.float32]]
Advance = Callable[[int], None]
"""Told how many more images were read."""

PSEUDO_SEED = 0

_ROUNDING = ("torch", "torchvision", "pillow", "numpy")
"""What decodes, resizes and computes: another version rounds otherwise."""


_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Warned:
    """How many images were decoded with a warning, and the first of them with what was said."""

    images: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """Put what was said of several parts behind each other."""
        every = list(parts)
        examples = [one for part in every for one in part.examples]
        return cls(sum(part.images for part in every), tuple(examples[:_EXAMPLES]))


NOT_WARNED = Warned()


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the model makes of n images; ``undecodable`` more could not be decoded.

    ``logits`` is float32 (n, K), ``features`` float32 (n, D) or null where the model gives
    none, ``nap`` float32 (n,). ``first_problem`` is about the first undecodable image.
    ``positions`` are the numbers of the n images among all that were given, from 0, int64 (n,).
    ``warned`` are those of them of which the decoder warned.
    """

    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None
    nap: NDArray[np.float32]
    undecodable: int
    first_problem: str
    warned: Warned = NOT_WARNED

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
            np.concatenate([part.positions for part in parts]),
            np.concatenate(logits) if logits else parts[0].logits,
            np.concatenate(features) if features else None,
            np.concatenate([part.nap for part in parts]),
            *_undecodable(parts),
            Warned.join(part.warned for part in parts),
        )

    @property
    def class_id(self) -> NDArray[np.int64]:
        """Predicted classes, int64 (n,)."""
        if not len(self):
            return np.zeros(0, np.int64)
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
    def outputs(self) -> OutputFacts | None:
        """What is measured of the finite logits; None where there are none."""
        finite = np.isfinite(self.logits).all(axis=1)
        return OutputFacts.of(self.logits[finite]) if finite.any() else None

    @property
    def with_features(self) -> int:
        """How many images have features other than 0; 0 where the model gives none."""
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
    ``first_problem`` is about the first undecodable image, ``not_finite`` are the names of images
    whose outputs are not finite, ``outputs`` what was measured of the logits of the others,
    ``warned`` those of which the decoder warned. Takes a few bytes an image, where a `Reading`
    takes all its logits and features.
    """

    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    class_id: NDArray[np.int64]
    values: Values
    undecodable: int
    first_problem: str
    not_finite: tuple[str, ...] = ()
    outputs: OutputFacts | None = None
    warned: Warned = NOT_WARNED

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, reading: Reading, base_scores: BaseScores) -> Self:
        """Score what was read; no values where that is nothing."""
        return cls(
            reading.names,
            reading.labels,
            reading.class_id,
            reading.values(base_scores) if len(reading) else {},
            reading.undecodable,
            reading.first_problem,
            tuple(reading.not_finite),
            reading.outputs,
            reading.warned,
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put scores behind each other; of at least one image."""
        some = [part for part in parts if len(part)]
        return cls(
            tuple(name for part in some for name in part.names),
            tuple(label for part in some for label in part.labels),
            np.concatenate([part.class_id for part in some]),
            {name: np.concatenate([part.values[name] for part in some]) for name in some[0].values},
            *_undecodable(parts),
            outputs=OutputFacts.join([part.outputs for part in some if part.outputs]),
            warned=Warned.join(part.warned for part in some),
        )


Read = TypeVar("Read", Reading, ScoredImages)


@dataclass(frozen=True, slots=True)
class Reader:
    """Runs a model over image files, batch by batch.

    Every method that reads raises `CalibrationError` where half the images or more cannot be
    decoded, where the model's outputs are not finite, and where the cache cannot be written;
    `read` and `score` also where the outputs are no logits;
    and `InputDataError` as `nap_stream.image_files.iter_images` does.

    Images beyond ``limits`` are refused before they are decoded. Without a cache no outputs are
    kept. ``on_device`` decodes what `model_inputs` leaves to it.
    """

    loaded: LoadedModel
    limits: LimitSettings
    source: Path
    cache: FeatureCache | None = None
    on_device: DeviceDecoder | None = None

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        limits: LimitSettings,
        source: Path,
        cache: FeatureCache | None = None,
    ) -> Self:
        """A reader with the decoder that the preprocessing names.

        Raises:
            ConfigError: See `device_decoder`.
        """
        on_device = device_decoder(loaded.preprocessing, loaded.device)
        return cls(loaded, limits, source, cache, on_device)

    def files(self) -> Iterator[ImageFile]:
        """The images of the source."""
        return iter_images(self.source)

    def read(self, files: Iterable[ImageFile], batch_size: int, advance: Advance) -> Reading:
        """Read all images as they are, and keep all logits and features."""
        parts = list(self._batches(files, batch_size, advance))
        _require_usable(parts, self.source)
        return self._of_logits(Reading.join(parts))

    def score(
        self, files: Iterable[ImageFile], base_scores: BaseScores, batch_size: int, advance: Advance
    ) -> ScoredImages:
        """Score all images as they are; logits and features of one batch at a time are kept."""
        return self._of_logits(
            self._joined(
                ScoredImages.of(part, base_scores)
                for part in self._batches(files, batch_size, advance)
            )
        )

    def score_transformed(
        self,
        blocks: Sequence[list[ImageFile]],
        transform: str,
        base_scores: Sequence[BaseScores],
        advance: Advance,
        batch_size: int | None = None,
    ) -> ScoredImages:
        """Score images as pseudo-OOD ones; see `nap_stream.calibration.pseudo_ood`.

        A transform sees one block at a time. Each block has its own base scores, and goes through
        the model in batches, or whole.
        """
        readings = self._outputs_of(blocks, transform, advance, batch_size)
        pairs = zip(readings, base_scores, strict=True)
        return self._joined((ScoredImages.of(part, own) for part, own in pairs), transform)

    def score_faulty(
        self,
        blocks: Sequence[list[ImageFile]],
        fault: str,
        base_scores: BaseScores,
        advance: Advance,
        batch_size: int,
    ) -> list[ScoredImages]:
        """Score faulty images, see `nap_stream.calibration.faults`; a part for each block.

        What the model makes of them is not checked: values that are not finite stay so.
        """
        readings = self._outputs_of(blocks, fault, advance, batch_size)
        return [ScoredImages.of(part, base_scores) for part in readings]

    def _of_logits(self, read: Read) -> Read:
        """Refuse what was made of outputs that are no logits.

        Raises:
            CalibrationError: Says what they are.
        """
        facts = read.outputs
        wrong = None if facts is None else wrong_kind(facts, self.loaded.output.kind)
        if wrong is not None:
            raise CalibrationError(wrong.problem, str(self.source), wrong.action)
        return read

    def _joined(self, parts: Iterable[ScoredImages], transform: str | None = None) -> ScoredImages:
        scored = list(parts)
        _require_usable(scored, self.source, transform)
        return ScoredImages.join(scored)

    def _batches(
        self, files: Iterable[ImageFile], batch_size: int, advance: Advance
    ) -> Iterator[Reading]:
        iterator = iter(files)
        batches = iter(lambda: list(islice(iterator, batch_size)), [])
        return self._outputs_of(batches, None, advance)

    def _outputs_of(
        self,
        blocks: Iterable[list[ImageFile]],
        transform: str | None,
        advance: Advance,
        batch_size: int | None = None,
    ) -> Iterator[Reading]:
        """What the model makes of blocks that are transformed whole, in batches or as they are."""
        identity = _identity(self.loaded, self.limits)
        first = 0
        for block in blocks:
            arrays = self._outputs(block, transform, first, batch_size or len(block), identity)
            yield self._reading(block, first, arrays)
            first += len(block)
            advance(len(block))

    def _outputs(
        self,
        files: list[ImageFile],
        transform: str | None,
        first_index: int,
        batch_size: int,
        identity: Mapping[str, Any],
    ) -> Arrays:
        """What `_compute` gives, from the cache where it is there."""
        if self.cache is None:
            return self._compute(files, transform, first_index, batch_size)
        seeded = [transform, VERSION, PSEUDO_SEED, first_index] if transform else None
        images = [hashlib.sha256(file.data).hexdigest() for file in files]
        key = cache_key({**identity, "transform": seeded, "images": images})
        kept = self.cache.get(key)
        if kept is None or not _is_whole(
            kept,
            len(files),
            has_features=self.loaded.has_features,
            is_warned_of=transform is None,
        ):
            kept = self._compute(files, transform, first_index, batch_size)
            self.cache.put(key, kept)
        return kept

    def _compute(
        self, files: list[ImageFile], transform: str | None, first_index: int, batch_size: int
    ) -> Arrays:
        """The model's outputs for n files, of which k can be decoded, in batches.

        Returns:
            ``decoded`` bool (n,); of images as they are ``warned`` bool (n,), those of which the
            decoder warned; where k is not 0, ``logits`` float32 (k, K), ``nap`` float32 (k,), and
            ``features`` float32 (k, D) where the model has any.
        """
        decoded = model_inputs(
            [file.data for file in files], self.limits, self.loaded.preprocessing, self.on_device
        )
        inputs = [result for result in decoded if not isinstance(result, Refusal)]
        arrays: Arrays = {
            "decoded": np.array([not isinstance(result, Refusal) for result in decoded])
        }
        if transform is None:
            warned = [isinstance(one, Input) and one.warning is not None for one in decoded]
            arrays["warned"] = np.array(warned)
        if not inputs:
            return arrays
        block = torch.stack([one.pixels for one in inputs])
        if transform is not None:
            block = transformed(transform, block, PSEUDO_SEED, first_index)
        found = [self.loaded.forward(batch) for batch in torch.split(block, batch_size)]
        for name in ("logits", "nap", "features"):
            parts = [getattr(one, name) for one in found]
            if parts[0] is not None:
                arrays[name] = torch.cat(parts).cpu().numpy()
        return arrays

    def _reading(self, files: list[ImageFile], first: int, arrays: Arrays) -> Reading:
        decoded = arrays["decoded"]
        kept = [file for file, good in zip(files, decoded, strict=True) if good]
        refused = [file for file, good in zip(files, decoded, strict=True) if not good]
        warned = [files[row] for row in np.flatnonzero(arrays.get("warned", ()))]
        empty = np.zeros(0, np.float32)
        return Reading(
            tuple(encodable(file.name) for file in kept),
            tuple(file.label for file in kept),
            first + np.flatnonzero(decoded),
            arrays.get("logits", empty.reshape(0, 0)),
            arrays.get("features"),
            arrays.get("nap", empty),
            len(refused),
            self._problem(refused[0]) if refused else "",
            Warned(len(warned), tuple(self._problem(file) for file in warned[:_EXAMPLES])),
        )

    def _problem(self, file: ImageFile) -> str:
        """What is said of a file, decoded once more."""
        found = input_on_cpu(file.data, self.limits, self.loaded.preprocessing)
        said = found.error if isinstance(found, Refusal) else found.warning
        name = encodable(file.name)
        return name if said is None else f"{name}: {said}"


def _require_usable(
    parts: Sequence[Reading] | Sequence[ScoredImages], source: Path, transform: str | None = None
) -> None:
    """Refuse images that nothing can be concluded from; ``transform`` has made them pseudo-OOD.

    Raises:
        CalibrationError: Half of them or more cannot be decoded, or the model's outputs are
            not finite.
    """
    decoded = sum(len(part) for part in parts)
    undecodable, first_problem = _undecodable(parts)
    if not decoded:
        raise CalibrationError(
            f"none of the {undecodable} images could be decoded; first "
            f"{first_problem or 'there are none'}",
            str(source),
            "Name a folder of image files, or a Parquet file",
        )
    if undecodable >= decoded:
        raise CalibrationError(
            f"{undecodable} of {undecodable + decoded} images cannot be decoded; first "
            f"{first_problem}",
            str(source),
            "Name a folder of images alone: what is left may not be like the stream",
        )
    not_finite = [name for part in parts for name in part.not_finite]
    if not_finite:
        made, advice = "", ""
        if transform is not None:
            made = f" that the transform {transform} has made pseudo-OOD"
            advice = ", or choose a method of one score, which needs no such images"
        raise CalibrationError(
            f"the model's activations or logits are not finite for {len(not_finite)} of "
            f"{decoded} images{made}, first {not_finite[0]}",
            str(source),
            f"Check the weights and the preprocessing{advice}",
        )


def _undecodable(parts: Sequence[Reading] | Sequence[ScoredImages]) -> tuple[int, str]:
    """How many images could not be decoded, and what is said about the first."""
    problems = (part.first_problem for part in parts if part.first_problem)
    return sum(part.undecodable for part in parts), next(problems, "")


def _identity(loaded: LoadedModel, limits: LimitSettings) -> dict[str, Any]:
    """All of a cache key that is the same for every batch: what decides the outputs."""
    found = versions()
    # On a CPU, keys of plain float32 are those of before there was another. On a GPU, what was
    # computed before there was another took TF32 kernels.
    is_as_before = loaded.execution == Execution() and loaded.device.type == "cpu"
    execution = {} if is_as_before else {"execution": str(loaded.execution)}
    return execution | {
        "model": loaded.fingerprint,
        "versions": {name: found[name] for name in _ROUNDING},
        "device": loaded.device.type,
        "site": str(loaded.feature_site),
        "head": str(loaded.head),
        "limits": limits.model_dump(mode="json"),
    }


def _is_whole(arrays: Arrays, files: int, *, has_features: bool, is_warned_of: bool) -> bool:
    """Whether a file of the cache holds the outputs for so many image files."""
    of_files = {"decoded", *({"warned"} if is_warned_of else ())}
    if any(name not in arrays or arrays[name].shape != (files,) for name in of_files):
        return False
    decoded = int(arrays["decoded"].sum())
    expected = set(of_files)
    if decoded:
        expected |= {"logits", "nap"} | ({"features"} if has_features else set())
    rows = {len(arrays[name]) for name in arrays if name not in of_files}
    return arrays.keys() == expected and rows <= {decoded}
