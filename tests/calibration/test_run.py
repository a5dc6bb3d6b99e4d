from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
import torch
from PIL import Image

from nap_stream.calibration.artifact import Calibration, load_calibration, write_calibration
from nap_stream.calibration.run import DEFAULT_WEIGHT, calibrate
from nap_stream.clock import ManualClock
from nap_stream.core.fusion import fuse
from nap_stream.decode import Picture, decode_image
from nap_stream.errors import CalibrationError, InputDataError
from nap_stream.image_files import iter_images
from nap_stream.model.loading import load_model
from nap_stream.model.preprocessing import preprocess
from nap_stream.model.scorer import OnePassScorer
from nap_stream.settings import LimitSettings
from tests.support.small_calibration import write_images
from tests.support.small_settings import CPU, small_settings


def run(images: Path, **changes: Any) -> Calibration:
    arguments: dict[str, Any] = {
        "alpha": 0.1,
        "batch_size": 8,
        "limits": LimitSettings(),
        "device": CPU,
        "clock": ManualClock(1_700_000_000_000),
    } | changes
    settings = arguments.pop("settings", small_settings())
    return calibrate(settings, images, **arguments)


def test_scores_are_those_of_the_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "held-out", 21)
    calibration = run(images)
    loaded = load_model(small_settings(), CPU)
    pixels = []
    for file in iter_images(images):
        picture = decode_image(file.data, LimitSettings())
        assert isinstance(picture, Picture)
        pixels.append(preprocess(picture.pixels, loaded.preprocessing))
    expected = OnePassScorer(loaded)(torch.stack(pixels))
    np.testing.assert_allclose(calibration.energy, expected.energy, rtol=1e-5)
    np.testing.assert_allclose(calibration.nap, expected.nap, rtol=1e-5)
    assert calibration.mean_confidence == pytest.approx(expected.confidence.mean())
    assert calibration.weight == DEFAULT_WEIGHT
    fused = np.sort(fuse(calibration.energy, calibration.nap, DEFAULT_WEIGHT))
    np.testing.assert_array_equal(calibration.sorted_scores, fused)


def test_what_it_states(tmp_path: Path) -> None:
    calibration = run(write_images(tmp_path / "held-out", 21), weight=0.5)
    loaded = load_model(small_settings(), CPU)
    assert (calibration.size, calibration.alpha, calibration.weight) == (21, 0.1, 0.5)
    # floor(0.1 * 22) = 2, and the interval of Beta(2, 20) has its mean 1/11 within.
    assert calibration.flag_rank == 2
    assert calibration.threshold == calibration.sorted_scores[1]
    low, high = calibration.flag_rate_interval
    assert 0 < low < 1 / 11 < high < 0.3
    assert calibration.model_fingerprint == loaded.fingerprint
    assert calibration.feature_site == loaded.feature_site
    assert calibration.preprocessing == loaded.preprocessing
    assert (calibration.image_source, calibration.undecodable) == ("held-out", 0)
    assert calibration.created_ms == 1_700_000_000_000
    assert calibration.versions["torch"] == metadata.version("torch")
    assert (calibration.base, calibration.weight_choice) == ("energy", "given")
    write_calibration(calibration, tmp_path / "out")
    assert load_calibration(tmp_path / "out").fingerprint == calibration.fingerprint


def test_the_same_from_parquet_and_in_other_batches(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "held-out", 12)
    images = [file.data for file in iter_images(folder)]
    pq.write_table(pa.table({"image": images}), tmp_path / "held-out.parquet")
    first = run(folder)
    second = run(tmp_path / "held-out.parquet", batch_size=5)
    np.testing.assert_allclose(first.energy, second.energy, rtol=1e-5)
    np.testing.assert_allclose(first.nap, second.nap, rtol=1e-5)
    assert second.image_source == "held-out.parquet"


def test_progress_is_told_after_each_batch(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    run(write_images(tmp_path, 20), progress=lambda done, total: told.append((done, total)))
    assert told == [(8, 20), (16, 20), (20, 20)]


def test_undecodable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    (tmp_path / "0000a.txt").write_text("a note")
    (tmp_path / "0000b.png").write_bytes(b"")
    with structlog.testing.capture_logs() as logs:
        calibration = run(tmp_path)
    assert (calibration.size, calibration.undecodable) == (12, 2)
    (event,) = logs
    assert (event["event"], event["undecodable"]) == ("calibration_images_undecodable", 2)
    assert event["first"].startswith("0000a.txt: not a JPEG")


def test_a_batch_without_one_image(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    for index in range(9):
        (tmp_path / f"0000-{index}.txt").write_text("a note")
    assert run(tmp_path, batch_size=3).undecodable == 9


def test_no_image_can_be_decoded(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text("a note")
    with pytest.raises(CalibrationError, match=r"none of the 20 images.*first 0\.txt: not a JPEG"):
        run(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no files"):
        run(tmp_path)
    with pytest.raises(InputDataError, match="no such"):
        run(tmp_path / "absent")


def test_fewer_images_than_alpha_needs(tmp_path: Path) -> None:
    write_images(tmp_path, 8)
    with pytest.raises(CalibrationError, match=r"the images are 8, and alpha = 0\.1 needs.* 9"):
        run(tmp_path)
    for index in range(5):
        (tmp_path / f"{index}.txt").write_text("a note")
    with pytest.raises(CalibrationError, match=r"that could be decoded are 8, .* at least 9"):
        run(tmp_path)
    write_images(tmp_path, 9)
    assert run(tmp_path).flag_rank == 1


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    plain = small_settings().preprocessing.model_copy(
        update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    )
    settings = small_settings(kwargs={"name": "OverflowNet"}, preprocessing=plain)
    write_images(tmp_path, 12)
    Image.new("RGB", (9, 9), "white").save(tmp_path / "0003.png")
    with pytest.raises(CalibrationError, match=r"not finite for 1 of 8 images, first 0003\.png"):
        run(tmp_path, settings=settings)


@pytest.mark.parametrize("wrong", [{"weight": 1.5}, {"weight": -0.1}, {"alpha": 0}, {"alpha": 1}])
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        run(write_images(tmp_path, 12), **wrong)
