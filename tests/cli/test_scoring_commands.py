import csv
import json
from pathlib import Path

import pytest
import yaml

from nap_stream.calibration.artifact import write_calibration
from nap_stream.core.labels import ClassSeen
from tests.cli.program import Call
from tests.support.small_calibration import calibration_of, write_images

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    settings = {
        "factory": "tests.support.small_models:by_name",
        "kwargs": {"name": "SmallNet"},
        "preprocessing": {"resize": 8, "crop": 8},
        "precision": "float32",
        "channels_last": False,
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
    assert document["method"] == "auto"
    assert sum(document["selection"]["weights"].values()) == pytest.approx(1)
    assert document["images"] == {"source": "held-out", "scored": 60, "undecodable": 0}
    assert document["fit_images"] == {"source": None, "scored": 30, "undecodable": 0}
    for text in (
        *("auto", "60 scored", "30 scored", "pseudo-OOD", "flagged below"),
        *("What it sees, of 60 images each", "covered lens", "alarm after"),
    ):
        assert text in " ".join(shown.out.split())
    assert png.read_bytes().startswith(PNG)


def test_calibrate_measures_what_the_model_section_leaves_open(
    nap: Call, model: Path, images: Path, tmp_path: Path
) -> None:
    section = yaml.safe_load(model.read_text(encoding="utf-8"))
    model.write_text(yaml.safe_dump(section | {"channels_last": None}), encoding="utf-8")
    folder = tmp_path / "calibration"

    made = nap("calibrate", "--model", model, "--images", images, "--out", folder)

    assert made.exit_code == 0
    document = json.loads((folder / "calibration.json").read_text())
    assert [row["execution"]["channels_last"] for row in document["speeds"]["rows"]] == [
        False,
        True,
    ]
    assert document["execution"] in [row["execution"] for row in document["speeds"]["rows"]]
    shown = " ".join(made.out.split())
    assert "How fast the model is on cpu, 64 images in batches of 32" in shown
    assert "float32, channels_last" in shown


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

    (bright / "0003a.txt").write_text("a note")
    first = nap("evaluate", *options, *chosen, "--cache", cache, "--resamples", 5)
    table = json.loads((out / "table.json").read_text())
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    second = nap("evaluate", *options, *chosen, "--cache", cache, "--resamples", 5)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "AUROC" in first.out
    assert "warning" not in first.out
    # An untrained network's confidence, and a note among the images.
    assert "warning: mean confidence" in first.err
    assert "warning: 1 of 21 images of the OOD set bright cannot be decoded" in first.err
    assert table["context"]["undecodable"]["ood_sets"] == {"bright": 1}
    assert table["in_distribution"]["name"] == "held-out"
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
        (("--ood", "a=x", "--method", "best"), "expected one of auto, nap, msp"),
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


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_a_damaged_cache_is_told_on_stderr(
    nap: Call, model: Path, images: Path, tmp_path: Path, command: str
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    options = {
        "calibrate": ("--images", images, "--method", "nap", "--force"),
        "evaluate": ("--id", images, "--ood", f"a={images}", "--method", "nap"),
    }[command]
    everything = (command, "--model", model, "--out", out, "--cache", cache, *options)

    assert nap(*everything).exit_code == 0
    damaged = min(cache.rglob("*.safetensors"))
    damaged.write_bytes(b"a note")
    again = nap(*everything)

    assert again.exit_code == 0
    assert "feature_cache_file_unreadable" in again.err
    assert damaged.name in again.err
    assert "feature_cache" not in again.out


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_out_is_checked_before_the_run(
    nap: Call, images: Path, tmp_path: Path, command: str
) -> None:
    # There is no such model file either, which a run would name first.
    model, file = tmp_path / "absent.yaml", tmp_path / "file"
    file.write_text("mine")
    sets = {"calibrate": ("--images", images), "evaluate": ("--id", images, "--ood", "a=b")}
    for out in (file, file / "below"):
        ended = nap(command, "--model", model, "--out", out, *sets[command])

        assert ended.exit_code != 0
        assert str(file) in ended.err
        assert "not a folder" in ended.err or "left as it is" in ended.err
    assert file.read_text() == "mine"


def test_calibrate_says_before_the_run_that_there_is_a_calibration(
    nap: Call, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "calibration"
    write_calibration(calibration_of([1.0] * 5, [2.0] * 5), folder)
    ended = nap(
        "calibrate", "--model", tmp_path / "absent.yaml", "--images", images, "--out", folder
    )

    assert ended.exit_code == 1
    assert "there is a calibration already" in ended.err


@pytest.mark.parametrize(("location", "shown"), [(-3.25, True), (0.0, False)])
def test_show_prints_the_location_where_there_is_one(
    nap: Call, tmp_path: Path, location: float, shown: bool
) -> None:
    made = calibration_of([1.0] * 5, [2.0] * 5, location=location)
    write_calibration(made, tmp_path / "made")
    ended = nap("calibration", "show", tmp_path / "made")

    assert ended.exit_code == 0
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    found = [line for line in lines if line.startswith("location ")]
    expected = "location -3.25, taken off energy before it is weighed"
    assert found == ([expected] if shown else [])


def test_show_prints_the_worst_classes_where_the_accuracy_is_known(
    nap: Call, tmp_path: Path
) -> None:
    worst = (ClassSeen("cat", 4, 1, "d\x1b[31mog", 3), ClassSeen("dog", 2, 1, None, 0))
    made = calibration_of([1.0] * 5, [2.0] * 5, accuracy=1 / 3, worst_classes=worst)
    write_calibration(made, tmp_path / "made")
    ended = nap("calibration", "show", tmp_path / "made")

    assert ended.exit_code == 0
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "accuracy 0.333 of 5 labelled images" in lines
    assert "cat 4 25% d\\x1b[31mog (75%)" in lines
    assert "dog 2 50%" in lines


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_an_unknown_method_is_named_once_on_one_line(
    nap: Call, model: Path, images: Path, tmp_path: Path, command: str
) -> None:
    sets = {"calibrate": ("--images", images), "evaluate": ("--id", images, "--ood", "a=b")}
    ended = nap(
        *(command, "--model", model, "--out", tmp_path / "c", *sets[command]),
        *("--method", "knnn"),
    )

    assert ended.exit_code == 2
    assert ended.err.startswith("error: --method")
    assert ended.err.count("knnn") == 1
    assert "expected one of auto, nap, msp" in ended.err
    assert "got 'knnn'" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_calibrate_refuses_a_weight_that_the_method_does_not_take(
    nap: Call, model: Path, images: Path, tmp_path: Path
) -> None:
    ended = nap(
        *("calibrate", "--model", model, "--images", images, "--out", tmp_path / "c"),
        *("--method", "energy", "--weight", 0.3),
    )

    assert ended.exit_code == 2
    assert "--weight: the method energy has no weight, got 0.3" in ended.err
