"""A monitor whose log lies in an object store."""

import os
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from tests.e2e.monitor import new_monitor
from tests.e2e.on_ray import RayHead, start_run
from tests.e2e.processes import Program, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

IMAGES = 200
IDLE_S = 5


SECRETS = {"s3": "AWS_SECRET_ACCESS_KEY", "azure": "AZURE_STORAGE_ACCOUNT_KEY"}


@pytest.mark.parametrize("store", ["s3", pytest.param("azure", marks=pytest.mark.clouds)])
def test_the_log_can_lie_in_an_object_store_that_the_driver_alone_has_the_keys_of(
    apache_kafka: ApacheKafka,
    calibration: Path,
    ray_head: RayHead,
    tmp_path: Path,
    *,
    store: str,
    request: pytest.FixtureRequest,
) -> None:
    root = request.getfixturevalue(f"{store}_root")
    monitor = new_monitor(
        apache_kafka.bootstrap, tmp_path / "monitor", calibration, log={"root": root}
    )
    produce(monitor.kafka, write_images(tmp_path / "images", IMAGES))
    with start_run(monitor, ray_head, tmp_path / "run", "--until-idle", str(IDLE_S)) as run:
        assert run.wait() == 0, run.tail
        assert os.environ[SECRETS[store]] not in run.stderr + run.stdout

    monitor.assert_complete(IMAGES)
    check = nap_stream("verify", "--config", monitor.config, "--deep", "--against-broker")
    with Program(check, tmp_path / "verify") as verify:
        assert verify.wait() == 0, verify.tail
        assert f"{IMAGES} rows" in verify.stdout
    counted = nap_stream("query", "--log", root, "--by", "status", "--format", "csv")
    with Program(counted, tmp_path / "query") as query:
        assert query.wait() == 0, query.tail
        assert f"ok,{IMAGES},{IMAGES}" in query.stdout
