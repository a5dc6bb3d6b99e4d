import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from nap_stream.calibration.document import CalibrationDocument, Envelope, ImageFacts
from nap_stream.core.conformal import Group, Rule
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.core.selection import WeightSearch
from nap_stream.core.tails import Sides
from nap_stream.model.facts import FeatureSite, FunctionCall, HeadSite
from nap_stream.settings.schema import PreprocessingSettings
from tests.support.small_calibration import MODEL, calibration_of

SEARCH = WeightSearch(("solarize",), (0.0, 1.0), ((0.1, 1 / 3),), 5, 5, 1.0, (0.0, 1.0), (1.0, 1.0))


def document(**changes: Any) -> CalibrationDocument:
    plain = calibration_of([1, 2, 3, 4], [1, 2, 3, 4]).document
    fields = {name: getattr(plain, name) for name in CalibrationDocument.model_fields}
    return CalibrationDocument(**(fields | changes))


def reread(whole: CalibrationDocument) -> CalibrationDocument:
    return CalibrationDocument.model_validate_json(whole.model_dump_json())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": "nap-other"}, "expected one of auto, nap, msp"),
        ({"method": ""}, "expected one of auto, nap, msp"),
        ({"method": "nap"}, r"weight 0\.5 does not go with method nap"),
        ({"method": "energy"}, r"weight 0\.5 does not go with method energy"),
        ({"weight": None}, "weight None does not go with method nap-energy"),
        ({"method": "fisher-knn"}, "method fisher-knn needs the score knn"),
        ({"scores": (BaseScore.MSP,)}, "method nap-energy needs the score energy"),
        ({"method": "auto", "weight": None}, "a selection goes with the method auto alone"),
        ({"novelty": 1}, "Extra inputs"),
        ({"created_ms": "soon"}, "valid integer"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        document(**changes)


def test_everything_survives_json() -> None:
    model = MODEL.model_copy(
        update={
            "class_names": ("Äpfel", 'a "b"', ""),
            "preprocessing": PreprocessingSettings(
                resize=None, crop=(5, 7), interpolation="nearest"
            ),
            "feature_site": FeatureSite(
                "function_input", "", "mean", 3, (64, 8, 8), FunctionCall("mean", 1)
            ),
            "head": HeadSite("classifier.1", (3, 64), 1, 2),
        }
    )
    whole = document(
        method="fisher-knn",
        scores=(BaseScore.ENERGY, BaseScore.KNN),
        weight=1 / 3,
        weight_search=SEARCH,
        rule=Rule(0.1, Sides.TWO, per_class=True),
        groups=(Group(None, 5, 2, 0.1, 1 / 3), Group(3, 5, 2, -1e-300, None)),
        parameters=ScoreParameters(knn_k=7, ash_percentile=0.123),
        react_clip=0.1 + 0.2,
        accuracy=2 / 3,
        model=model,
        fit_images=ImageFacts(source=None, scored=3, undecodable=0),
        warnings=("accuracy 0.1 …",),
    )
    again = reread(whole)
    assert again == whole
    # These take no part in equality.
    assert again.model.feature_site.traced == model.feature_site.traced
    assert again.parsed_method.base is BaseScore.KNN
    assert again.rule.sides is Sides.TWO


def test_a_document_cannot_be_changed() -> None:
    whole = document()
    with pytest.raises(ValidationError, match="frozen"):
        whole.weight = 0.9  # type: ignore[misc]  # that it cannot is the test
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.rule.alpha = 0.9  # type: ignore[misc]  # likewise


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}, {"fingerprint": None}])
def test_an_envelope_is_of_a_known_version(change: dict[str, Any]) -> None:
    plain: dict[str, Any] = document().model_dump(mode="json") | {
        "format": "nap-stream calibration",
        "version": 4,
        "fingerprint": "0" * 64,
    }
    assert Envelope.model_validate(plain).version == 4
    with pytest.raises(ValidationError, match=next(iter(change))):
        Envelope.model_validate(plain | change)
