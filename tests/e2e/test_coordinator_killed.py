"""A coordinator that is killed in the middle of the stream."""

import json
import os
import signal
import urllib.parse
from pathlib import Path

import pytest

from nap_stream.dev.broker import free_port
from tests.e2e.conftest import RayHead
from tests.e2e.monitor import (
    metrics_url,
    new_monitor,
    producing,
    scrape,
    wait_for_assignments,
)
from tests.e2e.processes import Program, listener_pid, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.topics import read_all
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

BEFORE, OOD = 700, 500
RATE = 150.0
WINDOW = 200


@pytest.mark.timeout(240)
def test_kill_9_of_the_coordinator_mid_stream_loses_no_row_and_no_later_alert(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        drift={"window_records": WINDOW},
        metrics={"port": free_port()},
    )
    images = tmp_path / "images"
    write_images(images / "1-before", BEFORE)
    write_images(images / "2-ood", OOD, first_seed=BEFORE, flat=True)
    command = nap_stream(
        *("run", "--config", monitor.config, "--address", ray_head.address),
        *("--max-records", str(BEFORE + OOD)),
    )
    with Program(command, tmp_path / "run", ray_head.environ) as run:
        url = metrics_url(run)
        port = urllib.parse.urlsplit(url).port
        assert port is not None
        wait_for_assignments(run)
        with producing(monitor, images, RATE) as sending:
            wait_until(lambda: len(monitor.rows()) >= WINDOW + 50, 60, "more than a window's rows")
            os.kill(listener_pid(port), signal.SIGKILL)
            run.wait_for_line("coordinator_restarted", 60)
            assert sending.is_alive(), "the stream was over before the coordinator was back"
            samples = scrape(url)
            assert samples["nap_stream_window_records", ()] >= WINDOW
        assert run.wait(120) == 0, run.tail
        assert "worker_failed" not in run.stderr

    monitor.assert_complete(BEFORE + OOD)
    assert {writer.partition("@")[0] for writer in monitor.writers()} == {
        "worker-0.0",
        "worker-1.0",
    }
    # Twice, where the one that was killed had delivered it a moment before.
    alert, *_ = read_all(monitor.kafka, monitor.alert_topic, 1)
    assert json.loads(alert.value)["data"]["state"] == "firing"
