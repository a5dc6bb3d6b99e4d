import dataclasses
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.calibration.calibration import (
    Calibration,
    Judgement,
    array_sha256,
    require_fingerprint,
    require_scoring,
    require_sites,
)
from nap_stream.calibration.fit import ALWAYS
from nap_stream.core.conformal import Rule
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.core.tails import FlagRateLaw, Sides
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import CalibrationError, FingerprintMismatchError
from nap_stream.model.load import LoadedModel
from nap_stream.settings.schema import PreprocessingSettings, ScoringSettings
from tests.support.small_calibration import MODEL, calibration_of
from tests.support.small_settings import load_small
from tests.support.waiting import PATIENCE_S

SCORES = st.lists(st.floats(2**-7, 1e3, width=32), min_size=4, max_size=30)


def hand(**changes: Any) -> Calibration:
    # Fused, at weight 1/2: sqrt(16*4), sqrt(1*1), sqrt(9*4), sqrt(4*4) = 8, 1, 6, 4.
    return calibration_of([16, 1, 9, 4], [4, 1, 4, 4], **({"alpha": 0.4} | changes))


def judge(
    calibration: Calibration,
    energy: list[float],
    nap: list[float],
    classes: list[int] | None = None,
) -> Judgement:
    values = {"energy": np.array(energy, np.float32), "nap": np.array(nap, np.float32)}
    return calibration.judge(values, np.array(classes or [0] * len(nap), np.int64))


def changed(calibration: Calibration, **arrays: NDArray[Any] | None) -> Calibration:
    """The calibration with other arrays, whose hashes its document states; None takes one out."""
    whole: dict[str, NDArray[Any] | None] = {**calibration.arrays, **arrays}
    kept = {name: array for name, array in whole.items() if array is not None}
    document = calibration.document.model_copy(update={"array_sha256": array_sha256(kept)})
    return Calibration(document, kept)


def test_hand_computed_judgement() -> None:
    calibration = hand()
    assert calibration.size == 4
    assert calibration.arrays["score"].tolist() == [8, 1, 6, 4]
    # k = floor(0.4 * 5) = 2: below the second smallest score is flagged.
    (group,) = calibration.document.groups
    assert (group.flag_rank, group.lower, group.upper) == (2, 4, None)
    assert calibration.facts == CalibrationFacts(
        alpha=0.4,
        size=4,
        per_class=False,
        flag_rate_laws=(FlagRateLaw(2, 4),),
        groups=1,
        # Ranks floor(edge * 5) of the edges 0.02 to 0.5, then 5 less those of 0.5 to 0.98.
        tail_laws=tuple(
            (FlagRateLaw(rank, 4),) if rank else () for rank in (0, 0, 0, 1, 2, 3, 1, 1, 1, 1)
        ),
        fingerprint=calibration.fingerprint,
        model_fingerprint="1" * 64,
    )
    found = judge(calibration, [1, 4, 2, 100], [0, 4, 2, 100])
    assert found.fused.tolist() == pytest.approx([0, 4, 2, 100])
    # (1 + number of calibration scores at most the score) / 5
    assert found.ood_p_value.tolist() == pytest.approx([1 / 5, 3 / 5, 2 / 5, 5 / 5])
    assert found.is_ood.tolist() == [True, False, True, False]


def test_hand_computed_judgement_on_two_sides() -> None:
    calibration = hand(rule=Rule(0.4, Sides.TWO))
    # An end each: floor(0.2 * 5) = 1, so that below the smallest and above the largest is flagged.
    (group,) = calibration.document.groups
    assert (group.flag_rank, group.lower, group.upper) == (2, 1, 8)
    found = judge(calibration, [0.25, 1, 25, 16, 81], [1, 1, 1, 4, 1])
    assert found.fused.tolist() == [0.5, 1, 5, 8, 9]
    # Twice (1 + number of calibration scores at the nearer end) / 5
    assert found.ood_p_value.tolist() == pytest.approx([2 / 5, 4 / 5, 1, 4 / 5, 2 / 5])
    assert found.is_ood.tolist() == [True, False, False, False, True]
    # floor(0.25 * 5) = 1 rank of an end has p <= 0.5, and the three between have more.
    laws = calibration.facts.tail_laws
    assert laws[:6] == ((), (), (), (), (FlagRateLaw(2, 4),), (FlagRateLaw(3, 4),))


def test_hand_computed_judgement_per_class() -> None:
    calibration = hand(rule=Rule(0.4, per_class=True), class_id=[0, 1, 0, 1])
    # Cats score 6 and 8, dogs 1 and 4: rank floor(0.4 * 3) = 1 of each.
    cats, dogs = calibration.document.groups
    assert (cats.class_id, cats.size, cats.flag_rank, cats.lower) == (0, 2, 1, 6)
    assert (dogs.class_id, dogs.size, dogs.flag_rank, dogs.lower) == (1, 2, 1, 1)
    found = judge(calibration, [5, 5], [5, 5], [0, 1])
    assert found.ood_p_value.tolist() == pytest.approx([1 / 3, 3 / 3])
    assert found.is_ood.tolist() == [True, False]
    # Both have one law, which stands there once.
    facts = calibration.facts
    assert (facts.size, facts.per_class, facts.flag_rate_laws) == (4, True, (FlagRateLaw(1, 2),))
    assert facts.groups == 2
    # Rank floor(0.5 * 3) = 1 of each group has p <= 0.5, the other two have p > 0.5.
    assert facts.tail_laws[4:6] == ((FlagRateLaw(1, 2),), (FlagRateLaw(2, 2),))


def test_the_facts_hold_the_law_of_each_class_in_order() -> None:
    calibration = hand(rule=Rule(0.5, per_class=True), class_id=[0, 0, 0, 1])
    # Rank floor(0.5 * 4) = 2 of three cats, floor(0.5 * 2) = 1 of one dog.
    facts = calibration.facts
    assert (facts.flag_rate_laws, facts.groups) == ((FlagRateLaw(1, 1), FlagRateLaw(2, 3)), 2)
    # Rank floor(0.2 * 4) = 0 of three: no law for p <= 0.2.
    assert facts.tail_laws[3:5] == ((), (FlagRateLaw(1, 1), FlagRateLaw(2, 3)))


def test_tied_scores_make_high_p_values_more_frequent() -> None:
    # Scores 1, 8, 8, 8: the second, at the edge of p > 0.5, is tied with two above it.
    calibration = calibration_of([1, 16, 16, 16], [1, 4, 4, 4], alpha=0.4)
    assert calibration.facts.tail_laws[4:7] == ((FlagRateLaw(2, 4),), *[(FlagRateLaw(4, 4),)] * 2)


def test_the_flag_rate_interval_is_that_of_the_beta_law() -> None:
    calibration = calibration_of([1, 2, 3, 4], [1, 2, 3, 4], alpha=0.2)
    # Beta(1, 4) has the distribution function 1 - (1 - x)^4.
    expected = [1 - (1 - tail) ** 0.25 for tail in (0.025, 0.975)]
    assert calibration.flag_rate_interval == pytest.approx(expected)


def test_fisher_sums_are_taken_against_the_references() -> None:
    references = {
        "reference.nap": np.array([1.0, 2, 3, 4]),
        "reference.energy": np.array([10.0, 20, 30, 40]),
    }
    calibration = hand(method="fisher-energy", weight=0.25, arrays=references)
    found = judge(calibration, [25, 5], [1.5, 2.5])
    # Energy: halfway from the 2nd to the 3rd of 4, and half a mean excess below all. NAP: halfway
    # from the 1st to the 2nd, and in the middle.
    expected = [
        0.25 * math.log(2.5 / 5) + 0.75 * math.log(2 * 1.5 / 5),
        0.25 * math.log(1 / 5 / 1.5) + 0.75 * math.log(1),
    ]
    assert found.fused.tolist() == pytest.approx(expected)


def test_the_location_is_taken_off_the_base_score() -> None:
    calibration = calibration_of([-2, -5, 4, 11], [1, 1, 1, 1], location=-5)
    # sqrt(3), 0, 3 and 4; what is not above the location has no root.
    assert calibration.arrays["score"].tolist() == pytest.approx([3**0.5, 0, 3, 4])
    found = judge(calibration, [-1, 20], [1, 4])
    assert found.fused.tolist() == pytest.approx([2, 10])
    assert found.ood_p_value.tolist() == pytest.approx([3 / 5, 1])


@pytest.mark.parametrize(
    ("method", "fused"), [("nap", [2.0, 3.0]), ("energy", [4.0, 5.0]), ("max_logit", [6.0, 7.0])]
)
def test_a_score_alone_is_judged_as_it_is(method: str, fused: list[float]) -> None:
    calibration = hand(method=method, weight=None)
    columns = {"nap": [2, 3], "energy": [4, 5], "max_logit": [6, 7]}
    values = {name: np.array(column, np.float32) for name, column in columns.items()}
    assert calibration.judge(values, np.zeros(2, np.int64)).fused.tolist() == fused


@pytest.mark.parametrize("sides", Sides)
@pytest.mark.parametrize("per_class", [False, True])
def test_a_row_of_nan_is_not_flagged(sides: Sides, per_class: bool) -> None:
    rule = Rule(0.4, sides, per_class)
    classes = [0] * 4 + [1] * 4
    scores = [1, 2, 3, 4, 1, 2, 3, 4]
    calibration = calibration_of(scores, scores, rule=rule, class_id=classes)
    found = judge(calibration, [math.nan, 0.5, 0.5], [0.5, math.nan, 0.5], [0, 1, 1])
    assert np.isnan(found.fused).tolist() == [True, True, False]
    assert np.isnan(found.ood_p_value).tolist() == [True, True, False]
    assert found.is_ood.tolist() == [False, False, True]


def test_a_value_that_the_method_needs_is_missing() -> None:
    with pytest.raises(KeyError, match="energy"):
        hand().judge({"nap": np.ones(2, np.float32)}, np.zeros(2, np.int64))


@given(SCORES, SCORES, st.floats(0.41, 0.9), st.sampled_from(Sides))
def test_flagged_exactly_outside_the_thresholds(
    images: list[float], stream: list[float], alpha: float, sides: Sides
) -> None:
    calibration = calibration_of(images, images, rule=Rule(alpha, sides))
    found = judge(calibration, stream, stream)
    (group,) = calibration.document.groups
    outside = found.fused < group.lower
    if group.upper is not None:
        outside |= found.fused > group.upper
    assert found.is_ood.tolist() == outside.tolist()
    assert found.fused.dtype == found.ood_p_value.dtype == np.float64


def test_arrays_cannot_be_changed() -> None:
    arrays = dict(hand().arrays)
    energy = arrays["value.energy"].copy()
    calibration = Calibration(hand().document, arrays | {"value.energy": energy})
    energy[0] = 99
    assert calibration.arrays["value.energy"][0] == 16
    with pytest.raises(ValueError, match="read-only"):
        calibration.arrays["score"][0] = 0
    with pytest.raises(TypeError, match="item assignment"):
        calibration.arrays["score"] = energy  # type: ignore[index]  # that it cannot is the test


def test_it_survives_pickling() -> None:
    calibration = hand(rule=Rule(0.4, per_class=True), class_id=[0, 1, 0, 1])
    again = pickle.loads(pickle.dumps(calibration))
    assert again.fingerprint == calibration.fingerprint
    assert judge(again, [5, 5], [5, 5], [0, 1]).is_ood.tolist() == [True, False]
    assert not again.arrays["score"].flags.writeable


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"score": None}, "expected the arrays"),
        ({"more": np.ones(4, np.float32)}, "expected the arrays"),
        ({"value.energy": None}, "expected the arrays"),
        ({"reference.nap": np.ones(4)}, "expected the arrays"),
        ({"fit.knn_bank": np.ones((4, 2), np.float32)}, "expected the arrays"),
        ({"score": np.array([8, 1, 6, 4], np.float32)}, "score is float32"),
        ({"score": np.ones((4, 1))}, r"score is float64 of \(4, 1\)"),
        ({"class_id": np.zeros(4, np.int64)}, "class_id is int64"),
        ({"value.nap": np.ones(3, np.float32)}, "value.nap has 3 values, there are 4 scores"),
        ({"class_id": np.zeros(5, np.int32)}, "class_id has 5 values"),
        ({"value.energy": np.array([1, 2, math.inf, 3], np.float32)}, "not finite"),
        ({"score": np.array([8, math.nan, 6, 4])}, "not finite"),
        ({"score": np.array([8, 1, 6, 5.0])}, "thresholds do not follow"),
    ],
)
def test_arrays_that_contradict_the_document(arrays: dict[str, Any], problem: str) -> None:
    assert changed(hand()).fingerprint == hand().fingerprint
    with pytest.raises(ValueError, match=problem):
        changed(hand(), **arrays)


def test_arrays_that_are_not_those_named() -> None:
    other = np.array([16, 2, 9, 4], np.float32)
    with pytest.raises(ValueError, match=r"not those that are named: value\.energy differs"):
        Calibration(hand().document, {**hand().arrays, "value.energy": other})


@pytest.mark.parametrize(
    "rule", [Rule(0.3), Rule(0.4, Sides.TWO), Rule(0.1), Rule(0.4, per_class=True)]
)
def test_a_rule_that_contradicts_the_arrays(rule: Rule) -> None:
    document = hand().document.model_copy(update={"rule": rule})
    with pytest.raises(ValueError, match=r"do not follow|at least|needs"):
        Calibration(document, hand().arrays)


def test_references_and_fits_must_be_there_where_they_are_needed() -> None:
    references = {"reference.nap": np.arange(4.0), "reference.energy": np.arange(4.0)}
    fisher = hand(method="fisher-energy", arrays=references)
    assert fisher.references.keys() == {"nap", "energy"}
    with pytest.raises(ValueError, match="expected the arrays"):
        changed(fisher, **{"reference.nap": None})
    bank = np.eye(2, dtype=np.float32)
    fits = {
        "value.knn": np.ones(4, np.float32),
        "fit.knn_bank": bank,
        "value.dice": np.ones(4, np.float32),
        "fit.feature_mean": np.array([0.5, 2], np.float32),
    }
    fitted = hand(scores=(*ALWAYS, BaseScore.DICE, BaseScore.KNN), arrays=fits)
    assert fitted.fits.knn_bank is fitted.arrays["fit.knn_bank"]
    assert fitted.fits.feature_mean is fitted.arrays["fit.feature_mean"]
    assert fitted.values.keys() == {"nap", "msp", "max_logit", "energy", "dice", "knn"}
    for name in fits:
        with pytest.raises(ValueError, match="expected the arrays"):
            changed(fitted, **{name: None})


def test_the_fingerprint_is_of_everything() -> None:
    site = dataclasses.replace(MODEL.feature_site, call=1)
    facts = {
        "fingerprint": "2" * 64,
        "weights_fingerprint": "2" * 64,
        "factory": "other:name",
        "class_names": ("cat", "owl"),
        "feature_site": site,
        "preprocessing": PreprocessingSettings(crop=200),
    }
    changes: list[dict[str, Any]] = [
        {},
        {"alpha": 0.41},
        {"weight": 0.6},
        {"location": -0.1},
        {"method": "nap-max_logit"},
        {"parameters": ScoreParameters(knn_k=3)},
        {"react_clip": 2.0},
        {"flag_rate_confidence": 0.9},
        {"images": hand().document.images.model_copy(update={"source": "other"})},
        {"images": hand().document.images.model_copy(update={"undecodable": 2})},
        {"fit_images": hand().document.images},
        {"mean_confidence": 0.3},
        {"accuracy": 0.5},
        {"warnings": ("look",)},
        {"versions": {"torch": "3"}},
        {"created_ms": 1},
        {"class_id": [0, 0, 1, 0]},
        *({"model": MODEL.model_copy(update={name: value})} for name, value in facts.items()),
    ]
    made = [hand(**change) for change in changes]
    # Other scores of an image beneath the same fused scores.
    made.append(changed(hand(), **{"value.max_logit": np.array([16, 2, 9, 4], np.float32)}))
    assert len({calibration.fingerprint for calibration in made}) == len(made)
    assert made[0].fingerprint == hand().fingerprint


def fitted_to(loaded: LoadedModel) -> Calibration:
    facts = MODEL.model_copy(
        update={
            "fingerprint": loaded.fingerprint,
            "feature_site": loaded.feature_site,
            "head": loaded.head,
        }
    )
    return hand(model=facts)


def test_the_calibration_of_this_model() -> None:
    loaded = load_small("SmallNet")
    require_fingerprint(fitted_to(loaded), loaded)
    assert fitted_to(loaded).document.model.fingerprint == loaded.fingerprint


def test_the_calibration_of_another_model_names_both() -> None:
    loaded = load_small("SmallNet")
    other = load_small("SmallNet", class_names=("a", "b", "c"))
    require_fingerprint(fitted_to(loaded), other)
    other = load_small("DropoutNet")
    with pytest.raises(FingerprintMismatchError) as caught:
        require_fingerprint(fitted_to(loaded), other)
    assert loaded.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def test_a_map_read_elsewhere_is_refused() -> None:
    loaded, elsewhere = load_small("SmallNet"), load_small("SmallNet", feature_layer="features.0")
    assert loaded.fingerprint == elsewhere.fingerprint
    for require in (require_fingerprint, require_sites):
        with pytest.raises(FingerprintMismatchError, match=r"input of pool.*output of features\.0"):
            require(fitted_to(loaded), elsewhere)


def test_another_head_is_refused() -> None:
    loaded = load_small("SmallNet")
    assert loaded.head is not None
    headless = dataclasses.replace(loaded, head=None)
    with pytest.raises(FingerprintMismatchError, match=r"now at the input of pool.* and None"):
        require_sites(fitted_to(loaded), headless)


@pytest.mark.parametrize(
    ("scoring", "problem"),
    [
        ({"method": "fisher-energy"}, "the method is nap-energy, not fisher-energy"),
        ({"scores": ("msp", "knn", "ash")}, "knn, ash were not computed"),
        ({"knn_k": 3}, "the parameters are .*knn_k=10"),
        ({"method": "nap", "knn_k": 3}, "the method is nap-energy, not nap; the parameters"),
    ],
)
def test_settings_that_ask_for_other_scores_are_refused(
    scoring: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CalibrationError, match=problem):
        require_scoring(hand(), ScoringSettings(**scoring))


@pytest.mark.parametrize("scoring", [{}, {"method": "nap-energy"}, {"scores": ("energy", "msp")}])
def test_settings_that_go_with_the_calibration(scoring: dict[str, Any]) -> None:
    require_scoring(hand(), ScoringSettings(**scoring))


def test_a_worker_loads_nothing_that_calibrates() -> None:
    code = "import sys, nap_stream.monitor.worker\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=PATIENCE_S, capture_output=True, text=True
    )
    loaded = set(run.stdout.split())
    assert "nap_stream.monitor.worker" in loaded
    assert {name for name in loaded if name.startswith("nap_stream.calibration.")} == {
        "nap_stream.calibration.artifact",
        "nap_stream.calibration.baseline",
        "nap_stream.calibration.calibration",
        "nap_stream.calibration.document",
    }
    unneeded = {"nap_stream.image_files", "scipy.stats", "torchvision", "torch._dynamo"}
    assert not unneeded & loaded
