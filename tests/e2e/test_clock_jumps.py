"""Clocks that jump by an hour, on one machine or on all, and back."""

import json
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import ray_node
from tests.e2e.monitor import Monitor, health, metrics_url, new_monitor, streaming
from tests.e2e.on_ray import RayHead, running, running_alone
from tests.e2e.processes import Program
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

MOVED = Path(__file__).parents[1] / "support" / "moved_clock"
IMAGES, RATE = 40, 30.0
HOUR_S = 3600
JUMPS = {"ahead of": HOUR_S, "behind": -HOUR_S}


class MovableClock:
    """The wall clock of the Python processes with its environment, seconds from the true one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.move(0)

    def move(self, seconds: int) -> None:
        """Take the place of the file at once: it is read at every moment."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._file)

    @property
    def environ(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(MOVED), "NAP_STREAM_TEST_CLOCK": str(self._file)}


@pytest.fixture
def clock(tmp_path: Path) -> MovableClock:
    return MovableClock(tmp_path / "clock")


def test_a_machine_whose_clock_jumps_is_named_and_every_image_is_logged_once(
    apache_kafka: ApacheKafka,
    calibration: Path,
    bare_ray_head: RayHead,
    clock: MovableClock,
    tmp_path: Path,
) -> None:
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration)
    images = write_images(tmp_path / "images", IMAGES)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(ray_node(bare_ray_head, 1, tmp_path / "near"))
        far = enter(ray_node(bare_ray_head, 1, tmp_path / "far", environ=clock.environ))
        run = enter(running(monitor, bare_ray_head, tmp_path / "run"))
        with streaming(monitor, images, RATE) as sent:
            wait_until(lambda: len(monitor.pids()) == 2, "segments of both workers")
            (worker,) = [name[:-2] for name, pid in monitor.pids().items() if far.started(pid)]
            for words, seconds in JUMPS.items():
                clock.move(seconds)
                wait_until(lambda: _says(run, worker, words), f"that {worker} is {words}")  # noqa: B023
                _wait_for_rows(monitor)
                clock.move(0)
                wait_until(lambda: not _says(run, "clock", ""), "that no clock is wrong")
        _end(run, monitor, sent.messages)

    assert "worker_failed" not in run.stderr
    monitor.assert_complete(sent.messages)


def test_all_clocks_may_jump_together(
    apache_kafka: ApacheKafka,
    calibration: Path,
    local_ray: dict[str, str],
    clock: MovableClock,
    tmp_path: Path,
) -> None:
    """Those of the driver, the coordinator and the workers; of which none can tell."""
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration)
    images = write_images(tmp_path / "images", IMAGES)
    with running_alone(monitor, {**local_ray, **clock.environ}, tmp_path / "run") as run:
        with streaming(monitor, images, RATE) as sent:
            wait_until(lambda: len(monitor.pids()) == 2, "segments of both workers")
            for seconds in (*JUMPS.values(), 0):
                clock.move(seconds)
                _wait_for_rows(monitor)
        _end(run, monitor, sent.messages)

    assert "worker_failed" not in run.stderr
    monitor.assert_complete(sent.messages)


def _says(run: Program, name: str, words: str) -> bool:
    """Whether /healthz says of a clock that it is wrong."""
    assert run.running, run.tail
    said = json.dumps(health(metrics_url(run))[1])
    return "the clock of" in said and name in said and words in said


def _wait_for_rows(monitor: Monitor) -> None:
    before = len(monitor.rows())
    wait_until(lambda: len(monitor.rows()) >= before + 100, "more rows")


def _end(run: Program, monitor: Monitor, messages: int) -> None:
    wait_until(lambda: len(monitor.rows()) >= messages, "all rows")
    run.send(signal.SIGTERM)
    assert run.wait() == 0, run.tail
