"""The network between a worker and what it needs is cut, link by link, and comes back."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.conftest import ray_node, started_head
from tests.e2e.monitor import Monitor, assignments, health, metrics_url, new_monitor, streaming
from tests.e2e.on_ray import running
from tests.e2e.processes import Program
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.network import Network, two_machines, why_not
from tests.support.s3 import BUCKET, environment, fault_proxy
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

IMAGES = 40
RATE = 20.0
SESSION_S = 6.0
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}
"""A head that gives a silent node up after some 20 s."""


@pytest.fixture
def network() -> Iterator[Network]:
    with two_machines() as made:
        yield made


@pytest.fixture
def kafka(kafka_jars: Path, network: Network, tmp_path: Path) -> Iterator[ApacheKafka]:
    folder = tmp_path / "kafka"
    folder.mkdir()
    with ApacheKafka(kafka_jars, folder, host=network.broker) as broker:
        yield broker


@pytest.fixture
def log_root(s3_port: int, network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with fault_proxy(s3_port, network.store) as store:
        for name, value in environment(store.endpoint).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/{network.name}"


def test_each_link_of_a_worker_may_be_cut_and_every_image_is_logged_once(
    network: Network, kafka: ApacheKafka, log_root: str, calibration: Path, tmp_path: Path
) -> None:
    """That to the broker, to the store, and to Ray's head, the driver and the coordinator."""
    monitor = new_monitor(
        kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        kafka={"session_timeout_s": SESSION_S},
        log={"root": log_root, "segment_max_age_s": 1.0},
        worker={"revoke_deadline_s": 2.0},
    )
    images = write_images(tmp_path / "images", IMAGES)
    with ExitStack() as stack:
        enter = stack.enter_context
        head = enter(started_head(tmp_path / "head", 1, IMPATIENT, network.head))

        def far_node(name: str) -> Program:
            node = ray_node(head, 1, tmp_path / name, prefix=network.prefix, host=network.far)
            return enter(node)

        node = far_node("far")
        run = enter(running(monitor, head, tmp_path / "run"))
        with streaming(monitor, images, RATE) as sent:
            wait_until(lambda: len(monitor.pids()) == 2, "segments of both workers")
            (far,) = [name for name, pid in monitor.pids().items() if node.started(pid)]
            worker = far.partition(".")[0]
            (near,) = {"worker-0", "worker-1"} - {worker}

            cut_at = datetime.now(UTC)
            with network.cut(network.broker):
                wait_until(lambda: _assigned_since(run, near, cut_at), "its partitions elsewhere")
            wait_until(lambda: _assigned_since(run, worker, cut_at), "partitions of its own again")
            _wait_for_segment(monitor, far)

            with network.cut(network.store):
                wait_until(lambda: "scored log" in _waits(run), "a word of the store")
            _wait_for_segment(monitor, far)
            assert "worker_failed" not in run.stderr

            with network.cut(network.head):
                failed = json.loads(run.wait_for_line("worker_failed"))
                assert (failed["worker"], "died" in failed["cause"]) == (worker, True)
            far_node("far-again")
            _wait_for_segment(monitor, f"{worker}.1")
        wait_until(lambda: len(monitor.rows()) >= sent.messages, "all rows")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    assert set(monitor.pids()) == {f"{near}.0", f"{worker}.0", f"{worker}.1"}
    monitor.assert_complete(sent.messages)


def _assigned_since(run: Program, worker: str, moment: datetime) -> bool:
    assert run.running, run.tail
    return any(each.at > moment for each in assignments(run, worker))


def _waits(run: Program) -> str:
    """What /healthz says."""
    return json.dumps(health(metrics_url(run))[1])


def _wait_for_segment(monitor: Monitor, incarnation: str) -> None:
    """Return when an incarnation of a worker has written a segment from now on."""

    def written() -> int:
        return sum(n for writer, n in monitor.writers().items() if writer.startswith(incarnation))

    before = written()
    wait_until(lambda: written() > before, f"a segment of {incarnation}")
