import json
from pathlib import Path

import pytest
import yaml

from tests.cli.program import Call
from tests.support.small_calibration import write_calibrated, write_images
from tests.support.small_settings import PREPROCESSING


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A monitor of a small net, calibrated; there is no broker."""
    images = write_images(tmp_path / "held-out", 40)
    write_calibrated(tmp_path / "calibration", images)
    settings = {
        "kafka": {"topic": "images"},
        "model": {
            "factory": "tests.support.small_models:by_name",
            "kwargs": {"name": "SmallNet"},
            "preprocessing": PREPROCESSING.model_dump(mode="json"),
        },
        "calibration": "calibration",
        "log": {"root": "log"},
        "worker": {"num_cpus": 2, "batch_size": 8, "decode_threads": 1},
    }
    path = tmp_path / "monitor.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_the_parts_and_the_line_are_measured_and_the_log_is_left_alone(
    nap: Call, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "held-out" / "text.jpg").write_bytes(b"not an image")
    images = ("--images", tmp_path / "held-out")

    ended = nap("bench", "--config", config, *images, "--seconds", 0.5, "--json")

    assert ended.exit_code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["images"], found["undecodable"]) == (41, 1)
    assert found["threads"] == {"torch": 1, "scoring": 2, "decoding": 1}
    in_use = [row for row in found["forward"] if row["in_use"]]
    assert [row["execution"] for row in in_use] == ["float32, contiguous"]
    assert found["model"] == in_use[0]["images_per_s"] > 0
    assert found["feed"] > 0
    assert found["line"]["images_per_second"] > 0
    assert set(found["line"]["shares"]) == {"messages", "decode", "model", "log"}
    assert sum(found["line"]["shares"].values()) == pytest.approx(1)
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_it_is_shown_for_people_with_images_that_are_made_up(nap: Call, config: Path) -> None:
    ended = nap("bench", "--config", config, "--seconds", 0.5)

    assert ended.exit_code == 0, ended.err
    shown = " ".join(ended.out.split())
    for text in (
        "64 images (made up), one worker with 2 CPUs, batches of 8",
        "model alone, float32, contiguous (in use)",
        "decoding alone, 1 thread",
        "whole line, 2 batches at once",
        "waiting for decoding",
    ):
        assert text in shown
    assert shown.endswith(".")


def test_images_of_which_none_can_be_decoded_are_an_error(
    nap: Call, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.jpg").write_bytes(b"not an image")

    ended = nap("bench", "--config", config, "--images", tmp_path / "bad")

    assert ended.exit_code == 1
    assert "none of 1 images can be decoded" in ended.err


def test_a_model_that_runs_elsewhere_cannot_be_measured(nap: Call, config: Path) -> None:
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump(tree | {"model": {"elsewhere": {"name": "parts/1"}}}))

    ended = nap("bench", "--config", config)

    assert ended.exit_code == 1
    assert "the model parts/1 runs elsewhere" in ended.err
