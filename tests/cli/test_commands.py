import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
import torch
import yaml

import nap_stream
from nap_stream.cli.query import RowFormat
from nap_stream.scored_log.events import Event, append_event
from nap_stream.scored_log.output import OutputFormat
from nap_stream.scored_log.stores.local import LocalStore
from tests.cli.program import Call
from tests.scored_log.builders import NOON_MS, chain, failed, origin, scored
from tests.support.images import write_images

COMMANDS = (
    "calibrate",
    "evaluate",
    "run",
    "reload",
    "produce",
    "alerts",
    "plan",
    "baseline",
    "compare",
    "replay",
    "query",
    "sql",
    "report",
    "verify",
    "compact",
    "history",
    "ack",
    "init",
    "doctor",
    "demo",
)
HOUR_MS = 3_600_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Five rows over two hours: four scored, one of them flagged, and one that failed."""
    root = tmp_path / "log"
    rows = [
        scored(origin(0, event_time_ms=NOON_MS)),
        scored(origin(1, event_time_ms=NOON_MS), p_value=0.01, class_name="dog", class_id=5),
        failed(origin(2, event_time_ms=NOON_MS)),
        scored(origin(3, event_time_ms=NOON_MS + HOUR_MS)),
        scored(origin(4, event_time_ms=NOON_MS + HOUR_MS), class_name="dog", class_id=5),
    ]
    chain(root, [(3, rows[:3]), (5, rows[3:])])
    return root


def test_help_names_every_command_and_version_is_the_packages(nap: Call) -> None:
    helped = nap("--help")

    assert helped.exit_code == 0
    assert all(command in helped.out for command in COMMANDS)
    assert nap("--version").out == f"nap-stream {nap_stream.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(nap: Call, command: str) -> None:
    helped = nap(command, "--help")

    assert helped.exit_code == 0
    assert f"nap-stream {command}" in helped.out
    assert "Example" in helped.out


OBEYED = "\x9b31m\x1b]0;x\x07\u202e\u2028\x85 [red]"


def test_no_terminal_obeys_what_the_log_holds(nap: Call, tmp_path: Path) -> None:
    root, key = tmp_path / "log", OBEYED.encode()
    rows = [
        scored(origin(0, key=key, headers=((OBEYED, key),)), class_name=OBEYED, p_value=0.01),
        failed(origin(1, key=key), error=OBEYED),
    ]
    chain(root, [(2, rows)])
    event = Event(time_ms=NOON_MS, kind="odd", by="Ann", data={OBEYED: OBEYED})
    append_event(LocalStore(root), event)
    (root / f"_{OBEYED}.parquet").write_bytes(b"")
    formats = [["--format", each] for each in ("table", "json", "csv")]
    select = 'select key, class_name, error, headers, headers as "a\x9bb" from records'
    commands = [
        *(["query", *each] for each in formats),
        *(["query", "--by", by, *each] for by in ("class", "key") for each in formats),
        ["query", "--class", "nobody"],
        ["query", "--key", "nobody"],
        *(["sql", select, *each] for each in formats),
        ["sql", f"select '{OBEYED}' from nowhere"],
        *(["history", *each] for each in formats),
        ["history", "--kind", "nobody"],
        ["show", "cars/0/0"],
        ["show", "cars/0/0", "--format", "json"],
        ["show", "cars/0/1"],
        ["verify", "--deep"],
        ["verify", "--deep", "--json"],
        ["compact"],
    ]
    for command in commands:
        ended = nap(*command, "--log", root)
        told = ended.out + ended.err
        strange = {c for c in told if not c.isprintable() and c not in "\t\r\n"}
        assert not strange, command
        assert told, command


def test_query_gives_rows_as_json_lines(nap: Call, log: Path) -> None:
    ended = nap("query", "--log", log, "--format", "json")

    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.exit_code == 0
    assert [row["offset"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["class_name"] == "dog"
    assert rows[1]["event_time"] == "2026-01-01T12:00:00.000Z"


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (["--ood"], [1]),
        (["--in-distribution"], [0, 3, 4]),
        (["--class", "dog"], [1, 4]),
        (["--class", "5"], [1, 4]),
        (["--status", "corrupt"], [2]),
        (["--max-p-value", "0.05"], [1]),
        (["--min-p-value", "0.05"], [0, 3, 4]),
        (["--since", "2026-01-01T13:00"], [3, 4]),
        (["--until", "2026-01-01T13:00:00+00:00"], [0, 1, 2]),
        (["--since", "10m"], []),
        (["--day", "2026-01-01"], [0, 1, 2, 3, 4]),
        (["--day", "2026-01-02"], []),
        (["--key", "camera-1", "--offset", "1-3", "--model", "a1a1"], [1, 2, 3]),
        (["--sha256", "c3" * 32, "--offset", "4"], [4]),
        (["--sha256", "c4" * 32], []),
        (["--sort", "p-value", "--limit", "2"], [1, 0]),
        (["--limit", "2"], [0, 1]),
    ],
)
def test_query_filters(nap: Call, log: Path, options: list[str], offsets: list[int]) -> None:
    ended = nap("query", "--log", log, "--format", "json", *options)

    assert [json.loads(line)["offset"] for line in ended.out.splitlines()] == offsets


def test_query_counts_by_hour_and_class(nap: Call, log: Path) -> None:
    by_hour = nap("query", "--log", log, "--by", "hour", "--format", "csv").out.splitlines()
    by_class = nap("query", "--log", log, "--by", "class", "--format", "csv").out.splitlines()

    assert by_hour == [
        "hour,rows,scored,ood,ood_fraction,ood_low,ood_high",
        "2026-01-01T12:00:00.000Z,3,2,1,0.5,0.09453120573423074,0.9054687942657693",
        "2026-01-01T13:00:00.000Z,2,2,0,0.0,0.0,0.6576197724933469",
    ]
    figures = [line.split(",")[:6] for line in by_class[1:]]
    assert figures == [
        ["3", "cat", "2", "2", "0", "0.0"],
        ["5", "dog", "2", "2", "1", "0.5"],
        ["", "", "1", "0", "0", ""],
    ]
    limited = nap("query", "--log", log, "--by", "class", "--format", "csv", "--limit", "1")
    assert limited.out.splitlines() == by_class[:2]


def test_query_names_hours_without_rows_and_an_empty_answer(nap: Call, log: Path) -> None:
    span = ("--since", "2026-01-01T10:00", "--until", "2026-01-01T15:00Z")
    gaps = nap("query", "--log", log, "--by", "hour", *span)
    assert gaps.exit_code == 0
    assert "2026-01-01T10:00 is taken as UTC" in gaps.err
    assert "no rows  from 2026-01-01T10:00:00.000Z to 2026-01-01T12:00:00.000Z" in gaps.err
    assert "no rows  from 2026-01-01T14:00:00.000Z to 2026-01-01T15:00:00.000Z" in gaps.err
    empty = nap("query", "--log", log, "--status", "corrupt", "--class", "dog")
    assert (empty.exit_code, empty.err) == (0, "No row matches.\n")
    none = nap("query", "--log", log, "--status", "corrupt", "--offset", "0")
    assert (none.exit_code, "show TOPIC/PARTITION/OFFSET tells why" in none.err) == (0, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--topic", "car"], "no topic 'car'; it has cars"),
        (["--partition", "1"], "no partition '1'; it has 0"),
        (["--class", "dgo"], "no class 'dgo'; it has dog"),
        (["--key", "camera-2", "--by", "hour"], "no key 'camera-2'; it has camera-1"),
        (["--class", "cat", "--class", "capp"], "no class 'capp'; it has cat"),
        (["--class", "cat", "--class", "capp", "--by", "class"], "no class 'capp'; it has cat"),
        (["--by", "hour,day,key"], "expected one or two of hour, day"),
        (["--by", "camera"], "expected one or two of hour, day"),
        (["--sha256", "c3"], "expected 64 hex digits"),
        (["--offset", "9-3"], "9 is not before 3"),
        (["--day", "yesterday"], "expected a date such as 2026-05-31"),
        (["--day", "2026-02-30"], "--day 2026-02-30: expected a date such as"),
        (["--key", "base64:!"], "not base64"),
        (["--sort", "p-value", "--by", "hour"], "expected --limit and no --by"),
        (["--by", "day,hour"], "an hour is of one day"),
        (["--min-p-value", "0.9", "--max-p-value", "0.1"], "0.9 is above 0.1"),
        (["--limit", str(2**63)], "Invalid value for '--limit'"),
        (["--since", "2026-01-01+02:00"], "--since: not a time: '2026-01-01+02:00'"),
        (["--until", "2026-01-01-02:00"], "--until: not a time: '2026-01-01-02:00'"),
        (["--since", "2026-01-01x10:00"], "not a time"),
    ],
)
def test_query_refuses_what_is_not_there(
    nap: Call, log: Path, options: list[str], told: str
) -> None:
    ended = nap("query", "--log", log, *options)
    assert ended.exit_code == 2
    assert told in ended.err


@pytest.mark.parametrize(
    ("select", "told"),
    [
        ("select offset, key from records", 'write "offset"'),
        ("select date '10000-01-01'", "cannot be written: date value out of range"),
        ("select timestamptz 'infinity'", "Cast it to VARCHAR"),
    ],
)
def test_sql_that_cannot_be_answered_says_what_to_write(
    nap: Call, log: Path, select: str, told: str
) -> None:
    ended = nap("sql", "--log", log, select)
    assert ended.exit_code == 2
    assert told in ended.err


@pytest.mark.parametrize(
    "command",
    [
        ["query", "--ood"],
        ["sql", "select count(key) from records"],
        ["sql", "select * from records"],
        ["sql", "from records where key is null"],
    ],
)
def test_a_segment_that_cannot_be_read_is_told_with_exit_code_3(
    nap: Call, log: Path, command: list[str]
) -> None:
    first = min(log.rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-5])
    ended = nap(command[0], "--log", log, *command[1:])
    assert ended.exit_code == 3
    assert first.name in ended.err
    assert "The answer is without the rows of 1 files." in ended.err


@pytest.mark.parametrize("options", [[], ["--by", "day"], ["--key", "camera-1", "--by", "key"]])
def test_a_name_that_only_a_damaged_file_has_is_not_said_not_to_exist(
    nap: Call, tmp_path: Path, options: list[str]
) -> None:
    rows = [scored(origin(n, event_time_ms=NOON_MS, key=b"camera-%d" % (n + 1))) for n in range(3)]
    chain(tmp_path, [(n + 1, [row]) for n, row in enumerate(rows)])
    path = sorted(tmp_path.rglob("*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-5])
    ended = nap("query", "--log", tmp_path, "--key", "camera-2", *options)
    assert ended.exit_code == 3
    assert "the key 'camera-2' is not found in what could be read" in ended.err
    assert f"not read  {path.relative_to(tmp_path)}" in ended.err
    assert "The answer is without the rows of 1 files." in ended.err


def test_sql_answers_in_the_formats_of_query(nap: Call, log: Path) -> None:
    ask = "select class_name, count(*) as n from records where is_ood is not null group by all"
    assert (
        nap("sql", "--log", log, f"{ask} order by 1", "--format", "csv").out
        == "class_name,n\ncat,2\ndog,2\n"
    )
    cut = nap("sql", "--log", log, "from records", "--format", "json", "--limit", "2")
    assert len(cut.out.splitlines()) == 2
    assert "there are more" in cut.err
    refused = nap("sql", "--log", log, "drop table records")
    assert (refused.exit_code, "expected one SELECT" in refused.err) == (2, True)


def test_query_offers_what_rows_can_be_written_as() -> None:
    assert get_args(RowFormat) == tuple(OutputFormat)


def test_query_writes_parquet_to_a_file(nap: Call, log: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.parquet"

    assert nap("query", "--log", log, "-f", "parquet", "-o", target).exit_code == 0
    assert pq.read_table(target).column("offset").to_pylist() == [0, 1, 2, 3, 4]


def test_query_puts_no_word_of_the_log_among_rows(nap: Call, tmp_path: Path) -> None:
    chain(tmp_path, [(n + 1, [scored(origin(n, event_time_ms=NOON_MS))]) for n in range(3)])
    _, second, _ = sorted(tmp_path.rglob("*.parquet"))
    second.unlink()

    ended = nap("query", "--log", tmp_path, "--format", "json")

    assert ended.exit_code == 0
    assert ended.out
    for line in ended.out.splitlines():
        json.loads(line)
    assert "segments_missing" in ended.err


def test_query_refuses_what_is_no_time(nap: Call, log: Path) -> None:
    ended = nap("query", "--log", log, "--since", "yesterday")

    assert ended.exit_code == 2
    assert "error: --since: not a time: 'yesterday'" in ended.err


@pytest.mark.parametrize("command", ["query", "verify", "compact"])
def test_a_log_must_be_named_once_and_exist(nap: Call, command: str, tmp_path: Path) -> None:
    assert "expected either --log ROOT or --config FILE" in nap(command).err
    ended = nap(command, "--log", tmp_path / "gone")
    assert ended.exit_code == 2
    assert "no such folder" in ended.err


def test_verify_of_a_clean_log(nap: Call, log: Path) -> None:
    ended = nap("verify", "--log", log)

    assert ended.exit_code == 0
    assert ended.out.splitlines()[0] == "1 partitions, 2 segments, 5 rows, 5 offsets"
    assert ended.out.splitlines()[-1] == "clean"


def test_verify_names_a_defect_and_fails(nap: Call, log: Path) -> None:
    first = min(log.rglob("*.parquet"))
    first.unlink()

    ended = nap("verify", "--log", log)
    report = json.loads(nap("verify", "--log", log, "--json").out)

    assert ended.exit_code == 1
    assert "hole" in ended.out
    assert not report["clean"]
    assert report["defects"][0]["kind"] == "hole"


MONITOR = """\
kafka: {topic: images, bootstrap_servers: "127.0.0.1:1"}
model:
  factory: tests.support.tiny_net:build
  python_path: [%s]
  class_names: [circle, square, cross]
  preprocessing: {resize: null, crop: 16}
calibration: calibration
log: {root: log}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "monitor.yaml"
    path.write_text(MONITOR % Path(__file__).parents[2], encoding="utf-8")
    return path


def test_calibrate_writes_what_run_can_read_and_tells_the_figures(
    nap: Call, config: Path, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "held-out", 40)

    ended = nap(
        *("calibrate", "--model", config, "--images", images),
        *("--out", tmp_path / "calibration", "--alpha", "0.1"),
    )

    assert ended.exit_code == 0, ended.err
    # A third of the images is fitted on.
    assert "27 scored, 0 undecodable of held-out" in ended.out
    assert "13 scored, 0 undecodable, a share of the others" in ended.out
    shown = nap("run", "--config", config, "--print-config")
    assert shown.exit_code == 0, shown.err
    assert "topic: images" in shown.out


def test_calibrate_says_how_many_images_alpha_needs(
    nap: Call, config: Path, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "held-out", 10)

    ended = nap(
        *("calibrate", "--model", config, "--images", images),
        *("--out", tmp_path / "calibration", "--alpha", "0.05"),
    )

    assert ended.exit_code == 1
    assert "needs at least 19" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "calibration").exists()


def test_calibrate_refuses_an_empty_folder(nap: Call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    ended = nap(
        *("calibrate", "--model", config, "--images", tmp_path / "empty"),
        *("--out", tmp_path / "calibration"),
    )

    assert ended.exit_code == 1
    assert ended.err.startswith("error: ")
    assert "empty" in ended.err


def test_calibrate_refuses_options_of_a_model_here_for_one_elsewhere(
    nap: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump(tree | {"model": {"elsewhere": {"name": "parts/1"}}}))

    calibrate = ("calibrate", "--model", config, "--images", tmp_path / "none")
    out = ("--out", tmp_path / "calibration")
    # Their defaults, but given.
    ended = nap(*calibrate, *out, "--device", "cpu", "--batch-size", "32")

    assert ended.exit_code == 2
    assert "--device, --batch-size: for a model that runs here" in ended.err

    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    ended = nap(*calibrate, *out, "--torch-threads", "3")

    assert "cannot be read as Parquet or Arrow" in ended.err
    assert given == [3]


def test_produce_names_the_topics_of_which_one_is_to_be_chosen(nap: Call, tmp_path: Path) -> None:
    config, images = tmp_path / "monitor.yaml", tmp_path / "images"
    images.mkdir()
    config.write_text("kafka: {topic: all, topics: [north, south]}", encoding="utf-8")
    ended = nap("produce", images, "--config", config)
    assert (ended.exit_code, ended.out) == (2, "")
    assert "kafka.topics: it has the topics north, south. Choose one with --topic" in ended.err


def test_produce_needs_a_topic_and_a_broker(nap: Call, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)

    assert "expected --topic NAME or --config FILE" in nap("produce", images).err
    ended = nap("produce", images, "--topic", "t", "--bootstrap-servers", "no-port")
    assert ended.exit_code == 2
    assert "expected HOST:PORT" in ended.err


def test_sql_is_asked_of_the_files_that_options_choose(nap: Call, log: Path) -> None:
    count = ("select count(*) as n from records", "--format", "csv")
    chosen = ("--partition", "0", "--day", "2026-01-01")
    assert nap("sql", "--log", log, *chosen, *count).out.split() == ["n", "5"]
    assert nap("sql", "--log", log, "--day", "2026-01-02", *count).out.split() == ["n", "0"]
    refused = nap("sql", "--log", log, "--partition", "7", *count)
    assert (refused.exit_code, "no partition '7'; it has 0" in refused.err) == (2, True)


@pytest.mark.parametrize(
    "asked",
    [
        ("query", "--output"),
        ("sql", "select 1", "--output"),
        ("history", "--output"),
        ("query", "--sign-with", "key", "--export"),
        ("report", "--out"),
        ("verify", "--report"),
        ("show", "animals/0/0", "--out"),
    ],
    ids=lambda asked: " ".join((asked[0], asked[-1])),
)
def test_nothing_is_written_among_the_files_of_the_log(
    asked: tuple[str, ...], nap: Call, log: Path
) -> None:
    before = sorted(log.rglob("*"))
    first = min(path for path in before if path.suffix == ".parquet")
    content = first.read_bytes()
    for place in (first, log / "x" / ".." / "rows.parquet"):
        ended = nap(*asked, place, "--log", log)
        assert (ended.exit_code, "in the scored log" in ended.err) == (2, True), ended.err
    assert (sorted(log.rglob("*")), first.read_bytes()) == (before, content)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["query", "-f", "json"], ["verify"]])
def test_a_full_disk_and_a_reader_that_is_gone_are_no_defects(
    log: Path, command: list[str]
) -> None:
    program = [sys.executable, "-m", "nap_stream", *command, "--log", str(log)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, check=False)
    where = b"standard output or a temporary file"
    problem = b"error: " + where + b": cannot write: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, problem)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        ended = subprocess.run(program, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (141, b"")
