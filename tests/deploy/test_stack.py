"""`make stack`: one command, a whole local stack, and the alert in Alertmanager."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.leftovers import marked
from tests.support.prometheus import ALERTMANAGER, program
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]
PROJECT = Path(__file__).parents[2]
RATE = 50
MARK = "NAP_STREAM_TEST_STACK"


@contextmanager
def stack_run(folder: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """`make stack` without make, fast; SeaweedFS where it is built already, a folder without it."""
    # As make's own, from where it is called.
    out = os.path.relpath(folder / "run", PROJECT)
    command = [sys.executable, "-m", "deploy.stack", f"--out={out}", f"--rate={RATE}"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-build"],
            cwd=PROJECT,
            stdout=output,
            stderr=output,
            env={**os.environ, MARK: folder.name, **environ},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_the_alert_of_the_stream_arrives_in_alertmanager_and_ends_there(
    kafka_jars: Path, tmp_path: Path
) -> None:
    assert kafka_jars
    program("prometheus")
    program(*ALERTMANAGER)
    with stack_run(tmp_path) as process:
        code = process.wait(PATIENCE_S * 3)
    said = (tmp_path / "output").read_text()
    assert code == 0, said[-6000:]
    assert "in Alertmanager: NapStreamDrift (critical)" in said
    assert "ok      every query of the dashboard had data" in said
    assert "ok      the log verifies clean" in said
    _wait_until_all_ended(tmp_path)


def test_when_it_is_interrupted_nothing_is_left(tmp_path: Path) -> None:
    program(*ALERTMANAGER)
    with stack_run(tmp_path) as process:
        wait_until(
            lambda: process.poll() is not None or b"Alertmanager at" in _said(tmp_path),
            lambda: _said(tmp_path).decode(),
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130, _said(tmp_path).decode()[-3000:]
        assert b"interrupted; all that was started ends with this" in _said(tmp_path)
        _wait_until_all_ended(tmp_path)


def test_without_alertmanager_it_says_so_at_once(tmp_path: Path) -> None:
    with stack_run(tmp_path, PATH=str(tmp_path)) as process:
        assert process.wait(PATIENCE_S) == 1
    said = _said(tmp_path).decode()
    assert "no Alertmanager (apt-get install" in said
    assert "Kafka" not in said, "nothing is fetched or built for nothing"
    assert "SeaweedFS" not in said
    assert "Traceback" not in said


def _wait_until_all_ended(folder: Path) -> None:
    """What watches over its processes outlives it by a moment."""
    wait_until(
        lambda: not marked(MARK, folder.name),
        lambda: f"the end of {[_command(pid) for pid in marked(MARK, folder.name)]}",
    )


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "one that has just ended"


def _said(folder: Path) -> bytes:
    return (folder / "output").read_bytes()
