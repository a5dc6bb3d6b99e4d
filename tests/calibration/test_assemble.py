from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.fit import ALWAYS, Fitted, Folds, fit, unfitted
from nap_stream.calibration.read import Reading, ScoredImages, Warned
from nap_stream.calibration.run import CalibrationRequest, FitFound, assemble
from nap_stream.core.conformal import Rule
from nap_stream.core.methods import method_scores, parse_method
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.errors import CalibrationError
from nap_stream.model.load import LoadedModel
from nap_stream.model.weights import weights_of
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings
from tests.support.small_settings import load_small

NAMES = ("cat", "dog", "owl")
PARAMETERS = ScoreParameters(knn_k=2)


def model() -> LoadedModel:
    return load_small("SmallNet", class_names=NAMES)


def reading_of(
    predicted: Sequence[int],
    labels: Sequence[str | None] | None = None,
    *,
    sure: float = 5.0,
    seed: int = 0,
) -> Reading:
    """Outputs of a model that predicts these classes, with a logit so far above the others."""
    generator = np.random.default_rng(seed)
    n = len(predicted)
    logits = generator.uniform(0, 0.1, (n, 3)).astype(np.float32)
    logits[np.arange(n), predicted] += sure
    return Reading(
        names=tuple(f"{number}.png" for number in range(n)),
        labels=tuple(labels or (None,) * n),
        positions=np.arange(n),
        logits=logits,
        features=generator.random((n, 4), np.float32),
        nap=generator.uniform(1, 9, n).astype(np.float32),
        undecodable=0,
        first_problem="",
    )


def put_together(
    reading: Reading,
    method: str = "nap-energy",
    *,
    fit_reading: Reading | None = None,
    fitted: Fitted | None = None,
    weight: float | None = 0.25,
    rule: Rule | None = None,
    fit_source: Path | None = None,
) -> Calibration:
    loaded = model()
    fitted = fitted or unfitted(ALWAYS, loaded, PARAMETERS)
    request = CalibrationRequest(
        model=ModelSettings(factory="package:name"),
        scoring=ScoringSettings(knn_k=2),
        images=Path("some/../held-out"),
        fit_images=fit_source,
        rule=rule or Rule(0.25),
        weight=weight,
        batch_size=4,
        limits=LimitSettings(),
    )
    return assemble(
        request,
        loaded,
        parse_method(method),
        FitFound(fitted, fit_reading, {}, {}),
        ScoredImages.of(reading, fitted.base_scores),
        weights_fingerprint=weights_of(loaded.module),
        copies=0,
        created_ms=7,
    )


def warnings_of(reading: Reading, **changes: Any) -> tuple[str, ...]:
    return put_together(reading, **changes).document.warnings


def test_scores_values_and_facts_are_those_of_the_parts() -> None:
    reading = reading_of([0, 1, 2, 1, 0])
    calibration = put_together(reading)
    document, loaded = calibration.document, model()
    values = reading.values(unfitted(ALWAYS, loaded, PARAMETERS).base_scores)
    expected = values["energy"].astype(float) ** 0.25 * values["nap"].astype(float) ** 0.75
    np.testing.assert_allclose(calibration.arrays["score"], expected)
    assert calibration.values.keys() == {"nap", "msp", "max_logit", "energy"}
    for name, column in values.items():
        np.testing.assert_array_equal(calibration.values[name], column)
    assert calibration.arrays["class_id"].tolist() == [0, 1, 2, 1, 0]
    assert (document.method, document.weight, document.location) == ("nap-energy", 0.25, 0)
    assert document.scores == ALWAYS
    assert document.images.source == "held-out"
    assert (document.images.scored, document.images.undecodable) == (5, 0)
    assert document.fit_images is None
    assert document.weight_search is None
    assert document.created_ms == 7
    assert document.mean_confidence == pytest.approx(float(values["msp"].mean()))
    assert document.model.fingerprint == loaded.fingerprint
    assert document.model.weights_fingerprint == weights_of(loaded.module)
    assert document.model.class_names == NAMES
    assert (document.model.feature_site, document.model.head) == (loaded.feature_site, loaded.head)


def test_references_and_fits_are_those_of_the_fit_part() -> None:
    fit_reading, reading = reading_of([0, 1, 2] * 4, seed=1), reading_of([0, 1, 2] * 3, seed=2)
    fitted = fit((*ALWAYS, BaseScore.KNN), fit_reading, Folds.choose(12), model(), PARAMETERS)
    method = parse_method("fisher-knn")
    calibration = put_together(reading, "fisher-knn", fit_reading=fit_reading, fitted=fitted)
    references = fitted.references(method)
    assert calibration.references.keys() == references.keys() == {"nap", "knn"}
    for name, column in calibration.references.items():
        np.testing.assert_array_equal(column, np.sort(fitted.values[name]))
    np.testing.assert_array_equal(calibration.fits.knn_bank, fitted.fits.knn_bank)
    values = reading.values(fitted.base_scores)
    expected = method_scores(method, values, weight=0.25, location=0, reference=references)
    np.testing.assert_array_equal(calibration.arrays["score"], expected)
    assert calibration.document.fit_images is not None
    assert (calibration.document.fit_images.source, calibration.size) == (None, 9)
    assert calibration.document.fit_images.scored == 12


def test_the_geometric_mean_alone_moves_its_base_score() -> None:
    shifted = reading_of([0, 1, 2] * 14)
    shifted = replace(shifted, logits=shifted.logits - 9)
    fitted = fit(ALWAYS, shifted, Folds.choose(42), model(), PARAMETERS)
    location = fitted.location(parse_method("nap-energy"))
    assert location < -7
    moved = put_together(shifted, fitted=fitted, fit_reading=shifted)
    assert moved.document.location == location
    fisher = put_together(shifted, "fisher-energy", fitted=fitted, fit_reading=shifted)
    assert fisher.document.location == 0
    assert moved.document.warnings == ()


def test_a_base_score_without_a_power_is_doubtful() -> None:
    reading = reading_of([0, 1, 2, 0])
    logits = reading.logits.copy()
    logits[1:3] -= 9
    (warning,) = warnings_of(replace(reading, logits=logits))
    assert warning.startswith("the energy of 2 of 4 images is at or below 0")


@pytest.mark.parametrize(
    ("labels", "accuracy"),
    [
        (["cat", "dog", "owl", "cat"], 0.75),
        (["cat", "dog", "owl", "owl"], 1.0),
        (["cat", "dog", "owl", "fish"], None),
        (["cat", "dog", "owl", None], None),
        (None, None),
    ],
)
def test_accuracy_where_all_labels_are_class_names(
    labels: list[str | None] | None, accuracy: float | None
) -> None:
    assert put_together(reading_of([0, 1, 2, 2], labels)).document.accuracy == accuracy


def test_images_that_go_with_the_model_are_not_doubted() -> None:
    assert warnings_of(reading_of([0, 1, 2, 2], ["cat", "dog", "owl", "cat"])) == ()


def test_accuracy_near_guessing_is_doubted_with_its_figure() -> None:
    # Below 1/3 + 0.2 * 2/3 = 0.467.
    labels = ["dog", "cat", "owl", "owl", "dog"]
    (warning,) = warnings_of(reading_of([0, 1, 2, 0, 0], labels))
    assert warning.startswith("accuracy 0.200 is near that of guessing (0.333): are these images")


def test_confidence_near_guessing_is_doubted_with_its_figure() -> None:
    reading = reading_of([0, 1, 2, 2], sure=0.11)
    (warning,) = warnings_of(reading)
    confidence = put_together(reading).document.mean_confidence
    assert confidence < 1 / 3 + 0.2 * 2 / 3
    assert warning.startswith(f"mean confidence {confidence:.3f} is near that of guessing (0.333)")


def test_one_class_only_is_doubted() -> None:
    assert warnings_of(reading_of([2, 2, 2, 2])) == (
        "all images are predicted as one class, number 2",
    )


def test_undecodable_images_of_both_parts_are_told() -> None:
    reading = replace(reading_of([0, 1, 2, 2]), undecodable=1, first_problem="a.txt: text")
    fit_reading = replace(reading_of([0, 1, 2] * 14), undecodable=2, first_problem="b.txt: empty")
    assert warnings_of(reading, fit_reading=fit_reading, fit_source=Path("training")) == (
        "1 of 5 images to calibrate on cannot be decoded; first a.txt: text",
        "2 of 44 images to fit on cannot be decoded; first b.txt: empty",
    )
    document = put_together(reading, fit_reading=fit_reading, fit_source=Path("training")).document
    assert document.images.undecodable == 1
    assert document.fit_images is not None
    assert (document.fit_images.source, document.fit_images.undecodable) == ("training", 2)


def test_images_of_which_the_decoder_warned_are_told_and_stated() -> None:
    whole = reading_of([0, 1, 2, 2])
    reading = replace(whole, warned=Warned(1, ("a.jpg: cut off",)))
    (said,) = warnings_of(reading)
    assert said.startswith("of 1 of 4 images to calibrate on the decoder warns")
    document, before = put_together(reading).document, put_together(whole).document
    assert document.images.warned == 1
    assert document.images.model_dump()["warned"] == 1
    # The fingerprint of a calibration without any is what it was before they were counted.
    assert "warned" not in before.images.model_dump()


def test_too_few_images_for_the_rule_says_how_many() -> None:
    with pytest.raises(CalibrationError, match=r"4 calibration images .* at least 9 are needed"):
        put_together(reading_of([0, 1, 2, 2]), rule=Rule(0.1))
    with pytest.raises(
        CalibrationError, match=r"at least 3 .* class 0 has 1, class 1 has 1, class 2 h"
    ):
        put_together(reading_of([0, 1, 2, 2]), rule=Rule(0.25, per_class=True))


def test_a_threshold_among_equal_scores_is_doubted() -> None:
    reading = reading_of([0, 1, 2, 0, 1, 2, 0, 1])
    logits, nap = reading.logits.copy(), reading.nap.copy()
    logits[3:] = logits[3]
    nap[3:] = 0.5
    tied = replace(reading, logits=logits, nap=nap)
    (warning,) = (text for text in warnings_of(tied, rule=Rule(0.25)) if "tie" in text)
    assert warning.startswith("5 of 8 calibration scores tie at the lowest")
    assert not any("tie" in text for text in warnings_of(reading, rule=Rule(0.25)))
