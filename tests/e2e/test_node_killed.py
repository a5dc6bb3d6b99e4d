"""A Ray node that dies with its workers in the middle of the stream."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.conftest import ray_node
from tests.e2e.monitor import has_partitions, new_monitor, producing
from tests.e2e.on_ray import RayHead, running
from tests.e2e.processes import Program
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

BEFORE, AFTER = 600, 300
RATE = 60.0
SESSION_S = 6.0


@pytest.mark.parametrize("cpus", [2, 1], ids=["room-is-left", "no-room-is-left"])
def test_workers_of_a_dead_node_are_replaced_where_there_is_room(
    cpus: int, apache_kafka: ApacheKafka, calibration: Path, bare_ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        kafka={"session_timeout_s": SESSION_S},
        worker={"revoke_deadline_s": 2.0},
    )
    before = write_images(tmp_path / "before", BEFORE)
    after = write_images(tmp_path / "after", AFTER, first_seed=BEFORE)
    limit = ("--max-records", str(BEFORE + AFTER))
    with ExitStack() as stack:

        def enter_node(name: str) -> Program:
            return stack.enter_context(ray_node(bare_ray_head, cpus, tmp_path / name))

        nodes = [enter_node("node-0"), enter_node("node-1")]
        run = stack.enter_context(running(monitor, bare_ray_head, tmp_path / "run", *limit))
        with producing(monitor, before, RATE):
            wait_until(lambda: len(monitor.pids()) == 2, "segments of both workers")
            first = monitor.pids()
            (victim,) = [node for node in nodes if node.started(first["worker-0.0"])]
            dead = {name for name, pid in first.items() if victim.started(pid)}
            victim.kill()
            failed = json.loads(run.wait_for_line("worker_failed"))
        if cpus == 1:
            # Ray may count a node's CPUs for a while after its death.
            wait_until(lambda: _waits_with(run, "worker-0", 1), "a word of the room there is")
            enter_node("node-2")
        for name in dead:
            worker = name.partition(".")[0]
            another = partial(has_partitions, run, worker, but=first[name])
            wait_until(another, f"partitions for {worker}")
        produce(monitor.kafka, after)
        assert run.wait() == 0, run.tail

    assert f"{failed['worker']}.0" in dead
    assert "died" in failed["cause"]
    later = {name.partition(".")[0] for name in set(monitor.pids()) - set(first)}
    assert later == {name.partition(".")[0] for name in dead}
    monitor.assert_complete(BEFORE + AFTER)


def _waits_with(run: Program, worker: str, cpus: float) -> bool:
    told = run.events("worker_waits_for_place")
    room = {"CPU": cpus, "GPU": 0.0}
    return any((each["worker"], each["cluster_has"]) == (worker, room) for each in told)
