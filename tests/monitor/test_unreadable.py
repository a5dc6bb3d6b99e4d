"""Real bytes through decoder, line and log to the coordinator: what cannot be read alarms."""

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nap_stream.clock import ManualClock
from nap_stream.core.detection import unscored_delay
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import Journal
from nap_stream.pipeline.rows import MessageDecoder
from nap_stream.records import PartitionProgress, Status, TopicPartition
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.pipeline.bench import Bench
from tests.support.alert_sinks import FlakySink
from tests.support.doubles import MemoryTopic
from tests.support.image_bytes import ARROW_HEADERS, encoded, jpeg, picture
from tests.support.memory_store import MemoryStore
from tests.support.summaries import FACTS, report, settings
from tests.support.summary_log import SummaryList

NOON_MS = 1_767_268_800_000
SPACING_MS, PANE_MS = 20, 100
A_PANE = PANE_MS // SPACING_MS
GOOD, BAD = 100, 60
NAMES = (TopicPartition("images", 0), TopicPartition("images", 1))
LIMITS = LimitSettings(max_image_bytes=2_000)
SETTINGS = settings(drift={"pane_ms": PANE_MS, "expected_run_length": 1e6})
Make = Callable[[int], bytes | None]


def wrapped(seed: int) -> bytes:
    return json.dumps({"image": base64.b64encode(jpeg(seed)).decode()}).encode()


UNREADABLE: dict[str, tuple[Make, Status]] = {
    "JSON around base64": (wrapped, Status.UNSUPPORTED),
    "data URI": (
        lambda seed: b"data:image/jpeg;base64," + base64.b64encode(jpeg(seed)),
        Status.UNSUPPORTED,
    ),
    "random bytes": (lambda seed: np.random.default_rng(seed).bytes(300), Status.UNSUPPORTED),
    "framing of a registry before a JPEG": (
        lambda seed: b"\0\0\0\0\x07" + jpeg(seed),
        Status.UNSUPPORTED,
    ),
    "the head of a JPEG": (
        lambda seed: encoded(picture(64, 64, seed), "JPEG")[:200],
        Status.CORRUPT,
    ),
    "no bytes": (lambda _seed: b"", Status.EMPTY),
    "oversized": (lambda _seed: b"\xff\xd8\xff" + bytes(3_000), Status.TOO_LARGE),
}


def logged(
    make: Make,
    *,
    part: int = 1,
    good: int = GOOD,
    headers: Any = (),
    timestamp_ms: int | None = None,
) -> Bench:
    """A log of good images, then of others, of which one in ``part`` is what ``make`` gives.

    The others have the time that is given, or else go on where the good ones end.
    """
    topic = MemoryTopic("images", 2)
    for i in range(good + BAD):
        value = make(i) if i >= good and i % part == 0 else jpeg(i % 7)
        kept = headers if i >= good else ()
        time_ms = NOON_MS + i * SPACING_MS
        if i >= good and timestamp_ms is not None:
            time_ms = timestamp_ms
        topic.append(NAMES[i % 2], value, timestamp_ms=time_ms, headers=kept)
    decode = MessageDecoder(
        preprocessing=PreprocessingSettings(resize=None, crop=8),
        limits=LIMITS,
        kept_headers=(),
        clock=ManualClock(NOON_MS + 60_000),
    )
    bench = Bench(topic, decode=decode, segment_max_rows=15)
    messages = good + BAD
    bench.run(lambda: sum(s.end_offset - s.base_offset for s in bench.told.summaries) == messages)
    return bench


def alerts_of(bench: Bench, lives: int = 1) -> list[dict[str, Any]]:
    """What coordinators send of images without scores, each after the one before."""
    sink, store, told = FlakySink(), MemoryStore(), bench.told.summaries
    for life in range(lives):
        coordinator = Coordinator(
            SETTINGS,
            FACTS,
            [sink],
            summaries=SummaryList(told[: life * len(told) // lives]),
            checkpoints=CheckpointStore(store, "ood-fraction", "images"),
            journal=Journal(store, SETTINGS, ManualClock()),
            clock=ManualClock(NOON_MS + 60_000),
        )
        coordinator.start()
        known = tuple(PartitionProgress(name, 0, 1, None) for name in NAMES)
        coordinator.report(report(partitions=known))
        for each in told[life * len(told) // lives : (life + 1) * len(told) // lives]:
            coordinator.submit(each)
            coordinator.tick()
        coordinator.flush(5, input_ended=life == lives - 1)
        coordinator.close()
    found = [dict(alert.event) for alert in sink.alerts]
    return [event for event in found if event["type"].startswith("io.nap-stream.unscored.")]


def stated(share: float) -> float:
    found = unscored_delay(
        0.01, share, 1e6, pane_records=A_PANE, generator=np.random.default_rng(0)
    )
    assert found.mean is not None
    return found.mean


@pytest.mark.parametrize(("make", "status"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_alarms_as_soon_as_is_stated(make: Make, status: Status) -> None:
    bench = logged(make)
    (event,) = alerts_of(bench)
    data = event["data"]
    assert (data["reason"], data["severity"]) == ("began", "critical")
    assert set(data["unscored"]["by_status"]) == {status.value}
    assert data["since_onset"]["images"] <= stated(1.0) + A_PANE
    assert data["reasons"][0]["error"]
    assert len(data["reasons"]) == 1, "they differ in numbers alone"
    assert {(e["partition"], e["offset"]) for e in data["examples"]} <= {
        (i % 2, i // 2) for i in range(GOOD, GOOD + BAD)
    }
    assert data["examples"][0]["offset"] == GOOD // 2
    assert data["ood_window"]["age_s"] > 0


def test_half_of_the_images() -> None:
    events = alerts_of(logged(wrapped, part=2))
    assert events[0]["data"]["since_onset"]["images"] <= 2 * stated(0.5) + A_PANE
    # It may begin with a pane in which fewer were so.
    assert [event["data"]["reason"] for event in events] in (["began"], ["began", "escalated"])


@pytest.mark.parametrize("timestamp_ms", [0, NOON_MS - 3_600_000, NOON_MS + 30 * 86_400_000])
def test_whatever_their_timestamps_say(timestamp_ms: int) -> None:
    (event,) = alerts_of(logged(wrapped, timestamp_ms=timestamp_ms))
    assert event["data"]["unscored"]["unscored"] >= 6
    assert set(event["data"]["unscored"]["by_status"]) == {"unsupported"}


def test_nothing_but_what_cannot_be_read() -> None:
    (event,) = alerts_of(logged(wrapped, good=0))
    assert event["data"]["ood_window"] is None
    assert "nothing is known of drift" in event["data"]["summary"]


def test_deletion_markers_raise_no_alarm() -> None:
    assert alerts_of(logged(lambda _seed: None)) == []


def test_a_batch_that_cannot_be_read() -> None:
    (event,) = alerts_of(logged(lambda seed: jpeg(seed)[:90], headers=ARROW_HEADERS))
    assert set(event["data"]["unscored"]["by_status"]) == {"bad_batch"}


def test_any_number_of_coordinators_and_the_log_alone_say_the_same() -> None:
    bench = logged(wrapped)
    once = alerts_of(bench)
    assert alerts_of(bench, lives=3) == once
    shape = SummaryShape(PANE_MS, SETTINGS.alerts.examples)
    read = [s for name in NAMES for s in summarise_chain(bench.store, name, 0, 2**63 - 1, shape)]
    assert sorted(read, key=lambda s: s.path) == sorted(bench.told.summaries, key=lambda s: s.path)
