"""A worker that is killed in the middle of the stream."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.conftest import RayHead
from tests.e2e.monitor import (
    PARTITIONS,
    Monitor,
    metrics_url,
    new_monitor,
    scrape,
    wait_for_assignments,
)
from tests.e2e.processes import Program, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

IMAGES = 900
RATE = 150.0
VICTIM = "worker-0.0@"


@pytest.mark.timeout(240)
def test_kill_9_of_a_worker_mid_stream_leaves_every_offset_exactly_once(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration)
    images = write_images(tmp_path / "images", IMAGES)
    producing = threading.Thread(
        target=produce, args=(monitor.kafka, images), kwargs={"rate": RATE}, daemon=True
    )
    command = nap_stream(
        *("run", "--config", monitor.config, "--address", ray_head.address),
        *("--max-records", str(IMAGES)),
    )
    with Program(command, tmp_path / "run", ray_head.environ) as run:
        url = metrics_url(run)
        wait_for_assignments(run)
        producing.start()
        wait_until(lambda: _both_write(monitor), 60, "segments of both workers")
        os.kill(_pid_of_victim(monitor), signal.SIGKILL)
        assert producing.is_alive(), "the stream was over before the worker was killed"
        failed = json.loads(run.wait_for_line("worker_failed", 30))
        restarts = ("nap_stream_worker_restarts_total", ())
        wait_until(lambda: scrape(url)[restarts] == 1, 30, "the restart in /metrics")
        producing.join()
        assert run.wait(90) == 0, run.tail
        assert failed["worker"] == "worker-0"
        assert "died" in failed["cause"]

    produced = monitor.topic_rows(IMAGES)
    logged = {
        (row["partition"], row["offset"], row["index"]): row["sha256"]
        for row in monitor.rows("sha256")
    }
    assert sorted(monitor.row_names()) == sorted(produced)
    assert logged == produced
    assert {row["status"] for row in monitor.rows("status")} == {"ok"}
    ends = monitor.chain_ends()
    assert sum(ends.values()) == IMAGES
    assert monitor.committed() == ends
    incarnations = {writer.partition("@")[0] for writer in monitor.writers()}
    assert incarnations == {"worker-0.0", "worker-0.1", "worker-1.0"}
    assert len(ends) == PARTITIONS


def _both_write(monitor: Monitor) -> bool:
    names = {writer.partition("@")[0] for writer in monitor.writers()}
    return names >= {"worker-0.0", "worker-1.0"}


def _pid_of_victim(monitor: Monitor) -> int:
    (writer,) = [name for name in monitor.writers() if name.startswith(VICTIM)]
    return int(writer.rpartition(":")[2])
