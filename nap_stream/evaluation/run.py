"""Evaluating a model's methods on named sets of images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.calibration import checks
from nap_stream.calibration.artifact import versions
from nap_stream.calibration.cache import FeatureCache
from nap_stream.calibration.fit import ALWAYS, FitPart, Fitted, in_order
from nap_stream.calibration.read import Reader, ScoredImages, Values
from nap_stream.calibration.run import FitFound, adding_up, candidates, fit_part, fit_passes
from nap_stream.clock import Progress
from nap_stream.core.methods import Method, every_method, method_scores
from nap_stream.core.selection import Selection, WeightSearch
from nap_stream.errors import ConfigError
from nap_stream.evaluation.tables import EvaluationTable, evaluate_scores
from nap_stream.image_files import ImageFile, count_images, iter_images
from nap_stream.model.execution import configured
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings
from nap_stream.text import encodable


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
    ``searches`` the search for each method's weight, ``selections`` the scores and weights of those
    that select them, ``warnings`` sentences for people.
    """

    table: EvaluationTable
    fitted: Fitted
    inside: Values
    outside: Mapping[str, Values]
    searches: Mapping[Method, WeightSearch]
    selections: Mapping[Method, Selection]
    warnings: tuple[str, ...]


def evaluate(
    request: EvaluationRequest,
    *,
    device: torch.device,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
    bootstrap_progress: Progress | None = None,
) -> Evaluation:
    """Score all sets by all methods, and measure how well each tells them apart.

    The model runs in plain float32, or what its settings ask for: nothing is measured, so that the
    table does not depend on the machine. Its outputs are kept in the cache and taken from there, so
    that a run that was cut off goes on where it was. ``progress`` is told after each batch of
    images, ``bootstrap_progress`` after each method on each set, once all images are read.

    Raises:
        ModelError: See `load_model`.
        InputDataError: See `iter_images`.
        CalibrationError: Images cannot be decoded, outputs are not finite, images are too few,
            an image to fit on is in the in-distribution set too, or a method does not go with
            the model.
        ConfigError: There is no OOD set, or scikit-learn is not installed.
    """
    if not request.outside:
        raise ConfigError("expected at least one OOD set", "--ood")
    part = FitPart.choose(request.inside, request.fit_images, request.scoring.fit_limit)
    total = sum(count_images(path) for path in (request.inside, *request.outside.values()))
    loaded = load_model(
        request.model, device, configured(request.model), batch_size=request.batch_size
    )
    methods = request.methods or methods_for(loaded)
    taken = [name for one in methods for name in candidates(one, loaded, len(part))]
    names = in_order((*ALWAYS, *taken))
    checks.require_head(names, loaded, request.model.origin)
    checks.require_fittable(names, methods, part, request.scoring.knn_k)
    copies = checks.require_apart(part, request.inside)
    searching = tuple(method for method in methods if method.has_weight or method.selects)
    checks.require_drawable(searching, loaded, request.model.origin)
    advance = adding_up(total + fit_passes(part, searching), progress)

    reader = Reader.of(loaded, request.limits, request.inside, cache)
    fit_found = fit_part(
        part,
        names,
        methods,
        searching,
        reader=reader,
        parameters=request.scoring.parameters(),
        batch_size=request.batch_size,
        advance=advance,
    )
    fitted, reading = fit_found.fitted, fit_found.reading

    def score(source: Path, files: Iterable[ImageFile]) -> ScoredImages:
        one = replace(reader, source=source)
        return one.score(files, fitted.base_scores, request.batch_size, advance)

    inside = score(request.inside, part.others(request.inside))
    outside = {name: score(path, iter_images(path)) for name, path in request.outside.items()}
    table = evaluate_scores(
        all_scores(methods, inside.values, fit_found),
        {name: all_scores(methods, one.values, fit_found) for name, one in outside.items()},
        in_distribution=_set_name(request.inside),
        resamples=request.resamples,
        seed=request.seed,
        context={
            **_context(request, loaded, part, fit_found),
            "undecodable": {
                "fitted_on": 0 if reading is None else reading.undecodable,
                "in_distribution": inside.undecodable,
                "ood_sets": {name: one.undecodable for name, one in outside.items()},
            },
        },
        progress=bootstrap_progress,
    )
    return Evaluation(
        table,
        fitted,
        inside.values,
        {name: one.values for name, one in outside.items()},
        fit_found.searches,
        fit_found.selections,
        (
            *checks.skill_warnings(inside, loaded.class_names),
            *checks.one_class_warnings(inside, loaded.class_names),
            *checks.decoding_warnings("images to fit on", reading),
            *checks.decoding_warnings("in-distribution images", inside),
            *(
                warning
                for name, scored in outside.items()
                for warning in checks.decoding_warnings(f"images of the OOD set {name}", scored)
            ),
            *checks.copy_warnings(len(copies), len(inside)),
        ),
    )


def methods_for(loaded: LoadedModel) -> tuple[Method, ...]:
    """All methods that the model allows: without a linear head, fewer."""
    return tuple(
        method
        for method in every_method()
        if method.selects or all(checks.is_possible(name, loaded) for name in method.candidates)
    )


def all_scores(
    methods: tuple[Method, ...],
    values: Mapping[str, NDArray[np.floating]],
    found: FitFound,
) -> dict[str, NDArray[np.float64]]:
    """The scores of N images by each method's label, float64 (N,), at the weights found."""
    return {
        method.label: method_scores(
            method,
            values,
            weight=found.searches[method].chosen if method in found.searches else None,
            location=found.fitted.location(method),
            reference=found.fitted.references(method, found.selections.get(method)),
            weights=found.selections[method].weights if method in found.selections else None,
        )
        for method in methods
    }


def _set_name(path: Path) -> str:
    resolved = path.resolve()
    return encodable(resolved.name if resolved.is_dir() else resolved.stem)


def _context(
    request: EvaluationRequest,
    loaded: LoadedModel,
    part: FitPart,
    found: FitFound,
) -> dict[str, Any]:
    return {
        "model": request.model.origin,
        "model_fingerprint": loaded.fingerprint,
        "feature_map": str(loaded.feature_site),
        "execution": str(loaded.execution),
        "fitted_on": f"{len(part)} images of {_set_name(part.source)}",
        "parameters": request.scoring.model_dump(mode="json", exclude={"method", "scores"}),
        "weights": {method.label: search.chosen for method, search in found.searches.items()},
        "selected": {method.label: one.weights for method, one in found.selections.items()},
        "versions": dict(versions()),
    }
