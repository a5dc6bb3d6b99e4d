"""A model that is slower than its source, and for once much slower, and large images."""

import signal
from pathlib import Path

import pytest

from nap_stream.settings.schema import KafkaSettings
from tests.e2e.calibrated import Faulty
from tests.e2e.monitor import PARTITIONS, new_monitor
from tests.e2e.on_ray import RayHead, start_run
from tests.e2e.slow_model import FIRST, longest_forward_s, sections, watch
from tests.support.apache_kafka import ApacheKafka
from tests.support.memory import MIB

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

IMAGES = 120
SECONDS_PER_IMAGE = 0.25
MAX_POLL_INTERVAL_S = 25.0
"""A worker that stands still for less is not what is looked for."""
FIRST_FORWARD_S = MAX_POLL_INTERVAL_S + 5
FETCH_BYTES = KafkaSettings.model_fields["max_fetch_bytes"].default
IN_FLIGHT_BYTES = 40 * MIB
"""About ten of the images."""


def test_memory_stays_within_the_configuration_and_the_worker_in_its_group(
    apache_kafka: ApacheKafka, faulty: Faulty, ray_head: RayHead, tmp_path: Path
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        faulty.calibration,
        model=faulty.model,
        driver={"stall_timeout_s": 600},
        **sections(
            in_flight_bytes=IN_FLIGHT_BYTES,
            fetch_bytes=FETCH_BYTES,
            max_poll_interval_s=MAX_POLL_INTERVAL_S,
        ),
    )
    with start_run(monitor, ray_head, tmp_path / "run") as run:
        trace = watch(
            run,
            monitor,
            faulty.faults,
            images=IMAGES,
            seconds_per_image=SECONDS_PER_IMAGE,
            first_forward_s=FIRST_FORWARD_S,
        )
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    assert IMAGES * trace.message_bytes > 2 * trace.bound_bytes, "the topic is too small to tell"
    assert trace.grown_bytes < trace.bound_bytes, trace
    most = IN_FLIGHT_BYTES // trace.message_bytes + 1
    assert max(sample.in_flight for sample in trace.samples) >= most // 2
    assert longest_forward_s(faulty.faults) > MAX_POLL_INTERVAL_S
    assert run.stderr.count("partition_assigned") == PARTITIONS
    assert "partitions_lost" not in run.stderr
    assert "worker_failed" not in run.stderr
    monitor.assert_complete(FIRST + IMAGES)
