"""Putting a calibration together from what was read and fitted.

Making a calibration: the model over held-out in-distribution images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.artifact import versions
from nap_stream.calibration.calibration import (
    CLASS_ID,
    FEATURE_MEAN,
    KNN_BANK,
    REFERENCE,
    SCORE,
    VALUE,
    Calibration,
    CalibrationDocument,
    ImageFacts,
    ModelFacts,
    array_sha256,
)
from nap_stream.calibration.checks import (
    accuracy,
    copy_warnings,
    mean_confidence,
    one_class_warnings,
    require_apart,
    require_enough,
    require_head,
    require_neighbours,
    require_references,
    require_weight,
    skill_warnings,
    tie_warnings,
    undecodable_warnings,
)
from nap_stream.calibration.fit import ALWAYS, FitPart, Fitted, fit, in_order, unfitted
from nap_stream.calibration.read import Advance, FeatureCache, Reader, Reading, ScoredImages
from nap_stream.calibration.weight import pseudo_passes, pseudo_values, search_weight
from nap_stream.clock import Clock, Progress
from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.methods import Method, WeightSearch, method_scores, parse_method
from nap_stream.core.score_specs import BaseScore, ScoreParameters, needs_fit
from nap_stream.errors import CalibrationError
from nap_stream.image_files import count_images
from nap_stream.model.load import LoadedModel, load_model, weights_of
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings
from nap_stream.text import encodable

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
        judge = ConformalTest(rule, scores, scored.class_id, len(loaded.class_names))
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
            weights_fingerprint=weights_of(loaded.module),
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
            *_warnings(parts, loaded.class_names),
            *_power_warnings(parts, location),
            *tie_warnings(scores, scored.class_id, judge.groups),
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
        source=None if source is None else encodable(source.resolve().name),
        scored=len(read),
        undecodable=read.undecodable,
    )


def _warnings(parts: Parts, class_names: tuple[str, ...]) -> Iterator[str]:
    yield from skill_warnings(parts.scored, class_names)
    yield from undecodable_warnings("images to calibrate on", parts.scored)
    if parts.fit_reading is not None:
        yield from undecodable_warnings("images to fit on", parts.fit_reading)
    yield from one_class_warnings(parts.scored, class_names)
    yield from copy_warnings(parts.copies, len(parts.scored))


def _power_warnings(parts: Parts, location: float) -> Iterator[str]:
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


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to calibrate, on which images, and how.

    ``images`` are held out: the model was not trained on them. ``fit_images`` are
    in-distribution images, perhaps of the training set, from which base scores, references and
    weight are taken; where they are null, a third of ``images`` serves for that and does not
    calibrate. ``weight`` is the base score's in the method, in [0, 1]; null searches it.
    """

    model: ModelSettings
    scoring: ScoringSettings
    images: Path
    fit_images: Path | None
    rule: Rule
    weight: float | None
    batch_size: int
    limits: LimitSettings


def calibrate(
    request: CalibrationRequest,
    *,
    device: torch.device,
    clock: Clock,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Score in-distribution images that the model was not trained on.

    Args:
        request: What to calibrate, and how.
        device: Where the model runs.
        clock: For the time that the calibration states.
        cache: Where the model's outputs are kept and taken from.
        progress: Told after each batch.

    Raises:
        ConfigError: The weight is out of range, or the method has none.
        ModelError: See `load_model`.
        InputDataError: See `iter_images`.
        CalibrationError: Half the images or more cannot be decoded, fewer are left than the
            rule or a score needs, an image to fit on also calibrates, the model's outputs are
            not finite, or the method does not go with the model.
    """
    named = request.scoring.method
    require_weight(None if named is None else parse_method(named), request.weight)
    total = count_images(request.images)
    require_enough(total, request.rule, request.images)
    loaded = load_model(request.model, device)
    plan = _plan(request, loaded)
    if plan.part is not None and not plan.part.own:
        fitted_on = len(plan.part)
        require_enough(total - fitted_on, request.rule, request.images, fitted_on=fitted_on)
    copies = [] if plan.part is None else require_apart(plan.part, request.images)
    counter = Counter(_passes(plan, total), progress)
    fitted, fit_reading, search = _fit(plan, request, loaded, cache, counter.advance)
    reader = Reader(loaded, request.limits, request.images, cache)
    files = reader.files() if plan.part is None else plan.part.others(request.images)
    scored = reader.score(files, fitted.base_scores, request.batch_size, counter.advance)
    return assemble(
        Parts(
            plan.method,
            search.chosen if search is not None else request.weight,
            search,
            fitted,
            fit_reading,
            scored,
            len(copies),
        ),
        request.rule,
        loaded,
        request.scoring.parameters(),
        factory=request.model.factory,
        source=request.images,
        fit_source=request.fit_images,
        created_ms=clock.now_ms(),
    )


def choose_method(scoring: ScoringSettings, loaded: LoadedModel) -> Method:
    """The method that is configured, or the default that the model allows."""
    if scoring.method is not None:
        return parse_method(scoring.method)
    return parse_method("fisher-knn" if loaded.head is not None else "fisher-energy")


@dataclass(slots=True)
class Counter:
    """Adds up batches for a progress display."""

    total: int
    progress: Progress | None
    done: int = 0

    def advance(self, images: int) -> None:
        """Note that so many more images were read."""
        self.done += images
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is computed. ``part`` is null where nothing has to be fitted."""

    method: Method
    names: tuple[BaseScore, ...]
    searches: bool
    part: FitPart | None


def _plan(request: CalibrationRequest, loaded: LoadedModel) -> _Plan:
    method, scoring = choose_method(request.scoring, loaded), request.scoring
    base = () if method.base is None else (method.base,)
    names = in_order((*ALWAYS, *base, *scoring.scores))
    require_head(names, loaded, request.model.factory)
    searches = method.has_weight and request.weight is None
    part = None
    moves = method.needs_location and request.fit_images is not None
    if searches or moves or method.needs_reference or any(needs_fit(name) for name in names):
        part = FitPart.choose(request.images, request.fit_images, scoring.fit_limit)
        require_neighbours(names, len(part), part, scoring.knn_k)
        require_references((method,), len(part), part)
    return _Plan(method, names, searches, part)


def _passes(plan: _Plan, total: int) -> int:
    if plan.part is None:
        return total
    own = len(plan.part) if plan.part.own else 0
    return total + own + (pseudo_passes(plan.part) if plan.searches else 0)


def _fit(
    plan: _Plan,
    request: CalibrationRequest,
    loaded: LoadedModel,
    cache: FeatureCache | None,
    advance: Advance,
) -> tuple[Fitted, Reading | None, WeightSearch | None]:
    parameters = request.scoring.parameters()
    if plan.part is None:
        return unfitted(plan.names, loaded, parameters), None, None
    reader = Reader(loaded, request.limits, plan.part.source, cache)
    reading = reader.read(plan.part.files(), request.batch_size, advance)
    require_neighbours(plan.names, reading.with_features, plan.part, parameters.knn_k)
    require_references((plan.method,), len(reading), plan.part)
    fitted = fit(plan.names, reading, loaded, parameters)
    if not plan.searches:
        return fitted, reading, None
    pseudo = pseudo_values(plan.part, reader, fitted, advance)
    return fitted, reading, search_weight(plan.method, fitted, pseudo)
