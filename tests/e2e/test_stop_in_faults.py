"""Stopped while the broker is down or the disk is full: in time, with a word on what is left."""

import signal
from pathlib import Path
from typing import Any

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.monitor import WORKERS, Monitor, metrics_url, new_monitor, scrape, streaming
from tests.e2e.on_ray import RayHead, ray_job, running, start_run, submit_job
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.small_disk import mounted_disk
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

DISK_BYTES = 8 * 2**20

IMAGES = 600
RATE = 60.0
DEADLINE_S = 25.0
"""Without it, a worker would wait for the broker or the disk for ever."""
SECTIONS: dict[str, dict[str, Any]] = {
    "driver": {"shutdown_deadline_s": DEADLINE_S},
    "kafka": {"session_timeout_s": 6.0},
    "worker": {"revoke_deadline_s": 2.0},
}


ALL_IN_FLIGHT = {"log": {"root": "log", "segment_max_age_s": 300}}
"""Segments that only the shutdown publishes."""
IN_FLIGHT = {"log": {"root": "log", "segment_max_age_s": 60, "segment_max_rows": 20}}
"""Segments that only the shutdown publishes before a minute is over, for the end of the stream."""


def test_sigterm_while_the_broker_is_down(
    own_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    # A busy machine must not let a session expire: a rebalance would publish what is in flight.
    sections = {**SECTIONS, "kafka": {"session_timeout_s": 30.0}, **ALL_IN_FLIGHT}
    monitor = new_monitor(own_kafka.bootstrap, tmp_path / "monitor", calibration, **sections)
    images = write_images(tmp_path / "images", IMAGES)
    with running(monitor, ray_head, tmp_path / "run") as run:
        url = metrics_url(run)
        produce(monitor.kafka, images)
        scored = ("nap_stream_images_scored_total", ())
        wait_until(lambda: scrape(url)[scored] == IMAGES, "all images to be scored")
        assert not monitor.rows(), run.tail
        own_kafka.kill()
        run.wait_for_line('"what": "the broker"')
        run.send(signal.SIGTERM)
        # What was in flight is in the log; that it could not be committed costs nothing but time.
        assert run.wait() == 0, run.tail
        assert "commit_failed" in run.stderr
    assert len(monitor.rows()) == IMAGES
    own_kafka.start()
    _assert_the_next_run_completes(monitor, ray_head, tmp_path)


def test_sigterm_while_the_disk_is_full(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    with mounted_disk(tmp_path / "disk", DISK_BYTES) as disk:
        monitor = new_monitor(
            apache_kafka.bootstrap, disk.folder / "monitor", calibration, **SECTIONS
        )
        images = write_images(tmp_path / "images", 60)
        with running(monitor, ray_head, tmp_path / "run") as run:
            # It goes on for as long as no worker has met the full disk.
            with streaming(monitor, images, RATE) as sent:
                wait_until(lambda: len(monitor.pids()) == WORKERS, "segments of both workers")
                disk.fill()
                run.wait_for_line('"what": "the scored log"')
                run.send(signal.SIGTERM)
                assert run.wait() == 1, run.tail
            assert "rows_dropped" in run.stderr
            assert "the next run takes up where the log ends" in run.stderr
        disk.empty()
        _assert_the_next_run_completes(monitor, ray_head, tmp_path, sent.messages)


def test_a_job_is_stopped_while_the_broker_is_down(
    own_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(
        own_kafka.bootstrap, tmp_path / "monitor", calibration, **SECTIONS, **IN_FLIGHT
    )
    produce(monitor.kafka, write_images(tmp_path / "images", IMAGES))
    job = submit_job(monitor, ray_head, tmp_path / "submit")
    wait_until(lambda: len(monitor.rows()) >= IMAGES // 2, "half of the rows")
    own_kafka.kill()
    ray_job("stop", job, ray_head, tmp_path / "stop")
    logs = ray_job("logs", job, ray_head, tmp_path / "logs")
    # It has ended by itself: a job that is killed says nothing any more.
    assert '"event": "monitor_ended"' in logs
    own_kafka.start()
    _assert_the_next_run_completes(monitor, ray_head, tmp_path)


def _assert_the_next_run_completes(
    monitor: Monitor, head: RayHead, folder: Path, messages: int = IMAGES
) -> None:
    with start_run(monitor, head, folder / "next", "--until-idle", "2") as run:
        assert run.wait() == 0, run.tail
    monitor.assert_complete(messages)
