import json
import os
import pickle
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nap_stream.calibration.artifact import (
    load_calibration,
    require_free,
    versions,
    write_calibration,
)
from nap_stream.calibration.calibration import Calibration, require_fingerprint
from nap_stream.calibration.document import ImageFacts
from nap_stream.calibration.fit import ALWAYS
from nap_stream.core.conformal import Rule
from nap_stream.core.labels import ClassSeen
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.selection import WeightSearch
from nap_stream.core.tails import Sides
from nap_stream.errors import CalibrationError
from nap_stream.model.facts import Execution, FeatureSite, FunctionCall, HeadSite
from nap_stream.settings.schema import PreprocessingSettings
from tests.support.safetensors_bytes import FOREIGN_DTYPES, of_foreign_dtype
from tests.support.small_calibration import MODEL, calibration_of
from tests.support.small_settings import load_small

SCORES = [0.1, 1 / 3, 1e-7, 123.456, 7.0]
SEARCH = WeightSearch(
    transforms=("solarize", "shapes"),
    weights=(0.0, 1 / 3, 1.0),
    auroc=((0.1, 2 / 3, 0.9), (0.3, 0.1 + 0.2, 1.0)),
    inside_images=5,
    pseudo_images=4,
    chosen=1.0,
    interval=(1 / 3, 1.0),
    near_best=(1.0, 1.0),
)


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
    assert first.document == second.document
    assert first.document.model.feature_site.traced == second.document.model.feature_site.traced
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.tobytes() == second.arrays[name].tobytes()
        assert array.dtype == second.arrays[name].dtype
        assert array.shape == second.arrays[name].shape
    assert first.flag_rate_interval == second.flag_rate_interval


def large(m: int) -> Calibration:
    """A calibration of the default method but its bank, on m images."""
    generator = np.random.default_rng(0)
    energy, nap = generator.gamma(5, size=(2, m))
    references = {
        f"reference.{name}": np.sort(generator.gamma(5, size=1_000)) for name in ("nap", "energy")
    }
    return calibration_of(
        energy, nap, method="fisher-energy", weight_search=SEARCH, arrays=references
    )


def test_the_same_bit_for_bit_after_a_reload(folder: Path) -> None:
    assert_equal(load_calibration(folder), sample())
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "scores.safetensors",
    ]
    assert list(folder.parent.iterdir()) == [folder]


def test_the_same_bytes_each_time(folder: Path, tmp_path: Path) -> None:
    write_calibration(load_calibration(folder), tmp_path / "second")
    for path in folder.iterdir():
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()


def test_every_kind_of_value_survives(tmp_path: Path) -> None:
    model = MODEL.model_copy(
        update={
            "feature_site": FeatureSite(
                "function_input", "", "mean", 3, (64, 8, 8), FunctionCall("mean", 1)
            ),
            "head": HeadSite("classifier.1", (2, 64), 0, 1),
            "preprocessing": PreprocessingSettings(
                resize=None, crop=(5, 7), interpolation="nearest"
            ),
        }
    )
    calibration = sample(
        model=model,
        method="fisher-knn",
        weight=1 / 3,
        weight_search=SEARCH,
        scores=(*ALWAYS, BaseScore.REACT, BaseScore.DICE, BaseScore.KNN),
        react_clip=0.1 + 0.2,
        images=ImageFacts(source="gehaltene Bilder ü", scored=5, undecodable=1),
        fit_images=ImageFacts(source=None, scored=2, undecodable=0),
        mean_confidence=1 / 3,
        accuracy=2 / 3,
        warnings=("mean confidence 0.333 is near that of guessing",),
        arrays={
            **{f"value.{name}": np.array(SCORES, np.float32) for name in ("react", "dice", "knn")},
            "reference.nap": np.array([1e-300, 1 / 3, 1e300]),
            "reference.knn": np.array([0.5, 1 / 3 + 1]),
            "fit.feature_mean": np.array([1e-40, 7], np.float32),
            "fit.knn_bank": np.array([[0.6, 0.8], [1, 0], [-0.0, -1]], np.float32),
        },
    )
    write_calibration(calibration, tmp_path / "new" / "folder")
    assert_equal(load_calibration(tmp_path / "new" / "folder"), calibration)


@pytest.mark.parametrize("sides", Sides)
@pytest.mark.parametrize("per_class", [False, True])
def test_every_rule_survives_and_judges_alike(
    tmp_path: Path, sides: Sides, per_class: bool
) -> None:
    generator = np.random.default_rng(1)
    energy, nap = generator.gamma(5, size=(2, 80))
    rule = Rule(0.1, sides, per_class)
    calibration = calibration_of(energy, nap, rule=rule, class_id=[0, 1] * 40)
    write_calibration(calibration, tmp_path / "made")
    again = load_calibration(tmp_path / "made")
    assert_equal(again, calibration)
    stream = dict(zip(("energy", "nap"), generator.gamma(5, size=(2, 200)), strict=True))
    classes = generator.integers(0, 2, 200)
    first, second = calibration.judge(stream, classes), again.judge(stream, classes)
    assert first.ood_p_value.tobytes() == second.ood_p_value.tobytes()
    assert 0 < first.is_ood.sum() < 60
    assert len(again.document.groups) == (2 if per_class else 1)


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
    assert (tree["format"], tree["version"]) == ("nap-stream calibration", 6)
    assert (tree["method"], tree["weight"]) == ("nap-energy", 0.5)
    assert tree["rule"] == {"alpha": 0.25, "sides": "one", "per_class": False}
    assert tree["groups"][0]["size"] == 5
    assert tree["model"]["feature_site"]["shape"] == [512, 7, 7]


def test_it_is_small(tmp_path: Path) -> None:
    write_calibration(large(2_000), tmp_path / "made")
    size = sum(path.stat().st_size for path in (tmp_path / "made").iterdir())
    # Per image a float64 score, four float32 values and a class; two float64 references of 1,000.
    assert 72_000 < size < 100_000


def test_it_is_json_and_safetensors_and_no_pickle(tmp_path: Path) -> None:
    write_calibration(large(50), tmp_path / "made")
    data = (tmp_path / "made" / "scores.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.keys() - {"__metadata__"} == large(50).arrays.keys()
    for path in (tmp_path / "made").iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
            pickle.loads(path.read_bytes())


def test_a_pickle_in_its_place_is_never_loaded(folder: Path) -> None:
    ran = folder.parent / "ran"
    for name in ("scores.safetensors", "calibration.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(_Bomb(ran)))
        with pytest.raises(CalibrationError, match="damaged"):
            load_calibration(folder)
        (folder / name).write_bytes(whole)
    assert not ran.exists()
    pickle.loads(pickle.dumps(_Bomb(ran)))
    assert ran.exists()


class _Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("version3-auto", "5773e5317ab382630a321183a2e83ac06aa51a18a88bece962a0758a8ccb0feb"),
        ("version3-nap-energy", "c95b411fdfa83ef4b09fde49f97d0285cf331c5988cc7d111e3bd1f6ce5ec0c8"),
    ],
)
def test_version_3_is_read_as_it_was(tmp_path: Path, name: str, fingerprint: str) -> None:
    found = load_calibration(GOLDEN / name)
    assert found.fingerprint == fingerprint
    assert (found.document.execution, found.document.speeds) == (Execution(), None)
    write_calibration(found, tmp_path / "again")
    assert_equal(load_calibration(tmp_path / "again"), found)
    # What ran then runs now: the model of the calibration fits, and judges its images alike.
    require_fingerprint(found, load_small("SmallNet"))
    judged = found.judge(found.values, found.arrays["class_id"].astype(np.int64))
    np.testing.assert_array_equal(judged.fused, found.arrays["score"])


def test_version_4_is_read_as_it_was(tmp_path: Path) -> None:
    found = load_calibration(GOLDEN / "version4-auto")
    assert found.fingerprint == "455404e43f5c3e424df0b3a83d3fd4a3afc318e06e75dc34be6f1a6a1c1bfaa1"
    assert found.document.speeds is not None
    assert (found.document.accuracy, found.document.worst_classes) == (5 / 28, ())
    write_calibration(found, tmp_path / "again")
    assert_equal(load_calibration(tmp_path / "again"), found)
    require_fingerprint(found, load_small("SmallNet", class_names=("cat", "dog", "owl")))


def test_version_5_is_read_as_it_was(tmp_path: Path) -> None:
    found = load_calibration(GOLDEN / "version5-nap-energy")
    assert found.fingerprint == "75df004f86883e8778d72a76e7ce5392e054716014466ea85946aeabddd68009"
    assert found.document.baseline is None
    write_calibration(found, tmp_path / "again")
    assert_equal(load_calibration(tmp_path / "again"), found)
    require_fingerprint(found, load_small("SmallNet"))


def test_the_worst_classes_are_kept_and_under_the_fingerprint(tmp_path: Path) -> None:
    plain = calibration_of([1.0] * 5, [2.0] * 5, accuracy=0.5)
    worst = (ClassSeen("cat", 4, 1, "dog", 3), ClassSeen("dog", 2, 1, None, 0))
    made = calibration_of([1.0] * 5, [2.0] * 5, accuracy=0.5, worst_classes=worst)
    write_calibration(made, tmp_path / "made")
    assert load_calibration(tmp_path / "made").document.worst_classes == worst
    assert made.fingerprint != plain.fingerprint


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"calibration\.json is missing.*nap-stream calib"):
        load_calibration(tmp_path / "absent")
    (folder / "scores.safetensors").unlink()
    with pytest.raises(CalibrationError, match=r"scores\.safetensors is missing"):
        load_calibration(folder)


@pytest.mark.parametrize("version", [0, 1, 2, 7, "3", 4.0, None, True])
def test_an_unknown_version(folder: Path, version: Any) -> None:
    change_document(folder, version=version, novelty=True)
    with pytest.raises(CalibrationError, match="reads versions 3 to 6"):
        load_calibration(folder)


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"format": "other", "version": 1}'])
def test_another_document(folder: Path, text: str) -> None:
    (folder / "calibration.json").write_text(text)
    with pytest.raises(CalibrationError, match="not a nap-stream calibration"):
        load_calibration(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": {"alpha": 0.26, "sides": "one", "per_class": False}},
        {"rule": {"alpha": 0.25, "sides": "two", "per_class": False}},
        {"rule": {"alpha": 0.25, "sides": "one", "per_class": True}},
        {"rule": {"alpha": 7, "sides": "one", "per_class": False}},
        {"rule": {"alpha": "high", "sides": "one", "per_class": False}},
        {"rule": {"alpha": 0.25, "sides": "none", "per_class": False}},
        {"groups": []},
        {"groups": [{"class_id": None, "size": 5, "flag_rank": 1, "lower": 1e9, "upper": None}]},
        {"flag_rate_confidence": 0.5},
        {"method": "nap-max_logit"},
        {"method": "fisher-energy"},
        {"method": "nap-other"},
        {"weight": 0.6},
        {"weight": None},
        {"weight": float("nan")},
        {"weight": 7},
        {"location": 1.0},
        {"location": None},
        {"weight_search": {}},
        {"scores": ["msp", "energy"]},
        {"scores": ["msp", "energy", "max_logit"]},
        {"react_clip": 1.0},
        {"parameters": {"knn_k": 0}},
        {"parameters": {"knn_k": 11}},
        {"fingerprint": "0" * 64},
        {"fingerprint": None},
        {"array_sha256": {}},
        {"array_sha256": {"score": "0" * 64}},
        {"images": {"source": "other", "scored": 5, "undecodable": 1}},
        {"images": None},
        {"fit_images": {"source": None, "scored": 5, "undecodable": 1}},
        {"mean_confidence": float("inf")},
        {"accuracy": 1},
        {"warnings": ["another"]},
        {"versions": {}},
        {"created_ms": 1},
        {"novelty": 1},
        {"model": None},
        {"model": {**MODEL.model_dump(mode="json"), "fingerprint": "2" * 64}},
        {"model": {**MODEL.model_dump(mode="json"), "class_names": ["cat"]}},
        {"model": {**MODEL.model_dump(mode="json"), "preprocessing": {"crop": 3}}},
        {"model": {**MODEL.model_dump(mode="json"), "feature_site": None}},
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
        {"value.nap": np.ones(5, np.float32)},
        {"value.nap": np.ones(4, np.float32)},
        {"value.nap": np.ones(5, np.float64)},
        {"value.nap": np.ones((5, 1), np.float32)},
        {"more": np.ones(5, np.float32)},
        {"score": np.full(5, np.nan)},
        {"score": np.zeros(0)},
        {"class_id": np.full(5, -1, np.int32)},
        {"class_id": np.full(5, 7, np.int32)},
    ],
)
def test_scores_of_another_calibration(folder: Path, replace: dict[str, Any]) -> None:
    path = folder / "scores.safetensors"
    save_file(load_file(path) | replace, path)
    with pytest.raises(CalibrationError, match="damaged"):
        load_calibration(folder)


@pytest.mark.parametrize("dtype", FOREIGN_DTYPES)
def test_a_dtype_that_numpy_does_not_have(folder: Path, dtype: str) -> None:
    (folder / "scores.safetensors").write_bytes(of_foreign_dtype(dtype))
    with pytest.raises(CalibrationError, match=f"damaged: scores.safetensors holds.*{dtype}"):
        load_calibration(folder)


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"format":', "}")])
def test_a_document_nested_too_deeply(folder: Path, opened: str, closed: str) -> None:
    depth = 100_000
    (folder / "calibration.json").write_text(opened * depth + "1" + closed * depth)
    with pytest.raises(CalibrationError, match=r"damaged: calibration\.json is nested too deeply"):
        load_calibration(folder)


def test_whether_a_folder_is_free_is_known_before_writing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for free in (tmp_path / "new" / "below", tmp_path / "empty"):
        require_free(free)
    with pytest.raises(CalibrationError, match=r"already.*--force"):
        require_free(folder)
    require_free(folder, force=True)
    (folder / "notes.txt").write_text("mine")
    for taken in (folder, folder / "notes.txt"):
        with pytest.raises(CalibrationError, match="left as it is"):
            require_free(taken, force=True)


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


def test_a_folder_that_is_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("mine")
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_calibration(tmp_path / "calibration")


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


def test_what_computed_a_score_is_named() -> None:
    found = versions()
    assert found.keys() == {
        *("python", "nap-stream", "torch", "torchvision", "pillow", "numpy", "scipy")
    }
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert "unknown" not in found.values()


def test_what_is_not_installed_as_a_distribution_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = metadata.version

    def without(name: str) -> str:
        if name == "nap-stream":
            raise metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(metadata, "version", without)
    found = versions.__wrapped__()
    assert found["nap-stream"] == "unknown"
    assert found["numpy"] == whole("numpy")
