"""Putting a calibration together from what was read and fitted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.calibration import (
    CLASS_ID,
    FEATURE_MEAN,
    KNN_BANK,
    REFERENCE,
    SCORE,
    VALUE,
    Calibration,
    array_sha256,
)
from nap_stream.calibration.document import CalibrationDocument, ImageFacts, ModelFacts
from nap_stream.calibration.fitting import Fitted
from nap_stream.calibration.reading import Reading, Values
from nap_stream.calibration.versions import versions
from nap_stream.core.judging import Judge, Rule
from nap_stream.core.methods import Method, method_scores
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.model.loading import LoadedModel

FLAG_RATE_CONFIDENCE = 0.95
SKILL = 0.2
"""A share this much of the way from guessing to certainty; below it a model and its images do
not belong together."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a calibration is made of. ``fit_reading`` is null where nothing was fitted."""

    method: Method
    weight: float | None
    search: WeightSearch | None
    fitted: Fitted
    fit_reading: Reading | None
    reading: Reading


def assemble(
    parts: Parts,
    rule: Rule,
    loaded: LoadedModel,
    parameters: ScoreParameters,
    *,
    factory: str,
    source: Path,
    fit_source: Path | None,
    created_ms: int,
) -> Calibration:
    """Score the calibration images by the method, and put everything together.

    Raises:
        ValueError: The images are too few for the rule; says how many are needed.
    """
    reading = parts.reading
    values = reading.values(parts.fitted.base_scores)
    references = parts.fitted.references(parts.method)
    location = parts.fitted.location(parts.method) if parts.method.needs_location else 0.0
    scores = method_scores(
        parts.method, values, weight=parts.weight, location=location, reference=references
    )
    judge = Judge(rule, scores, reading.class_id, len(loaded.class_names))
    arrays = _arrays(scores, reading, values, references, parts.fitted)
    confidence = float(values[BaseScore.MSP].mean(dtype=np.float64))
    accuracy = _accuracy(reading, loaded.class_names)
    document = CalibrationDocument(
        method=str(parts.method),
        weight=parts.weight,
        location=location,
        weight_search=parts.search,
        rule=rule,
        groups=judge.groups,
        flag_rate_confidence=FLAG_RATE_CONFIDENCE,
        scores=parts.fitted.base_scores.names,
        parameters=parameters,
        react_clip=parts.fitted.fits.react_clip,
        model=ModelFacts(
            factory=factory,
            fingerprint=loaded.fingerprint,
            weights_fingerprint=loaded.weights_fingerprint,
            class_names=loaded.class_names,
            preprocessing=loaded.preprocessing,
            feature_site=loaded.feature_site,
            head=loaded.head,
        ),
        images=_image_facts(source, reading),
        fit_images=(
            None if parts.fit_reading is None else _image_facts(fit_source, parts.fit_reading)
        ),
        mean_confidence=confidence,
        accuracy=accuracy,
        warnings=(
            *_warnings(parts, confidence, accuracy, len(loaded.class_names)),
            *_base_warnings(parts, values),
        ),
        versions=versions(),
        created_ms=created_ms,
        array_sha256=array_sha256(arrays),
    )
    return Calibration(document, arrays)


def _arrays(
    scores: NDArray[np.float64],
    reading: Reading,
    values: Values,
    references: dict[str, NDArray[np.float64]],
    fitted: Fitted,
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {SCORE: scores, CLASS_ID: reading.class_id.astype(np.int32)}
    arrays |= {f"{VALUE}{name}": value for name, value in values.items()}
    arrays |= {f"{REFERENCE}{name}": value for name, value in references.items()}
    if fitted.fits.feature_mean is not None:
        arrays[FEATURE_MEAN] = fitted.fits.feature_mean
    if fitted.fits.knn_bank is not None:
        arrays[KNN_BANK] = fitted.fits.knn_bank
    return arrays


def _image_facts(source: Path | None, reading: Reading) -> ImageFacts:
    return ImageFacts(
        source=None if source is None else source.resolve().name,
        scored=len(reading),
        undecodable=reading.undecodable,
    )


def _accuracy(reading: Reading, class_names: tuple[str, ...]) -> float | None:
    """The share of right predictions, where every label is a class name."""
    numbers = {name: number for number, name in enumerate(class_names)}
    if not all(label in numbers for label in reading.labels):
        return None
    truth = np.array([numbers[label] for label in reading.labels if label is not None])
    return float(np.mean(truth == reading.class_id))


def _warnings(
    parts: Parts, confidence: float, accuracy: float | None, classes: int
) -> Iterator[str]:
    low = 1 / classes + SKILL * (1 - 1 / classes)
    doubt = "are these images what the model was trained on, and is the preprocessing its own?"
    if accuracy is not None and accuracy < low:
        yield f"accuracy {accuracy:.3f} is near that of guessing ({1 / classes:.3f}): {doubt}"
    if confidence < low:
        yield (
            f"mean confidence {confidence:.3f} is near that of guessing ({1 / classes:.3f}): "
            f"{doubt}"
        )
    for what, reading in (("calibrate", parts.reading), ("fit", parts.fit_reading)):
        if reading is not None and reading.undecodable:
            yield (
                f"{reading.undecodable} of {reading.undecodable + len(reading)} images to {what} "
                f"on cannot be decoded; first {reading.first_problem}"
            )
    if classes > 1 and len(np.unique(parts.reading.class_id)) == 1:
        yield f"all images are predicted as one class, number {parts.reading.class_id[0]}"


def _base_warnings(parts: Parts, values: Values) -> Iterator[str]:
    method = parts.method
    if method.base is None or not method.needs_location or parts.fit_reading is not None:
        return
    undefined = int((values[method.base] <= 0).sum())
    if undefined:
        yield (
            f"the {method.base} of {undefined} of {len(parts.reading)} images is at or below 0, "
            f"which has no power {parts.weight:g}: give images to fit on, so that it is moved"
        )
