import io
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import betabinom

from nap_stream.calibration import fit as fit_module
from nap_stream.calibration import run as run_module
from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.cache import FeatureCache
from nap_stream.calibration.calibration import (
    Calibration,
    base_scores_of,
    require_fingerprint,
    require_scoring,
)
from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.fit import FitPart
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import Reader
from nap_stream.calibration.run import calibrate, choose_method
from nap_stream.clock import ManualClock, Progress
from nap_stream.core.conformal import Rule
from nap_stream.core.methods import fuse
from nap_stream.core.tails import Sides
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.errors import CalibrationError, ConfigError, InputDataError
from nap_stream.image_files import iter_images
from nap_stream.model.forward import score_forward
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.model.preprocessing import input_size, preprocess
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings
from tests.support.image_bytes import encoded, picture
from tests.support.small_calibration import calibration_request, scorer_of, write_images
from tests.support.small_settings import CPU, load_small, small_settings

FEW = {"knn_k": 2, "fit_limit": 100}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("run") / "held-out", 45)


@dataclass(slots=True)
class ForwardPasses:
    """Counts images that models were run on, once they were loaded, and those of the largest."""

    images: int = 0
    largest: int = 0

    def load(self, settings: ModelSettings, device: torch.device) -> LoadedModel:
        loaded = load_model(settings, device)
        loaded.module.register_forward_hook(self._count)
        return loaded

    def _count(self, _module: Any, inputs: tuple[torch.Tensor], _output: Any) -> None:
        self.images += len(inputs[0])
        self.largest = max(self.largest, len(inputs[0]))


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> ForwardPasses:
    passes = ForwardPasses()
    monkeypatch.setattr(run_module, "load_model", passes.load)
    return passes


def run(
    images: Path,
    *,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Calibration:
    clock = ManualClock(1_700_000_000_000)
    request = calibration_request(images, **changes)
    return calibrate(request, device=CPU, clock=clock, cache=cache, progress=progress)


def parquet_of(path: Path, count: int, first_seed: int) -> Path:
    images = [encoded(picture(9, 9, seed=first_seed + seed), "PNG") for seed in range(count)]
    pq.write_table(pa.table({"image": images}), path)
    return path


def pixels(images: Path, loaded: LoadedModel) -> torch.Tensor:
    rows = []
    for file in iter_images(images):
        found = decode_image(file.data, LimitSettings())
        assert isinstance(found, Picture)
        rows.append(preprocess(found.pixels, loaded.preprocessing))
    return torch.stack(rows)


def test_scores_are_those_of_the_images(held_out: Path) -> None:
    calibration = run(held_out)
    loaded = load_model(small_settings(), CPU)
    expected = scorer_of(loaded)(pixels(held_out, loaded))
    assert calibration.values.keys() == expected.values.keys()
    for name, column in expected.values.items():
        np.testing.assert_allclose(calibration.values[name], column, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(calibration.arrays["class_id"], expected.class_id)
    document = calibration.document
    assert document.mean_confidence == pytest.approx(expected.values["msp"].mean())
    fused = fuse(calibration.values["energy"], calibration.values["nap"], 0.4)
    np.testing.assert_array_equal(calibration.arrays["score"], fused)


def test_what_it_states(tmp_path: Path) -> None:
    calibration = run(write_images(tmp_path / "held-out", 21), weight=0.5)
    loaded, document = load_model(small_settings(), CPU), calibration.document
    assert (calibration.size, calibration.alpha, document.weight) == (21, 0.1, 0.5)
    # floor(0.1 * 22) = 2, and the interval of Beta(2, 20) has its mean 1/11 within.
    assert (document.groups[0].flag_rank, document.groups[0].size) == (2, 21)
    assert document.groups[0].lower == np.sort(calibration.arrays["score"])[1]
    low, high = calibration.flag_rate_interval
    assert 0 < low < 1 / 11 < high < 0.3
    require_fingerprint(calibration, loaded)
    require_scoring(calibration, ScoringSettings(method="nap-energy"))
    assert document.model.preprocessing == loaded.preprocessing
    assert document.model.factory == small_settings().factory
    assert (document.images.source, document.images.undecodable) == ("held-out", 0)
    assert (document.fit_images, document.weight_search, document.location) == (None, None, 0)
    assert document.created_ms == 1_700_000_000_000
    assert document.versions["torch"] == metadata.version("torch")
    write_calibration(calibration, tmp_path / "out")
    assert load_calibration(tmp_path / "out").fingerprint == calibration.fingerprint


def test_the_same_from_parquet_and_in_other_batches(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "held-out", 12)
    images = [file.data for file in iter_images(folder)]
    pq.write_table(pa.table({"image": images}), tmp_path / "held-out.parquet")
    first = run(folder)
    second = run(tmp_path / "held-out.parquet", batch_size=5)
    np.testing.assert_allclose(first.values["energy"], second.values["energy"], rtol=1e-5)
    np.testing.assert_allclose(first.values["nap"], second.values["nap"], rtol=1e-5)
    assert second.document.images.source == "held-out.parquet"


def test_progress_is_told_after_each_batch(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    run(write_images(tmp_path, 20), progress=lambda done, total: told.append((done, total)))
    # Then come the faulty images, 20 of each fault, in one block.
    total = 20 + 20 * len(FAULTS)
    assert told[:4] == [(8, total), (16, total), (20, total), (40, total)]
    assert told[-1] == (total, total)


@pytest.mark.parametrize("own", [False, True])
def test_progress_counts_the_passes_of_fit_and_search(
    held_out: Path, tmp_path: Path, own: bool
) -> None:
    told: list[tuple[int, int | None]] = []
    fit_images = write_images(tmp_path / "training", 9, first_seed=100) if own else None
    run(
        held_out,
        weight=None,
        fit_images=fit_images,
        progress=lambda done, total: told.append((done, total)),
    )
    fitted = 9 if own else 15
    calibrating = 45 if own else 30
    total = 45 + (9 if own else 0) + fitted * len(PSEUDO_OOD) + calibrating * len(FAULTS)
    assert {total for _, total in told} == {total}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[-1] == total


def test_undecodable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    (tmp_path / "0000a.txt").write_text("a note")
    (tmp_path / "0000b.png").write_bytes(b"")
    calibration = run(tmp_path)
    assert (calibration.size, calibration.document.images.undecodable) == (12, 2)
    (warning,) = (text for text in calibration.document.warnings if "cannot be decoded" in text)
    assert warning.startswith(
        "2 of 14 images to calibrate on cannot be decoded; first 0000a.txt: not a JPEG"
    )


def test_a_batch_without_one_image(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    for index in range(9):
        (tmp_path / f"0000-{index}.txt").write_text("a note")
    assert run(tmp_path, batch_size=3).document.images.undecodable == 9


def test_no_image_can_be_decoded(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text("a note")
    with pytest.raises(CalibrationError, match=r"none of the 20 images.*first 0\.txt: not a JPEG"):
        run(tmp_path)


def test_half_of_the_images_to_fit_on_are_undecodable(held_out: Path, tmp_path: Path) -> None:
    write_images(tmp_path, 5, first_seed=100)
    for index in range(5):
        (tmp_path / f"0000-{index}.txt").write_text("a note")
    with pytest.raises(CalibrationError, match=r"5 of 10 images cannot be decoded") as caught:
        run(held_out, weight=None, fit_images=tmp_path)
    assert caught.value.where == str(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no files"):
        run(tmp_path)
    with pytest.raises(InputDataError, match="no such"):
        run(tmp_path / "absent")
    with pytest.raises(InputDataError, match="no such"):
        run(write_images(tmp_path / "some", 12), weight=None, fit_images=tmp_path / "absent")


def test_fewer_images_than_alpha_needs(tmp_path: Path) -> None:
    write_images(tmp_path, 8)
    with pytest.raises(CalibrationError, match=r"the images are 8, and alpha = 0\.1 needs.* 9"):
        run(tmp_path)
    for index in range(5):
        (tmp_path / f"{index}.txt").write_text("a note")
    with pytest.raises(CalibrationError, match=r"8 calibration images .* at least 9 are needed"):
        run(tmp_path)
    write_images(tmp_path, 9)
    assert run(tmp_path).document.groups[0].flag_rank == 1


def test_fewer_images_than_alpha_needs_beside_those_fitted_on(tmp_path: Path) -> None:
    write_images(tmp_path, 13)
    told: list[int] = []
    # Of 13 images 4 are fitted on, and 9 are left; two sides need 19.
    assert run(tmp_path, weight=None).size == 9
    problem = r"the images are 9 beside 4 that are fitted on, and alpha = 0\.09 needs at least 11"
    with pytest.raises(CalibrationError, match=problem):
        run(tmp_path, weight=None, rule=Rule(0.09), progress=lambda done, _: told.append(done))
    assert told == []
    with pytest.raises(CalibrationError, match="needs at least 19"):
        run(tmp_path, rule=Rule(0.1, Sides.TWO))


def test_fewer_images_of_a_class_than_alpha_needs(held_out: Path) -> None:
    with pytest.raises(CalibrationError, match=r"at least 9 .* of each predicted class: class"):
        run(held_out, rule=Rule(0.1, per_class=True))


@pytest.mark.parametrize("weight", [None, 0.5])
def test_fewer_images_than_neighbours_is_known_before_any_forward_pass(
    held_out: Path, tmp_path: Path, forward_passes: ForwardPasses, weight: float | None
) -> None:
    scoring = ScoringSettings(method="fisher-knn")
    training = write_images(tmp_path / "training", 12, first_seed=100)
    problem = r"k = 10 needs 13 images .*there are 12 images to fit on\. Give at least 13 images"
    with pytest.raises(CalibrationError, match=problem) as caught:
        run(held_out, scoring=scoring, fit_images=training, weight=weight)
    assert caught.value.where == str(training)
    few = write_images(tmp_path / "few", 36)
    problem = r"needs 13 images .*there are 12, a third of the images\. Give at least 39 .*in all"
    with pytest.raises(CalibrationError, match=problem):
        run(few, scoring=scoring, weight=weight)
    assert forward_passes.images == 0


def test_as_many_images_as_neighbours_need_are_enough(held_out: Path, tmp_path: Path) -> None:
    training = write_images(tmp_path / "training", 13, first_seed=100)
    scoring = ScoringSettings(method="knn")
    assert run(held_out, scoring=scoring, fit_images=training).size == 45
    assert run(write_images(tmp_path / "third", 39), scoring=scoring).size == 26
    # One of them cannot be decoded, which no count tells.
    (training / "0003.png").write_text("a note")
    with pytest.raises(CalibrationError, match=r"k = 10 needs 13 images .* of 13 there are 12"):
        run(held_out, scoring=scoring, fit_images=training)


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    plain = small_settings().preprocessing.model_copy(
        update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    )
    settings = small_settings(kwargs={"name": "OverflowNet"}, preprocessing=plain)
    write_images(tmp_path, 12)
    name = next(FitPart.choose(tmp_path, None, 100).files()).name
    Image.new("RGB", (9, 9), "white").save(tmp_path / name)
    with pytest.raises(CalibrationError, match=rf"not finite for 1 of 12 images, first {name}"):
        run(tmp_path, model=settings)
    with pytest.raises(CalibrationError, match=rf"not finite for 1 of 4 images, first {name}"):
        run(tmp_path, model=settings, weight=None, rule=Rule(0.2))


@pytest.mark.parametrize("weight", [1.5, -0.1, float("nan")])
@pytest.mark.parametrize("method", ["fisher-knn", "nap-energy"])
def test_a_weight_out_of_range_is_refused_before_the_model_is_loaded(
    held_out: Path, weight: float, method: str
) -> None:
    absent = small_settings("absent")
    with pytest.raises(ConfigError, match=r"expected a weight in \[0, 1\], got"):
        run(held_out, model=absent, scoring=ScoringSettings(method=method), weight=weight)


@pytest.mark.parametrize("method", ["nap", "energy", "knn"])
def test_a_method_without_a_weight_takes_none(held_out: Path, method: str) -> None:
    scoring = ScoringSettings(method=method, **FEW)
    with pytest.raises(ConfigError, match=f"the method {method} has no weight, got 0.4"):
        run(held_out, model=small_settings("absent"), scoring=scoring, weight=0.4)
    document = run(held_out, scoring=scoring).document
    assert (document.method, document.weight, document.weight_search) == (method, None, None)
    # KNN alone takes something from images.
    assert (document.fit_images is not None) == (method == "knn")


@pytest.mark.parametrize("alpha", [0, 1])
def test_an_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="0 < alpha < 1"):
        Rule(alpha)


@pytest.mark.parametrize(
    ("network", "pool"),
    [
        ("SmallNet", {"msp", "energy", "fdbd", "mahalanobis", "nap"}),
        ("ReluHeadNet", {"msp", "energy", "mahalanobis", "nap"}),
    ],
)
def test_the_default_method_chooses_among_what_the_model_allows(
    held_out: Path, network: str, pool: set[str]
) -> None:
    settings = small_settings(kwargs={"name": network}, output_kind="logits")
    assert str(choose_method(ScoringSettings())) == "auto"
    calibration = run(held_out, model=settings, scoring=ScoringSettings())
    document = calibration.document
    assert document.method == "auto"
    assert (document.weight, document.weight_search) == (None, None)
    selection = document.selection
    assert selection is not None
    same = {name for name, why in selection.left_out.items() if why == "the same for most images"}
    assert selection.auroc.keys() | same == pool
    assert selection.left_out.keys() - same == {"fdbd"} - pool
    assert sum(selection.weights.values()) == pytest.approx(1)
    assert max(selection.weights.values()) <= 0.6
    assert selection.transforms == tuple(PSEUDO_OOD)
    assert (selection.inside_images, selection.pseudo_images) == (15, 15)
    assert (document.images.scored, document.location) == (30, 0)
    assert document.fit_images is not None
    assert (document.fit_images.source, document.fit_images.scored) == (None, 15)
    chosen = selection.weights.keys() - {"nap"}
    assert set(document.scores) == {"msp", "max_logit", "energy"} | chosen
    assert calibration.references.keys() == selection.weights.keys()
    assert calibration.fits.knn_bank is None
    assert (calibration.fits.gaussian is not None) == ("mahalanobis" in chosen)
    assert (calibration.fits.feature_mean is not None) == ("fdbd" in chosen)
    require_fingerprint(calibration, load_small(network, output_kind="logits"))


def test_what_faults_are_seen_is_told_of_every_fault(held_out: Path) -> None:
    document = run(held_out, scoring=ScoringSettings()).document
    assert tuple(seen.fault for seen in document.faults) == tuple(FAULTS)
    for seen in document.faults:
        assert seen.images == 30
        assert (seen.flagged * 30).is_integer() or seen.flagged * 30 == pytest.approx(
            round(seen.flagged * 30)
        )
        if seen.flagged <= document.rule.alpha:
            assert seen.records is None


def test_a_black_frame_is_scored_as_the_model_sees_it(held_out: Path) -> None:
    calibration = run(held_out, scoring=ScoringSettings())
    loaded = load_small("SmallNet")
    black = torch.zeros(1, 3, *input_size(loaded.preprocessing), dtype=torch.uint8)
    found = score_forward(loaded.forward(black), base_scores_of(calibration, loaded))
    flagged = bool(calibration.judge(found.values, found.class_id).is_ood[0])
    (seen,) = [one for one in calibration.document.faults if one.fault == "blank frame"]
    assert seen.flagged == float(flagged)


@pytest.mark.parametrize(
    ("scoring", "problem"),
    [
        (ScoringSettings(method="fdbd"), "fdbd needs a model whose logits come from a linear"),
        (ScoringSettings(method="nap-ash"), "ash needs a model .* msp, max_logit, energy"),
        (ScoringSettings(method="nap", scores=("react",)), "react needs a model"),
        (ScoringSettings(method="dice", scores=("react",)), "react, dice need a model"),
    ],
)
def test_a_method_that_the_model_does_not_allow(
    held_out: Path, forward_passes: ForwardPasses, scoring: ScoringSettings, problem: str
) -> None:
    settings = small_settings(kwargs={"name": "ReluHeadNet"})
    with pytest.raises(CalibrationError, match=problem):
        run(held_out, model=settings, scoring=scoring)
    assert forward_passes.images == 0


@pytest.mark.parametrize("method", ["nap-energy", "fisher-energy", "nap-knn", "fisher-knn"])
def test_the_weight_is_searched_on_pseudo_ood_images(
    held_out: Path, tmp_path: Path, method: str
) -> None:
    scoring, cache = ScoringSettings(method=method, **FEW), FeatureCache(tmp_path / "cache")
    calibration = run(held_out, scoring=scoring, cache=cache)
    search = calibration.document.weight_search
    assert search is not None
    assert search.transforms == tuple(PSEUDO_OOD)
    assert (search.inside_images, search.pseudo_images) == (15, 15)
    mean = np.mean(search.auroc, axis=0)
    assert calibration.document.weight == search.chosen == search.weights[int(np.argmax(mean))]
    assert search.interval[0] <= search.chosen <= search.interval[1]
    assert search.near_best[0] <= search.chosen <= search.near_best[1]
    assert len(set(mean)) > 3
    # The given weight that was found judges alike, and so does the same search once more.
    given = run(held_out, scoring=scoring, weight=search.chosen, cache=cache)
    again = run(held_out, scoring=scoring, cache=cache)
    assert again.fingerprint == calibration.fingerprint
    if method != "nap-energy":
        # There nothing is fitted for a given weight, and every image calibrates.
        np.testing.assert_array_equal(given.arrays["score"], calibration.arrays["score"])
    write_calibration(calibration, tmp_path / "made")
    assert load_calibration(tmp_path / "made").document.weight_search == search


@pytest.mark.parametrize(
    "method", ["nap-energy", pytest.param("fisher-knn", marks=pytest.mark.slow)]
)
def test_the_chosen_weight_does_not_depend_on_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # Few transforms, those that draw for an image by its place among others.
    drawing = {name: PSEUDO_OOD[name] for name in ("elastic", "plain_frame", "shapes")}
    monkeypatch.setattr(fit_module, "PSEUDO_OOD", drawing)
    scoring = ScoringSettings(method=method, **FEW)
    images = write_images(tmp_path / "many", 180)
    searches = [
        run(images, scoring=scoring, batch_size=size).document.weight_search for size in (7, 64)
    ]
    for search in searches:
        assert search is not None
    first, second = (search for search in searches if search is not None)
    assert first.chosen == second.chosen
    np.testing.assert_allclose(first.auroc, second.auroc, atol=1e-3)


def test_no_forward_pass_has_more_images_than_the_batch_size(
    held_out: Path, forward_passes: ForwardPasses
) -> None:
    run(held_out, scoring=ScoringSettings(), batch_size=2)
    assert forward_passes.largest == 2


def test_what_is_fitted_on_does_not_calibrate(held_out: Path) -> None:
    scoring = ScoringSettings(method="fisher-knn", scores=("react", "dice"), **FEW)
    calibration = run(held_out, scoring=scoring)
    loaded = load_small("SmallNet")
    found = loaded.forward(pixels(held_out, loaded))
    assert found.features is not None
    share = FitPart.choose(held_out, None, 100).rows
    assert share.sum() == 15
    features = found.features.numpy()
    bank = features[share] / np.linalg.norm(features[share], axis=1, keepdims=True)
    fits = calibration.arrays
    np.testing.assert_allclose(fits["fit.knn_bank"], bank, rtol=1e-4)
    np.testing.assert_allclose(fits["fit.feature_mean"], features[share].mean(0), rtol=1e-4)
    np.testing.assert_allclose(calibration.values["nap"], found.nap.numpy()[~share], rtol=1e-5)
    references = np.sort(found.nap.numpy()[share])
    np.testing.assert_allclose(calibration.references["nap"], references, rtol=1e-5)


def test_images_given_to_fit_on_leave_all_others(held_out: Path, tmp_path: Path) -> None:
    training = write_images(tmp_path / "training", 20, first_seed=100)
    scoring = ScoringSettings(method="fisher-knn", knn_k=2, fit_limit=12)
    calibration = run(held_out, scoring=scoring, fit_images=training)
    document = calibration.document
    assert (calibration.size, document.images.scored) == (45, 45)
    assert document.fit_images is not None
    assert (document.fit_images.source, document.fit_images.scored) == ("training", 12)
    assert calibration.fits.knn_bank is not None
    assert calibration.fits.knn_bank.shape == (12, 4)
    assert {len(reference) for reference in calibration.references.values()} == {12}


def test_the_images_to_fit_on_must_be_others(held_out: Path) -> None:
    with pytest.raises(CalibrationError, match=r"45 of the images are also .* first 0000\.png"):
        run(held_out, scoring=ScoringSettings(**FEW), fit_images=held_out)


def test_a_given_weight_still_moves_the_base_score_where_there_are_images_to_fit_on(
    held_out: Path, tmp_path: Path
) -> None:
    training = write_images(tmp_path / "training", 20, first_seed=100)
    moved = run(held_out, fit_images=training)
    loaded = load_small("SmallNet")
    logits = loaded.forward(pixels(training, loaded)).logits.numpy()
    assert moved.document.location == pytest.approx(logits.mean(), rel=1e-4)
    assert (moved.size, moved.document.weight_search) == (45, None)
    energy = moved.values["energy"].astype(np.float64)
    fused = fuse(energy - moved.document.location, moved.values["nap"], 0.4)
    np.testing.assert_array_equal(moved.arrays["score"], fused)


def test_labels_that_are_class_names_give_the_accuracy(tmp_path: Path) -> None:
    settings = small_settings(class_names=("cat", "dog", "owl"))
    loaded = load_model(settings, CPU)
    write_images(tmp_path / "cat", 10)
    write_images(tmp_path / "dog", 10, first_seed=10)
    predicted = scorer_of(loaded)(pixels(tmp_path, loaded)).class_id
    expected = np.mean(predicted == np.repeat([0, 1], 10))
    assert run(tmp_path, model=settings).document.accuracy == pytest.approx(expected)
    write_images(tmp_path / "fish", 1)
    assert run(tmp_path, model=settings).document.accuracy is None


def test_a_second_run_takes_everything_from_the_cache(
    held_out: Path, tmp_path: Path, forward_passes: ForwardPasses
) -> None:
    scoring, cache = ScoringSettings(**FEW), FeatureCache(tmp_path)
    first = run(held_out, scoring=scoring, cache=cache)
    passes = 45 + 15 * len(PSEUDO_OOD) + 30 * len(FAULTS)
    assert forward_passes.images == passes
    assert run(held_out, scoring=scoring, cache=cache).fingerprint == first.fingerprint
    # Another method, rule or weight takes nothing more of the model.
    run(held_out, scoring=ScoringSettings(method="nap-ash", **FEW), cache=cache)
    run(held_out, scoring=scoring, rule=Rule(0.2, Sides.TWO), cache=cache)
    assert forward_passes.images == passes
    # Without the cache it is the same calibration, bit for bit.
    assert run(held_out, scoring=scoring).fingerprint == first.fingerprint
    assert forward_passes.images == 2 * passes


FRESH = 1_500
HELD_OUT = 600


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out and fresh images of one distribution, and a cache of the model's outputs."""
    folder = tmp_path_factory.mktemp("drawn")
    parquet_of(folder / "held-out.parquet", HELD_OUT, first_seed=100_000)
    parquet_of(folder / "fresh.parquet", FRESH, first_seed=500_000)
    return folder


def flagged(calibration: Calibration, images: Path, cache: FeatureCache) -> int:
    loaded = load_small("SmallNet")
    reader = Reader(loaded, LimitSettings(), images, cache)
    reading = reader.read(reader.files(), 64, lambda _images: None)
    values = reading.values(base_scores_of(calibration, loaded))
    return int(calibration.judge(values, reading.class_id).is_ood.sum())


@pytest.mark.parametrize(
    "method",
    [
        "nap",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("fisher-knn", "nap-energy", "knn")),
    ],
)
@pytest.mark.parametrize("sides", Sides)
def test_fresh_in_distribution_images_are_flagged_as_often_as_stated(
    drawn: Path, method: str, sides: Sides
) -> None:
    cache, scoring = FeatureCache(drawn / "cache"), ScoringSettings(method=method)
    calibration = run(
        drawn / "held-out.parquet",
        scoring=scoring,
        rule=Rule(0.1, sides),
        batch_size=64,
        cache=cache,
    )
    (group,) = calibration.document.groups
    k, m = group.flag_rank, group.size
    assert m in {HELD_OUT, HELD_OUT * 2 // 3}
    count = flagged(calibration, drawn / "fresh.parquet", cache)
    # The law of the count over calibration and stream: Beta(k, m + 1 - k), then binomial.
    law = betabinom(FRESH, k, m + 1 - k)
    assert count <= law.ppf(0.9995)
    if sides is Sides.ONE or not method.startswith("fisher"):
        # The largest of Fisher's sums are ties, of which none is flagged: the rate can be lower.
        assert law.ppf(0.0005) <= count


def test_calibrating_on_the_bank_itself_would_flag_too_many(drawn: Path) -> None:
    cache = FeatureCache(drawn / "cache")
    copy = drawn / "copy.parquet"
    # The same pixels in other files, which no comparison of files tells.
    images = [_written_anew(file.data) for file in iter_images(drawn / "held-out.parquet")]
    pq.write_table(pa.table({"image": images}), copy)
    scoring = ScoringSettings(method="knn", knn_k=1)
    right = run(drawn / "held-out.parquet", scoring=scoring, batch_size=64, cache=cache)
    wrong = run(
        drawn / "held-out.parquet", scoring=scoring, fit_images=copy, batch_size=64, cache=cache
    )
    fresh = drawn / "fresh.parquet"
    low, high = right.flag_rate_interval
    assert low <= flagged(right, fresh, cache) / FRESH <= high
    assert flagged(wrong, fresh, cache) / FRESH > 0.5


def _written_anew(data: bytes) -> bytes:
    target = io.BytesIO()
    Image.open(io.BytesIO(data)).save(target, "PNG", compress_level=0)
    assert target.getvalue() != data
    return target.getvalue()


def test_copies_of_fitted_images_are_doubted(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    for number in range(12):
        data = (tmp_path / f"{number:04}.png").read_bytes()
        for copy in "ab":
            (tmp_path / f"{number:04}{copy}.png").write_bytes(data)
    found = run(tmp_path, scoring=ScoringSettings(method="fisher-energy"))
    assert any("24 of 24 images are copies" in text for text in found.document.warnings)


def test_names_that_are_no_text_are_written_as_text(tmp_path: Path) -> None:
    folder = write_images(tmp_path / os.fsdecode(b"held\xff"), 30)
    (folder / os.fsdecode(b"\xfe.png")).write_text("a note")
    found = run(folder)
    write_calibration(found, tmp_path / "artifact")
    assert load_calibration(tmp_path / "artifact").fingerprint == found.fingerprint
    assert found.document.images.source == "held\ufffd"
