"""Making a calibration: the model over held-out in-distribution images."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.core.conformal import (
    flag_rank,
    flag_rate_interval,
    required_size,
    threshold,
)
from nap_stream.core.fusion import fuse
from nap_stream.decode import Refusal, decode_image
from nap_stream.errors import CalibrationError
from nap_stream.image_files import ImageFile, count_images, iter_images
from nap_stream.model.loading import LoadedModel, load_model
from nap_stream.model.preprocessing import preprocess
from nap_stream.model.scorer import BatchScores, OnePassScorer
from nap_stream.settings import LimitSettings, ModelSettings

DEFAULT_WEIGHT = 0.4
"""Of energy in the fused score. Of the fixed weights, the one with the best mean AUROC over
eight out-of-distribution sets, on a DenseNet and on a ResNet-20."""

FLAG_RATE_CONFIDENCE = 0.95

Progress = Callable[[int, int | None], None]
"""Called with (images read, images in all or None)."""

_DISTRIBUTIONS = ("nap-stream", "torch", "torchvision", "pillow", "numpy")


def calibrate(
    model_settings: ModelSettings,
    images: Path,
    *,
    alpha: float,
    weight: float = DEFAULT_WEIGHT,
    batch_size: int,
    limits: LimitSettings,
    device: torch.device,
    clock: Clock,
    progress: Progress | None = None,
) -> Calibration:
    """Score in-distribution images that the model was not trained on.

    Args:
        model_settings: The model to calibrate.
        images: A folder or a Parquet file; see `iter_images`. What cannot be decoded is left
            out and counted.
        alpha: The p-value at and below which an image will be flagged, in (0, 1).
        weight: Of energy in the fused score, in [0, 1]; the rest is NAP's.
        batch_size: Images a forward pass.
        limits: What is refused before it is decoded.
        device: Where the model runs.
        clock: For the time that the calibration states.
        progress: Told after each batch.

    Raises:
        ModelError: See `load_model`.
        InputDataError: See `iter_images`.
        CalibrationError: No image could be decoded, fewer than ``alpha`` needs could, or the
            model's scores are not finite.
        ValueError: ``alpha`` or ``weight`` is out of range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in [0, 1], got {weight}")
    total = count_images(images)
    _require_enough(total, alpha, images, "the images")
    loaded = load_model(model_settings, device)
    run = _Run(OnePassScorer(loaded), limits, images)
    for batch in _batches(iter_images(images), batch_size):
        run.score(batch)
        if progress is not None:
            progress(run.read, total)
    run.require_decoded()
    _require_enough(run.decoded, alpha, images, "the images that could be decoded")
    return _calibration(run, loaded, model_settings, alpha=alpha, weight=weight, clock=clock)


@dataclass(slots=True)
class _Run:
    """The scores so far."""

    scorer: OnePassScorer
    limits: LimitSettings
    source: Path
    read: int = 0
    decoded: int = 0
    first_problem: str = ""
    scores: list[BatchScores] = field(default_factory=list)

    def score(self, batch: list[ImageFile]) -> None:
        pixels, names = [], []
        for file in batch:
            result = decode_image(file.data, self.limits)
            if isinstance(result, Refusal):
                self.first_problem = self.first_problem or f"{file.name}: {result.error}"
                continue
            pixels.append(preprocess(result.pixels, self.scorer.preprocessing))
            names.append(file.name)
        self.read += len(batch)
        if not pixels:
            return
        scores = self.scorer(torch.stack(pixels))
        bad = np.flatnonzero(~scores.is_finite())
        if len(bad):
            raise CalibrationError(
                f"the model's scores are not finite for {len(bad)} of {len(names)} images, "
                f"first {names[bad[0]]}",
                str(self.source),
                "Check the weights and the preprocessing",
            )
        self.decoded += len(names)
        self.scores.append(scores)

    def require_decoded(self) -> None:
        undecodable = self.read - self.decoded
        if not self.decoded:
            raise CalibrationError(
                f"none of the {self.read} images could be decoded; first {self.first_problem}",
                str(self.source),
                "Name a folder of JPEG, PNG or WebP files, or a Parquet file",
            )
        if undecodable:
            structlog.get_logger().warning(
                "calibration_images_undecodable",
                undecodable=undecodable,
                images=self.read,
                first=self.first_problem,
            )

    def column(self, name: str) -> NDArray[np.float32]:
        return np.concatenate([getattr(scores, name) for scores in self.scores])


def _calibration(
    run: _Run,
    loaded: LoadedModel,
    settings: ModelSettings,
    *,
    alpha: float,
    weight: float,
    clock: Clock,
) -> Calibration:
    energy, nap = run.column("energy"), run.column("nap")
    sorted_scores = np.sort(fuse(energy, nap, weight))
    return Calibration(
        alpha=alpha,
        threshold=threshold(sorted_scores, alpha),
        flag_rank=flag_rank(alpha, run.decoded),
        flag_rate_interval=flag_rate_interval(alpha, run.decoded, FLAG_RATE_CONFIDENCE),
        flag_rate_confidence=FLAG_RATE_CONFIDENCE,
        base="energy",
        weight=weight,
        weight_choice="given",
        model_factory=settings.factory,
        model_fingerprint=loaded.fingerprint,
        feature_site=loaded.feature_site,
        preprocessing=loaded.preprocessing,
        image_source=run.source.resolve().name,
        undecodable=run.read - run.decoded,
        mean_confidence=float(run.column("confidence").mean(dtype=np.float64)),
        versions=_versions(),
        created_ms=clock.now_ms(),
        energy=energy,
        nap=nap,
        sorted_scores=sorted_scores,
    )


def _require_enough(found: int, alpha: float, images: Path, what: str) -> None:
    needed = required_size(alpha)
    if 0 < found < needed:
        raise CalibrationError(
            f"{what} are {found}, and alpha = {alpha:g} needs at least {needed}",
            str(images),
            "Give more held-out images, or a larger alpha",
        )


def _batches(files: Iterator[ImageFile], size: int) -> Iterator[list[ImageFile]]:
    batch: list[ImageFile] = []
    for file in files:
        batch.append(file)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
