import csv
import json
from pathlib import Path

import pytest
import yaml

from tests.cli.program import Call
from tests.support.small_calibration import write_images

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    settings = {
        "factory": "tests.support.small_models:by_name",
        "kwargs": {"name": "SmallNet"},
        "preprocessing": {"resize": 8, "crop": 8},
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "held-out", 90)


def test_calibrate_by_the_default_method_and_show_it(
    nap: Call, model: Path, images: Path, tmp_path: Path
) -> None:
    folder, cache, png = tmp_path / "calibration", tmp_path / "cache", tmp_path / "shown.png"
    options = ("--model", model, "--images", images, "--out", folder, "--cache", cache)

    made = nap("calibrate", *options)
    again = nap("calibrate", *options, "--force")
    shown = nap("calibration", "show", folder, "--png", png)

    assert (made.exit_code, again.exit_code, shown.exit_code) == (0, 0, 0)
    document = json.loads((folder / "calibration.json").read_text())
    assert document["method"] == "fisher-knn"
    assert document["images"] == {"source": "held-out", "scored": 60, "undecodable": 0}
    assert document["fit_images"] == {"source": None, "scored": 30, "undecodable": 0}
    for text in ("fisher-knn", "60 scored", "30 scored", "pseudo-OOD", "flagged below"):
        assert text in " ".join(shown.out.split())
    assert png.read_bytes().startswith(PNG)


def test_calibrate_two_sided_by_a_method_with_a_given_weight(
    nap: Call, model: Path, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "calibration"
    ended = nap(
        *("calibrate", "--model", model, "--images", images, "--out", folder),
        *("--method", "nap-energy", "--weight", 0.4, "--sides", "two", "--alpha", 0.1),
    )

    assert ended.exit_code == 0
    document = json.loads((folder / "calibration.json").read_text())
    assert document["images"]["scored"] == 90
    assert document["fit_images"] is None
    # 2 floor(0.1 * 91 / 2)
    assert document["groups"][0]["flag_rank"] == 8
    assert "or above" in ended.out


def test_evaluate_writes_the_table_and_resumes_from_its_cache(
    nap: Call, model: Path, images: Path, tmp_path: Path
) -> None:
    bright, out, cache = write_images(tmp_path / "other", 20), tmp_path / "out", tmp_path / "cache"
    options = ("--model", model, "--id", images, "--ood", f"bright={bright}", "--out", out)
    chosen = ("--method", "nap", "--method", "nap-energy", "--method", "fisher-knn")

    first = nap("evaluate", *options, *chosen, "--cache", cache, "--resamples", 5)
    table = json.loads((out / "table.json").read_text())
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    second = nap("evaluate", *options, *chosen, "--cache", cache, "--resamples", 5)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "AUROC" in first.out
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"NAP", "NAP-E", "Fisher-K"}
    assert "| NAP-E |" in (out / "table.md").read_text()
    assert (out / "table.png").read_bytes().startswith(PNG)
    assert kept
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == kept
    assert json.loads((out / "table.json").read_text()) == table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ood", "fog"), "expected NAME=SET"),
        (("--ood", "a=x", "--ood", "a=y"), "each name once"),
        (("--ood", "a=missing"), "no such folder or file"),
        (("--ood", "a=x", "--method", "best"), "expected one of nap, msp"),
    ],
)
def test_evaluate_refuses_what_it_cannot_read(
    nap: Call, model: Path, images: Path, options: tuple[str, ...], message: str
) -> None:
    out = images.parent / "out"
    ended = nap("evaluate", "--model", model, "--id", images, "--out", out, *options)

    assert ended.exit_code != 0
    assert message in " ".join(ended.err.split())


def test_show_says_where_there_is_no_calibration(nap: Call, tmp_path: Path) -> None:
    ended = nap("calibration", "show", tmp_path)

    assert ended.exit_code == 1
    assert "there is no calibration" in " ".join(ended.err.split())


def test_calibrate_refuses_an_unknown_method(
    nap: Call, model: Path, images: Path, tmp_path: Path
) -> None:
    ended = nap(
        *("calibrate", "--model", model, "--images", images, "--out", tmp_path / "c"),
        *("--method", "magic"),
    )

    assert ended.exit_code == 2
    assert "--method" in ended.err
    assert "expected one of nap, msp" in " ".join(ended.err.split())
