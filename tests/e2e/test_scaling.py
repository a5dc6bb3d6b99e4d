"""A monitor grows and shrinks with its Ray cluster and its topic, under load.

Run it with ``-s`` to see how long partitions paused meanwhile.
"""

import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from nap_stream.scored_log.read import partitions, segments
from nap_stream.scored_log.stores.local import LocalStore
from tests.e2e.conftest import ray_node
from tests.e2e.monitor import Monitor, metrics_url, new_monitor, scrape
from tests.e2e.on_ray import RayHead, start_run
from tests.e2e.processes import Program
from tests.support.apache_kafka import ApacheKafka
from tests.support.image_bytes import encoded
from tests.support.images import smooth_image
from tests.support.log_files import read_footer
from tests.support.streams import Stream
from tests.support.topics import administering
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

RATE = 60.0
PARTITIONS = 8


def test_workers_come_and_go_with_nodes_and_partitions_are_taken_up_under_load(
    apache_kafka: ApacheKafka,
    calibration: Path,
    bare_ray_head: RayHead,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """1 → 4 workers, 4 → 8 partitions, 4 → 2 workers: each node has room for one worker."""
    monitor = new_monitor(
        apache_kafka.bootstrap, tmp_path / "monitor", calibration, worker={"count": "auto"}
    )
    phases: dict[str, tuple[int, int]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        begin_ms = time.time_ns() // 1_000_000
        yield
        phases[name] = begin_ms, time.time_ns() // 1_000_000

    with ExitStack() as stack:

        def enter_node(number: int) -> Program:
            return stack.enter_context(ray_node(bare_ray_head, 1, tmp_path / f"node-{number}"))

        nodes = [enter_node(0)]
        run = stack.enter_context(start_run(monitor, bare_ray_head, tmp_path / "run"))
        url = metrics_url(run)

        def wait_for_workers(count: int) -> None:
            def are_there() -> bool:
                assert run.running, run.tail
                return _workers(url) == (count, count)

            wait_until(are_there, lambda: f"{count} workers that report: {_workers(url)}")

        images = [encoded(smooth_image(seed)) for seed in range(500)]
        with Stream(monitor.kafka, RATE, images) as stream:
            wait_until(lambda: len(_published(monitor)) == 4, "segments of all partitions")
            wait_for_workers(1)
            with phase("1 to 4 workers"):
                nodes += [enter_node(number) for number in (1, 2, 3)]
                wait_for_workers(4)
                wait_until(lambda: len(monitor.pids()) == 4, "segments of four workers")
            with phase("4 to 8 partitions"):
                with administering(monitor.kafka.bootstrap_servers) as admin:
                    admin.create_partitions({monitor.kafka.topic: PARTITIONS})
                wait_until(
                    lambda: len(_published(monitor)) == PARTITIONS, "segments of new partitions"
                )
            with phase("4 to 2 workers"):
                # As a machine goes that is taken away: `ray start --block` drains its node first.
                for node in nodes[2:]:
                    node.send(signal.SIGTERM)
                wait_until(lambda: not any(node.running for node in nodes[2:]), "two nodes' end")
                wait_for_workers(2)
                ends = stream.finish()
            wait_until(lambda: len(monitor.rows()) == sum(ends.values()), "the last rows")
        restarts = scrape(url)["nap_stream_worker_restarts_total", ()]
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    assert restarts == 0
    assert '"worker_failed"' not in run.stderr
    assert '"partitions_lost"' not in run.stderr
    monitor.assert_complete(sum(ends.values()))
    for name, (begin_ms, end_ms) in phases.items():
        pause_s = _longest_pause_s(monitor, begin_ms, end_ms)
        record_property(f"longest pause, {name}", pause_s)
        took_s = (end_ms - begin_ms) / 1000
        sys.stdout.write(f"\n{name}: {took_s:.1f} s, longest pause {pause_s:.1f} s")


def _workers(url: str) -> tuple[float, float]:
    """How many workers report now, and how many are expected."""
    found = scrape(url)
    return found["nap_stream_workers", ()], found["nap_stream_workers_expected", ()]


def _published(monitor: Monitor) -> dict[int, list[int]]:
    """When the segments of each partition were published, ms since the epoch.

    The first time is when the partition's first message came.
    """
    store = LocalStore(monitor.log)
    found: defaultdict[int, list[int]] = defaultdict(list)
    if not monitor.log.is_dir():
        return {}
    for name in partitions(store, monitor.kafka.topic):
        for footer in (read_footer(store, path) for path in segments(store, name)):
            if not found[name.partition] and footer.min_event_time_ms is not None:
                found[name.partition].append(footer.min_event_time_ms)
            found[name.partition].append(footer.created_time_ms)
    return {partition: times for partition, times in found.items() if times}


def _longest_pause_s(monitor: Monitor, begin_ms: int, end_ms: int) -> float:
    """The longest time in which a partition got no row, of those that reach into a stretch."""
    return (
        max(
            after - before
            for times in _published(monitor).values()
            for before, after in pairwise(times)
            if after > begin_ms and before < end_ms
        )
        / 1000
    )
