"""The whole line as its users run it: calibrated net, JPEG files, Kafka, two workers, an alert."""

import hashlib
import json
import signal
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from tests.e2e.monitor import PARTITIONS, Monitor, Row, health, metrics_url, new_monitor, scrape
from tests.e2e.on_ray import running_alone
from tests.e2e.processes import Program, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, encoded, jpeg, picture
from tests.support.images import write_images
from tests.support.schemas import alert_schema, unscored_schema
from tests.support.topics import read_all, read_to_end, send
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka]

BEFORE, OOD, AFTER = 500, 300, 500
RATE = 250
"""Images a second: the window of 200 records is less than a second of the stream."""
HEADER = "part"


@dataclass(frozen=True)
class Special:
    """A message that is no plain JPEG, and the status of each of its images."""

    value: bytes | None
    statuses: tuple[str, ...]
    headers: tuple[tuple[str, bytes | None], ...] = ()


def _huge_png() -> bytes:
    """A PNG of 60,000 by 60,000 pixels, as its header says."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + encoded(picture(), "PNG")[33:]
    )


def _sixteen_bit() -> Image.Image:
    return Image.fromarray(np.arange(20 * 20, dtype=np.uint16).reshape(20, 20) * 100)


SPECIAL = {
    "truncated JPEG": Special(encoded(picture(64, 64), "JPEG")[:300], ("corrupt",)),
    "no bytes": Special(b"", ("empty",)),
    "tombstone": Special(None, ("tombstone",)),
    "text": Special(b"this is no image\n" * 5, ("unsupported",)),
    "huge PNG": Special(_huge_png(), ("too_large",)),
    "batch with a bad image": Special(
        arrow_stream({"image": [jpeg(1), b"not an image", jpeg(2)]}),
        ("ok", "unsupported", "ok"),
        ARROW_HEADERS,
    ),
    "CMYK JPEG": Special(encoded(picture(20, 20).convert("CMYK"), "JPEG"), ("ok",)),
    "16-bit PNG": Special(encoded(_sixteen_bit(), "PNG"), ("ok",)),
    "palette PNG": Special(encoded(picture(20, 20).convert("P"), "PNG"), ("ok",)),
    "greyscale JPEG": Special(encoded(picture(20, 20).convert("L"), "JPEG"), ("ok",)),
}


def test_images_become_rows_alerts_dead_letters_and_metrics(
    apache_kafka: ApacheKafka, calibration: Path, local_ray: dict[str, str], tmp_path: Path
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        log={"root": "log", "segment_max_age_s": 0.5, "headers": [HEADER]},
        drift={"unscored": {"bound": 0.001}, "stale_after_s": 3_600},
        evidence={"root": "evidence", "extremes_per_hour": 0, "sample": 0},
    )
    files = tmp_path / "files"
    write_images(files / "1-before", BEFORE)
    write_images(files / "2-ood", OOD, first_seed=BEFORE, flat=True)
    write_images(files / "3-after", AFTER, first_seed=BEFORE + OOD)
    specials = _send_specials(monitor)
    images = BEFORE + OOD + AFTER + sum(len(s.statuses) for s in SPECIAL.values())
    messages = BEFORE + OOD + AFTER + len(SPECIAL)

    produce_command = nap_stream(
        *("produce", "--config", monitor.config, "--rate", str(RATE)),
        *("--label-header", HEADER, files),
    )
    with Program(produce_command, tmp_path / "produce") as produce:
        assert produce.wait() == 0, produce.tail
    with running_alone(monitor, local_ray, tmp_path / "run") as run:
        url = metrics_url(run)
        wait_until(lambda: _logged(url) == images, f"{images} rows in /metrics")
        wait_until(lambda: _has_committed(url), "the time of a commit in /metrics")
        # The second worker may come when the first has done all.
        wait_until(lambda: health(url) == (200, {"status": "ok"}), "both workers in /healthz")
        flagged = _flagged(monitor)
        wait_until(lambda: _kept(url) == len(flagged), f"{len(flagged)} images kept, in /metrics")
        samples: dict[Any, float] = {}

        def every_partition_is_told() -> bool:
            samples.clear()
            samples.update(scrape(url))
            return _lags(samples) == 2 * PARTITIONS

        # Summaries come at once, reports of the partitions once a second, and none of one that the
        # second worker has just taken over.
        wait_until(every_partition_is_told, "both lags of each partition")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    _assert_metrics(samples, monitor)
    _assert_rows(monitor, messages, specials)
    _assert_flags(monitor)
    _assert_dead_letters(monitor, specials)
    _assert_alerts(monitor)
    kept = monitor.folder / "evidence"
    found = {str(path.relative_to(kept)): path for path in kept.rglob("*") if path.is_file()}
    assert found.keys() == flagged
    for path in found.values():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    ends = monitor.chain_ends()
    assert len(ends) == PARTITIONS
    assert sum(ends.values()) == messages
    assert monitor.committed() == ends
    with Program(nap_stream("verify", "--log", monitor.log), tmp_path / "verify") as verify:
        assert verify.wait() == 0, verify.tail
        assert verify.stdout.endswith("clean\n")


def _send_specials(monitor: Monitor) -> dict[tuple[int, int], Special]:
    """Send them, spread over the partitions; give them by (partition, offset)."""
    places = {}
    for number, special in enumerate(SPECIAL.values()):
        (place,) = send(
            monitor.kafka,
            [special.value],
            partition=number % PARTITIONS,
            headers=[(name, value or b"") for name, value in special.headers],
        )
        places[place] = special
    return places


def _logged(url: str) -> int:
    samples = scrape(url)
    return int(sum(v for (name, _), v in samples.items() if name == "nap_stream_records_total"))


def _kept(url: str) -> int:
    return int(scrape(url)["nap_stream_evidence_images_total", (("outcome", "kept"),)])


def _flagged(monitor: Monitor) -> set[str]:
    """Where the flagged images of the log are kept: day and digest."""
    rows = monitor.rows("is_ood", "scored_time", "sha256")
    return {f"{row['scored_time']:%Y-%m-%d}/{row['sha256']}" for row in rows if row["is_ood"]}


def _has_committed(url: str) -> bool:
    """Whether a commit is told: a group that rebalances refuses it, and is asked again."""
    return scrape(url)["nap_stream_last_commit_timestamp_seconds", ()] > 0


def _lags(samples: dict[Any, float]) -> int:
    lags = {"nap_stream_partition_time_lag_seconds", "nap_stream_partition_lag_offsets"}
    return sum(name in lags for name, _ in samples)


def _assert_metrics(samples: dict[Any, float], monitor: Monitor) -> None:
    def of(name: str, **labels: str) -> float:
        return samples[f"nap_stream_{name}", tuple(sorted(labels.items()))]

    expected = [status for special in SPECIAL.values() for status in special.statuses]
    for status in ("corrupt", "empty", "tombstone", "too_large"):
        assert of("records_total", status=status) == 1
    assert of("records_total", status="unsupported") == 2
    assert of("records_total", status="ok") == BEFORE + OOD + AFTER + expected.count("ok")
    for partition in range(PARTITIONS):
        labels = {"topic": monitor.kafka.topic, "partition": str(partition)}
        assert of("partition_lag_offsets", **labels) >= 0
        assert of("partition_time_lag_seconds", **labels) >= 0
    assert 0 < of("ood_fraction_bound") < 1
    assert 0 <= of("ood_fraction") <= 1
    assert of("alert_firing", severity="warning") in (0, 1)
    assert of("alert_firing", severity="critical") in (0, 1)
    assert of("workers") == 2
    assert of("segments_published_total") >= PARTITIONS
    assert of("batch_duration_seconds_count") > 0
    assert of("last_commit_timestamp_seconds") > 0


def _assert_rows(monitor: Monitor, messages: int, specials: dict[tuple[int, int], Special]) -> None:
    """Every image of every message once, with its status and its bytes' SHA-256."""
    expected: dict[Row, tuple[str, str | None]] = {}
    for record in read_all(monitor.kafka, monitor.kafka.topic, messages):
        place = (record.partition, record.offset)
        special = specials.get(place)
        statuses = special.statuses if special else ("ok",)
        one = hashlib.sha256(record.value).hexdigest() if record.value else None
        for index, status in enumerate(statuses):
            expected[*place, index] = (status, one if len(statuses) == 1 else None)
    rows = monitor.rows("status", "error", "sha256", "nap", "ood_p_value")
    names = [(row["partition"], row["offset"], row["index"]) for row in rows]
    assert sorted(names) == sorted(expected)
    for name, row in zip(names, rows, strict=True):
        status, sha256 = expected[name]
        assert row["status"] == status, (name, row)
        assert sha256 in (None, row["sha256"])
        scored = status == "ok"
        assert (row["error"] is None) == scored
        assert (row["nap"] is not None) == scored
        assert (row["ood_p_value"] is not None) == scored


def _assert_flags(monitor: Monitor) -> None:
    flags: dict[bytes, list[bool]] = {}
    for row in monitor.rows("is_ood", "headers"):
        for header in row["headers"]:
            flags.setdefault(header["value"], []).append(row["is_ood"])
    assert {part: len(found) for part, found in flags.items()} == {
        b"1-before": BEFORE,
        b"2-ood": OOD,
        b"3-after": AFTER,
    }
    assert sum(flags[b"2-ood"]) > 0.5 * OOD
    assert sum(flags[b"1-before"] + flags[b"3-after"]) < 0.1 * (BEFORE + AFTER)


def _assert_dead_letters(monitor: Monitor, specials: dict[tuple[int, int], Special]) -> None:
    failed = {
        (*place, index): (status, special)
        for place, special in specials.items()
        for index, status in enumerate(special.statuses)
        if status != "ok"
    }
    found = set()
    # At least once: who loses a partition may have sent what the next owner sends again.
    for record in read_to_end(monitor.kafka, monitor.dead_letter_topic):
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["nap-stream-topic"] == monitor.kafka.topic
        partition, offset = headers["nap-stream-partition"], headers["nap-stream-offset"]
        place = (int(partition), int(offset), int(headers["nap-stream-index"]))
        status, special = failed[place]
        found.add(place)
        assert headers["nap-stream-status"] == status
        assert headers["nap-stream-error"]
        whole = len(special.statuses) == 1
        assert record.value == (special.value if whole else b"not an image")
    assert found == failed.keys()


def _assert_alerts(monitor: Monitor) -> None:
    sent = [json.loads(r.value) for r in read_to_end(monitor.kafka, monitor.alert_topic)]
    validator = jsonschema.Draft202012Validator(alert_schema())
    unscored = [event for event in sent if ".unscored." in event["type"]]
    events = [event for event in sent if event not in unscored]
    for event in events:
        validator.validate(event)
    # The special messages come before all others, and most of them cannot be scored.
    for event in unscored:
        jsonschema.validate(event, unscored_schema())
    assert [event["data"]["reason"] for event in unscored] == ["began", "ended"]
    reasons = [event["data"]["reason"] for event in events]
    assert [reason for reason in reasons if reason != "escalated"] == ["began", "ended"]
    assert reasons[-1] == "ended"
    firing, resolved = (events[place]["data"] for place in (0, -1))
    assert any(detector["active"] for detector in firing["detectors"])
    assert not any(detector["active"] for detector in resolved["detectors"])
    assert resolved["window"]["fraction"] < resolved["window"]["bound"]
    rows = {
        (row["partition"], row["offset"], row["index"]): row["is_ood"]
        for row in monitor.rows("is_ood")
    }
    assert firing["examples"]
    for example in firing["examples"]:
        assert rows[example["partition"], example["offset"], example["index"]] is True
        assert (monitor.log / example["segment"]).is_file()
