"""nap-stream prune, and what the other commands say of rows that were pruned."""

import json
from pathlib import Path

import numpy as np
import pytest

from nap_stream.calibration.artifact import write_calibration
from nap_stream.scored_log.format import seal_path, segment_path
from nap_stream.scored_log.proof.note import create_key
from nap_stream.scored_log.stores.local import LocalStore
from tests.cli.program import Call, Ended
from tests.scored_log.builders import CARS
from tests.scored_log.test_prune import DAYS, write_days
from tests.support.baseline_calibrations import with_baseline
from tests.support.small_calibration import calibration_of

BEFORE = "2026-01-05T00:00Z"
SAID = ("--by", "Ann", "--reason", "90 days")
TOLD = (
    "pruned  12 rows of cars/0 with event times from 2026-01-01T12:00:00.000Z to "
    "2026-01-04T12:00:00.003Z were pruned by Ann on "
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    root = tmp_path / "log"
    write_days(LocalStore(root))
    return root


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "signing.key"
    (tmp_path / "keys.txt").write_text(f"{create_key(path, 'example.org/line-3')}\n")
    return path


def _prune(nap: Call, log: Path, *more: object) -> Ended:
    return nap("prune", "--log", log, "--before", BEFORE, *SAID, *more)


def test_it_says_what_went_and_what_stays_and_why(nap: Call, log: Path) -> None:
    told = _prune(nap, log, "--dry-run")
    assert told.exit_code == 0
    assert "1 partitions: would prune 12 rows in 4 files" in told.out
    assert len(list((log / "topic=cars/partition=0").glob("*.parquet"))) == DAYS
    ended = _prune(nap, log)
    assert (ended.exit_code, ended.err) == (0, "")
    assert "pruned  cars/0: [0, 16), 12 rows: 3 corrupt, 9 ok; 3 flagged" in ended.out
    assert "kept  cars/0 from offset 16 on: what follows is from 2026-01-05T12:00" in ended.out
    again = _prune(nap, log)
    assert "pruned 0 rows in 0 files" in again.out


def test_the_same_as_json(nap: Call, log: Path) -> None:
    told = json.loads(_prune(nap, log, "--json").out)
    assert (told["clean"], told["files"], told["spans"][0]["rows"]) == (True, 4, 12)


def test_verify_says_what_of_it_is_proved_also_of_an_old_report_and_old_checkpoints(
    nap: Call, log: Path, key: Path, tmp_path: Path
) -> None:
    """The report and the checkpoint are of when the chain ended within what is pruned now."""
    newer = [log / segment_path(CARS, base) for base in (12, 16, 20)]
    contents = [path.read_bytes() for path in newer]
    for path in newer:
        path.unlink()
    kept = tmp_path / "kept.json"
    assert nap("verify", "--log", log, "--report", kept).exit_code == 0
    assert nap("checkpoint", "--log", log, "--key", key).exit_code == 0
    for path, content in zip(newer, contents, strict=True):
        path.write_bytes(content)
    assert _prune(nap, log, "--sign-with", key).exit_code == 0
    keys = tmp_path / "keys.txt"
    # The clock of the files is behind that of the checkpoint: they are dated before it.
    ended = nap("verify", "--log", log, "--deep", "--kept", kept, "--checkpoints", keys)
    pruned, seal = "within what was pruned, sealed by Ann on ", seal_path(CARS, 0)
    assert f"kept    cars/0: compared at 12, {pruned}" in ended.out
    assert "anchor  cars/0: anchored until 12 at " in ended.out
    assert ended.out.count(pruned) == 2
    assert f"sealed in {seal}, signed by example.org/line-3+" in ended.out
    assert [line for line in ended.out.splitlines() if line.startswith("defect")] == [
        line for line in ended.out.splitlines() if "backdated" in line
    ]
    alone = nap("verify", "--log", log, "--kept", kept)
    assert alone.exit_code == 0
    assert "which is not checked without --checkpoints KEYS" in alone.out
    assert "clean, but for 12 rows that were pruned" in alone.out


def test_without_a_signature_it_is_a_defect_where_keys_are_given(
    nap: Call, log: Path, key: Path, tmp_path: Path
) -> None:
    assert nap("checkpoint", "--log", log, "--key", key).exit_code == 0
    _prune(nap, log)
    alone = nap("verify", "--log", log)
    assert (alone.exit_code, ", not signed" in alone.out) == (0, True)
    ended = nap("verify", "--log", log, "--checkpoints", tmp_path / "keys.txt")
    assert ended.exit_code == 1
    assert f"defect  {seal_path(CARS, 0)}: seal: it is not signed" in ended.out
    report = ("report", "--log", log, "--checkpoints", tmp_path / "keys.txt")
    assert "seal: it is not signed" in nap(*report, "--out", tmp_path / "r.html").err


@pytest.mark.parametrize(
    ("command", "answers"),
    [
        (("query", "--by", "day"), True),
        (("query", "--until", "2026-01-02T00:00Z"), True),
        (("query", "--key", "camera-9"), True),
        (("query", "--key", "camera-9", "--key", "camera-1"), True),
        (("query", "--offset", "15-17"), True),
        (("sql", "select count(*) from records"), True),
        (("query", "--since", "2026-01-05T00:00Z"), False),
        (("query", "--offset", "16-17"), False),
    ],
)
def test_who_asks_for_pruned_rows_is_told(
    command: tuple[str, ...], answers: bool, nap: Call, log: Path
) -> None:
    _prune(nap, log)
    ended = nap(command[0], "--log", log, *command[1:])
    assert (TOLD in ended.err) == answers
    assert ended.err.count("pruned  ") == int(answers)


@pytest.mark.parametrize(
    "command",
    [
        ("compare",),
        ("plan",),
        ("baseline", "--since", "2026-01-01", "--until", "2026-01-09", *SAID, "--out", "new"),
    ],
)
def test_who_counts_pruned_rows_is_told_before_an_error_that_it_explains(
    command: tuple[str, ...], nap: Call, log: Path, tmp_path: Path
) -> None:
    _prune(nap, log)
    parent = calibration_of(np.arange(8.0).tolist(), np.arange(8.0).tolist())
    write_calibration(with_baseline(parent, np.arange(8.0)), tmp_path / "calibration")
    judged_by = ("--calibration", tmp_path / "calibration")
    ended = nap(command[0], "--log", log, *judged_by, *command[1:])
    assert ended.exit_code != 0
    assert ended.err.count(TOLD) == 1


@pytest.mark.parametrize(("key", "code"), [("camera-9", 2), ("camera-1", 1)])
def test_who_erases_is_told_that_images_of_pruned_rows_cannot_be_found(
    key: str, code: int, nap: Call, log: Path, tmp_path: Path
) -> None:
    _prune(nap, log)
    kept = tmp_path / "kept"
    (kept / "2026-01-01").mkdir(parents=True)
    ended = nap("erase", "--log", log, "--evidence", kept, "--key", key, "--by", "Ann")
    assert (ended.exit_code, TOLD in ended.err) == (code, True)


def test_the_period_beside_a_report_is_told_of_on_the_page_and_on_stderr(
    nap: Call, log: Path, tmp_path: Path
) -> None:
    _prune(nap, log)
    own = ("--since", "2026-01-05T06:00Z", "--until", "2026-01-07")
    beside = ("--compare-since", "2026-01-01", "--compare-until", "2026-01-05")
    page = tmp_path / "report.html"
    ended = nap("report", "--log", log, *own, *beside, "--no-verify", "--out", page)
    assert ended.err.count(TOLD) == 1
    assert page.read_text(encoding="utf-8").count("were pruned by Ann on") == 1


def test_what_a_prune_refuses_to_finish_is_named_with_exit_code_1(
    nap: Call, log: Path, key: Path
) -> None:
    _prune(nap, log)
    (log / segment_path(CARS, 0)).write_bytes((log / segment_path(CARS, 16)).read_bytes())
    ended = _prune(nap, log, "--sign-with", key)
    assert (ended.exit_code, "left out  cars/0: " in ended.out) == (1, True)
    assert "it is not signed" in ended.out


def test_show_tells_a_gap_that_was_pruned_from_rows_that_are_gone(nap: Call, log: Path) -> None:
    _prune(nap, log)
    ended = nap("show", "cars/0/9", "--log", log)
    assert (ended.exit_code, "the log declares a gap there: retention" in ended.err) == (2, True)


def test_a_row_that_was_pruned_is_said_to_be_gone(nap: Call, log: Path) -> None:
    _prune(nap, log)
    ended = nap("show", "cars/0/5", "--log", log)
    assert ended.exit_code == 2
    assert "its row is gone: 12 rows of cars/0" in ended.err


def test_a_report_and_an_export_name_it(nap: Call, log: Path, key: Path, tmp_path: Path) -> None:
    _prune(nap, log)
    page = tmp_path / "report.html"
    ended = nap("report", "--log", log, "--since", "2026-01-01", "--out", page)
    assert TOLD in ended.err
    text = page.read_text(encoding="utf-8")
    assert "were pruned by Ann on" in text
    out = tmp_path / "export"
    ended = nap("query", "--log", log, "--export", out, "--sign-with", key)
    assert TOLD in ended.err
    assert TOLD in nap("verify-export", out, "--keys", tmp_path / "keys.txt").out


def test_history_has_who_and_why(nap: Call, log: Path) -> None:
    _prune(nap, log)
    told = nap("history", "--log", log, "--kind", "pruning").out
    assert "12 rows of 1 partitions before 2026-01-05T00:00:00.000Z: 90 days" in told


def test_mistakes_are_named(nap: Call, log: Path, tmp_path: Path) -> None:
    future = nap("prune", "--log", log, "--before", "2999-01-01", *SAID)
    assert (future.exit_code, "in the future" in future.err) == (2, True)
    other = _prune(nap, log, "--topic", "cats")
    assert (other.exit_code, "cats" in other.err) == (2, True)
    nobody = nap("prune", "--log", log, "--before", BEFORE, "--by", " ", "--reason", "x")
    assert nobody.exit_code == 2
    lost = _prune(nap, log, "--sign-with", tmp_path / "no.key")
    assert (lost.exit_code, "--sign-with" in lost.err) == (2, True)
    empty = nap("prune", "--log", tmp_path, "--before", BEFORE, *SAID)
    assert empty.exit_code == 2
    assert len(list((log / "topic=cars/partition=0").glob("*.parquet"))) == DAYS
