"""Workers that live and do not get on: a forward that never returns, a stopped process."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.calibrated import Faulty
from tests.e2e.monitor import Monitor, has_partitions, new_monitor, streaming
from tests.e2e.on_ray import RayHead, running
from tests.support.apache_kafka import ApacheKafka
from tests.support.faulty_net import hang_once, hung_pid
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

AFTER = 300
RATE = 60.0
STALL_S = 25.0
"""Longer than a worker without a fault makes no progress on a busy machine."""
SESSION_S = 6.0

Wedge = Callable[[Monitor, Faulty], int]
"""Wedges a worker; gives its process."""


def _hang(_monitor: Monitor, faulty: Faulty) -> int:
    hang_once(faulty.faults)
    wait_until(lambda: hung_pid(faulty.faults) is not None, "a forward that hangs")
    pid = hung_pid(faulty.faults)
    assert pid is not None
    return pid


def _stop_process(monitor: Monitor, _faulty: Faulty) -> int:
    pid = monitor.pids()["worker-1.0"]
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize("wedge", [_hang, _stop_process])
def test_a_wedged_worker_is_replaced_and_every_image_is_logged_once(
    wedge: Wedge, apache_kafka: ApacheKafka, faulty: Faulty, ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        faulty.calibration,
        model=faulty.model,
        driver={"stall_timeout_s": STALL_S},
        kafka={"session_timeout_s": SESSION_S},
        worker={"revoke_deadline_s": 1.5},
    )
    images = write_images(tmp_path / "images", 60)
    after = write_images(tmp_path / "after", AFTER, first_seed=60)
    with running(monitor, ray_head, tmp_path / "run") as run:
        with streaming(monitor, images, RATE) as sent:
            wait_until(lambda: len(monitor.pids()) == 2, "segments of both workers")
            pid = wedge(monitor, faulty)
            (name,) = [n.partition(".")[0] for n, p in monitor.pids().items() if p == pid]
            failed = json.loads(run.wait_for_line("worker_failed"))
            wait_until(lambda: not _alive(pid), "the end of the wedged process")
        wait_until(lambda: has_partitions(run, name, but=pid), "partitions of the new worker")
        produce(monitor.kafka, after)
        total = sent.messages + AFTER
        wait_until(lambda: len(monitor.rows()) >= total, "all rows")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    assert failed["worker"] == name
    assert "made no progress for" in failed["cause"]
    assert set(monitor.pids()) == {"worker-0.0", "worker-1.0", f"{name}.1"}
    monitor.assert_complete(total)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
