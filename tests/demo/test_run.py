"""The demo as a user starts it. What it must show is judged here once more, from its files."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from nap_stream.demo.digits import BROKEN
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.support.ray_start import ATTEMPTS, was_too_slow
from tests.support.schemas import alert_schema
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.embedded, pytest.mark.slow]


@contextmanager
def demo(folder: Path, output: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "nap_stream", "demo", "--out", str(folder), *options]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def processes_naming(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if text in line]


def wait_until_gone(folder: Path) -> None:
    """What was killed last is listed for a moment more."""
    named = str(folder)
    wait_until(lambda: not processes_naming(named), lambda: f"the end of {processes_naming(named)}")


def test_ends_with_one_firing_one_resolved_and_a_clean_log(tmp_path: Path) -> None:
    output = tmp_path / "output"
    for attempt in range(1, ATTEMPTS + 1):
        folder = tmp_path / f"demo-{attempt}"
        with demo(folder, output, "--rate", "120") as process:
            exit_code = process.wait(3 * PATIENCE_S)
        if attempt == ATTEMPTS or not was_too_slow(output.read_text()):
            break
    assert exit_code == 0, output.read_text()

    alerts = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
    validator = jsonschema.Draft202012Validator(alert_schema())
    for alert in alerts:
        validator.validate(alert)
    told = Counter((alert["data"]["key"], alert["data"]["reason"]) for alert in alerts)
    for key in (None, *BROKEN):
        assert (told.pop((key, "began")), told.pop((key, "ended"))) == (1, 1)
    assert {reason for _, reason in told} <= {"escalated"}
    assert {key for key, _ in told} <= {None, *BROKEN}
    again = subprocess.run(
        [
            sys.executable,
            "-m",
            "nap_stream",
            "replay",
            "--config",
            str(folder / "monitor.yaml"),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    replayed = [json.loads(line)["id"] for line in again.stdout.splitlines()]
    assert sorted(replayed) == sorted(alert["id"] for alert in alerts)
    counts = aggregate(
        LocalStore(folder / "scored-log"), Query(topic="digits"), GroupBy.STATUS
    ).to_pylist()
    assert [(row["status"], row["rows"]) for row in counts] == [("ok", 847)]
    assert verify(LocalStore(folder / "scored-log"), deep=True).clean
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count('<img src="data:image/png;base64,') == 12
    assert "847 images in 1 topic, all with scores." in report
    assert report.count("<article>") == sum(alert["data"]["reason"] == "began" for alert in alerts)
    assert (folder / "report.html").resolve().as_uri() in output.read_text()
    assert "FAILED" not in output.read_text()
    wait_until_gone(folder)


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "output"
    for attempt in range(1, ATTEMPTS + 1):
        folder = tmp_path / f"demo-{attempt}"
        with demo(folder, output) as process:
            wait_until(partial(ray_is_up_or_not_coming, process, folder), "Ray")
            is_up = process.poll() is None
            if is_up:
                os.killpg(process.pid, signal.SIGINT)
                assert process.wait(PATIENCE_S) == 130, output.read_text()
        if is_up or not was_too_slow(output.read_text()):
            break

    assert is_up, output.read_text()
    assert "interrupted" in output.read_text()
    wait_until_gone(folder)


def ray_is_up_or_not_coming(process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    return process.poll() is not None or "Started a local Ray" in monitor_log(folder)


def monitor_log(folder: Path) -> str:
    path = folder / "monitor.log"
    return path.read_text() if path.exists() else ""
