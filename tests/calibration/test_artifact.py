import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nap_stream.calibration.artifact import Calibration, load_calibration, write_calibration
from nap_stream.errors import CalibrationError
from nap_stream.model.feature_site import FeatureSite
from nap_stream.settings import PreprocessingSettings
from tests.support.small_calibration import calibration_of

SCORES = [0.1, 1 / 3, 1e-7, 123.456, 7.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "calibration"
    write_calibration(sample(), path)
    return path


def sample(**changes: Any) -> Calibration:
    return calibration_of(SCORES, SCORES[::-1], **changes)


def change_document(folder: Path, **changes: Any) -> None:
    path = folder / "calibration.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | changes))


def assert_equal(first: Calibration, second: Calibration) -> None:
    assert first.fingerprint == second.fingerprint
    assert first.content() == second.content()
    for name, array in first.arrays().items():
        assert array.tobytes() == second.arrays()[name].tobytes()
        assert array.dtype == second.arrays()[name].dtype
    assert first.feature_site == second.feature_site
    assert first.preprocessing == second.preprocessing
    assert first.threshold == second.threshold


def test_the_same_bit_for_bit_after_a_reload(folder: Path) -> None:
    assert_equal(load_calibration(folder), sample())
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "scores.safetensors",
    ]
    assert list(folder.parent.iterdir()) == [folder]


def test_every_kind_of_value_survives(tmp_path: Path) -> None:
    calibration = sample(
        feature_site=FeatureSite("function_input", "", "mean", 3, (64, 8, 8)),
        preprocessing=PreprocessingSettings(resize=None, crop=(5, 7), interpolation="nearest"),
        image_source="gehaltene Bilder ü",
        mean_confidence=1 / 3,
    )
    write_calibration(calibration, tmp_path / "new" / "folder")
    assert_equal(load_calibration(tmp_path / "new" / "folder"), calibration)


@given(
    st.lists(st.floats(0, width=32, allow_infinity=False), min_size=4, max_size=20),
    st.floats(0, 1),
)
def test_any_scores_survive(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], weight: float
) -> None:
    calibration = calibration_of(scores, scores[::-1], weight=weight)
    folder = tmp_path_factory.mktemp("any") / "calibration"
    write_calibration(calibration, folder)
    assert_equal(load_calibration(folder), calibration)


def test_people_can_read_it(folder: Path) -> None:
    tree = json.loads((folder / "calibration.json").read_text())
    assert (tree["format"], tree["version"], tree["size"]) == ("nap-stream calibration", 1, 5)
    assert tree["alpha"] == 0.25
    assert tree["feature_site"]["shape"] == [512, 7, 7]


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"calibration\.json is missing.*nap-stream calib"):
        load_calibration(tmp_path / "absent")
    (folder / "scores.safetensors").unlink()
    with pytest.raises(CalibrationError, match=r"scores\.safetensors is missing"):
        load_calibration(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_version(folder: Path, version: Any) -> None:
    change_document(folder, version=version, novelty=True)
    with pytest.raises(CalibrationError, match="reads version 1"):
        load_calibration(folder)


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"format": "other", "version": 1}'])
def test_another_document(folder: Path, text: str) -> None:
    (folder / "calibration.json").write_text(text)
    with pytest.raises(CalibrationError, match="not a nap-stream calibration"):
        load_calibration(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.26},
        {"alpha": 7},
        {"alpha": "high"},
        {"threshold": 1e9},
        {"flag_rank": 2},
        {"flag_rate_interval": [0, 1]},
        {"weight": 0.6},
        {"size": 6},
        {"fingerprint": "0" * 64},
        {"model_fingerprint": "2" * 64},
        {"arrays": {}},
        {"image_source": "other"},
        {"created_ms": 1},
        {"novelty": 1},
        {"preprocessing": {"crop": 3}},
        {"feature_site": None},
    ],
)
def test_a_changed_document(folder: Path, changes: dict[str, Any]) -> None:
    change_document(folder, **changes)
    with pytest.raises(CalibrationError, match="the calibration is damaged"):
        load_calibration(folder)


@pytest.mark.parametrize("name", ["calibration.json", "scores.safetensors"])
def test_every_damaged_byte_is_noticed(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            same = load_calibration(folder)
        except CalibrationError:
            continue
        # White space of the JSON text carries nothing.
        assert name == "calibration.json"
        assert_equal(same, sample())
    path.write_bytes(whole[:-9])
    with pytest.raises(CalibrationError, match="damaged"):
        load_calibration(folder)


@pytest.mark.parametrize(
    "replace",
    [
        {"nap": np.ones(5, np.float32)},
        {"nap": np.ones(4, np.float32)},
        {"nap": np.ones(5, np.float64)},
        {"more": np.ones(5, np.float32)},
        {"sorted_scores": np.full(5, np.nan)},
    ],
)
def test_scores_of_another_calibration(folder: Path, replace: dict[str, Any]) -> None:
    path = folder / "scores.safetensors"
    save_file(load_file(path) | replace, path)
    with pytest.raises(CalibrationError, match="damaged"):
        load_calibration(folder)


def test_a_calibration_is_not_overwritten_by_accident(folder: Path) -> None:
    other = sample(weight=0.9)
    with pytest.raises(CalibrationError, match=r"already.*--force"):
        write_calibration(other, folder)
    assert_equal(load_calibration(folder), sample())
    write_calibration(other, folder, force=True)
    assert_equal(load_calibration(folder), other)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_of_something_else_is_never_touched(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(CalibrationError, match="left as it is"):
            write_calibration(sample(weight=0.9), folder, force=force)
    assert_equal(load_calibration(folder), sample())


def test_a_file_of_that_name_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    path.write_text("mine")
    with pytest.raises(CalibrationError, match="left as it is"):
        write_calibration(sample(), path, force=True)
    assert path.read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    write_calibration(sample(), tmp_path / "made")
    (tmp_path / "empty").mkdir()
    write_calibration(sample(), tmp_path / "empty")
    assert_equal(load_calibration(tmp_path / "empty"), sample())


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_a_failed_write_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    renames = 0

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    rename = Path.rename

    def rename_once(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        # The old calibration has been moved aside; the new one cannot take its place.
        if renames == 2:
            fail()
        return rename(self, target)

    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", rename_once)
    with pytest.raises(CalibrationError, match=r"cannot be written.*No space left"):
        write_calibration(sample(weight=0.9), folder, force=True)
    assert_equal(load_calibration(folder), sample())
    assert list(folder.parent.iterdir()) == [folder]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_calibration(sample(), tmp_path / "file" / "calibration")
