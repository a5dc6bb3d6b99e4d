from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.calibration import Calibration, require_fingerprint
from nap_stream.calibration.elsewhere import calibrate_outputs
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.cli.calibrate import show_calibration
from nap_stream.clock import ManualClock
from nap_stream.core.conformal import Rule
from nap_stream.errors import (
    CalibrationError,
    FingerprintMismatchError,
    InputDataError,
    ModelError,
    NapStreamError,
)
from nap_stream.evaluation.output import plot_calibration
from nap_stream.image_files import iter_images
from nap_stream.model.execution import require_execution
from nap_stream.model.facts import UNKNOWN
from nap_stream.model.preprocessing import preprocess
from nap_stream.ood_scorer import OODScorer
from nap_stream.settings.elsewhere import ElsewhereSettings
from nap_stream.settings.schema import ModelSettings, ScoringSettings
from tests.support.image_bytes import arrow_stream_of, picture
from tests.support.outputs import Arrays, batch_of, outputs_of
from tests.support.small_calibration import calibration_request, write_images
from tests.support.small_models import SmallNet, by_name
from tests.support.small_settings import CPU, PREPROCESSING, load_small, small_settings

COUNT = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("elsewhere") / "images", COUNT)


@pytest.fixture(scope="module")
def outputs(images: Path) -> Arrays:
    """What SmallNet gives for the images, as a server would."""
    loaded = load_small("SmallNet")
    pixels = [
        preprocess(
            torch.from_numpy(np.array(picture(9 + n % 3, 9, seed=n))).permute(2, 0, 1).contiguous(),
            PREPROCESSING,
        )
        for n in range(len(list(iter_images(images))))
    ]
    assert isinstance(loaded.module, SmallNet)
    return outputs_of(loaded.module, loaded.normalise(torch.stack(pixels)))


@pytest.fixture
def head(tmp_path: Path) -> Path:
    layer = by_name("SmallNet").head
    save_file(
        {"head.weight": layer.weight.data, "head.bias": layer.bias.data},
        tmp_path / "head.safetensors",
    )
    return tmp_path / "head.safetensors"


def written(path: Path, batch: pa.RecordBatch) -> Path:
    pq.write_table(pa.Table.from_batches([batch]), path)
    return path


def elsewhere(name: str = "parts/1", head: Path | None = None, **changes: Any) -> ModelSettings:
    section = ElsewhereSettings(name=name, head=head, head_layer="head" if head else "")
    return ModelSettings(elsewhere=section, **changes)


def request(path: Path, **changes: Any) -> CalibrationRequest:
    return calibration_request(path, **({"model": elsewhere()} | changes))


def calibrated(path: Path, **changes: Any) -> Calibration:
    return calibrate_outputs(request(path, **changes), clock=ManualClock(5))


@pytest.mark.parametrize("form", ["nested", "channels"])
@pytest.mark.parametrize("method", ["nap-energy", "mahalanobis", "fdbd"])
def test_scores_are_those_of_the_images(
    tmp_path: Path, images: Path, outputs: Arrays, head: Path, *, form: str, method: str
) -> None:
    weight = 0.4 if method == "nap-energy" else None
    scoring = ScoringSettings(method=method)
    path = written(tmp_path / "outputs.parquet", batch_of(outputs, form))
    found = calibrated(path, model=elsewhere(head=head), scoring=scoring, weight=weight)
    expected = calibrate(
        calibration_request(images, scoring=scoring, weight=weight),
        device=CPU,
        clock=ManualClock(5),
    )
    assert found.arrays.keys() == expected.arrays.keys()
    for name in found.arrays:
        np.testing.assert_allclose(found.arrays[name], expected.arrays[name], 1e-4, 1e-5)
    assert found.document.groups[0].size == expected.document.groups[0].size


def test_the_sum_has_equal_weights_and_says_so(tmp_path: Path, outputs: Arrays, head: Path) -> None:
    path = written(tmp_path / "outputs.parquet", batch_of(outputs))
    found = calibrated(path, model=elsewhere(head=head), scoring=ScoringSettings(), weight=None)
    document = found.document
    assert document.method == "auto"
    assert document.weights == dict.fromkeys(("msp", "energy", "fdbd", "mahalanobis", "nap"), 0.2)
    assert not document.selection.is_chosen if document.selection else False
    assert document.execution == UNKNOWN
    assert document.model.preprocessing is None
    assert document.model.weights_fingerprint == "unknown"
    assert document.model.factory == "parts/1"
    assert document.faults == ()
    assert document.speeds is None
    for said in (
        "have equal weights",
        "weights, its preprocessing and its precision are not known",
    ):
        assert any(said in warning for warning in document.warnings)

    write_calibration(found, tmp_path / "calibration")
    again = load_calibration(tmp_path / "calibration")
    assert again.fingerprint == found.fingerprint
    assert again.document == found.document
    shown = StringIO()
    show_calibration(again, tmp_path, Console(file=shown, width=200))
    assert "a precision that is not known here" in shown.getvalue()
    assert "sent with the logits, 4x8x8" in shown.getvalue()
    assert "the weights are equal" in shown.getvalue()
    plot_calibration(again, tmp_path / "drawn.png")


def test_without_a_head_or_features_the_sum_does_without_their_scores(
    tmp_path: Path, outputs: Arrays
) -> None:
    scoring = ScoringSettings()
    some = {name: outputs[name] for name in ("logits", "feature_map")}
    path = written(tmp_path / "channels.parquet", batch_of(some, "channels"))
    found = calibrated(path, scoring=scoring, weight=None).document
    assert set(found.weights or ()) == {"msp", "energy", "nap"}
    assert found.selection is not None
    assert set(found.selection.left_out) == {"fdbd", "mahalanobis"}
    assert any("no score of features" in warning for warning in found.warnings)
    # A map has means, which are features.
    path = written(tmp_path / "maps.parquet", batch_of(some))
    found = calibrated(path, scoring=scoring, weight=None).document
    assert set(found.weights or ()) == {"msp", "energy", "mahalanobis", "nap"}
    assert found.model.elsewhere is not None
    assert (found.model.elsewhere.features, found.model.elsewhere.are_means) == (4, True)


def test_a_folder_of_files_of_several_formats_and_labels(tmp_path: Path, outputs: Arrays) -> None:
    names = [str(n) for n in outputs["logits"].argmax(axis=1)]
    batch = batch_of(outputs, label=names, name=[f"image {n}" for n in range(COUNT)], other=names)
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder / "1.parquet", batch.slice(0, 20))
    with pa.ipc.new_file(folder / "2.arrow", batch.schema) as writer:
        writer.write_batch(batch.slice(20, 20))
    (folder / "3.arrows").write_bytes(arrow_stream_of([batch.slice(40)], compression="zstd"))
    found = calibrated(folder)
    whole = calibrated(written(tmp_path / "whole.parquet", batch))
    assert found.document.accuracy == 1
    assert found.document.images.scored == COUNT
    assert found.document.array_sha256 == whole.document.array_sha256


def test_the_fingerprint_is_of_the_name_the_kind_and_the_head(
    tmp_path: Path, outputs: Arrays, head: Path
) -> None:
    path = written(tmp_path / "outputs.parquet", batch_of(outputs))
    models = [
        elsewhere(),
        elsewhere("parts/2"),
        elsewhere(head=head),
        elsewhere(output_kind="logits"),
    ]
    found = [calibrated(path, model=model).document.model.fingerprint for model in models]
    assert len(set(found)) == len(models)
    assert calibrated(path).document.model.fingerprint == found[0]


def test_a_model_that_is_loaded_here_is_another(tmp_path: Path, outputs: Arrays) -> None:
    found = calibrated(written(tmp_path / "outputs.parquet", batch_of(outputs)))
    with pytest.raises(FingerprintMismatchError, match="outputs of a model that runs elsewhere"):
        require_fingerprint(found, load_small("SmallNet"))
    with pytest.raises(CalibrationError, match="outputs of a model that runs elsewhere"):
        require_execution(found.document.execution, small_settings())
    write_calibration(found, tmp_path / "calibration")
    with pytest.raises(FingerprintMismatchError, match="outputs elsewhere"):
        OODScorer(tmp_path / "calibration", by_name("SmallNet").eval())


def with_value(name: str, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[name].reshape(COUNT, -1)[7, 0] = value
        return changed

    return change


def softmax(arrays: Arrays) -> Arrays:
    shares = torch.from_numpy(arrays["logits"]).softmax(dim=1).numpy()
    return arrays | {"logits": shares}


@pytest.mark.parametrize(
    ("change", "changes", "kind", "problem"),
    [
        (with_value("logits", np.nan), {}, CalibrationError, "in 1 of 60 rows, first row 7"),
        (with_value("feature_map", np.inf), {}, CalibrationError, "not finite"),
        (softmax, {}, CalibrationError, "probabilities in place of logits"),
        (dict, {"scoring": ScoringSettings(method="fisher-knn")}, CalibrationError, "the weight"),
        (dict, {"scoring": ScoringSettings(method="fdbd")}, CalibrationError, "fdbd needs"),
        (dict, {"rule": Rule(0.001)}, CalibrationError, "the images are 60"),
        (dict, {"model": elsewhere(class_names=("a", "b"))}, ModelError, "2 class names"),
        (lambda arrays: {"logits": arrays["logits"]}, {}, InputDataError, "no column 'feature"),
        (lambda arrays: {n: a[:0] for n, a in arrays.items()}, {}, InputDataError, "no rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_on(
    tmp_path: Path,
    outputs: Arrays,
    *,
    change: Callable[[Arrays], Arrays],
    changes: dict[str, Any],
    kind: type[NapStreamError],
    problem: str,
) -> None:
    path = written(tmp_path / "outputs.parquet", batch_of(change(outputs)))
    with pytest.raises(kind, match=problem):
        calibrated(path, **changes)


def test_probabilities_that_are_said_to_be_such(tmp_path: Path, outputs: Arrays) -> None:
    path = written(tmp_path / "outputs.parquet", batch_of(softmax(outputs)))
    found = calibrated(path, model=elsewhere(output_kind="probabilities"))
    shares = torch.from_numpy(outputs["logits"]).softmax(dim=1).amax(dim=1)
    np.testing.assert_allclose(found.values["msp"], shares, 1e-5)


def test_a_head_of_another_model_is_refused(tmp_path: Path, outputs: Arrays) -> None:
    path = written(tmp_path / "outputs.parquet", batch_of(outputs))
    layer = torch.nn.Linear(4, outputs["logits"].shape[1])
    torch.save({"head.weight": layer.weight.data + 1}, tmp_path / "head.pt")
    with pytest.raises(CalibrationError, match="is not the logits in 60 of 60 rows, first row 0"):
        calibrated(path, model=elsewhere(head=tmp_path / "head.pt"))
    torch.save({"fc.weight": layer.weight.data}, tmp_path / "head.pt")
    with pytest.raises(ModelError, match=r"no matrix head\.weight"):
        calibrated(path, model=elsewhere(head=tmp_path / "head.pt"))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ModelError, match=r"model\.elsewhere\.head = "):
        calibrated(path, model=elsewhere(head=tmp_path / "text.pt"))
    torch.save({"head.weight": torch.ones(7, 9)}, tmp_path / "head.pt")
    with pytest.raises(ModelError, match=r"of shape \(7, 9\)"):
        calibrated(path, model=elsewhere(head=tmp_path / "head.pt"))


def test_some_rows_may_be_of_no_head_and_are_told(
    tmp_path: Path, outputs: Arrays, head: Path
) -> None:
    logits = outputs["logits"].copy()
    logits[1:30] += 9
    path = written(tmp_path / "some.parquet", batch_of(outputs | {"logits": logits}))
    found = calibrated(path, model=elsewhere(head=head))
    assert found.size == COUNT
    said = "is not the logits in 29 of 60 rows, first row 1"
    assert any(said in warning for warning in found.document.warnings)
    # A row whose logits are huge does not hide the others.
    logits[30] = 1e6
    path = written(tmp_path / "half.parquet", batch_of(outputs | {"logits": logits}))
    with pytest.raises(CalibrationError, match="in 30 of 60 rows, first row 1"):
        calibrated(path, model=elsewhere(head=head))


def test_outputs_to_fit_on_do_not_calibrate(tmp_path: Path, outputs: Arrays) -> None:
    batch = batch_of(outputs)
    first = written(tmp_path / "first.parquet", batch.slice(0, 30))
    other = written(tmp_path / "other.parquet", batch.slice(30))
    scoring = ScoringSettings(method="mahalanobis")
    found = calibrated(first, fit_images=other, scoring=scoring)
    assert (found.size, found.document.fit_images and found.document.fit_images.scored) == (30, 30)
    overlapping = written(tmp_path / "overlapping.parquet", batch.slice(20))
    with pytest.raises(CalibrationError, match="10 of the outputs are also among those to fit on"):
        calibrated(first, fit_images=overlapping, scoring=scoring)


def test_rows_that_cannot_be_used_are_told(tmp_path: Path, outputs: Arrays) -> None:
    batch = batch_of(outputs, "metadata")
    rows = batch.column("logits").to_pylist()
    kind = batch.column("logits").type
    some = batch.set_column(0, "logits", pa.array([*rows[:-3], None, None, None], kind))
    found = calibrated(written(tmp_path / "some.parquet", some))
    assert (found.size, found.document.images.undecodable) == (57, 3)
    assert any("row 57: logits is null" in warning for warning in found.document.warnings)
    most = batch.set_column(0, "logits", pa.array([rows[0], *[None] * 59], kind))
    with pytest.raises(CalibrationError, match="59 of 60 rows cannot be used; first row 1: "):
        calibrated(written(tmp_path / "most.parquet", most))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"ARROW1\0\0", b"\xff" * 40, b"text"])
def test_files_that_hold_no_outputs(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputDataError, match="cannot be read as Parquet or Arrow"):
        calibrated(tmp_path / "file")


def test_a_column_twice_and_labels_of_bytes(tmp_path: Path, outputs: Arrays) -> None:
    batch = batch_of(outputs)
    for column in (batch.column("logits"), pa.array(["a"] * COUNT)):
        name = "logits" if column is batch.column("logits") else "label"
        twice = batch.append_column(name, column).append_column(name, column)
        (tmp_path / "twice.arrows").write_bytes(arrow_stream_of([twice]))
        with pytest.raises(InputDataError, match=f"columns '{name}'"):
            calibrated(tmp_path / "twice.arrows")
    names = [str(n).encode() for n in outputs["logits"].argmax(axis=1)]
    found = calibrated(written(tmp_path / "bytes.parquet", batch_of(outputs, label=names)))
    assert found.document.accuracy == 1


def test_no_file_or_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputDataError):
        calibrated(tmp_path / "none")
    with pytest.raises(InputDataError, match="holds no files"):
        calibrated(tmp_path)


@pytest.mark.parametrize("form", ["nested", "channels"])
def test_the_library_scores_them_too(
    tmp_path: Path, outputs: Arrays, head: Path, *, form: str
) -> None:
    path = written(tmp_path / "outputs.parquet", batch_of(outputs, form))
    scoring = ScoringSettings(method="mahalanobis")
    found = calibrated(path, model=elsewhere(head=head), scoring=scoring)
    write_calibration(found, tmp_path / "calibration")
    scores = OODScorer(tmp_path / "calibration", None).score_outputs(**outputs)
    calibrates = np.isin(scores.score.numpy().round(5), found.arrays["score"].round(5))
    assert calibrates.sum() == found.size
