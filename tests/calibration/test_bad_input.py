"""Models and images that take something from the default method, or that it cannot do with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nap_stream.calibration import fit as fit_module
from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.fit import FitPart, Folds
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import Reader
from nap_stream.calibration.run import calibrate
from nap_stream.clock import ManualClock
from nap_stream.core.conformal import Rule
from nap_stream.core.selection import Selection
from nap_stream.errors import CalibrationError, ModelError
from nap_stream.ood_scorer import OODScorer
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings, ScoringSettings
from tests.support.small_calibration import calibration_request, scorer_of, write_images
from tests.support.small_models import by_name
from tests.support.small_settings import CPU, load_small, small_settings

NO_HEAD = "needs a model whose logits come from a linear layer"
SAME = "the same for most images"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("bad") / "held-out", 60)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("bad") / "many", 300)


def run(
    images: Path, network: str = "SmallNet", method: str = "auto", **changes: Any
) -> Calibration:
    settings = small_settings(kwargs={"name": network})
    plain = {"model": settings, "scoring": ScoringSettings(method=method), "batch_size": 64}
    request = calibration_request(images, **(plain | changes))
    return calibrate(request, device=CPU, clock=ManualClock(0))


def chosen(calibration: Calibration) -> Selection:
    """What was chosen, once it was seen to be a working method."""
    selection = calibration.document.selection
    assert selection is not None
    assert sum(selection.weights.values()) == pytest.approx(1)
    assert set(selection.weights) <= set(selection.auroc)
    assert np.isfinite(calibration.arrays["score"]).all()
    assert len(calibration.document.faults) == 16
    return selection


@pytest.fixture(autouse=True)
def few_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are for tests that are about what is chosen."""
    few = {name: PSEUDO_OOD[name] for name in ("elastic", "shapes", "solarize")}
    monkeypatch.setattr(fit_module, "PSEUDO_OOD", few)


def told(calibration: Calibration, start: str) -> bool:
    return any(text.startswith(start) for text in calibration.document.warnings)


def test_no_linear_head(images: Path) -> None:
    selection = chosen(run(images, "CosineNet"))
    assert selection.left_out == {"fdbd": NO_HEAD}
    assert "mahalanobis" in selection.auroc


def test_no_features_at_all(images: Path) -> None:
    calibration = run(images, "TanhClsNet")
    assert chosen(calibration).left_out == {
        "fdbd": NO_HEAD,
        "mahalanobis": "needs features, which this model does not give",
    }
    assert told(calibration, "no score of features is to choose from, so that images that are odd")


@pytest.mark.parametrize("classes", [2, 1_000])
def test_any_number_of_classes(many: Path, tmp_path: Path, classes: int) -> None:
    model = small_settings("sized", kwargs={"classes": classes})
    calibration = run(many, model=model)
    assert chosen(calibration).left_out == {}
    write_calibration(calibration, tmp_path / "made")
    assert load_calibration(tmp_path / "made").fingerprint == calibration.fingerprint


def test_one_output_is_refused_and_taken_for_two_classes_where_asked_for(images: Path) -> None:
    with pytest.raises(ModelError, match="one number an image"):
        run(images, model=small_settings("sized", kwargs={"classes": 1}))
    asked = small_settings("sized", kwargs={"classes": 1}, output_kind="logits")
    calibration = run(images, model=asked)
    assert calibration.document.model.class_names == ("0", "1")
    assert 0.5 <= calibration.document.mean_confidence < 1


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        ("SoftmaxNet", "probabilities in place of logits"),
        ("SigmoidNet", "as a sigmoid's do"),
        ("VotesNet", "whole numbers, as votes are"),
    ],
)
def test_what_is_no_logits_is_refused(many: Path, network: str, problem: str) -> None:
    with pytest.raises((ModelError, CalibrationError), match=problem):
        run(many, network)
    with pytest.raises((ModelError, CalibrationError), match=problem):
        run(many, network, "nap")


def test_a_head_that_was_never_trained_is_doubted(images: Path) -> None:
    assert told(run(images, "ZeroNet", "nap"), "all logits are 0: were the weights loaded")


def test_probabilities_where_asked_for(images: Path, tmp_path: Path) -> None:
    logits = run(images).values["msp"]
    settings = small_settings(kwargs={"name": "SoftmaxNet"}, output_kind="probabilities")
    calibration = run(images, model=settings)
    np.testing.assert_allclose(calibration.values["msp"], logits, rtol=1e-5)
    assert told(calibration, "the logits are log-probabilities: energy is 0 for every image")
    write_calibration(calibration, tmp_path / "made")
    assert load_calibration(tmp_path / "made").fingerprint == calibration.fingerprint
    scorer = OODScorer(tmp_path / "made", by_name("SoftmaxNet").eval())
    pixels = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    np.testing.assert_allclose(
        scorer(pixels).values["msp"],
        scorer_of(load_small("SmallNet"))(pixels).values["msp"],
        rtol=1e-5,
    )


def test_constant_features(images: Path) -> None:
    selection = chosen(run(images, "ConstantFeaturesNet"))
    assert selection.left_out == dict.fromkeys(("msp", "energy", "fdbd", "mahalanobis"), SAME)
    assert selection.weights == {"nap": 1.0}
    alone = run(images, "ConstantFeaturesNet", "mahalanobis")
    assert told(alone, "40 of 40 calibration scores tie at the lowest")


def test_images_to_fit_on_that_are_nearly_the_same(images: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = random.integers(1, 255, (8, 8, 3))
    for number in range(60):
        pixels = base + random.integers(-1, 2, base.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    calibration = run(images, fit_images=tmp_path)
    chosen(calibration)
    # They are unlike all images that calibrate, whose p-values hold nevertheless.
    judged = calibration.judge(calibration.values, calibration.arrays["class_id"].astype(np.int64))
    assert judged.is_ood.mean() <= 0.1
    assert len(set(judged.fused.tolist())) > 50


def test_one_image_of_a_class_for_hundreds_of_another(tmp_path: Path) -> None:
    write_images(tmp_path / "drawn", 400)
    loaded = load_small("SmallNet")
    reader = Reader(loaded, LimitSettings(), tmp_path / "drawn")
    reading = reader.read(reader.files(), 64, lambda _images: None)
    common = int(np.bincount(reading.class_id).argmax())
    rows = np.flatnonzero(reading.class_id == common)[:250]
    odd = int(np.flatnonzero(reading.class_id != common)[-1])
    assert len(rows) == 250
    files = list(reader.files())
    (tmp_path / "kept").mkdir()
    for row in (*rows, odd):
        (tmp_path / "kept" / files[row].name).write_bytes(files[row].data)
    assert not FitPart.choose(tmp_path / "kept", None, 1_000).rows[-1]
    calibration = run(tmp_path / "kept")
    chosen(calibration)
    assert np.bincount(calibration.arrays["class_id"]).max() == calibration.size - 1
    with pytest.raises(CalibrationError, match=r"of each predicted class: class \d has 1"):
        run(tmp_path / "kept", rule=Rule(0.1, per_class=True))


def test_noise_is_not_chosen_because_the_best_score_may_have_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "PSEUDO_OOD", PSEUDO_OOD)
    # White dots on black: no transform leaves as bright a map beside so dark a ground.
    random = np.random.default_rng(0)
    for number in range(300):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[*random.integers(0, 8, (2, 3))] = random.integers(200, 256, (3, 3))
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.png")
    plain = PreprocessingSettings(resize=8, crop=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = small_settings(kwargs={"name": "NoisyFeaturesNet"}, preprocessing=plain)
    selection = chosen(run(tmp_path, model=model))
    assert selection.means["nap"] > 0.8
    for name in ("msp", "energy", "fdbd", "mahalanobis"):
        assert abs(selection.means[name] - 0.5) < 0.08
        assert selection.weights.get(name, 0) <= 0.1


def test_one_image_to_fit_on(images: Path, tmp_path: Path) -> None:
    training = write_images(tmp_path, 1, first_seed=900)
    for method in ("auto", "mahalanobis", "react"):
        problem = f"{method} needs 2 or more images to fit on, and there are 1. Give more images"
        with pytest.raises(CalibrationError, match=problem):
            run(images, method=method, fit_images=training)


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_images_than_folds(images: Path, tmp_path: Path, count: int) -> None:
    training = write_images(tmp_path, count, first_seed=900)
    calibration = run(images, fit_images=training)
    why = f"needs 10 images to fit on, and there are {count}"
    assert chosen(calibration).left_out == {"fdbd": why, "mahalanobis": why}
    assert told(calibration, "no score of features is to choose from")
    assert told(calibration, f"there are {count} images to fit on")
    alone = run(images, method="mahalanobis", fit_images=training)
    assert np.isfinite(alone.arrays["score"]).all()
    assert told(alone, f"there are {count} images to fit on")


def test_undecodable_images_count_as_absent(images: Path, tmp_path: Path) -> None:
    training = write_images(tmp_path, 12, first_seed=900)
    for number in (1, 5, 9):
        (training / f"{number:04}.png").write_text("a note")
    why = "needs 10 images to fit on, and there are 9"
    assert chosen(run(images, fit_images=training)).left_out == {"fdbd": why, "mahalanobis": why}


def test_a_fold_of_undecodable_images_alone(images: Path, tmp_path: Path) -> None:
    training = write_images(tmp_path, 20, first_seed=900)
    for number in np.flatnonzero(Folds.choose(20).fold == 2):
        (training / f"{number:04}.png").write_text("a note")
    calibration = run(images, fit_images=training)
    selection = chosen(calibration)
    assert selection.left_out == {}
    assert (selection.inside_images, selection.pseudo_images) == (16, 16)


@pytest.mark.slow
def test_an_artifact_of_many_features_and_classes_is_small(tmp_path: Path) -> None:
    model = small_settings("sized", kwargs={"classes": 1_000, "width": 2_048})
    # Whatever was chosen: all of the pool that keeps anything is asked for.
    scoring = ScoringSettings(scores=("fdbd", "mahalanobis"))
    made = run(
        write_images(tmp_path / "held-out", 60),
        model=model,
        scoring=scoring,
        fit_images=write_images(tmp_path / "training", 140, first_seed=900),
    )
    assert made.fits.gaussian is not None
    assert made.fits.gaussian.directions.shape == (128, 2_048)
    write_calibration(made, tmp_path / "made")
    assert sum(file.stat().st_size for file in (tmp_path / "made").iterdir()) <= 3e6
