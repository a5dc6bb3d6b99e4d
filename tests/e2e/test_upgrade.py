"""A newer version, or another calibration, takes a log over from one that runs, without a gap."""

import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from nap_stream.scored_log.events import EventKind, read_events
from tests.e2e.calibrated import calibrated
from tests.e2e.monitor import (
    PROJECT,
    Monitor,
    model_section,
    new_monitor,
    streaming,
    wait_for_assignments,
)
from tests.e2e.on_ray import running_alone
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.leftovers import short_folder
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

OLDER = "caa5e0a9439ae8874915660ac5aab1ded7d8b365"
"""A state of this repository before monitors read several topics and wrote traces."""
IMAGES, RATE = 40, 30.0


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder with the package as it was."""
    command = ["git", "-C", str(PROJECT), "archive", "--format=tar", OLDER, "nap_stream"]
    packed = subprocess.run(command, capture_output=True, check=False)
    if packed.returncode != 0:
        pytest.skip(f"needs the history of the repository: {packed.stderr.decode().strip()}")
    folder = tmp_path / "older"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def test_versions_and_calibrations_follow_each_other_and_every_image_is_logged_once(
    apache_kafka: ApacheKafka, calibration: Path, older: Path, tmp_path: Path
) -> None:
    """Each begins while the one before still runs: the group's partitions move between them."""
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        kafka={"session_timeout_s": 6.0},
        worker={"revoke_deadline_s": 2.0},
    )
    images = write_images(tmp_path / "images", IMAGES)
    other = calibrated(tmp_path / "other", model_section(), first_seed=200_000)
    runs = [
        ("old", older, calibration),
        ("new", PROJECT, calibration),
        ("old-again", older, calibration),
        ("other-calibration", PROJECT, other),
    ]
    with ExitStack() as stack:
        before = None
        with streaming(monitor, images, RATE) as sent:
            for name, code, judges_by in runs:
                monitor.change(calibration=str(judges_by))
                folder = stack.enter_context(short_folder())
                environ = {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(code)}
                # Ray has the workers import from where the driver was started.
                there = ("env", "-C", str(code))
                program = running_alone(monitor, environ, tmp_path / name, prefix=there)
                run = stack.enter_context(program)
                if before is not None:
                    before.send(signal.SIGTERM)
                    assert before.wait() == 0, before.tail
                wait_for_assignments(run)
                _wait_for_rows(monitor, 60)
                before = run
        wait_until(lambda: len(monitor.rows()) >= sent.messages, "all rows")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    monitor.assert_complete(sent.messages)
    judged = {row["calibration_fingerprint"] for row in monitor.rows("calibration_fingerprint")}
    starts = [event for event in read_events(monitor.store) if event.kind == EventKind.RUN_STARTED]
    told = [event.data["calibration_fingerprint"] for event in starts]
    assert told[:3] == [told[0]] * 3
    assert set(told) == judged
    assert len(judged) == 2, "rows of before the change and of after it"


def _wait_for_rows(monitor: Monitor, count: int) -> None:
    before = len(monitor.rows())
    wait_until(lambda: len(monitor.rows()) >= before + count, f"{count} more rows")
