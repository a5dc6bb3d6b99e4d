"""Cameras run, their stretch becomes a baseline, one turns bad, and its change is accepted."""

import json
import signal
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from kafka import KafkaProducer

from nap_stream.calibration.artifact import load_calibration
from nap_stream.clock import ManualClock, SystemClock
from nap_stream.scored_log.acceptances import AcceptanceReader
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import MAX_CLOCK_SKEW_MS
from tests.cli.program import Call, call
from tests.e2e.monitor import PARTITIONS, Monitor, new_monitor
from tests.e2e.on_ray import RayHead, start_run
from tests.support.apache_kafka import ApacheKafka
from tests.support.image_bytes import encoded
from tests.support.images import flat_image, smooth_image
from tests.support.schemas import alert_schema
from tests.support.topics import PATIENT_PRODUCER, read_to_end
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

CAMERAS = tuple(f"camera-{number}" for number in range(PARTITIONS))
"""Each has a partition of its own."""
BAD = "camera-2"
BLOCK_MS = 10_000
RECORDS = 10
"""Of a camera in a block."""
BASELINE_BLOCKS, QUIET_BLOCKS, BAD_BLOCKS = 45, 5, 20
SMOOTH = [encoded(smooth_image(seed)) for seed in range(600)]
FLAT = [encoded(flat_image(seed)) for seed in range(100)]


def send_blocks(monitor: Monitor, start_ms: int, blocks: int, bad: str | None = None) -> None:
    """Send what the cameras show from ``start_ms`` on; the bad one shows flat images."""
    numbers = count(start_ms)
    step_ms = BLOCK_MS // RECORDS
    servers = list(monitor.kafka.bootstrap_servers)
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", **PATIENT_PRODUCER)
    with closing(producer):
        sent = [
            producer.send(
                monitor.kafka.topic,
                key=name.encode(),
                value=(FLAT if name == bad else SMOOTH)[next(numbers) * 7 % len(FLAT)],
                partition=partition,
                timestamp_ms=start_ms + turn * step_ms,
            )
            for turn in range(blocks * RECORDS)
            for partition, name in enumerate(CAMERAS)
        ]
        for future in sent:
            future.get(timeout=PATIENCE_S)


def iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


def alerts_of(monitor: Monitor, key: str) -> list[dict[str, Any]]:
    events = [
        json.loads(record.value) for record in read_to_end(monitor.kafka, monitor.alert_topic)
    ]
    for event in events:
        jsonschema.validate(event, alert_schema())
    return [event for event in events if event["data"]["key"] == key]


@pytest.fixture
def nap(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run ``nap-stream`` in this process."""
    return lambda *words: call([str(word) for word in words], monkeypatch, capfd)


def test_a_stretch_is_vouched_for_and_a_camera_turns_bad_and_is_accepted(
    apache_kafka: ApacheKafka,
    calibration: Path,
    ray_head: RayHead,
    tmp_path: Path,
    nap: Call,
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        worker={"count": 1},
        drift={
            "keys": {"by": "key"},
            "pane_ms": 1_000,
            "window_records": 200,
            "expected_run_length": None,
            "false_alarms": "one per hour at 4 images/s",
        },
    )
    # All but the last part is over when it is sent.
    blocks = BASELINE_BLOCKS + QUIET_BLOCKS + BAD_BLOCKS
    start_ms = (SystemClock().now_ms() // BLOCK_MS - blocks) * BLOCK_MS
    until_ms = start_ms + BASELINE_BLOCKS * BLOCK_MS
    turn_ms = until_ms + QUIET_BLOCKS * BLOCK_MS
    send_blocks(monitor, start_ms, BASELINE_BLOCKS)
    with start_run(monitor, ray_head, tmp_path / "quiet", "--until-idle", "2") as quiet:
        assert quiet.wait() == 0, quiet.tail
    assert len(monitor.rows()) == BASELINE_BLOCKS * RECORDS * PARTITIONS

    out = tmp_path / "calibration-2"
    made = nap(
        *("baseline", "--config", monitor.config, "--out", out, "--block", "10s"),
        *("--since", iso(start_ms), "--until", iso(until_ms)),
        *("--by", "Ada", "--reason", "a quiet stretch"),
    )
    assert made.exit_code == 0, made.err
    assert f"{BASELINE_BLOCKS} of the stream, {BASELINE_BLOCKS} of a key" in made.out
    monitor.change(calibration=str(out))

    send_blocks(monitor, until_ms, QUIET_BLOCKS)
    send_blocks(monitor, turn_ms, BAD_BLOCKS, BAD)
    with start_run(monitor, ray_head, tmp_path / "judged") as judged:

        def told(reason: str) -> Callable[[], bool]:
            def found() -> bool:
                assert judged.running, judged.tail
                return reason in [each["data"]["reason"] for each in alerts_of(monitor, BAD)]

            return found

        wait_until(told("began"), "an alert of the camera")
        typed = ("--from", iso(turn_ms), "--by", "Ann", "--reason", "line 2 was retooled")
        accepted = nap("rebaseline", "-c", monitor.config, "--key", BAD, *typed)
        assert (accepted.exit_code, accepted.err) == (0, "")
        (acceptance,) = AcceptanceReader(
            LocalStore(monitor.log), monitor.kafka.topic, ManualClock()
        ).read()
        # Until then it is not credible that an image is from so far ahead.
        least_ms = acceptance.effective_ms - MAX_CLOCK_SKEW_MS + BLOCK_MS
        wait_until(lambda: SystemClock().now_ms() > least_ms, "the notice to be over")
        send_blocks(monitor, acceptance.effective_ms, 1, BAD)
        wait_until(told("accepted"), "the end of the alert")
        judged.send(signal.SIGTERM)
        assert judged.wait() == 0, judged.tail

    require_told(alerts_of(monitor, BAD), turn_ms)
    fingerprints = {
        row["calibration_fingerprint"] for row in monitor.rows("calibration_fingerprint")
    }
    assert fingerprints == {load_calibration(path).fingerprint for path in (calibration, out)}
    by_images = monitor.rows("calibration_p_value", "ood_p_value")[-1]
    assert None not in by_images.values()
    monitor.chain_ends()
    replayed = nap("replay", "--config", monitor.config, "--json")
    again = [json.loads(line) for line in replayed.out.splitlines()]
    sent = [event["id"] for event in alerts_of(monitor, BAD)]
    assert [event["id"] for event in again if event["data"].get("key") == BAD] == sent


def require_told(events: list[dict[str, Any]], turn_ms: int) -> None:
    """Fail unless the alert of the camera began by blocks, and ended as it was accepted."""
    assert [each["data"]["reason"] for each in events] == ["began", "accepted"]
    began, ended = (each["data"] for each in events)
    (decided,) = [each for each in began["detectors"] if each["active"]]
    assert decided["name"] == "blocks"
    assert began["decided_by"]["monitor"] == "blocks"
    assert began["blocks"]["judged_by"] == "own"
    # The last one may be cut off.
    assert began["blocks"]["baseline_blocks"] in (BASELINE_BLOCKS - 1, BASELINE_BLOCKS)
    assert began["summary"].startswith(f"{BAD}: since ")
    assert began["summary"].endswith("By chance this happens at most once in 1 h")
    onset_ms = datetime.fromisoformat(began["onset"]).timestamp() * 1000
    assert abs(onset_ms - turn_ms) <= 2 * BLOCK_MS
    assert ended["acceptance"]["by"] == "Ann"
    assert ended["summary"].startswith("Accepted after")
