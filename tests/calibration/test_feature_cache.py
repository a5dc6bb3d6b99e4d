from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from nap_stream.calibration.cache import FeatureCache, cache_key
from nap_stream.errors import CalibrationError
from tests.support.safetensors_bytes import FOREIGN_DTYPES, of_foreign_dtype

KEY = "ab" + "0" * 62
ARRAYS: dict[str, NDArray[Any]] = {
    "logits": np.array([[1 / 3, -0.0], [1e-40, 3e38]], np.float32),
    "decoded": np.array([True, False, True]),
}


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    found = FeatureCache(tmp_path / "not yet" / "cache")
    found.put(KEY, ARRAYS)
    return found


def files(cache: FeatureCache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def test_arrays_come_back_bit_for_bit(cache: FeatureCache) -> None:
    found = cache.get(KEY)
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].tobytes() == array.tobytes()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_what_was_not_kept_is_not_there(cache: FeatureCache) -> None:
    with structlog.testing.capture_logs() as logs:
        assert cache.get("cd" + "0" * 62) is None
        assert FeatureCache(cache.folder / "absent").get(KEY) is None
    assert logs == []


def test_one_file_a_key_and_no_unfinished_ones(cache: FeatureCache) -> None:
    cache.put(KEY, {"logits": np.ones(1, np.float32)})
    cache.put("cd" + "0" * 62, ARRAYS)
    assert [path.name for path in files(cache)] == [
        f"{KEY}.safetensors",
        f"cd{'0' * 62}.safetensors",
    ]
    found = cache.get(KEY)
    assert found is not None
    assert found.keys() == {"logits"}


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "header", "folder", *FOREIGN_DTYPES])
def test_a_damaged_file_is_not_there_until_it_is_kept_anew(
    cache: FeatureCache, damage: str
) -> None:
    (path,) = files(cache)
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        damaged = {"cut": whole[:-3], "empty": b"", "text": b"a note", "header": b"\xff" + whole}
        damaged |= {dtype: of_foreign_dtype(dtype, "logits") for dtype in FOREIGN_DTYPES}
        path.write_bytes(damaged[damage])
    with structlog.testing.capture_logs() as logs:
        assert cache.get(KEY) is None
    assert [(event["event"], event["path"]) for event in logs] == [
        ("feature_cache_file_unreadable", str(path))
    ]
    if damage != "folder":
        cache.put(KEY, ARRAYS)
        assert cache.get(KEY) is not None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CalibrationError, match=r"file.*cannot be written.*--cache"):
        FeatureCache(tmp_path / "file").put(KEY, ARRAYS)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_leaves_nothing_behind(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CalibrationError, match="No space left"):
        cache.put(KEY, {})
    monkeypatch.undo()
    assert len(files(cache)) == 1
    found = cache.get(KEY)
    assert found is not None
    assert found.keys() == ARRAYS.keys()


def test_a_key_is_of_everything_in_any_order() -> None:
    parts: list[dict[str, Any]] = [
        {},
        {"model": "a"},
        {"model": "b"},
        {"model": "a", "transform": None},
        {"model": "a", "transform": ["solarize", 1]},
        {"model": "a", "transform": ["solarize", 2]},
        {"model": "a", "images": ["1", "2"]},
        {"model": "a", "images": ["2", "1"]},
        {"model": "a", "images": ["12"]},
    ]
    assert len({cache_key(tree) for tree in parts}) == len(parts)
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert len(cache_key({})) == 64
