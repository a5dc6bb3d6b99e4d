"""Evaluating a model's methods on named sets of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration.feature_cache import FeatureCache
from nap_stream.calibration.fit_part import FitPart
from nap_stream.calibration.fitting import Fitted, fit
from nap_stream.calibration.reading import Advance, Reader, Values
from nap_stream.calibration.run import Counter, Progress
from nap_stream.calibration.versions import versions
from nap_stream.core.methods import Method, every_method, method_scores
from nap_stream.core.score_specs import BaseScore, needs_features
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.errors import CalibrationError
from nap_stream.evaluation.evaluate import evaluate_scores
from nap_stream.evaluation.table import EvaluationTable
from nap_stream.image_files import count_images
from nap_stream.model.loading import LoadedModel, load_model
from nap_stream.settings import LimitSettings, ModelSettings, ScoringSettings


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Which model, which sets, which methods.

    ``inside`` are in-distribution images that the model was not trained on; a third of them, or
    ``fit_images`` where those are given, is fitted on and left out of the table. ``outside``
    are the OOD sets by name, in the table's order. ``methods`` is empty for all that the model
    allows. No OOD image takes part in fitting anything.
    """

    model: ModelSettings
    scoring: ScoringSettings
    inside: Path
    outside: Mapping[str, Path]
    fit_images: Path | None
    methods: tuple[Method, ...]
    batch_size: int
    limits: LimitSettings
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What an evaluation gives.

    ``inside`` and ``outside`` are NAP and base scores of the images that the table speaks of,
    ``searches`` the search for each method's weight.
    """

    table: EvaluationTable
    fitted: Fitted
    inside: Values
    outside: Mapping[str, Values]
    searches: Mapping[Method, WeightSearch]


def evaluate(
    request: EvaluationRequest,
    *,
    device: torch.device,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score all sets by all methods, and measure how well each tells them apart.

    Args:
        request: What to evaluate.
        device: Where the model runs.
        cache: Where the model's outputs are kept and taken from: a run that was cut off goes on
            where it was.
        progress: Told after each batch of images.

    Raises:
        ModelError: See `load_model`.
        InputDataError: See `iter_images`.
        CalibrationError: Images cannot be decoded, outputs are not finite, images are too few,
            or a method does not go with the model.
        ConfigError: scikit-learn is not installed.
    """
    loaded = load_model(request.model, device)
    try:
        methods = request.methods or methods_for(loaded)
        part = FitPart.choose(request.inside, request.fit_images, request.scoring.knn_bank_size)
        counter = Counter(_passes(request, part), progress)
        parameters = request.scoring.parameters()
        reader = Reader(loaded, request.limits, part.source, cache)
        read = (request.batch_size, counter.advance)
        fitted = fit(_names(methods), reader.read(part.files(), *read), loaded, parameters)
        pseudo = part.pseudo_values(reader, fitted, *read)
        searches = {m: fitted.search_weight(m, pseudo) for m in methods if m.has_weight}
        inside_reader = Reader(loaded, request.limits, request.inside, cache)
        inside = inside_reader.read(part.others(request.inside), *read).values(fitted.base_scores)
        outside = {
            name: _values(Reader(loaded, request.limits, path, cache), fitted, *read)
            for name, path in request.outside.items()
        }
        table = evaluate_scores(
            all_scores(methods, inside, fitted, searches),
            {
                name: all_scores(methods, values, fitted, searches)
                for name, values in outside.items()
            },
            in_distribution=request.inside.resolve().stem,
            resamples=request.resamples,
            seed=request.seed,
            context=_context(request, loaded, part, searches),
        )
    except ValueError as error:
        raise CalibrationError(
            str(error), str(request.inside), "Give more images, or other methods"
        ) from error
    return Evaluation(table, fitted, inside, outside, searches)


def methods_for(loaded: LoadedModel) -> tuple[Method, ...]:
    """All methods that the model allows: those of logits alone where it has no linear head."""
    return tuple(
        method
        for method in every_method()
        if method.base is None or loaded.head is not None or not needs_features(method.base)
    )


def all_scores(
    methods: tuple[Method, ...],
    values: Mapping[str, NDArray[np.floating]],
    fitted: Fitted,
    searches: Mapping[Method, WeightSearch],
) -> dict[str, NDArray[np.float64]]:
    """The scores of N images by each method's label, float64 (N,), at the weights found."""
    return {
        method.label: method_scores(
            method,
            values,
            weight=searches[method].chosen if method in searches else None,
            location=fitted.location(method),
            reference=fitted.references(method),
        )
        for method in methods
    }


def _names(methods: tuple[Method, ...]) -> tuple[BaseScore, ...]:
    wanted = {method.base for method in methods}
    return tuple(name for name in BaseScore if name in wanted)


def _values(reader: Reader, fitted: Fitted, batch_size: int, advance: Advance) -> Values:
    return reader.read(reader.files(), batch_size, advance).values(fitted.base_scores)


def _passes(request: EvaluationRequest, part: FitPart) -> int:
    sets = sum(count_images(path) for path in (request.inside, *request.outside.values()))
    return sets + part.pseudo_passes + (len(part) if part.own else 0)


def _context(
    request: EvaluationRequest,
    loaded: LoadedModel,
    part: FitPart,
    searches: Mapping[Method, WeightSearch],
) -> dict[str, Any]:
    return {
        "model": request.model.factory,
        "model_fingerprint": loaded.fingerprint,
        "feature_map": str(loaded.feature_site),
        "fitted_on": f"{len(part)} images of {part.source.resolve().name}",
        "parameters": request.scoring.model_dump(mode="json", exclude={"method", "scores"}),
        "weights": {method.label: search.chosen for method, search in searches.items()},
        "versions": versions(),
    }
