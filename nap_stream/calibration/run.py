"""Making a calibration: the model over held-out in-distribution images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration import checks
from nap_stream.calibration.artifact import versions
from nap_stream.calibration.cache import FeatureCache
from nap_stream.calibration.calibration import (
    CLASS_ID,
    REFERENCE,
    SCORE,
    VALUE,
    Calibration,
    array_sha256,
    fit_arrays,
)
from nap_stream.calibration.document import (
    CalibrationDocument,
    ElsewhereFacts,
    ImageFacts,
    ModelFacts,
)
from nap_stream.calibration.fit import (
    ALWAYS,
    FitPart,
    Fitted,
    Folds,
    areas_alone,
    fit,
    in_order,
    pseudo_passes,
    pseudo_values,
    search_weight,
    select,
    unfitted,
)
from nap_stream.calibration.read import Advance, Reader, Reading, ScoredImages
from nap_stream.calibration.seen import fault_passes, faults_seen
from nap_stream.calibration.speed import choose_execution, sample_of
from nap_stream.calibration.trials import trial_warning
from nap_stream.clock import Clock, Progress
from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.methods import AUTO, Method, method_scores, parse_method
from nap_stream.core.score_specs import BaseScore, ScoreParameters, TooFewImagesError, needs_fit
from nap_stream.core.selection import NoScoreError, Selection, WeightSearch
from nap_stream.errors import CalibrationError
from nap_stream.image_files import ImageFile, count_images
from nap_stream.model.device_decode import device_decoder
from nap_stream.model.load import KnownModel, LoadedModel, load_model
from nap_stream.model.output import kind_warnings
from nap_stream.model.weights import weights_of
from nap_stream.settings.drift import DriftSettings
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings
from nap_stream.text import encodable

FLAG_RATE_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to calibrate, on which images, and how.

    ``images`` are held out: the model was not trained on them. ``fit_images`` are
    in-distribution images, perhaps of the training set, from which base scores, references and
    weight are taken; where they are null, a third of ``images`` serves for that and does not
    calibrate. ``weight`` is the base score's in a method of two, in [0, 1]; null searches it.
    ``drift`` is the alarm whose delay is told for faulty cameras.
    """

    model: ModelSettings
    scoring: ScoringSettings
    images: Path
    fit_images: Path | None
    rule: Rule
    weight: float | None
    batch_size: int
    limits: LimitSettings
    drift: DriftSettings = field(default_factory=DriftSettings)


def calibrate(
    request: CalibrationRequest,
    *,
    device: torch.device,
    clock: Clock,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
    loading_progress: Progress | None = None,
    measuring_progress: Progress | None = None,
    trying_progress: Progress | None = None,
) -> Calibration:
    """Score in-distribution images that the model was not trained on.

    First it is measured in which precision and memory format the model runs fastest, of those that
    the settings allow; see `choose_execution`. The model's outputs are kept in the cache, and taken
    from there. ``progress`` is told after each batch how many images were read,
    ``loading_progress`` before and after the model is loaded, ``measuring_progress`` after each
    execution, ``trying_progress`` after each preprocessing that is tried; see `trial_warning`.

    Raises:
        ConfigError: The weight is out of range, or the method has none.
        ModelError: See `load_model` and `choose_execution`.
        InputDataError: See `iter_images`.
        CalibrationError: Half the images or more cannot be decoded, fewer are left than the
            rule or a score needs, an image to fit on also calibrates, the model's outputs are
            not finite, or the method does not go with the model.
    """
    named = request.scoring.method
    checks.require_weight(None if named is None else parse_method(named), request.weight)
    total = count_images(request.images)
    checks.require_enough(total, request.rule, request.images)
    if loading_progress is not None:
        loading_progress(0, 1)
    loaded = load_model(request.model, device)
    if loading_progress is not None:
        loading_progress(1, 1)
    weights_fingerprint = weights_of(loaded.module)
    plan = _plan(request, loaded)
    part, searching = plan.part, plan.searching
    if part is not None and not part.own:
        checks.require_enough(total - len(part), request.rule, request.images, fitted_on=len(part))
    copies = [] if part is None else checks.require_apart(part, request.images)
    choice = choose_execution(
        loaded,
        request.model,
        lambda: sample_of(
            request.images,
            total,
            loaded.preprocessing,
            request.limits,
            device_decoder(loaded.preprocessing, device),
        ),
        request.batch_size,
        clock=clock,
        advance=measuring_progress,
    )
    loaded = choice.loaded
    reader = Reader.of(loaded, request.limits, request.images, cache)
    images = total if part is None or part.own else total - len(part)
    passes = total + fit_passes(part, searching) + fault_passes(images, loaded)
    advance = adding_up(passes, progress)
    fit_found = fit_part(
        part,
        plan.names,
        (plan.method,),
        searching,
        reader=reader,
        parameters=request.scoring.parameters(),
        batch_size=request.batch_size,
        advance=advance,
    )
    selection = fit_found.selections.get(plan.method)
    if selection is not None:
        chosen = {name for name in plan.names if name in selection.weights}
        fitted = fit_found.fitted.only(
            in_order((*ALWAYS, *chosen, *request.scoring.scores)),
            loaded,
            request.scoring.parameters(),
        )
        fit_found = replace(fit_found, fitted=fitted)

    def files() -> Iterator[ImageFile]:
        return reader.files() if part is None else part.others(request.images)

    base_scores = fit_found.fitted.base_scores
    scored = reader.score(files(), base_scores, request.batch_size, advance)
    calibration = assemble(
        request,
        loaded,
        plan.method,
        fit_found,
        scored,
        weights_fingerprint=weights_fingerprint,
        copies=len(copies),
        created_ms=clock.now_ms(),
    )
    faults = faults_seen(
        calibration,
        files(),
        images,
        request.drift,
        reader=reader,
        base_scores=base_scores,
        batch_size=request.batch_size,
        advance=advance,
    )
    tried = trial_warning(
        checks.labelled(scored, loaded.class_names),
        loaded,
        request.images,
        request.limits,
        clock=clock,
        progress=trying_progress,
    )
    speeds = choice.compared(calibration, base_scores)
    warnings = () if speeds is None else speeds.warnings(loaded.execution)
    document = calibration.document.model_copy(
        update={
            "faults": faults,
            "speeds": speeds,
            "warnings": (*tried, *calibration.document.warnings, *warnings),
        }
    )
    return Calibration(document, calibration.arrays)


def choose_method(scoring: ScoringSettings) -> Method:
    """The method that is configured, or the default."""
    return parse_method(scoring.method or AUTO)


def candidates(method: Method, loaded: KnownModel, images: int) -> tuple[BaseScore, ...]:
    """The base scores that a method may take on this model, with so many images to fit on.

    A method that selects does without what the model or the number of images does not allow.
    """
    without = checks.left_out(method, loaded, images)
    return tuple(name for name in method.candidates if name not in without)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is computed. ``part`` is null where nothing has to be fitted."""

    method: Method
    names: tuple[BaseScore, ...]
    searching: tuple[Method, ...]
    part: FitPart | None


def _plan(request: CalibrationRequest, loaded: LoadedModel) -> _Plan:
    method, scoring = choose_method(request.scoring), request.scoring
    asked = in_order((*ALWAYS, *scoring.scores, *(() if method.selects else method.candidates)))
    checks.require_head(asked, loaded, request.model.origin)
    searching = (
        (method,) if method.selects or (method.has_weight and request.weight is None) else ()
    )
    checks.require_drawable(searching, loaded, request.model.origin)
    part = None
    moves = method.needs_location and request.fit_images is not None
    names = asked
    if searching or moves or method.needs_reference or any(needs_fit(name) for name in asked):
        part = FitPart.choose(request.images, request.fit_images, scoring.fit_limit)
        names = in_order((*asked, *candidates(method, loaded, len(part))))
        checks.require_fittable(names, (method,), part, scoring.knn_k)
    return _Plan(method, names, searching, part)


def adding_up(total: int, progress: Progress | None) -> Advance:
    """Tell of the images that were read so far, of a total, as more are read."""
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    return advance


@dataclass(frozen=True, slots=True, eq=False)
class FitFound:
    """What was taken from the images to fit on.

    ``reading`` is null where nothing had to be fitted. ``searches`` holds the search for the
    weight of each method that has none given, ``selections`` the scores and weights of each method
    that selects them. ``alone`` is how well NAP and each base score separate pseudo-OOD images by
    itself; empty where no weight was searched, as a selection has its own. ``limited`` says that a
    limit kept further images out.
    """

    fitted: Fitted
    reading: Reading | None
    searches: Mapping[Method, WeightSearch]
    selections: Mapping[Method, Selection]
    alone: Mapping[str, float] = field(default_factory=dict)
    limited: bool = False


def fit_part(
    part: FitPart | None,
    names: tuple[BaseScore, ...],
    methods: tuple[Method, ...],
    searching: tuple[Method, ...],
    *,
    reader: Reader,
    parameters: ScoreParameters,
    batch_size: int,
    advance: Advance,
) -> FitFound:
    """Read the images to fit on, fit base scores, and choose weights on pseudo-OOD images.

    ``names`` are the base scores to fit, ``methods`` those that are to be computed, and
    ``searching`` those of them whose weights are chosen. Nothing is read where the part is null.

    Raises:
        CalibrationError: Too few images can be decoded, or see `Reader`.
    """
    if part is None:
        return FitFound(unfitted(names, reader.loaded, parameters), None, {}, {})
    reader = replace(reader, source=part.source)
    reading = reader.read(part.files(), batch_size, advance)
    checks.require_fittable(names, methods, part, parameters.knn_k, reading)
    folds = Folds.choose(len(part))
    try:
        fitted = fit(names, reading, folds, reader.loaded, parameters)
    except TooFewImagesError as error:
        # Undecodable images can lie in some folds alone.
        raise CalibrationError(
            f"too few images to fit on are left where a fold is left out: {error}",
            str(part.source),
            "Give more images that can be decoded, or choose another method",
        ) from error
    pseudo = {}
    if searching:
        pseudo = pseudo_values(part, folds, reader, fitted, advance, batch_size=batch_size)
    try:
        selections = {
            one: select(one, fitted, pseudo, checks.left_out(one, reader.loaded, len(reading)))
            for one in searching
            if one.selects
        }
    except NoScoreError as error:
        raise CalibrationError(
            f"no score can tell images apart: {error}",
            str(part.source),
            "Are the images different, and are weights and preprocessing those of training? If "
            "they are, choose a method",
        ) from error
    searches = {one: search_weight(one, fitted, pseudo) for one in searching if one.has_weight}
    alone = areas_alone(fitted, pseudo) if searches else {}
    return FitFound(fitted, reading, searches, selections, alone, part.limited)


def fit_passes(part: FitPart | None, searching: tuple[Method, ...]) -> int:
    """Forward passes, in images, of `fit_part` that come on top of reading all images once."""
    if part is None:
        return 0
    return (len(part) if part.own else 0) + (pseudo_passes(part) if searching else 0)


def assemble(
    request: CalibrationRequest,
    loaded: KnownModel,
    method: Method,
    fit_found: FitFound,
    scored: ScoredImages,
    *,
    weights_fingerprint: str,
    copies: int,
    created_ms: int,
    elsewhere: ElsewhereFacts | None = None,
) -> Calibration:
    """Score the calibration images by the method, and put everything together.

    ``weights_fingerprint`` is of the weights as they were loaded, see `weights_of`. ``copies`` of
    the images are byte for byte images that were fitted on. ``elsewhere`` is there of a model that
    runs elsewhere.

    Raises:
        CalibrationError: The images are too few for the rule; says how many are needed.
    """
    fitted, fit_reading = fit_found.fitted, fit_found.reading
    search, selection = fit_found.searches.get(method), fit_found.selections.get(method)
    weight = request.weight if search is None else search.chosen
    references, location = fitted.references(method, selection), fitted.location(method)
    scores = method_scores(
        method,
        scored.values,
        weight=weight,
        location=location,
        reference=references,
        weights=None if selection is None else selection.weights,
    )
    try:
        test = ConformalTest(request.rule, scores, scored.class_id, len(loaded.class_names))
    except ValueError as error:
        raise CalibrationError(
            str(error), str(request.images), "Give more images, or another rule or method"
        ) from error
    arrays = _arrays(scores, scored, references, fitted)
    labelled = checks.labelled(scored, loaded.class_names)
    document = CalibrationDocument(
        method=str(method),
        weight=weight,
        location=location,
        weight_search=search,
        selection=selection,
        rule=request.rule,
        groups=test.groups,
        flag_rate_confidence=FLAG_RATE_CONFIDENCE,
        scores=fitted.base_scores.names,
        parameters=request.scoring.parameters(),
        react_clip=fitted.fits.react_clip,
        model=ModelFacts(
            factory=request.model.origin,
            fingerprint=loaded.fingerprint,
            weights_fingerprint=weights_fingerprint,
            class_names=loaded.class_names,
            preprocessing=loaded.preprocessing,
            feature_site=loaded.feature_site,
            head=loaded.head,
            output=loaded.output,
            elsewhere=elsewhere,
        ),
        images=_image_facts(request.images, scored),
        fit_images=None if fit_reading is None else _image_facts(request.fit_images, fit_reading),
        mean_confidence=checks.mean_confidence(scored),
        accuracy=None if labelled is None else labelled.accuracy,
        worst_classes=() if labelled is None else labelled.worst(),
        faults=(),
        warnings=(
            *loaded.notes,
            *checks.skill_warnings(scored, loaded.class_names),
            *checks.decoding_warnings("images to calibrate on", scored),
            *checks.decoding_warnings("images to fit on", fit_reading),
            *checks.one_class_warnings(scored, loaded.class_names),
            *kind_warnings(scored.outputs),
            *checks.copy_warnings(copies, len(scored)),
            *checks.power_warnings(method, weight, location, scored, fit_reading),
            *checks.separation_warnings(
                "the sum" if method.selects else str(method),
                search or selection,
                fit_found.alone if selection is None else selection.means,
            ),
            *checks.selection_warnings(selection),
            *checks.few_warnings(fit_reading, search or selection, limited=fit_found.limited),
            *checks.neighbour_warnings(
                fitted.base_scores.names,
                fit_reading,
                len(loaded.class_names),
                limited=fit_found.limited,
            ),
            *checks.training_warnings(scored, loaded.class_names),
            *checks.tie_warnings(scores, scored.class_id, test.groups),
        ),
        versions=dict(versions()),
        created_ms=created_ms,
        array_sha256=array_sha256(arrays),
        execution=loaded.execution,
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
    return arrays | fit_arrays(fitted.fits)


def _image_facts(source: Path | None, read: Reading | ScoredImages) -> ImageFacts:
    return ImageFacts(
        source=None if source is None else encodable(source.resolve().name),
        scored=len(read),
        undecodable=read.undecodable,
        warned=read.warned.images,
    )
