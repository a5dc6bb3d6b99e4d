from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.calibration import Calibration, base_scores_of
from nap_stream.calibration.checks import (
    few_warnings,
    neighbour_warnings,
    selection_warnings,
    separation_warnings,
    training_warnings,
)
from nap_stream.calibration.fit import Folds
from nap_stream.calibration.read import Reader, Reading, ScoredImages
from nap_stream.calibration.run import calibrate
from nap_stream.clock import ManualClock
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.selection import Selection, WeightSearch
from nap_stream.errors import CalibrationError
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings, ScoringSettings
from tests.support.small_calibration import calibration_request, write_images
from tests.support.small_settings import CPU, load_small, small_settings

ALWAYS = {"msp", "max_logit", "energy"}


def run(images: Path, network: str = "SmallNet", **changes: Any) -> Calibration:
    plain = {"model": small_settings(kwargs={"name": network}), "scoring": ScoringSettings()}
    request = calibration_request(images, **(plain | changes))
    return calibrate(request, device=CPU, clock=ManualClock(0))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("selecting") / "held-out", 45)


def test_only_what_is_chosen_is_kept(images: Path) -> None:
    calibration = run(images)
    document = calibration.document
    assert document.weights is not None
    chosen = set(document.weights)
    assert sum(document.weights.values()) == pytest.approx(1)
    assert max(document.weights.values()) <= 0.6 + 1e-12
    assert set(document.scores) == ALWAYS | (chosen - {"nap"})
    kept = {name for name in calibration.arrays if name.startswith("fit.")}
    mean = {"fit.feature_mean"} if "fdbd" in chosen else set()
    parts = ("mean", "directions", "variances")
    gaussian = {f"fit.gaussian_{part}" for part in parts} if "mahalanobis" in chosen else set()
    assert kept == mean | gaussian
    assert calibration.references.keys() == chosen


def test_p_values_are_the_same_after_a_reload_and_in_other_batches(
    images: Path, tmp_path: Path
) -> None:
    made = run(images)
    write_calibration(made, tmp_path / "made")
    loaded, again = load_small("SmallNet"), load_calibration(tmp_path / "made")
    assert again.fingerprint == made.fingerprint
    fresh = write_images(tmp_path / "fresh", 12, first_seed=900)
    reader = Reader(loaded, LimitSettings(), fresh)
    found = []
    for calibration, batch_size in ((made, 12), (again, 12), (again, 5)):
        scores = base_scores_of(calibration, loaded)
        scored = reader.score(reader.files(), scores, batch_size, lambda _images: None)
        found.append(calibration.judge(scored.values, scored.class_id))
    np.testing.assert_array_equal(found[0].fused, found[1].fused)
    np.testing.assert_array_equal(found[0].ood_p_value, found[1].ood_p_value)
    np.testing.assert_array_equal(found[0].ood_p_value, found[2].ood_p_value)
    other = run(images, batch_size=5)
    assert other.document.weights == made.document.weights
    assert other.document.faults == made.document.faults
    assert made.document.selection is not None
    assert other.document.selection is not None
    sums = made.document.selection.sum_auroc
    assert other.document.selection.sum_auroc == pytest.approx(sums, abs=1e-3)
    np.testing.assert_allclose(other.arrays["score"], made.arrays["score"], rtol=1e-3, atol=1e-4)


def test_a_model_without_a_linear_head_has_the_features_of_its_map(images: Path) -> None:
    # What its head clips lies in [0, 1], as a sigmoid's outputs do.
    model = small_settings(kwargs={"name": "ReluHeadNet"}, output_kind="logits")
    document = run(images, model=model).document
    assert document.selection is not None
    assert "mahalanobis" in document.selection.auroc
    assert "fdbd" not in document.selection.auroc
    why = "needs a model whose logits come from a linear layer"
    assert document.selection.left_out["fdbd"] == why
    assert not any("no score of features" in text for text in document.warnings)


def test_fewer_images_than_twice_the_folds_do_without_features(tmp_path: Path) -> None:
    document = run(write_images(tmp_path, 15)).document
    assert document.selection is not None
    assert not document.selection.auroc.keys() & {"fdbd", "mahalanobis"}
    why = "needs 10 images to fit on, and there are 5"
    assert document.selection.left_out == {"fdbd": why, "mahalanobis": why}
    assert any(
        text.endswith(f"alone go unseen (fdbd: {why}; mahalanobis: {why})")
        for text in document.warnings
    )


def test_undecodable_images_in_some_folds_alone_can_leave_too_few_neighbours(
    images: Path, tmp_path: Path
) -> None:
    write_images(tmp_path, 20, first_seed=500)
    # Of 13 images that are left one fold holds four.
    for number in np.flatnonzero(Folds.choose(20).fold != 0)[:7]:
        (tmp_path / f"{number:04}.png").write_text("a note")
    with pytest.raises(CalibrationError, match=r"a fold is left out: knn .* got 9"):
        run(images, fit_images=tmp_path, scoring=ScoringSettings(method="knn"))


def test_an_input_too_small_for_pseudo_images_is_refused_with_what_to_do(images: Path) -> None:
    small = small_settings(preprocessing=PreprocessingSettings(resize=7, crop=7))
    with pytest.raises(CalibrationError, match=r"auto chooses on .* 8 pixels a side, .* 7 x 7"):
        run(images, model=small)
    plain = run(images, model=small, scoring=ScoringSettings(method="energy"))
    assert plain.document.faults == ()


def test_constant_images_are_refused_with_what_to_do(tmp_path: Path) -> None:
    for number in range(30):
        Image.new("RGB", (9, 9), (90, 120, 150)).save(
            tmp_path / f"{number}.png", compress_level=number % 10
        )
    with pytest.raises(CalibrationError, match="no score can tell images apart: every score") as e:
        run(tmp_path)
    assert "Are the images different" in str(e.value)


def selection(**changes: Any) -> Selection:
    fields: dict[str, Any] = {
        "weights": {"msp": 0.5, "nap": 0.5},
        "transforms": ("t",),
        "auroc": {"fdbd": (0.9,), "msp": (0.9,), "nap": (0.8,)},
        "sum_auroc": (0.9,),
        "left_out": {},
        "inside_images": 40,
        "pseudo_images": 40,
    }
    return Selection(**(fields | changes))


NO_FEATURES = {
    "auroc": {"msp": (0.9,), "nap": (0.8,)},
    "left_out": {"fdbd": "needs a", "mahalanobis": "needs b", "energy": "the same"},
}
LOST = "no score of features is to choose from, so that images that are odd in their features "
FEW = "there are 39 images to fit on, and what is fitted or chosen on fewer than 40"


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ({}, []),
        ({"sum_auroc": (0.881,)}, []),
        ({"sum_auroc": (0.879,)}, ["the sum separates pseudo-OOD images with a mean AUROC"]),
        ({"auroc": {"fdbd": (0.9,), "msp": (0.9,), "nap": (0.49,)}}, ["nap alone takes pseudo"]),
        ({"auroc": {"fdbd": (0.7,), "msp": (0.7,), "nap": (0.7,)}, "sum_auroc": (0.749,)}, ["pse"]),
        ({"pseudo_images": 39}, [FEW]),
        ({"inside_images": 39}, [FEW]),
        (NO_FEATURES, [f"{LOST}alone go unseen (fdbd: needs a; mahalanobis: needs b)"]),
        ({"left_out": {"fdbd": "needs a"}}, []),
    ],
)
def test_warnings_of_a_selection(changes: dict[str, Any], starts: list[str]) -> None:
    one = selection(**changes)
    found = [
        *separation_warnings("the sum", one, one.means),
        *selection_warnings(one),
        *few_warnings(reading_of(40), one, limited=False),
    ]
    assert len(found) == len(starts)
    for text, start in zip(found, starts, strict=True):
        assert text.startswith(start)


def test_no_selection_no_warning() -> None:
    assert list(separation_warnings("energy", None, {})) == []
    assert list(selection_warnings(None)) == []
    assert list(few_warnings(None, None, limited=False)) == []


def test_a_weight_that_separates_worse_than_a_score_alone_is_doubted() -> None:
    search = WeightSearch(("t",), (0.0, 1.0), ((0.84, 0.8),), 40, 40, 0.0, (0.0, 0.0), (0.0, 0.0))
    (found,) = separation_warnings("fisher-knn", search, {"nap": 0.7, "msp": 0.861})
    assert found == (
        "fisher-knn separates pseudo-OOD images with a mean AUROC of 0.840, msp alone with 0.861: "
        "compare both with nap-stream evaluate"
    )
    assert list(separation_warnings("fisher-knn", search, {"msp": 0.859})) == []


def test_few_images_to_fit_on_are_doubted_whatever_was_chosen_on_them() -> None:
    (found,) = few_warnings(reading_of(39), None, limited=False)
    assert found.startswith(FEW)
    assert found.endswith("Give more images")
    (cut,) = few_warnings(reading_of(39), None, limited=True)
    assert cut.endswith("Raise scoring.fit_limit")
    assert list(few_warnings(reading_of(40), None, limited=False)) == []


def reading_of(n: int) -> Reading:
    zeros = np.zeros(n, np.float32)
    logits = np.zeros((n, 3), np.float32)
    return Reading(("a",) * n, (None,) * n, np.arange(n), logits, None, zeros, 0, "")


def test_neighbours_of_few_images_a_class_are_doubted() -> None:
    knn = (BaseScore.KNN,)
    (found,) = neighbour_warnings(knn, reading_of(29), 3, limited=False)
    assert found.startswith("knn has 29 images of 3 classes")
    assert found.endswith("Give more images, or choose another method")
    assert list(neighbour_warnings(knn, reading_of(30), 3, limited=False)) == []
    energy = (BaseScore.ENERGY,)
    assert list(neighbour_warnings(energy, reading_of(29), 3, limited=False)) == []
    assert len(list(neighbour_warnings(knn, None, 3, limited=False))) == 1
    (cut,) = neighbour_warnings(knn, reading_of(29), 3, limited=True)
    assert cut.endswith("Raise scoring.fit_limit, or choose another method")


@pytest.mark.parametrize(("n", "wrong", "doubted"), [(40, 0, 1), (39, 0, 0), (40, 1, 0)])
def test_images_without_an_error_are_doubted(n: int, wrong: int, doubted: int) -> None:
    class_id = np.zeros(n, np.int64)
    class_id[:wrong] = 1
    scored = ScoredImages(("a",) * n, ("cat",) * n, class_id, {}, 0, "")
    found = list(training_warnings(scored, ("cat", "dog")))
    assert len(found) == doubted
    assert all(text.startswith("all 40 predictions are right") for text in found)
    assert list(training_warnings(scored, ("cat",))) == []
