from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nap_stream.calibration import fit as fit_module
from nap_stream.calibration import run as run_module
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.core.methods import every_method, parse_method
from nap_stream.errors import CalibrationError, ConfigError, InputDataError
from nap_stream.evaluation.run import Evaluation, EvaluationRequest, evaluate
from nap_stream.settings.schema import LimitSettings, ScoringSettings
from tests.support.small_calibration import write_images
from tests.support.small_settings import CPU, small_settings

CLASSES = ("cat", "dog", "owl")
TRANSFORMS = ("elastic", "plain_frame")
METHODS = ("nap", "energy", "knn", "nap-energy", "fisher-knn")


@pytest.fixture(autouse=True)
def few_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that draw by an image's place among others: what they give depends on the block."""
    monkeypatch.setattr(fit_module, "PSEUDO_OOD", {name: PSEUDO_OOD[name] for name in TRANSFORMS})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_images(folder / "held-out.v1", 39)
    write_images(folder / "signs", 8, first_seed=200)
    write_images(folder / "fog", 6, first_seed=300)
    return folder


def request_of(sets: Path, methods: tuple[str, ...] = METHODS, **changes: Any) -> EvaluationRequest:
    fields: dict[str, Any] = {
        "model": small_settings(),
        "scoring": ScoringSettings(),
        "inside": sets / "held-out.v1",
        "outside": {"hand signs": sets / "signs", "fog": sets / "fog"},
        "fit_images": None,
        "methods": tuple(parse_method(name) for name in methods),
        "batch_size": 8,
        "limits": LimitSettings(),
        "resamples": 3,
        "seed": 0,
    }
    return EvaluationRequest(**(fields | changes))


def run(sets: Path, methods: tuple[str, ...] = METHODS, **changes: Any) -> Evaluation:
    return evaluate(request_of(sets, methods, **changes), device=CPU)


def test_every_method_on_every_set(sets: Path) -> None:
    evaluation = run(sets, ())
    table = evaluation.table
    assert table.methods == tuple(method.label for method in every_method())
    assert table.ood_sizes == {"hand signs": 8, "fog": 6}
    # A third is fitted on, and the name keeps what follows the dot of a folder.
    assert (table.in_distribution, table.in_distribution_size) == ("held-out.v1", 26)
    assert table.context["fitted_on"] == "13 images of held-out.v1"
    weighed = {method for method in every_method() if method.has_weight}
    assert evaluation.searches.keys() == weighed
    assert evaluation.selections.keys() == {parse_method("auto")}
    assert {len(column) for column in evaluation.inside.values()} == {26}


def test_the_name_of_a_file_is_its_stem(sets: Path) -> None:

    images = [path.read_bytes() for path in sorted((sets / "held-out.v1").iterdir())]
    pq.write_table(pa.table({"image": images}), sets / "held.out.parquet")
    table = run(sets, ("nap",), inside=sets / "held.out.parquet").table
    assert table.in_distribution == "held.out"
    assert table.context["fitted_on"] == "13 images of held.out"


def test_no_pseudo_ood_image_is_made_where_no_method_has_a_weight(
    sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int | None]] = []
    bootstrap: list[tuple[int, int | None]] = []

    def go(*methods: str) -> Evaluation:
        told.clear()
        bootstrap.clear()
        return evaluate(
            request_of(sets, methods),
            device=CPU,
            progress=lambda done, total: told.append((done, total)),
            bootstrap_progress=lambda done, total: bootstrap.append((done, total)),
        )

    go("fisher-knn")
    # 39 in-distribution images, 14 OOD ones, and 13 that are transformed.
    assert told[-1] == (53 + 2 * 13, 53 + 2 * 13)
    assert bootstrap == [(1, 2), (2, 2)]

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(run_module, "pseudo_values", fail)
    evaluation = go("nap", "knn")
    assert told[-1] == (53, 53)
    assert evaluation.searches == {}


def test_a_missing_set_is_known_before_the_model_is_loaded(sets: Path) -> None:
    absent = small_settings("absent")
    outside = {"fog": sets / "fog", "rain": sets / "rain"}
    with pytest.raises(InputDataError, match=r"rain.*no such"):
        run(sets, model=absent, outside=outside)
    with pytest.raises(InputDataError, match=r"rain.*no such"):
        run(sets, model=absent, inside=sets / "rain")
    with pytest.raises(InputDataError, match=r"rain.*no such"):
        run(sets, model=absent, fit_images=sets / "rain")
    with pytest.raises(ConfigError, match="at least one OOD set"):
        run(sets, model=absent, outside={})


def test_too_few_images_to_fit_on(sets: Path, tmp_path: Path) -> None:
    few = write_images(tmp_path / "few", 36)
    with pytest.raises(CalibrationError, match=r"needs 13 .*are 12, a third.*at least 39 images"):
        run(sets, inside=few)
    assert run(sets, ("auto", "nap", "nap-energy"), inside=few).table.in_distribution_size == 24


def test_a_method_that_the_model_does_not_allow(sets: Path) -> None:
    headless = small_settings(kwargs={"name": "ReluHeadNet"}, output_kind="logits")
    with pytest.raises(CalibrationError, match="ash needs a model whose logits"):
        run(sets, ("nap", "ash"), model=headless)
    evaluation = run(sets, (), model=headless)
    assert {"Auto", "NAP", "NAP-E", "Fisher-M", "KNN"} < set(evaluation.table.methods)
    assert not {"ASH", "fDBD", "NAP-D"} & set(evaluation.table.methods)
    selection = evaluation.selections[parse_method("auto")]
    assert selection.auroc.keys() | selection.left_out.keys() == {
        *("msp", "energy", "fdbd", "mahalanobis", "nap")
    }
    assert selection.left_out["fdbd"] == "needs a model whose logits come from a linear layer"


def test_undecodable_images_are_counted_and_told(sets: Path, tmp_path: Path) -> None:
    inside = write_images(tmp_path / "in", 36)
    fog = write_images(tmp_path / "fog", 5)
    (fog / "0002a.txt").write_text("a note")
    training = write_images(tmp_path / "training", 13, first_seed=500)
    (training / "0001a.txt").write_text("a note")
    (inside / "0001a.txt").write_text("a note!")
    (inside / "0001b.txt").write_text("a note?")
    evaluation = run(
        sets, inside=inside, fit_images=training, outside={"fog": fog, "signs": sets / "signs"}
    )
    assert evaluation.table.context["undecodable"] == {
        "fitted_on": 1,
        "in_distribution": 2,
        "ood_sets": {"fog": 1, "signs": 0},
    }
    told = [text for text in evaluation.warnings if "cannot be decoded" in text]
    assert [text.split("; first ")[0] for text in told] == [
        "1 of 14 images to fit on cannot be decoded",
        "2 of 38 in-distribution images cannot be decoded",
        "1 of 6 images of the OOD set fog cannot be decoded",
    ]
    assert told[2].split("first ")[1].startswith("0002a.txt: not a JPEG")


def test_in_distribution_images_near_guessing_are_doubted(sets: Path) -> None:
    # The network is not trained: its confidence is that of guessing.
    evaluation = run(sets, ("nap",), model=small_settings(class_names=CLASSES))
    confidence = evaluation.inside["msp"].mean()
    assert any(
        text.startswith(f"mean confidence {confidence:.3f} is near that of guessing (0.333)")
        for text in evaluation.warnings
    )


def test_the_weights_do_not_depend_on_the_batch_size(sets: Path) -> None:
    method = parse_method("nap-energy")
    first, second = (
        run(sets, ("nap-energy",), batch_size=size).searches[method] for size in (5, 64)
    )
    assert first.chosen == second.chosen
    np.testing.assert_allclose(first.auroc, second.auroc, atol=1e-3)
