"""nap-stream replay: what it prints, and what it warns of."""

import json
from pathlib import Path

import jsonschema
import pytest

from nap_stream.calibration.artifact import write_calibration
from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape
from tests.cli.program import Call
from tests.support.drifting_log import Publisher, drifting
from tests.support.schemas import alert_schema
from tests.support.small_calibration import calibration_of

CONFIG = """\
kafka: {topic: cars}
model: {factory: "models:net"}
calibration: calibration
log: {root: log}
drift: {window_records: WINDOW, expected_run_length: 1e4}
"""
COUNT, DRIFT = 900, range(400, 600)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a monitor; its log holds two partitions that drift and come back."""
    scores = [float(i) for i in range(400)]
    calibration = calibration_of(scores, scores, alpha=0.05)
    write_calibration(calibration, tmp_path / "calibration")
    publish(tmp_path, "log", calibration.fingerprint)
    file = tmp_path / "monitor.yaml"
    file.write_text(CONFIG.replace("WINDOW", "150"))
    return file


def publish(folder: Path, name: str, fingerprint: str) -> None:
    publisher = Publisher(LocalStore(folder / name), fingerprint, SummaryShape(1_000, 0))
    for number in range(2):
        partition = TopicPartition("cars", number)
        list(publisher.publish(partition, drifting(partition, COUNT, DRIFT), [50 + number]))


def test_alerts_are_printed_as_nap_stream_alerts_does(nap: Call, config: Path) -> None:
    ended = nap("replay", "--config", config)

    assert ended.exit_code == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith("FIRING")
    assert any(line.startswith("RESOLVED") for line in lines)
    assert lines[-1].startswith(
        "2 alerts (1 firing, 1 resolved) of 1,800 records in 36 segments of 2 partitions, "
    )
    assert lines[-1].endswith(" records/s")
    assert ended.err == ""


def test_json_gives_one_event_a_line(nap: Call, config: Path) -> None:
    ended = nap("replay", "--config", config, "--json")

    events = [json.loads(line) for line in ended.out.splitlines()]
    for event in events:
        jsonschema.validate(event, alert_schema())
    assert [event["data"]["state"] for event in events] == ["firing", "resolved"]
    assert ended.err.startswith("2 alerts (1 firing, 1 resolved) of 1,800 records")


def test_other_settings_give_other_ids_and_the_same_ones_the_same(nap: Call, config: Path) -> None:
    other = config.with_name("other.yaml")
    other.write_text(CONFIG.replace("WINDOW", "300"))
    first, again, changed = (
        [json.loads(line)["id"] for line in nap("replay", "-c", file, "--json").out.splitlines()]
        for file in (config, config, other)
    )
    assert first == again
    assert changed
    assert not set(first) & set(changed)


def test_a_span_without_drift_has_no_alerts(nap: Call, config: Path) -> None:
    ended = nap("replay", "-c", config, "--until", "2026-01-01T12:00:08")

    assert ended.out.startswith("0 alerts (none) of 800 records")
    assert ended.err == "--until: 2026-01-01T12:00:08 is taken as UTC\n"


@pytest.mark.parametrize(
    "options", [("--since", "2027-01-01T00:00Z"), ("--until", "2025-01-01T00:00Z")]
)
def test_a_span_without_records_is_warned_of(
    nap: Call, config: Path, options: tuple[str, str]
) -> None:
    ended = nap("replay", "-c", config, *options)

    assert ended.exit_code == 0
    assert ended.out.startswith("0 alerts (none) of 0 records in ")
    assert ended.err.startswith("warning: there is no scored record in that part of the log")


def test_a_log_without_the_topic_is_no_log_without_alerts(nap: Call, config: Path) -> None:
    (config.parent / "empty").mkdir()
    other = config.with_name("other.yaml")
    text = config.read_text().replace("topic: cars", "topic: boats")
    other.write_text(text)

    empty = nap("replay", "-c", config, "--log", config.parent / "empty")
    wrong = nap("replay", "-c", other)

    assert (empty.exit_code, empty.out) == (wrong.exit_code, wrong.out) == (1, "")
    assert "the log has no partition of the topic 'cars'; it holds no topics" in empty.err
    assert "no partition of the topic 'boats'; its topics are cars" in wrong.err


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ([2], "50 offsets are missing from the log, and were not judged: cars/0 [100, 150); "),
        (
            [1, 3, 5, 7, 9, 11, 12],
            (
                "350 offsets are missing from the log, and were not judged: cars/0 [50, 100), "
                "cars/0 [150, 200), cars/0 [250, 300), cars/0 [350, 400), cars/0 [450, 500) "
                "and 1 more; "
            ),
        ),
    ],
)
def test_missing_offsets_are_warned_of(nap: Call, config: Path, lost: list[int], told: str) -> None:
    store = LocalStore(config.parent / "log")
    store.remove([segment_path(TopicPartition("cars", 0), 50 * number) for number in lost])

    ended = nap("replay", "-c", config, "--json")

    assert ended.exit_code == 0
    # No line of the program's log among them.
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert [event["data"]["state"] for event in events][:1] == ["firing"]
    first, last = ended.err.splitlines()
    assert first == f"warning: {told}`nap-stream verify` names all that is wrong"
    assert f" of {1_800 - 50 * len(lost):,} records in {36 - len(lost)} segments of 2 " in last


def test_rows_of_another_calibration_are_warned_of(nap: Call, config: Path) -> None:
    publish(config.parent, "foreign", "d" * 64)
    ended = nap("replay", "-c", config, "--log", config.parent / "foreign", "--json")

    assert ended.exit_code == 0
    assert ended.err.startswith(
        "warning: 1,800 of 1,800 records were judged by another calibration"
    )


def test_flags_against_the_calibrations_alpha_are_warned_of(nap: Call, config: Path) -> None:
    scores = [float(i) for i in range(400)]
    folder = config.parent / "strict"
    write_calibration(calibration_of(scores, scores, alpha=0.01), folder)
    other = config.with_name("other.yaml")
    text = CONFIG.replace("WINDOW", "150").replace("calibration: c", "calibration: strict # c")
    other.write_text(text)
    ended = nap("replay", "-c", other)

    assert "records are flagged against their p-value and the alpha" in ended.err


@pytest.mark.parametrize(
    ("options", "exit_code", "told"),
    [
        (["--since", "yesterday"], 2, "--since: not a time: 'yesterday'"),
        (["--since", "2026-01-02", "--until", "2026-01-02"], 2, "is not before 2026-01-02"),
        (["--since", "1h", "--until", "2h"], 2, "--since, --until: 1h is not before 2h"),
        (["--log", "/nowhere"], 2, "/nowhere: no such folder"),
        (["--log", "http://x"], 2, "no such kind of store"),
    ],
)
def test_mistakes_are_named(
    nap: Call, config: Path, options: list[str], exit_code: int, told: str
) -> None:
    ended = nap("replay", "-c", config, *options)

    assert ended.exit_code == exit_code
    assert told in ended.err


def test_rows_that_were_pruned_are_told_of(nap: Call, config: Path) -> None:
    said = ("--before", "2026-02-01T00:00Z", "--by", "Ann", "--reason", "90 days")
    assert nap("prune", "--log", config.parent / "log", *said).exit_code == 0

    ended = nap("replay", "--config", config)

    assert ended.err.count("rows of 2 partitions of cars with event times from ") == 1
    assert "were pruned by Ann on " in ended.err
    assert (ended.exit_code, " of 83 records in 2 segments" in ended.out) == (0, True)
