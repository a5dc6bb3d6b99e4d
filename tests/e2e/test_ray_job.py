"""deploy/ray-job.sh on a real Ray cluster: submitted, stopped with ``ray job stop``."""

import subprocess
import uuid
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.conftest import RayHead
from tests.e2e.monitor import PARTITIONS, PROJECT, new_monitor
from tests.e2e.processes import Program
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

IMAGES = 300
SCRIPT = PROJECT / "deploy" / "ray-job.sh"


@pytest.mark.timeout(240)
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
    job_id = f"nap-stream-{uuid.uuid4().hex[:8]}"
    environ = {**ray_head.environ, "NAP_STREAM_JOB_ID": job_id}
    with Program([str(SCRIPT), str(monitor.config)], tmp_path / "submit", environ) as submit:
        assert submit.wait(60) == 0, submit.tail

    def well_under_way() -> bool:
        # A partition whose chain is empty yet has no committed offset to compare.
        rows = monitor.rows()
        return len(rows) >= IMAGES // 2 and len({row["partition"] for row in rows}) == PARTITIONS

    wait_until(well_under_way, 120, "rows of every partition in the log")
    before = len(monitor.rows())

    with Program(["ray", "job", "stop", job_id], tmp_path / "stop", ray_head.environ) as stop:
        assert stop.wait(90) == 0, stop.tail
    with Program(["ray", "job", "status", job_id], tmp_path / "status", ray_head.environ) as status:
        assert status.wait(60) == 0, status.tail
        assert "stopped" in status.stdout + status.stderr

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
    done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "deploy/ray-job.sh monitor.yaml" in done.stdout
