"""The head of a Ray cluster dies and is replaced, while a monitor runs on another node.

As deploy/kubernetes has it: the head's state lies where the next one finds it, nothing runs on the
head, and the driver of the job runs elsewhere. Ray's own store on disk stands in for Redis.
"""

import os
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.conftest import head_command, head_program, ray_node
from tests.e2e.monitor import PARTITIONS, WORKERS, new_monitor
from tests.e2e.on_ray import ray_job, submit_job
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.leftovers import short_folder
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

BEFORE, MEANWHILE, AFTER = 200, 100, 200
PLACE = "nap-stream-driver"
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""As containers are: a node sees its own processes. A driver connects to the head where it sees its
processes, and `ray start --head` refuses to start where it sees those of a node that knows it."""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to a space of processes of its own")
def test_a_job_whose_driver_is_elsewhere_survives_a_head_that_is_replaced(
    apache_kafka: ApacheKafka, calibration: Path, tmp_path: Path
) -> None:
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration)
    images = [
        write_images(tmp_path / name, count, first_seed=first)
        for name, count, first in (
            ("before", BEFORE, 0),
            ("meanwhile", MEANWHILE, BEFORE),
            ("after", AFTER, BEFORE + MEANWHILE),
        )
    ]
    store = tmp_path / "store"
    store.mkdir()
    keeps = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(store)}
    # As KubeRay sets it on the nodes of a cluster whose head may be replaced.
    patient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    with short_folder() as folder:
        head, command = head_command(folder, 0, keeps | patient)
        first = head_program(head, [*ALONE, *command], tmp_path / "first")
        with first as killed:
            place = f'--resources={{"{PLACE}": 1}}'
            with ray_node(head, 4, tmp_path / "node", place, prefix=ALONE, environ=patient):
                produce(monitor.kafka, images[0])
                job = submit_job(monitor, head, tmp_path / "submit", f"--on={PLACE}")
                wait_until(lambda: len(monitor.rows()) == BEFORE, "the rows before")
                killed.kill()
                produce(monitor.kafka, images[1])
                wait_until(
                    lambda: len(monitor.rows()) == BEFORE + MEANWHILE, "the rows without a head"
                )
                with head_program(head, [*ALONE, *command], tmp_path / "second"):
                    produce(monitor.kafka, images[2])
                    everything = BEFORE + MEANWHILE + AFTER
                    wait_until(lambda: len(monitor.rows()) == everything, "the rows after")
                    status = ray_job("status", job, head, tmp_path / "status")
                    assert "RUNNING" in status
                    ray_job("stop", job, head, tmp_path / "stop")
                    assert "stopped" in ray_job("status", job, head, tmp_path / "stopped")
    # Nobody was replaced: each segment is by a worker's first incarnation.
    assert monitor.pids().keys() <= {f"worker-{number}.0" for number in range(WORKERS)}
    assert len(monitor.chain_ends()) == PARTITIONS
    monitor.assert_complete(everything)
