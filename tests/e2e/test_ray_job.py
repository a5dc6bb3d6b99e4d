"""deploy/ray-job.sh on a real Ray cluster: submitted, stopped with ``ray job stop``."""

import subprocess
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.monitor import PARTITIONS, new_monitor
from tests.e2e.on_ray import JOB_SCRIPT, RayHead, ray_job, submit_job
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

IMAGES = 300


@pytest.mark.slow
def test_a_job_that_is_stopped_has_published_and_committed(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    # Segments that only the shutdown publishes before a minute is over, for half of the stream.
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        log={"root": "log", "segment_max_age_s": 60, "segment_max_rows": 20},
    )
    produce(monitor.kafka, write_images(tmp_path / "images", IMAGES))
    job = submit_job(monitor, ray_head, tmp_path / "submit")

    def well_under_way() -> bool:
        # A partition whose chain is empty yet has no committed offset to compare.
        rows = monitor.rows()
        return len(rows) >= IMAGES // 2 and len({row["partition"] for row in rows}) == PARTITIONS

    wait_until(well_under_way, "rows of every partition in the log")
    before = len(monitor.rows())

    ray_job("stop", job, ray_head, tmp_path / "stop")
    assert "stopped" in ray_job("status", job, ray_head, tmp_path / "status")

    names = monitor.row_names()
    ends = monitor.chain_ends()
    assert before <= len(names) <= IMAGES
    assert len(names) == len(set(names)) == sum(ends.values())
    assert set(names) <= set(monitor.topic_rows(IMAGES))
    assert len(ends) == PARTITIONS
    assert monitor.committed() == ends
    group = monitor.group()
    assert group["group_state"].lower() == "empty", group


def test_without_a_configuration_the_script_says_how_it_is_used() -> None:
    done = subprocess.run(
        [JOB_SCRIPT], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    assert "deploy/ray-job.sh monitor.yaml" in done.stdout
