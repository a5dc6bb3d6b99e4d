"""nap-stream report: files, exit codes, mistakes."""

import shutil
from pathlib import Path

import pytest

from nap_stream.calibration.artifact import write_calibration
from nap_stream.cli.report import _stated
from nap_stream.core.detection import window_firing_limit
from nap_stream.drift.detectors import detection_plan
from nap_stream.records import TopicPartition
from nap_stream.report.gather import Stated
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.drift import DriftSettings
from tests.cli.program import Call
from tests.report.browser import browser
from tests.report.month import TOPIC, write_events, write_rows
from tests.support.small_calibration import calibration_of

MAY = ("--since", "2026-05-01T00:00Z", "--until", "2026-05-31T00:00Z")


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("log")
    write_rows(LocalStore(root), days=4)
    write_events(LocalStore(root))
    return root


@pytest.fixture
def log(month: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(month, tmp_path / "log"))


def test_it_writes_one_file(nap: Call, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "may.html"
    ended = nap("report", "--log", log, *MAY, "--out", out)
    assert (ended.exit_code, ended.out, ended.err) == (0, f"Report   {out}\n", "")
    assert list(out.parent.iterdir()) == [out]
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_segment_that_cannot_be_read_is_named(nap: Call, log: Path, tmp_path: Path) -> None:
    path = segment_path(TopicPartition(TOPIC, 1), 144)
    (log / path).write_bytes(b"PAR1")
    (log / "_events/00000000000000000002.json").unlink()
    ended = nap("report", "--log", log, *MAY, "--out", tmp_path / "may.html")
    assert ended.exit_code == 3
    assert f"not read  {path}" in ended.err
    assert "defect  _events/00000000000000000002.json: hole" in ended.err
    assert path in (tmp_path / "may.html").read_text(encoding="utf-8")


def test_a_log_with_a_defect_is_a_report_and_a_failure(
    nap: Call, log: Path, tmp_path: Path
) -> None:
    (log / "_events/00000000000000000002.json").unlink()
    ended = nap("report", "--log", log, *MAY, "--out", tmp_path / "may.html")
    assert ended.exit_code == 1
    assert "defect  _events/00000000000000000002.json: hole: the events 2 to 2" in ended.err
    assert "the events 2 to 2 are missing" in (tmp_path / "may.html").read_text(encoding="utf-8")


def test_what_signed_checkpoints_prove_is_told(nap: Call, log: Path, tmp_path: Path) -> None:
    key, keys = tmp_path / "signing.key", tmp_path / "keys.txt"
    keys.write_text(nap("checkpoint-key", "--out", key, "--name", "example.org/line-3").out)
    assert nap("checkpoint", "--log", log, "--key", key).exit_code == 0
    given = ("report", "--log", log, *MAY, "--out", tmp_path / "may.html", "--deep")
    ended = nap(*given, "--checkpoints", keys)
    page = (tmp_path / "may.html").read_text(encoding="utf-8")
    assert ended.exit_code == 0, ended.err
    assert "3 chains of 3 agree with a signed checkpoint; the newest is of 20" in page
    assert "Every value was read." in page
    assert "1 checkpoint by example.org/line-3" in page
    # Who can write to the log cuts off its end: the chain itself does not tell.
    (log / segment_path(TopicPartition(TOPIC, 1), 432)).unlink()
    assert nap(*given).exit_code == 0
    ended = nap(*given, "--checkpoints", keys)
    assert ended.exit_code == 1
    assert "it ends at 576; now it ends at 432" in ended.err


def test_a_period_without_rows_is_a_report(nap: Call, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "june.html"
    span = ("--since", "2026-06-01", "--until", "2026-06-02")
    ended = nap("report", "--log", log, *span, "--out", out)
    assert ended.exit_code == 0
    assert "--since: 2026-06-01 is taken as UTC" in ended.err
    assert "No row of the log is in that period." in ended.err
    assert "No image has its event time in this period." in out.read_text(encoding="utf-8")


def test_a_calibration_states_what_no_run_does(nap: Call, log: Path, tmp_path: Path) -> None:
    shutil.rmtree(log / "_events")
    scores = [float(number) for number in range(1_000)]
    calibration = calibration_of(scores, scores, alpha=0.05)
    write_calibration(calibration, tmp_path / "calibration")
    (tmp_path / "kept" / "2026-05-01").mkdir(parents=True)
    out = tmp_path / "may.html"
    given = ("--calibration", tmp_path / "calibration", "--evidence", tmp_path / "kept")
    ended = nap("report", "--log", log, *MAY, "--out", out, "--no-verify", *given)
    assert ended.exit_code == 0, ended.err
    page = out.read_text(encoding="utf-8")
    settings = DriftSettings()
    plan = detection_plan(settings, calibration.facts)
    bound = window_firing_limit(plan, settings.window_records) / settings.window_records
    # It is higher than any share of the chart, whose upper edge is a quarter above it.
    assert f'class="bound" d="M0.0 {100 - 100 / 1.25:.1f}H100.0"' in page
    assert _stated(None, calibration) == Stated(bound, plan.run_length)
    assert page.count("No picture: the image is not kept.") == 12
    assert "The log was not verified for this report." in page


def test_mistakes_leave_no_file(nap: Call, log: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "out.html", tmp_path / "empty"
    empty.mkdir()
    mistakes = {
        "the log has no topic 'botle'": (2, "--log", log, "--topic", "botle"),
        "no such folder": (2, "--log", tmp_path / "nowhere"),
        "there is no chain here": (2, "--log", empty),
        "not a time: 'May'": (2, "--log", log, "--since", "May"),
        "expected either --log ROOT or --config FILE": (2,),
        "one of several models'": (2, "--log", log, "--compare-model", "ff"),
        "another period and another model": (
            *(2, "--log", log, "--compare-model", "a1", "--compare-since", "2d"),
        ),
        "one of --config and --calibration": (
            *(2, "--log", log, "--config", "monitor.yaml", "--calibration", "c"),
        ),
        "one of --deep and --no-verify": (2, "--log", log, "--deep", "--no-verify"),
        "one of --pdf and an --out that ends in .pdf": (
            *(2, "--log", log, "--pdf", "--out", tmp_path / "may.PDF"),
        ),
    }
    for words, (code, *arguments) in mistakes.items():
        ended = nap("report", "--out", out, *arguments)
        assert (ended.exit_code, ended.out) == (code, "")
        assert words in ended.err
    assert not out.exists()


def test_without_a_browser_nothing_is_printed(
    nap: Call, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "may.html"
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = nap("report", "--log", log, "--out", out, "--pdf")
    assert (ended.exit_code, out.exists()) == (2, False)
    assert "there is no browser to print with: none of chromium, " in ended.err
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho 'no display' >&2\nexit 7\n")
    program.chmod(0o755)
    ended = nap("report", "--log", log, "--out", out, "--pdf")
    assert (ended.exit_code, out.exists()) == (1, True)
    assert "the browser did not print (exit code 7): no display" in ended.err
    assert not out.with_suffix(".pdf").exists()


def test_it_is_printed(nap: Call, log: Path, tmp_path: Path) -> None:
    browser()
    out = tmp_path / "may.html"
    ended = nap("report", "--log", log, *MAY, "--out", out, "--pdf")
    assert ended.exit_code == 0, ended.err
    pdf = out.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "may.html", "may.pdf"]
