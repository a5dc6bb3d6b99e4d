"""A disk that fills up under a running monitor, and has room again later."""

import signal
from pathlib import Path
from typing import Any

import pytest

from nap_stream.clock import SystemClock
from nap_stream.demo.produce import produce
from tests.e2e.monitor import (
    PARTITIONS,
    WORKERS,
    Monitor,
    health,
    metrics_url,
    new_monitor,
    streaming,
)
from tests.e2e.on_ray import RayHead, running
from tests.e2e.processes import Program
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.small_disk import mounted_disk
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

DISK_BYTES = 8 * 2**20

RATE = 60.0
STALL_S = 25.0
"""What the driver bears of a worker, and the group of a member that does not poll."""


def test_a_full_disk_is_waited_for_and_every_image_is_logged_once(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    with mounted_disk(tmp_path / "disk", DISK_BYTES) as disk:
        monitor = new_monitor(
            apache_kafka.bootstrap,
            disk.folder / "monitor",
            calibration,
            driver={"stall_timeout_s": STALL_S},
            kafka={"max_poll_interval_s": STALL_S},
            worker={"revoke_deadline_s": 2.0},
        )
        images = write_images(tmp_path / "images", 60)
        with running(monitor, ray_head, tmp_path / "run") as run:
            url = metrics_url(run)
            # It goes on for as long as a worker has not met the full disk.
            with streaming(monitor, images, RATE) as sent:
                wait_until(
                    lambda: monitor.is_under_way() and len(monitor.pids()) == WORKERS,
                    "segments of all partitions, by both workers",
                )
                disk.fill()
                wait_until(lambda: len(_waiting(run)) == WORKERS, "both workers to wait")
            rows = len(monitor.rows())
            assert rows < sent.messages
            wait_until(lambda: _unhealthy_for_the_log(url), "the full disk in /healthz")
            # Longer than a wedged worker, or one that does not poll, would be borne.
            SystemClock().sleep(STALL_S + 5)
            _assert_all_are_there(run, monitor)
            assert len(monitor.rows()) == rows
            disk.empty()
            wait_until(lambda: health(url)[0] == 200, "health")
            total = sent.messages + produce(monitor.kafka, images).messages
            wait_until(lambda: len(monitor.rows()) >= total, "all rows")
            run.send(signal.SIGTERM)
            assert run.wait() == 0, run.tail

        assert "goes_on" in run.stderr
        assert set(monitor.pids()) == {"worker-0.0", "worker-1.0"}
        monitor.assert_complete(total)


def _waiting(run: Program) -> set[str]:
    """The workers that have said that they wait for the log."""
    assert run.running, run.tail
    said = [line for line in run.stderr.splitlines() if '"what": "the scored log"' in line]
    return {f"worker-{n}" for n in range(WORKERS) if any(f'"worker-{n}"' in line for line in said)}


def _assert_all_are_there(run: Program, monitor: Monitor) -> None:
    """No worker was replaced, none has left the group, none has lost a partition."""
    assert run.running, run.tail
    assert "worker_failed" not in run.stderr
    assert "partitions_lost" not in run.stderr
    group: dict[str, Any] = monitor.group()
    assert len(group["members"]) == WORKERS, group
    assert group["group_state"].lower() == "stable", group
    assert len(monitor.committed()) == PARTITIONS


def _unhealthy_for_the_log(url: str) -> bool:
    status, found = health(url)
    return status == 503 and any("scored log" in reason for reason in found["reasons"])
