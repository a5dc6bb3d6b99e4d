import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.planning.recorded import MAX_RECORDS
from nap_stream.records import Status
from nap_stream.settings.drift import MAX_WINDOW_RECORDS
from tests.cli.program import Call
from tests.planning.streams import calibration, independent, rows, sticky, write_log
from tests.scored_log.builders import failed
from tests.support.small_calibration import calibration_of

PNG = b"\x89PNG\r\n\x1a\n"
QUICK = ("--streams", 20)
STRETCH = ("--streams", 3)
"""Where the test is about the recorded part of a log."""


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibration()


@pytest.fixture(name="folder")
def calibration_folder(made: Calibration, tmp_path: Path) -> Path:
    write_calibration(made, tmp_path / "calibration")
    return tmp_path / "calibration"


def configuration(tmp_path: Path, **drift: Any) -> Path:
    path = tmp_path / "monitor.yaml"
    tree = {
        "kafka": {"topic": "cars"},
        "model": {"factory": "models:net"},
        "calibration": "calibration",
        "log": {"root": "log"},
        "drift": drift,
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_the_plan_says_what_a_promise_costs(nap: Call, folder: Path, tmp_path: Path) -> None:
    png = tmp_path / "plan.png"

    ended = nap("plan", "--calibration", folder, "--png", png, *QUICK)

    assert (ended.exit_code, ended.err) == (0, f"drawn to {png}\n")
    for text in (
        "one per 30 days at 50 images/s: at most one in 129,600,000 records",
        "95 % of calibrations",
        "2,000 images",
        "at most 5.99 % (p_U)",
        "50 records at 50 a second",
        "rolling window, 250",
        "rolling window, 1,000",
        "rolling window, 4,000",
        "e-detector of flags",
        "e-detector of scores",
        "1.5x, 7.5 %",
        "5x, 25 %",
        "The window that sees each drift first",
        "Images until the alert unscored-images",
        "at most 1 % in order",
        "half as many false alarms",
        "twice as many calibration images",
        "█",
    ):
        assert text in ended.out
    assert png.read_bytes().startswith(PNG)


def test_the_plan_is_json_for_machines(nap: Call, folder: Path) -> None:
    ended = nap(
        *("plan", "--calibration", folder, "--json", "--expected-run-length", 10_000),
        *("--confidence", 0.9, "--window", 300, "--window", 600, *QUICK),
    )

    document = json.loads(ended.out)
    assert ended.exit_code == 0
    assert document["asked_for"] == {
        "false_alarms": "one in 10,000 records",
        "run_length": 10_000,
        "confidence": 0.9,
        "records_per_second": None,
        "pane_ms": 1_000,
    }
    assert document["detector_run_length"] == 30_000
    assert [each["window_records"] for each in document["delays"]] == [300, 600, 1_000, None, None]
    assert [each["asked_window_records"] for each in document["delays"][:2]] == [300, 600]
    assert [each["factor"] for each in document["drifts"]] == [1.5, 2, 3, 5]
    fastest = document["delays"][3]["delays"][3]
    assert fastest["detected"] == fastest["streams"] == 20
    assert 20 < fastest["mean"] < 200
    assert fastest["mean"] < document["delays"][3]["delays"][1]["mean"]
    unscored = document["unscored"]
    assert (unscored["bound"], unscored["run_length"]) == (0.01, 10_000)
    assert [each["share"] for each in unscored["delays"]] == [1, 0.5, 0.1]
    assert 2 < unscored["delays"][0]["mean"] < 10
    assert document["stretch"] is None
    assert document["warnings"] == []


def test_a_calibration_that_is_too_small_never_sees_small_drifts(nap: Call, tmp_path: Path) -> None:
    energy = [1 + number / 7 for number in range(120)]
    write_calibration(calibration_of(energy, energy[::-1], 0.05), tmp_path / "small")

    ended = nap("plan", "--calibration", tmp_path / "small", *QUICK)

    assert ended.exit_code == 0
    assert "never, by design" in ended.out
    assert "More images lower that" in ended.out


@pytest.mark.usefixtures("folder")
def test_a_stretch_of_independent_records_is_in_order(
    nap: Call, made: Calibration, tmp_path: Path
) -> None:
    root = write_log(tmp_path / "log", rows(independent(6_000).tolist()), made.fingerprint)
    config = configuration(tmp_path, pane_ms=500, expected_run_length=1e6)

    ended = nap("plan", "--config", config, "--log", root, *STRETCH)

    assert (ended.exit_code, ended.err) == (0, "")
    for text in (
        "6,000 records in 240 panes",
        "2026-01-01 12:00:00+00:00 to 2026-01-01 12:02:00+00:00, topic cars",
        "chosen by the autocorrelation",
        "design effect",
        "p-value above 0.98",
        "any of the stream's",
        "score-shift",
    ):
        assert text in ended.out


@pytest.mark.usefixtures("folder")
def test_a_stretch_with_unreadable_images_is_warned_of(
    nap: Call, made: Calibration, tmp_path: Path
) -> None:
    records = rows(independent(3_000).tolist())
    spoilt = [
        failed(record.origin, Status.TOMBSTONE if i % 100 == 99 else Status.CORRUPT)
        if i % 20 == 19
        else record
        for i, record in enumerate(records)
    ]
    root = write_log(tmp_path / "log", spoilt, made.fingerprint)
    config = configuration(tmp_path, pane_ms=500, expected_run_length=1e6)

    ended = nap("plan", "--config", config, "--log", root, *STRETCH)

    assert "4.04 % of the images (corrupt 120), bound 1 %" in ended.out
    assert "warning: 4.04 % of the images have no scores (corrupt 120)" in ended.err
    lenient = configuration(
        tmp_path, pane_ms=500, expected_run_length=1e6, unscored={"bound": 0.05}
    )
    assert "no scores" not in nap("plan", "--config", lenient, "--log", root, *STRETCH).err


@pytest.mark.usefixtures("folder")
def test_a_stretch_of_dependent_records_is_warned_of(
    nap: Call, made: Calibration, tmp_path: Path
) -> None:
    records = rows(sticky(12_000, 0.98).tolist())
    root = write_log(tmp_path / "log", records, made.fingerprint)
    config = configuration(tmp_path, pane_ms=500, expected_run_length=1e6, keys={"by": "key"})
    options = ("--since", "2026-01-01T12:00:10", "--block", 500, "--json", *STRETCH)

    ended = nap("plan", "--config", config, "--log", root, *options)

    document = json.loads(ended.out)
    kinds = {each["kind"] for each in document["warnings"]}
    stretch = document["stretch"]
    assert ended.exit_code == 0
    assert {"dependent", "false-alarms-high"} <= kinds
    assert "warning: flags depend on each other" in ended.err
    assert (stretch["records"], stretch["keys"]) == (11_500, 10)
    assert stretch["block"] == {"panes": 20, "records": 500, "automatic": False}
    worst = next(
        each
        for each in stretch["false_alarms"]
        if each["detector"] == "any" and each["run_length"] == 1_000
    )
    assert worst["resampled"]["low"] > worst["promised_rate"]
    assert worst["ratio"]["low"] > 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "expected --calibration DIR or --config FILE"),
        (["--calibration", "cal", "--since", "1h"], "--log: --topic, --since"),
        (["--calibration", "cal", "--false-alarms", "seldom"], '--false-alarms: expected "one per'),
        (["--calibration", "cal", "--confidence", "2"], "--confidence: Input should be less"),
        (
            ["--calibration", "cal", "--window", str(MAX_WINDOW_RECORDS + 1)],
            f"value for '--window': Input should be less than or equal to {MAX_WINDOW_RECORDS}",
        ),
        (
            ["--calibration", "cal", "--streams", "10001"],
            "value for '--streams': Input should be less than or equal to 10000",
        ),
        (["--calibration", "cal", "--expected-run-length", "2"], "--expected-run-length: Input"),
        (
            [
                *("--calibration", "cal", "--expected-run-length", "1000"),
                *("--false-alarms", "one per day at 1 image/s"),
            ],
            "give false_alarms or expected_run_length, not both",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(nap: Call, options: list[str], told: str) -> None:
    ended = nap("plan", *options)

    assert ended.exit_code == 2
    assert told in ended.err


def test_the_largest_window_can_be_looked_at(nap: Call, folder: Path) -> None:
    options = ("--window", MAX_WINDOW_RECORDS, "--streams", 2)

    ended = nap("plan", "--calibration", folder, *options)

    assert ended.exit_code == 0
    assert f"rolling window, {MAX_WINDOW_RECORDS:,}" in ended.out


@pytest.mark.usefixtures("folder")
def test_a_log_whose_flags_contradict_its_p_values_is_warned_of(
    nap: Call, made: Calibration, tmp_path: Path
) -> None:
    records = rows(independent(3_000).tolist())
    wrong = 0
    for number, record in enumerate(records):
        assert record.scores is not None
        wrong += record.scores.is_ood
        unflagged = dataclasses.replace(record.scores, is_ood=False)
        records[number] = dataclasses.replace(record, scores=unflagged)
    root = write_log(tmp_path / "log", records, made.fingerprint)
    config = configuration(tmp_path, pane_ms=500)

    ended = nap("plan", "--config", config, "--log", root, "--json", "--streams", 2)

    assert ended.exit_code == 0
    assert f"warning: {wrong} scored records are flagged against their p-value" in ended.err
    document = json.loads(ended.out)
    assert document["stretch"]["contradicting_records"] == wrong
    assert document["warnings"][0]["kind"] == "flags-contradict-p-values"


@pytest.mark.usefixtures("folder")
def test_a_folder_that_is_sent_in_a_loop_is_warned_of(
    nap: Call, made: Calibration, tmp_path: Path
) -> None:
    p_values = [(number % 20 + 0.5) / 20 for number in range(3_000)]
    root = write_log(tmp_path / "log", rows(p_values), made.fingerprint)
    config = configuration(tmp_path, pane_ms=400)

    ended = nap("plan", "--config", config, "--log", root, "--streams", 2)

    assert ended.exit_code == 0
    assert "0 ± 0: flags come more evenly" in ended.out
    assert "warning: flags come more evenly than those of independent images" in ended.err


def test_a_calibration_that_is_not_there_is_told(nap: Call, tmp_path: Path) -> None:
    ended = nap("plan", "--calibration", tmp_path / "none")

    assert ended.exit_code == 1
    assert "there is no calibration" in ended.err


@pytest.mark.usefixtures("folder")
def test_a_log_that_cannot_be_meant_is_told(nap: Call, tmp_path: Path) -> None:
    empty, config = tmp_path / "empty", configuration(tmp_path)
    empty.mkdir()
    told = "the log has no partition of the topic 'cars'; it holds no topics"

    for options, exit_code, what in (
        (("--log", empty), 1, told),
        (("--log", tmp_path / "none"), 2, "none: no such folder"),
        (("--log", empty, "--since", "1h", "--until", "2h"), 2, "--since, --until: 1h is not befo"),
    ):
        ended = nap("plan", "--config", config, *options)
        assert (ended.exit_code, ended.out) == (exit_code, "")
        assert what in ended.err


def test_the_command_explains_itself(nap: Call) -> None:
    ended = nap("plan", "--help")

    assert ended.exit_code == 0
    assert "nap-stream plan --calibration" in ended.out
    assert f"{MAX_RECORDS:,} scored records" in " ".join(ended.out.split())
    assert "Example" in ended.out
