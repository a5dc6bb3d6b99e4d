"""A stream that turns unreadable: the alarm comes as soon as `plan` states, on Kafka and Ray."""

import base64
import json
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from kafka import KafkaProducer

from tests.e2e.monitor import PARTITIONS, Monitor, health, metrics_url, new_monitor, scrape
from tests.e2e.on_ray import running_alone
from tests.e2e.processes import Program, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.schemas import unscored_schema
from tests.support.topics import PATIENT_PRODUCER, read_to_end
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

IMAGES, UNREADABLE, BACK = 600, 600, 400
SPACING_MS, PANE_MS = 20, 100
A_PANE = PANE_MS // SPACING_MS
"""Images of a pane."""


def _json_with_base64(image: bytes) -> bytes:
    return json.dumps({"camera": 7, "image": base64.b64encode(image).decode()}).encode()


class Stream:
    """Images at steady event times, that go to the partitions by turns."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor, self._sent = monitor, 0
        self._start_ms = round(time.time() * 1000) - 120_000

    def send(self, values: list[bytes]) -> None:
        servers = list(self._monitor.kafka.bootstrap_servers)
        with closing(
            KafkaProducer(bootstrap_servers=servers, acks="all", **PATIENT_PRODUCER)
        ) as producer:
            sent = []
            for value in values:
                sent.append(
                    producer.send(
                        self._monitor.kafka.topic,
                        value=value,
                        partition=self._sent % PARTITIONS,
                        timestamp_ms=self._start_ms + self._sent * SPACING_MS,
                    )
                )
                self._sent += 1
            for future in sent:
                future.get(timeout=PATIENCE_S)


def _rows(url: str) -> int:
    samples = scrape(url)
    return int(sum(v for (name, _), v in samples.items() if name == "nap_stream_records_total"))


def _events(monitor: Monitor) -> list[dict[str, Any]]:
    return [json.loads(r.value) for r in read_to_end(monitor.kafka, monitor.alert_topic)]


def _states(monitor: Monitor) -> list[str]:
    return [event["type"] for event in _events(monitor) if "unscored" in event["type"]]


def _is_well(url: str) -> bool:
    """Whether nothing is told but that the last images are of some time ago, and a lag.

    A lag is as of a worker's last report, which may be older than its last rows.
    """
    status, told = health(url)
    old = ("no image came since", "offsets still to be read")
    return status == 200 and all(each.endswith(old) for each in told.get("degraded", ()))


def _tells_of_it(url: str) -> bool:
    status, told = health(url)
    said = " ".join(told.get("degraded", ()))
    words = ("unscored-images fires since", "none of the images since could be scored")
    return (status, told["status"]) == (200, "degraded") and all(each in said for each in words)


def _stated_delay(monitor: Monitor, folder: Path) -> float:
    command = nap_stream("plan", "--config", monitor.config, "--json", "--streams", "20")
    with Program(command, folder) as plan:
        assert plan.wait() == 0, plan.tail
        delays = json.loads(plan.stdout)["unscored"]["delays"]
    assert delays[0]["share"] == 1
    return float(delays[0]["mean"])


def test_a_stream_that_turns_unreadable_alarms_as_soon_as_the_plan_states(
    apache_kafka: ApacheKafka, calibration: Path, local_ray: dict[str, str], tmp_path: Path
) -> None:
    drift = {"window_records": 200, "pane_ms": PANE_MS, "expected_run_length": 1e6}
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration, drift=drift)
    stated = _stated_delay(monitor, tmp_path / "plan")
    files = write_images(tmp_path / "images", IMAGES + BACK)
    images = [path.read_bytes() for path in sorted(files.iterdir())]
    stream = Stream(monitor)
    stream.send(images[:IMAGES])
    with running_alone(monitor, local_ray, tmp_path / "run") as run:
        url = metrics_url(run)
        wait_until(lambda: _rows(url) == IMAGES, f"{IMAGES} rows in /metrics")
        assert _states(monitor) == []
        # The second worker may come when the first has done all.
        wait_until(lambda: _is_well(url), lambda: f"nothing but old images: {health(url)}")

        stream.send([_json_with_base64(image) for image in images[:UNREADABLE]])
        wait_until(lambda: "io.nap-stream.unscored.firing" in _states(monitor), "the alert")
        (event,) = [e for e in _events(monitor) if e["type"] == "io.nap-stream.unscored.firing"]
        # What /metrics and /healthz show is of the tick before, or after.
        severity = ("severity", "critical")
        firing = "nap_stream_unscored_alert_firing", (severity,)
        wait_until(lambda: scrape(url)[firing] == 1, "the alert in /metrics")
        samples = scrape(url)
        wait_until(lambda: _tells_of_it(url), lambda: f"the alert in /healthz: {health(url)}")

        stream.send(images[IMAGES:])
        wait_until(lambda: "io.nap-stream.unscored.resolved" in _states(monitor), "its end")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    jsonschema.validate(event, unscored_schema())
    data = event["data"]
    assert (data["reason"], data["severity"]) == ("began", "critical")
    # An alert comes at the end of a pane, which may hold as many images more.
    assert data["since_onset"]["images"] <= stated + A_PANE
    # So does the one in which the stream has turned.
    assert data["since_onset"]["images"] - data["since_onset"]["unscored"] < A_PANE
    assert set(data["unscored"]["by_status"]) == {"unsupported"}
    rows = {(r["partition"], r["offset"]): r["status"] for r in monitor.rows("status")}
    assert data["examples"]
    for example in data["examples"]:
        assert rows[example["partition"], example["offset"]] == "unsupported"
        assert (monitor.log / example["segment"]).is_file()
    assert data["ood_window"]["age_s"] > 0
    assert "as of then" in data["summary"]

    assert samples[firing] == 1
    assert samples["nap_stream_alert_firing", (severity,)] == 0
    assert samples["nap_stream_unscored_fraction", ()] > 0.01
    assert samples["nap_stream_window_age_seconds", ()] > 60

    _assert_replay_gives_the_same(monitor, tmp_path / "replay")
    with Program(nap_stream("alerts", "--config", monitor.config), tmp_path / "alerts") as alerts:
        assert alerts.wait() == 0, alerts.tail
        assert "FIRING  CRITICAL  unscored-images" in alerts.stdout


def _assert_replay_gives_the_same(monitor: Monitor, folder: Path) -> None:
    command = nap_stream("replay", "--config", monitor.config, "--json")
    with Program(command, folder) as replay:
        assert replay.wait() == 0, replay.tail
        again = [json.loads(line) for line in replay.stdout.splitlines()]
    ids = [event["id"] for event in _events(monitor) if "unscored" in event["type"]]
    assert [event["id"] for event in again if "unscored" in event["type"]] == ids
