"""deploy/ray-job.sh on a real Ray cluster: submitted, followed, refused, stopped."""

import shutil
import signal
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.conftest import started_head
from tests.e2e.monitor import PARTITIONS, new_monitor
from tests.e2e.on_ray import JOB_SCRIPT, RayHead, job_script, ray_job, submit_job
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

    wait_until(lambda: monitor.is_under_way(IMAGES // 2), "rows of every partition in the log")
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


@pytest.mark.slow
def test_an_uploaded_job_is_followed_to_its_end_and_a_second_one_says_why_it_failed(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    # What the file names beside it goes with it; the log must lie elsewhere.
    folder = tmp_path / "monitor"
    shutil.copytree(calibration, folder / "calibration")
    log = {"root": str(tmp_path / "log"), "segment_max_age_s": 60, "segment_max_rows": 20}
    monitor = new_monitor(apache_kafka.bootstrap, folder, Path("calibration"), log=log)
    produce(monitor.kafka, write_images(tmp_path / "images", IMAGES))
    elsewhere = replace(monitor, folder=tmp_path)

    with job_script(monitor.config, ray_head, tmp_path / "follow", "--follow", "--upload") as first:
        wait_until(lambda: "partition_assigned" in first.stdout, lambda: f"the log of {first}")
        with job_script(monitor.config, ray_head, tmp_path / "second") as second:
            assert second.wait() == 1, second.tail
        clash = f"another monitor on this Ray cluster has the group {monitor.kafka.group_id}"
        assert clash in second.stderr
        assert "failed: " in second.stderr.splitlines()[-1]
        wait_until(
            lambda: elsewhere.is_under_way(IMAGES // 2), lambda: f"rows in the log of {first}"
        )
        first.send(signal.SIGTERM)
        assert first.wait() == 0, first.tail
    assert first.stdout.count("monitor_started") == 1
    assert "has ended: stopped" in first.stderr
    assert elsewhere.committed() == elsewhere.chain_ends()


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_says_how_to_send_it(tmp_path: Path) -> None:
    name, token = f"nap-stream-{uuid.uuid4().hex[:8]}", {"RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
    config = tmp_path / "monitor.yaml"
    config.write_text("kafka: {}\n")
    with started_head(tmp_path / "head", 1, {"RAY_AUTH_MODE": "token", **token}) as head:
        known = head.environ
        for given, advice in (
            ({}, "put the token of the cluster's head"),
            (token, "set RAY_AUTH_MODE=token to have it sent"),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, "is not that of the cluster"),
        ):
            # Tests switch authentication off for everything that they start; an empty mode is none.
            environ = {
                **{key: known[key] for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")},
                "RAY_AUTH_MODE": "disabled",
                "HOME": str(tmp_path),
                **given,
            }
            caller = RayHead(head.address, head.dashboard, environ)
            with job_script(config, caller, tmp_path / uuid.uuid4().hex) as script:
                assert script.wait() == 1, script.tail
            assert "wants a token" in script.stderr
            assert advice in script.stderr
            assert "Traceback" not in script.stderr
            assert token["RAY_AUTH_TOKEN"] not in script.stdout + script.stderr
        with job_script(config, head, tmp_path / "right", job=name) as script:
            assert script.wait() == 1, script.tail
        assert f"{name} failed" in script.stderr
        assert "a value is missing" in script.stderr  # as the program itself says


@pytest.mark.slow
def test_what_is_not_there_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    nowhere = RayHead("", "", {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"})
    with job_script(tmp_path / "monitor.yaml", nowhere, tmp_path / "missing") as script:
        assert script.wait() == 2
    assert str(tmp_path / "monitor.yaml") in script.stderr
    (tmp_path / "monitor.yaml").write_text("kafka: {}\n")
    with job_script(tmp_path / "monitor.yaml", nowhere, tmp_path / "nobody") as script:
        assert script.wait() == 1
    assert script.stderr.startswith("no Ray cluster answers at http://127.0.0.1:1")


def test_without_a_configuration_the_script_says_how_it_is_used() -> None:
    done = subprocess.run(
        [JOB_SCRIPT], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    assert "deploy/ray-job.sh monitor.yaml" in done.stdout
