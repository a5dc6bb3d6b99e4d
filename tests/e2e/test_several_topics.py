"""One monitor reads all topics that fit a pattern, also one that appears while it runs."""

import signal
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from nap_stream.kafka.client import create_topics
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.e2e.monitor import Monitor, health, metrics_url, new_monitor, scrape
from tests.e2e.on_ray import running_alone
from tests.e2e.processes import Program, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.topics import replace_topic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

EACH = 40


def test_a_topic_that_appears_later_is_read_from_its_beginning(
    apache_kafka: ApacheKafka, calibration: Path, local_ray: dict[str, str], tmp_path: Path
) -> None:
    """The topics of alerts and dead letters fit the pattern, and are never read."""
    named = new_monitor(apache_kafka.bootstrap, tmp_path / "named", calibration)
    first, stem = named.kafka.topic, named.kafka.topic
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        kafka={"topic": "all", "topic_pattern": f"{stem}.*", "start": "latest"},
        alerts={"topic": f"{stem}-alerts"},
        dead_letters={"topic": f"{stem}-dead-letters"},
    )
    images = write_images(tmp_path / "images", EACH)
    produce(named.kafka, images)
    with running_alone(monitor, local_ray, tmp_path / "run") as run:
        run.wait_for_line("partition_assigned")
        produce(named.kafka, images)
        wait_until(lambda: _rows(monitor) == {first: EACH}, "what came since the run began")
        later = named.kafka.model_copy(update={"topic": f"{stem}-later"})
        create_topics(later, [later.topic], 2)
        produce(later, images)
        wait_until(lambda: _rows(monitor) == {first: EACH, later.topic: EACH}, "the later topic")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail
    report = verify(LocalStore(monitor.log), deep=True)
    assert report.clean, report.defects
    assert {head.partition.topic for head in report.heads} == {first, later.topic}
    begun = {head.start_offset for head in report.heads if head.partition.topic == later.topic}
    assert begun == {0}


def test_one_that_is_replaced_is_left_out_and_no_run_calls_that_an_end(
    apache_kafka: ApacheKafka, calibration: Path, local_ray: dict[str, str], tmp_path: Path
) -> None:
    first = new_monitor(apache_kafka.bootstrap, tmp_path / "named", calibration).kafka
    other = first.model_copy(update={"topic": f"{first.topic}-other"})
    create_topics(other, [other.topic], 2)
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        kafka={"topic": "all", "topics": [first.topic, other.topic]},
    )
    images = write_images(tmp_path / "images", EACH)
    produce(first, images)
    produce(other, images)
    with running_alone(monitor, local_ray, tmp_path / "run") as run:
        url = metrics_url(run)
        wait_until(lambda: _rows(monitor) == {first.topic: EACH, other.topic: EACH}, "rows of both")
        replace_topic(first, 3)

        def is_told() -> bool:
            status, told = health(url)
            names_it = f"topic {first.topic} is left out" in str(told.get("degraded"))
            return status == 503 and "deleted and made anew" in str(told) and names_it

        wait_until(is_told, lambda: f"it in /healthz: {health(url)}")
        left_out = ("nap_stream_topics_left_out", (("why", "refused"),))
        wait_until(lambda: scrape(url)[left_out] == 1, "it in /metrics")
        produce(other, images)
        wait_until(
            lambda: _rows(monitor) == {first.topic: EACH, other.topic: 2 * EACH}, "of the other"
        )
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail
        assert f"warning: topic {first.topic} is left out" in run.stderr
    with running_alone(monitor, local_ray, tmp_path / "again", "--until-idle", "3") as run:
        assert run.wait() == 1, run.tail
        assert f"{first.topic}: not all topics were read to their ends" in run.stderr
    report = verify(LocalStore(monitor.log), deep=True)
    assert report.clean, report.defects
    assert _rows(monitor) == {first.topic: EACH, other.topic: 2 * EACH}


def test_a_pattern_that_fits_no_topic_is_an_error_that_names_it(
    apache_kafka: ApacheKafka, calibration: Path, tmp_path: Path
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap, tmp_path, calibration, kafka={"topic_pattern": "no-such-.*"}
    )
    for command in ("run", "doctor"):
        with Program(
            nap_stream(command, "--config", monitor.config), tmp_path / command
        ) as program:
            assert program.wait() == 1
            assert "no topic fits the pattern no-such-.*" in program.stdout + program.stderr


def _rows(monitor: Monitor) -> dict[str, int]:
    """How many rows the log has of each topic."""
    found: dict[str, int] = {}
    if monitor.log.is_dir():
        for batch in scan(LocalStore(monitor.log), Query(), ("topic",)):
            for row in batch.to_pylist():
                found[row["topic"]] = found.get(row["topic"], 0) + 1
    return found
