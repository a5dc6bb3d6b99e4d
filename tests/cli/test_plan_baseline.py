import json
from pathlib import Path

import pytest
import yaml

from nap_stream.calibration.artifact import write_calibration
from tests.cli.program import Call
from tests.planning.baselines import blocks_of_cameras, calibration_with
from tests.planning.streams import calibration

QUICK = ("--streams", 10)


@pytest.fixture(name="folder", scope="module")
def baseline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "baseline"
    write_calibration(calibration_with(blocks_of_cameras(11, 100)), path)
    return path


def configuration(tmp_path: Path, calibrated: Path, keys: str | None) -> Path:
    path = tmp_path / "monitor.yaml"
    tree = {
        "kafka": {"topic": "cars"},
        "model": {"factory": "models:net"},
        "calibration": str(calibrated),
        "log": {"root": "log"},
        "drift": {
            "false_alarms": "one per week at 20 images/s",
            "keys": None if keys is None else {"by": keys},
        },
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_the_plan_says_what_blocks_promise(nap: Call, folder: Path) -> None:
    ended = nap("plan", "--baseline", folder, *QUICK)

    assert ended.exit_code == 0
    for text in (
        "1970-01-01T00:00:00.000Z to 1970-01-01T16:40:00.000Z of scored-log",
        "vouched for by Ada: after the retooling",
        "one per 30 days at 50 images/s: at most one in 30 days, or 4,320 blocks",
        "95 % of such baselines",
        "10 min of event time, some 120 records of a key",
        "all day (UTC)",
        "11 known, by key, with 100 blocks",
        "room for 20 new ones",
        "the confidence is for the first 20 new ones that learn",
        "with a probability of at most 0.0833 %",
        "one key",
        "a tenth of the keys",
        "all keys",
        "100 %",
        "min ±",
    ):
        assert text in ended.out


def test_it_is_json_for_machines(nap: Call, folder: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, folder, "key")

    ended = nap(
        *("plan", "--baseline", folder, "--config", config, "--json"),
        *("--strength", 1, "--confidence", 0.9, *QUICK),
    )

    told = json.loads(ended.out)
    assert told["asked_for"] == {
        "false_alarms": "one per week at 20 images/s",
        "run_time_ms": 7 * 86_400_000,
        "run_blocks": 1_008,
        "confidence": 0.9,
    }
    assert told["baseline"]["key_blocks"] == {f"camera-{n:03}": [100] for n in range(11)}
    assert told["baseline"]["stream_blocks"] == [100]
    assert [(each["keys"], each["strength"]) for each in told["delays"]] == [
        (1, 1),
        (2, 1),
        (11, 1),
    ]
    assert all(0 < each["mean_ms"] < 3_600_000 for each in told["delays"])
    assert told["warnings"] == []


def test_the_plan_of_records_says_that_blocks_decide(nap: Call, folder: Path) -> None:
    ended = nap("plan", "--calibration", folder, "--streams", 2)

    assert ended.exit_code == 0
    assert "holds a baseline, whose blocks decide" in ended.err
    assert f"--baseline {folder}" in ended.err


def test_a_short_baseline_is_warned_of(nap: Call, tmp_path: Path) -> None:
    write_calibration(calibration_with(blocks_of_cameras(2, 12)), tmp_path / "short")

    ended = nap("plan", "--baseline", tmp_path / "short", "--strength", 0.01, *QUICK)

    assert ended.exit_code == 0
    assert "2 keys have 12 blocks of a kind of time and more, fewer than 40" in ended.err
    assert "not seen in half of the streams within 2.08 days: 1 % of one key" in ended.err


def test_the_stream_alone_has_a_plan_too(nap: Call, tmp_path: Path) -> None:
    made = calibration_with(blocks_of_cameras(0, 60), by=None)
    write_calibration(made, tmp_path / "stream")

    ended = nap("plan", "--baseline", tmp_path / "stream", *QUICK)

    assert ended.exit_code == 0
    assert "not told apart; 60 blocks of the whole stream" in ended.out
    assert "the stream" in ended.out


def test_keys_that_are_not_watched_have_no_part(nap: Call, folder: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, folder, None)

    ended = nap("plan", "--baseline", folder, "--config", config, "--json", *QUICK)

    told = json.loads(ended.out)
    assert told["baseline"]["key_blocks"] == {}
    assert {(each["spread"], each["keys"]) for each in told["delays"]} == {("the stream", 0)}
    assert told["delays"][-1]["mean_ms"] < 3_600_000


def test_what_cannot_be_planned(nap: Call, folder: Path, tmp_path: Path) -> None:
    write_calibration(calibration(images=500), tmp_path / "plain")
    write_calibration(calibration_with(blocks_of_cameras(2, 5)), tmp_path / "few")
    other = configuration(tmp_path, folder, "header:camera")
    cases = [
        (("--baseline", tmp_path / "plain"), "has no baseline"),
        (("--baseline", tmp_path / "few"), "nothing can be promised"),
        (("--baseline", tmp_path / "none"), "there is no calibration"),
        (("--baseline", folder, "--config", other), "drift.keys"),
        (("--baseline", folder, "--log", "scored-log"), "for the detectors of records"),
        (("--baseline", folder, "--window", 100), "for the detectors of records"),
        (("--baseline", folder, "--strength", 1.5), "(0, 1]"),
        (("--baseline", folder, "--false-alarms", "often"), "--false-alarms"),
        (("--calibration", folder, "--strength", 0.5), "it is for --baseline DIR"),
    ]
    for options, text in cases:
        ended = nap("plan", *options, *QUICK)
        assert ended.exit_code != 0, options
        assert text in ended.err, options
