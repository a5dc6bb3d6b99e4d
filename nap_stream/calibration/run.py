"""Making a calibration: the model over held-out in-distribution images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nap_stream.calibration.assemble import Parts, assemble
from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.feature_cache import FeatureCache
from nap_stream.calibration.fit_part import FitPart
from nap_stream.calibration.fitting import ALWAYS, Fitted, fit, in_order, unfitted
from nap_stream.calibration.reading import Advance, Reader, Reading
from nap_stream.calibration.requirements import (
    require_apart,
    require_enough,
    require_head,
    require_neighbours,
    require_references,
    require_weight,
)
from nap_stream.clock import Clock
from nap_stream.core.judging import Rule
from nap_stream.core.methods import Method, parse_method
from nap_stream.core.score_specs import BaseScore, needs_fit
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.image_files import count_images
from nap_stream.model.loading import LoadedModel, load_model
from nap_stream.settings import LimitSettings, ModelSettings, ScoringSettings

Progress = Callable[[int, int | None], None]
"""Called with (images read, images in all or None)."""


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
    return total + own + (plan.part.pseudo_passes if plan.searches else 0)


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
    pseudo = plan.part.pseudo_values(reader, fitted, advance)
    return fitted, reading, fitted.search_weight(plan.method, pseudo)
