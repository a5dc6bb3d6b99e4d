import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.cli.baseline import parse_block, parse_times
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition
from tests.baselines.streams import DAY_MS, START_MS, Writer, cameras, images, within
from tests.cli.program import Call

SPAN = ("--since", "2026-01-01", "--until", "2026-01-03")
WHO = ("--by", "Ada", "--reason", "two good days")
IMAGES = images()


def configuration(folder: Path, name: str = "monitor.yaml", **more: Any) -> Path:
    path = folder / name
    tree = {
        "kafka": {"topic": "cars"},
        "model": {"factory": "models:net"},
        "calibration": "calibration",
        "log": {"root": "log"},
        "drift": {"keys": {"by": "key"}, "expected_run_length": 100_000},
        **more,
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration, and the log of three cameras over two days, one with a fault of an hour."""
    folder = tmp_path_factory.mktemp("site")
    write_calibration(IMAGES, folder / "calibration")
    stream = cameras(3, 48, every_ms=30_000)
    stream.fused[within(stream, "camera-1", 20, 20.5)] -= 6
    Writer(folder / "log", IMAGES).write(stream)
    configuration(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_its_folder(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)


def test_a_baseline_is_made_shown_taken_up_and_compared_with(nap: Call, tmp_path: Path) -> None:
    out = tmp_path / "second"
    ended = nap("baseline", "--config", "monitor.yaml", *SPAN, *WHO, "--out", out)

    assert ended.exit_code == 0, ended.err
    for text in (
        "2026-01-01T00:00:00.000Z to 2026-01-02T23:59:30.003Z",
        "17,280 of 3 keys by key",
        "Ada: two good days",
        "10 min long, 288 of the stream, 288 of a key (288 to 288)",
        "all day (UTC)",
        "promise",
    ):
        assert text in ended.out
    assert "look foreign to the rest of their key: camera-1 1." in ended.err
    assert "alerts fire within the stretch" in ended.err
    assert f"set calibration: {out}" in ended.err
    made = load_calibration(out)
    assert made.document.baseline is not None
    assert made.document.baseline.parent == IMAGES.fingerprint
    assert len(made.document.warnings) == ended.err.count("warning:")

    shown = nap("calibration", "show", out)
    assert "Ada: two good days" in shown.out
    assert "look foreign" in shown.out

    log = tmp_path / "log"
    later = cameras(3, 24, every_ms=30_000, start_ms=START_MS + 40 * DAY_MS, seed=9)
    later.fused[[key == "camera-2" for key in later.keys]] -= 1
    Writer(log, made).write(later)
    compared = nap("compare", "--calibration", out, "--log", log, "--by", "key", "--json")
    by_key = {each["key"]: each for each in json.loads(compared.out)}
    assert compared.exit_code == 0
    assert by_key["camera-2"]["low"] > 0.1
    assert by_key["camera-0"]["low"] < 0 < by_key["camera-0"]["high"]
    table = nap("compare", "--calibration", out, "--log", log, "--by", "month")
    assert "2026-02" in table.out
    assert "95 % interval" in table.out
    whole = nap("compare", "--calibration", out, "--config", "monitor.yaml")
    assert "the stream" in whole.out

    page = tmp_path / "report.html"
    given = ("--out", page, "--no-verify", "--calibration", out)
    assert nap("report", "--log", log, *given).exit_code == 0
    text = re.sub("<[^>]*>", " ", page.read_text(encoding="utf-8"))
    (found,) = json.loads(
        nap("compare", "--calibration", out, "--log", log, "--by", "month", "--json").out
    )
    ends = f"{100 * found['low']:+.3g} to {100 * found['high']:+.3g}"
    assert " ".join(text.split()).count(f"2026-02 {found['records']:,} ") == 1
    assert f" {100 * found['difference']:+.3g} points  {ends} " in " ".join(text.split("\n"))
    Writer(tmp_path / "other", images(300)).write(cameras(3, 1, every_ms=30_000))
    assert nap("report", "--log", tmp_path / "other", *given).exit_code == 0
    assert "Not compared with the baseline: " in page.read_text(encoding="utf-8")


def test_all_topics_of_a_monitor_are_one_stream(nap: Call, tmp_path: Path, site: Path) -> None:
    """Half of the cameras come by another topic: blocks and keys are those of both."""
    two = tmp_path / "log"
    Writer(two, IMAGES).write(cameras(2, 48, every_ms=30_000))
    vans = TopicPartition("vans", 0)
    Writer(two, IMAGES).write(cameras(1, 48, every_ms=30_000), vans)
    kafka = {"topic": "all", "topics": ["cars", "vans"]}
    config = configuration(site, "several.yaml", kafka=kafka, log={"root": str(two)})
    out = tmp_path / "second"

    ended = nap("baseline", "--config", config, *SPAN, *WHO, "--out", out)
    assert ended.exit_code == 0, ended.err
    assert re.search(r"17,280 of 2 keys by key", ended.out)
    baseline = load_calibration(out).document.baseline
    assert baseline is not None
    assert (baseline.topic, baseline.records) == ("all", 17_280)
    ended = nap("compare", "--config", config, "--calibration", out, *SPAN, "--json")
    assert [each["records"] for each in json.loads(ended.out)] == [17_280]
    ended = nap("compare", "--config", config, "--calibration", out, "--topic", "vans", "--json")
    assert [each["records"] for each in json.loads(ended.out)] == [5_760]
    ended = nap("compare", "--log", two, "--calibration", out)
    assert ended.exit_code == 2
    assert (
        "the baseline is of all, and the log has no topic of that name, but cars, vans" in ended.err
    )
    assert "Give --config" in ended.err
    ended = nap("plan", "--config", config, "--log", two, "--streams", 2, "--json")
    assert json.loads(ended.out)["stretch"]["topic"] == "all"

    kafka = {"topic": "all", "topic_pattern": "ships-.*"}
    config = configuration(site, "several.yaml", kafka=kafka, log={"root": str(two)})
    ended = nap("baseline", "--config", config, *SPAN, *WHO, "--out", tmp_path / "third")
    assert ended.exit_code == 1
    assert "none of the topics like ships-.*; its topics are cars, vans" in ended.err


def test_a_baseline_can_be_made_without_a_configuration(nap: Call, tmp_path: Path) -> None:
    named = ("--log", "log", "--calibration", "calibration", "--key-by", "key")
    out = tmp_path / "second"
    ended = nap(
        "baseline", *named, *SPAN, *WHO, "--out", out, "--block", "30min", "--times", "none"
    )

    assert ended.exit_code == 0, ended.err
    assert "30 min long, 96 of the stream" in ended.out
    again = nap("baseline", *named, *SPAN, *WHO, "--out", out)
    assert again.exit_code == 1
    assert "there is a calibration already" in again.err


@pytest.mark.parametrize(
    ("changes", "code", "problem"),
    [
        ({"--since": "2026-02-01", "--until": "2026-02-03"}, 2, "holds no scored records"),
        ({"--since": "yesterday"}, 2, "not a time: 'yesterday'"),
        ({"--since": "2026-01-04"}, 2, "is not before"),
        ({"--until": "2999-01-01"}, 2, "--until: 2999-01-01 is not over yet"),
        ({"--by": "  "}, 2, "--by: this must not be empty"),
        ({"--reason": ""}, 2, "--reason: this must not be empty"),
        ({"--block": "7min"}, 2, "no length of blocks"),
        ({"--times": "dusk"}, 2, "no kinds of time"),
        ({"--timezone": "Mars"}, 2, "no time zone 'Mars'"),
        ({"--key-by": "lens"}, 2, "expected key or header:NAME"),
        ({"--key-by": "header:lens"}, 2, "none of the 17,280 records has a key by 'header:lens'"),
        ({"--topic": "carts"}, 1, "no partition of the topic 'carts'; its topics are cars"),
        ({"--log": "lag"}, 2, "no such folder"),
        ({"--calibration": "other"}, 1, "there is no calibration"),
        ({"--max-foreign": "0.001"}, 1, "look foreign to the rest of their key"),
        ({"--block": "6h"}, 1, "has 8 blocks of 6 h"),
        ({"--out": "log"}, 1, "not a folder of a calibration alone"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said(
    nap: Call, tmp_path: Path, changes: dict[str, str], code: int, problem: str
) -> None:
    options = dict([SPAN[:2], SPAN[2:], WHO[:2], WHO[2:]])
    options |= {"--config": "monitor.yaml", "--out": str(tmp_path / "second")} | changes
    ended = nap("baseline", *(word for pair in options.items() for word in pair))

    assert (ended.exit_code, ended.out) == (code, "")
    assert problem in ended.err
    assert not (tmp_path / "second").exists()


def test_a_baseline_of_another_method_is_refused(nap: Call, tmp_path: Path, site: Path) -> None:
    config = configuration(site, "other.yaml", scoring={"method": "nap"})
    ended = nap("baseline", "--config", config, *SPAN, *WHO, "--out", tmp_path / "second")
    assert ended.exit_code == 1
    assert "the method is energy, not nap" in ended.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--log", "log"), "expected --calibration FOLDER or --config FILE"),
        (("--calibration", "calibration", "--log", "log"), "has no baseline to compare with"),
    ],
)
def test_compare_needs_a_baseline(nap: Call, options: tuple[str, ...], problem: str) -> None:
    ended = nap("compare", *options)
    assert (ended.exit_code, ended.out) == (2, "")
    assert problem in ended.err


def test_compare_refuses_a_log_of_another_calibration(nap: Call, tmp_path: Path) -> None:
    named = ("--log", "log", "--calibration", "calibration")
    assert nap("baseline", *named, *SPAN, *WHO, "--out", tmp_path / "second").exit_code == 0
    other = images(300)
    Writer(tmp_path / "other", other).write(cameras(1, 1))
    ended = nap("compare", "--calibration", tmp_path / "second", "--log", tmp_path / "other")
    assert ended.exit_code == 1
    assert f"judged by the calibration {other.fingerprint[:16]}" in ended.err


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("10min", 600_000),
        ("10 min", 600_000),
        ("10m", 600_000),
        ("20s", 20_000),
        ("1d", 86_400_000),
    ],
)
def test_lengths(text: str, expected_ms: int) -> None:
    assert parse_block(text) == expected_ms


@pytest.mark.parametrize("text", ["", "7min", "10", "min", "-1h", "1.5h", "10 parsec", "9999999s"])
def test_what_is_no_length_of_blocks(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Expected one of 1s, .* 10min, .* 1d"):
        parse_block(text)


def test_kinds_of_time() -> None:
    assert parse_times("auto", "UTC") is None
    assert parse_times("none", "Europe/Berlin") == TimeKinds(timezone="Europe/Berlin")
    assert parse_times("6, 18", "UTC") == TimeKinds((6, 18))
    assert parse_times("6,18,weekend", "UTC") == TimeKinds((6, 18), weekend_apart=True)
    assert parse_times("weekend", "UTC") == TimeKinds((), weekend_apart=True)


@pytest.mark.parametrize("text", ["", "day", "6", "18,6", "6,25", "6;18", "6,18,sunday"])
def test_what_are_no_kinds_of_time(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected auto, none, or hours"):
        parse_times(text, "UTC")


@pytest.mark.parametrize("timezone", ["Mars/Base", "", "../../etc/passwd", "europe"])
def test_what_is_no_time_zone(timezone: str) -> None:
    with pytest.raises(ConfigError, match="there is no time zone"):
        parse_times("auto", timezone)
