"""A worker that is killed in the middle of the stream."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.monitor import (
    PARTITIONS,
    Monitor,
    has_partitions,
    metrics_url,
    new_monitor,
    producing,
    scrape,
)
from tests.e2e.on_ray import RayHead, running
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

IMAGES = 900
RATE = 150.0
VICTIM = "worker-0.0@"
FIRST = {"worker-0.0", "worker-1.0"}
"""The workers that the run starts with."""


@pytest.mark.slow
def test_kill_9_of_a_worker_mid_stream_leaves_every_offset_exactly_once(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration)
    images = write_images(tmp_path / "images", IMAGES)
    with running(monitor, ray_head, tmp_path / "run", "--max-records", str(IMAGES)) as run:
        url = metrics_url(run)
        with producing(monitor, images, RATE):
            wait_until(lambda: set(monitor.pids()) >= FIRST, "segments of both workers")
            victim = _pid_of_victim(monitor)
            os.kill(victim, signal.SIGKILL)
            failed = json.loads(run.wait_for_line("worker_failed"))
            restarts = ("nap_stream_worker_restarts_total", ())
            wait_until(lambda: scrape(url)[restarts] == 1, "the restart in /metrics")
            wait_until(
                lambda: has_partitions(run, "worker-0", but=victim), "partitions of the new worker"
            )
        assert run.wait() == 0, run.tail
        assert failed["worker"] == "worker-0"
        assert "died" in failed["cause"]

    monitor.assert_complete(IMAGES)
    assert set(monitor.pids()) == FIRST | {"worker-0.1"}
    assert len(monitor.chain_ends()) == PARTITIONS


def _pid_of_victim(monitor: Monitor) -> int:
    (writer,) = [name for name in monitor.writers() if name.startswith(VICTIM)]
    return int(writer.rpartition(":")[2])
