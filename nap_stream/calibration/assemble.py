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
from nap_stream.calibration.doubts import (
    accuracy,
    copy_doubts,
    mean_confidence,
    one_class_doubts,
    skill_doubts,
    tie_doubts,
    undecodable_doubts,
)
from nap_stream.calibration.fitting import Fitted
from nap_stream.calibration.reading import Reading, ScoredImages
from nap_stream.calibration.versions import versions
from nap_stream.core.judging import Judge, Rule
from nap_stream.core.methods import Method, method_scores
from nap_stream.core.score_specs import ScoreParameters
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.errors import CalibrationError
from nap_stream.image_files import printable_name
from nap_stream.model.loading import LoadedModel

FLAG_RATE_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a calibration is made of.

    ``fit_reading`` is null where nothing was fitted. ``copies`` of the images to calibrate on are
    byte for byte images that were fitted on.
    """

    method: Method
    weight: float | None
    search: WeightSearch | None
    fitted: Fitted
    fit_reading: Reading | None
    scored: ScoredImages
    copies: int = 0


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
        CalibrationError: The images are too few for the rule; says how many are needed.
    """
    scored = parts.scored
    references = parts.fitted.references(parts.method)
    location = parts.fitted.location(parts.method) if parts.method.needs_location else 0.0
    scores = method_scores(
        parts.method, scored.values, weight=parts.weight, location=location, reference=references
    )
    try:
        judge = Judge(rule, scores, scored.class_id, len(loaded.class_names))
    except ValueError as error:
        raise CalibrationError(
            str(error), str(source), "Give more images, or another rule or method"
        ) from error
    arrays = _arrays(scores, scored, references, parts.fitted)
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
        images=_image_facts(source, scored),
        fit_images=(
            None if parts.fit_reading is None else _image_facts(fit_source, parts.fit_reading)
        ),
        mean_confidence=mean_confidence(scored),
        accuracy=accuracy(scored, loaded.class_names),
        warnings=(
            *_doubts(parts, loaded.class_names),
            *_base_doubts(parts, location),
            *tie_doubts(scores, scored.class_id, judge.groups),
        ),
        versions=versions(),
        created_ms=created_ms,
        array_sha256=array_sha256(arrays),
    )
    return Calibration(document, arrays)


def _arrays(
    scores: NDArray[np.float64],
    scored: ScoredImages,
    references: dict[str, NDArray[np.float64]],
    fitted: Fitted,
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {SCORE: scores, CLASS_ID: scored.class_id.astype(np.int32)}
    arrays |= {f"{VALUE}{name}": value for name, value in scored.values.items()}
    arrays |= {f"{REFERENCE}{name}": value for name, value in references.items()}
    if fitted.fits.feature_mean is not None:
        arrays[FEATURE_MEAN] = fitted.fits.feature_mean
    if fitted.fits.knn_bank is not None:
        arrays[KNN_BANK] = fitted.fits.knn_bank
    return arrays


def _image_facts(source: Path | None, read: Reading | ScoredImages) -> ImageFacts:
    return ImageFacts(
        source=None if source is None else printable_name(source.resolve().name),
        scored=len(read),
        undecodable=read.undecodable,
    )


def _doubts(parts: Parts, class_names: tuple[str, ...]) -> Iterator[str]:
    yield from skill_doubts(parts.scored, class_names)
    yield from undecodable_doubts("images to calibrate on", parts.scored)
    if parts.fit_reading is not None:
        yield from undecodable_doubts("images to fit on", parts.fit_reading)
    yield from one_class_doubts(parts.scored, class_names)
    yield from copy_doubts(parts.copies, len(parts.scored))


def _base_doubts(parts: Parts, location: float) -> Iterator[str]:
    method = parts.method
    if method.base is None or not method.needs_location:
        return
    undefined = int((parts.scored.values[method.base] - location <= 0).sum())
    if undefined:
        advice = (
            "" if parts.fit_reading is not None else ": give images to fit on, so that it moves"
        )
        yield (
            f"the {method.base} of {undefined} of {len(parts.scored)} images is at or below "
            f"{location:g}, which has no power {parts.weight:g}{advice}"
        )
