"""Calibrations of the small networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.calibration import Calibration, array_sha256
from nap_stream.calibration.document import CalibrationDocument, ImageFacts, ModelFacts
from nap_stream.calibration.fit import ALWAYS, unfitted
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import ManualClock
from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.methods import method_scores, parse_method
from nap_stream.core.score_specs import ScoreParameters
from nap_stream.model.facts import FeatureSite
from nap_stream.model.load import LoadedModel, OnePassScorer
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings, ScoringSettings
from tests.support.image_bytes import encoded, picture
from tests.support.small_settings import CPU, small_settings

Arrays = Mapping[str, NDArray[Any]]

MODEL = ModelFacts(
    factory="package.module:name",
    fingerprint="1" * 64,
    weights_fingerprint="3" * 64,
    class_names=("cat", "dog"),
    preprocessing=PreprocessingSettings(),
    feature_site=FeatureSite("module_input", "avgpool", None, 0, (512, 7, 7)),
    head=None,
)


def write_images(folder: Path, count: int, *, first_seed: int = 0) -> Path:
    """Write image files of various sizes to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        data = encoded(picture(9 + index % 3, 9, seed=first_seed + index), "PNG")
        (folder / f"{index:04}.png").write_bytes(data)
    return folder


def calibration_request(images: Path, **changes: Any) -> CalibrationRequest:
    """To calibrate on images: ``SmallNet`` and NAP with the energy, but for the changes."""
    fields: dict[str, Any] = {
        "model": small_settings(),
        "scoring": ScoringSettings(method="nap-energy"),
        "images": images,
        "fit_images": None,
        "rule": Rule(0.1),
        "weight": 0.4 if "scoring" not in changes else None,
        "batch_size": 8,
        "limits": LimitSettings(),
    }
    return CalibrationRequest(**(fields | changes))


def write_calibrated(folder: Path, images: Path, **changes: Any) -> Path:
    """Calibrate as `calibration_request` says, and write the calibration to a folder."""
    request = calibration_request(images, **changes)
    found = calibrate(request, device=CPU, clock=ManualClock(1_700_000_000_000))
    write_calibration(found, folder)
    return folder


def scorer_of(loaded: LoadedModel) -> OnePassScorer:
    """The scorer of NAP and the scores that need nothing but logits."""
    return OnePassScorer(loaded, unfitted(ALWAYS, loaded, ScoreParameters()).base_scores)


def calibration_of(
    energy: Sequence[float],
    nap: Sequence[float],
    alpha: float = 0.25,
    *,
    rule: Rule | None = None,
    class_id: Sequence[int] | None = None,
    arrays: Arrays | None = None,
    **changes: Any,
) -> Calibration:
    """Make a calibration of given scores, without a model.

    Args:
        energy: Of each image.
        nap: Of each image.
        alpha: Of a rule that is one-sided, over all images.
        rule: Another one.
        class_id: Predicted classes; all 0 where there are none.
        arrays: Further values, references and fits by their names in a calibration.
        **changes: Fields of the document.
    """
    rule = rule or Rule(alpha)
    classes = np.zeros(len(energy), np.int32) if class_id is None else np.array(class_id, np.int32)
    values: dict[str, NDArray[np.float32]] = {
        "nap": np.array(nap, np.float32),
        "msp": np.full(len(energy), 0.5, np.float32),
        "max_logit": np.array(energy, np.float32) - 1,
        "energy": np.array(energy, np.float32),
    }
    more = dict(arrays or {})
    defaults = {"method": "nap-energy", "weight": 0.5, "location": 0.0, "model": MODEL}
    fields: dict[str, Any] = defaults | changes
    scores = method_scores(
        parse_method(fields["method"]),
        values | _below("value.", more),
        weight=fields["weight"],
        location=fields["location"],
        reference=_below("reference.", more),
    )
    stored: dict[str, NDArray[Any]] = {f"value.{name}": value for name, value in values.items()}
    stored |= {"score": scores, "class_id": classes}
    stored |= more
    groups = ConformalTest(
        rule, scores, classes.astype(np.int64), len(fields["model"].class_names)
    ).groups
    return Calibration(_document(stored, rule=rule, groups=groups, **fields), stored)


def _document(arrays: Arrays, **fields: Any) -> CalibrationDocument:
    defaults: dict[str, Any] = {
        "weight_search": None,
        "selection": None,
        "flag_rate_confidence": 0.95,
        "scores": ALWAYS,
        "parameters": ScoreParameters(),
        "react_clip": None,
        "images": ImageFacts(source="held-out", scored=len(arrays["score"]), undecodable=1),
        "fit_images": None,
        "mean_confidence": 0.1 + 0.2,
        "accuracy": None,
        "faults": (),
        "warnings": (),
        "versions": {"torch": "2"},
        "created_ms": 1_700_000_000_000,
        "array_sha256": array_sha256(arrays),
    }
    return CalibrationDocument(**(defaults | fields))


def _below(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
