import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from nap_stream.clock import ManualClock
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import DriftAlert
from nap_stream.records import SegmentSummary
from nap_stream.settings.schema import Settings
from tests.support.summaries import FACTS, Row, partition, segments, settings, summary

PARTITIONS = 3
GOLDEN = Path(__file__).parent / "golden" / "checkpoint.safetensors"
USED = settings(
    drift={"window_records": 40, "expected_run_length": 200, "keys": {"by": "key"}},
    alerts={"repeat_interval_s": 1.0},
)


def make_monitor(used: Settings = USED) -> DriftMonitor:
    return DriftMonitor(detection_plan(used.drift, FACTS), used, ManualClock(1_000_000))


def chains(seed: int) -> list[SegmentSummary]:
    """Three partitions' segments in some order, with a drift and a broken key."""
    rng = random.Random(seed)
    queues = []
    for number in range(PARTITIONS):
        keys = [str(rng.randrange(4)) for _ in range(400)]
        rows = [
            Row(i + rng.randrange(20), rng.random() < rate(i, key), key=key)
            for i, key in enumerate(keys)
        ]
        queues.append(iter(segments(number, rows, [rng.randrange(1, 30) for _ in range(40)])))
    shuffled = []
    while queues:
        queue = rng.choice(queues)
        each = next(queue, None)
        if each is None:
            queues.remove(queue)
        else:
            shuffled.append(each)
    return shuffled


def rate(position: int, key: str) -> float:
    if key == "2" and position > 250:
        return 0.9
    return 0.5 if 100 < position < 150 else 0.05


def feed(monitor: DriftMonitor, summaries: list[SegmentSummary]) -> list[DriftAlert]:
    for number in range(PARTITIONS):
        monitor.partitions.hold(partition(number))
    return [alert for each in summaries for alert in monitor.add(each).alerts]


@settings_of_hypothesis(max_examples=15)
@given(st.integers(0, 5), st.integers(0, 60))
def test_a_restored_monitor_goes_on_as_if_nothing_had_happened(seed: int, stop: int) -> None:
    summaries = chains(seed)
    undisturbed, stopped = make_monitor(), make_monitor()
    expected = feed(undisturbed, summaries)

    before = feed(stopped, summaries[:stop])
    content = stopped.dump()
    resumed = make_monitor()
    assert resumed.restore(content)
    assert resumed.dump() == content
    after = feed(resumed, summaries[stop:])

    assert [*before, *after] == expected
    assert expected
    assert resumed.flush().alerts == undisturbed.flush().alerts
    assert resumed.dump() == undisturbed.dump()


def test_what_waits_beyond_a_hole_is_asked_for_again() -> None:
    first, second, third = segments(0, [Row(i, flagged=False) for i in range(90)], [30, 30])
    stopped, resumed = make_monitor(), make_monitor()
    stopped.add(first)
    stopped.add(third)
    assert resumed.restore(stopped.dump())
    assert resumed.partitions.end(partition(0)) == 30
    assert resumed.partitions.holes() == ()
    assert resumed.add(second).accepted == (second,)
    assert resumed.add(third).accepted == (third,)


@pytest.mark.parametrize(
    "used",
    [
        settings(drift={"window_records": 41, "expected_run_length": 200, "keys": {"by": "key"}}),
        settings(drift={"window_records": 40, "expected_run_length": 201, "keys": {"by": "key"}}),
        settings(drift={"window_records": 40, "expected_run_length": 200}),
        settings(
            drift={
                "window_records": 40,
                "expected_run_length": 200,
                "keys": {"by": "key"},
                "pane_ms": 20,
            }
        ),
    ],
)
def test_a_state_of_other_settings_is_refused(used: Settings) -> None:
    content = make_monitor().dump()
    other = make_monitor(used)
    before = other.dump()
    assert not other.restore(content)
    assert other.dump() == before


def test_a_state_that_knows_keys_in_clear_is_refused_where_they_are_hidden_now() -> None:
    """It would show them: alerts name keys, and the checkpoint holds them."""
    drift = {"window_records": 40, "expected_run_length": 200, "keys": {"by": "header:camera"}}
    log = {"root": "log", "headers": ["camera"]}
    hidden = {**log, "keys": {"headers": {"camera": "hashed"}, "secret": "s" * 16}}
    content = make_monitor(settings(drift=drift, log=log)).dump()
    assert make_monitor(settings(drift=drift, log=log)).restore(content)
    assert not make_monitor(settings(drift=drift, log=hidden)).restore(content)


def test_what_alerts_show_may_change() -> None:
    stopped = make_monitor()
    feed(stopped, chains(1))
    used = USED.model_copy(update={"alerts": USED.alerts.model_copy(update={"examples": 1})})
    assert make_monitor(used).restore(stopped.dump())


@given(st.binary(max_size=200))
def test_damaged_content_is_refused(content: bytes) -> None:
    monitor = make_monitor()
    before = monitor.dump()
    assert not monitor.restore(content)
    assert monitor.dump() == before


@pytest.mark.parametrize("drop", ["firing", "open", "evidence", "keys", "partitions"])
def test_a_document_without_a_part_is_refused(drop: str) -> None:
    stopped, monitor = make_monitor(), make_monitor()
    feed(stopped, chains(2)[:30])
    arrays = decode(stopped.dump())
    document = json.loads(arrays["document"].tobytes())
    del document[drop]
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
    before = monitor.dump()
    assert not monitor.restore(encode(arrays))
    assert monitor.dump() == before


def test_a_checkpoint_of_the_first_version_is_read() -> None:
    """The identity is that of this machine's numbers, whose last digits others may round."""
    arrays = decode(GOLDEN.read_bytes())
    document = json.loads(arrays["document"].tobytes())
    document["identity"] = make_monitor().state().document.identity
    text = json.dumps(document, separators=(",", ":")).encode()
    content = encode(arrays | {"document": np.frombuffer(text, dtype=np.uint8)})
    monitor = make_monitor()
    assert monitor.restore(content)
    written = decode(monitor.dump())
    tree = json.loads(written["document"].tobytes())
    assert {name: tree[name] for name in document} == document
    # What came later begins anew.
    assert tree.keys() - document.keys() == {"statuses", "unscored"}
    assert tree["unscored"]["firing"] is None
    for name in arrays.keys() - {"document"}:
        np.testing.assert_array_equal(written[name], arrays[name])
    later = written.keys() - arrays.keys()
    assert all(name == "images" or name.startswith("unscored.") for name in later)
    found = monitor.snapshot()
    assert (found.window_records, found.open_panes, found.keys_firing) == (43, 15, 4)
    assert found.partition_watermarks_ms == {
        partition(0): 265,
        partition(1): 406,
        partition(2): 322,
    }


def test_what_was_taken_is_forgotten_when_a_monitor_begins_anew() -> None:
    monitor, fresh = make_monitor(), make_monitor()
    feed(monitor, chains(1))
    monitor.reset()
    assert monitor.dump() == fresh.dump()
    assert feed(monitor, chains(1)) == feed(fresh, chains(1))


def test_a_single_summary_is_enough() -> None:
    stopped, resumed = make_monitor(), make_monitor()
    stopped.add(summary(0, 0, [Row(5, flagged=True, key="a")]))
    assert resumed.restore(stopped.dump())
    assert resumed.snapshot() == stopped.snapshot()
