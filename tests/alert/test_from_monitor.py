"""Events of what the drift monitor decides on a whole night, not of decisions made by hand."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from nap_stream.alert.event import alert_event
from nap_stream.alert.render import render_lines
from nap_stream.clock import ManualClock
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from tests.support.schemas import alert_schema
from tests.support.summaries import FACTS, Row, segments, settings

SETTINGS = settings(
    drift={"window_records": 100, "keys": {"by": "key"}},
    alerts={"repeat_interval_s": 1, "critical_fraction": 0.95},
)
PLAN = detection_plan(SETTINGS.drift, FACTS)


def night() -> list[Row]:
    """A record a millisecond, of ten cameras in turn: one drifts, then all do, more and more."""
    rng = np.random.default_rng(7)
    rates = (
        (1_000, 0.04, 0.04),
        (1_000, 0.04, 0.7),
        (2_500, 0.3, 0.7),
        (500, 1.0, 1.0),
        (3_000, 0.01, 0.01),
    )
    rows: list[Row] = []
    for length, usual, of_seven in rates:
        for _ in range(length):
            camera = len(rows) % 10
            flagged = bool(rng.random() < (of_seven if camera == 7 else usual))
            rows.append(Row(len(rows), flagged, None, f"camera-{camera}"))
    return rows


def events_of(sizes: list[int]) -> list[dict[str, Any]]:
    monitor = DriftMonitor(PLAN, SETTINGS, ManualClock())
    alerts = [a for each in segments(0, night(), sizes) for a in monitor.add(each).alerts]
    alerts += monitor.flush().alerts
    events = [alert_event(alert, PLAN, SETTINGS, FACTS, "1").event for alert in alerts]
    found: list[dict[str, Any]] = json.loads(json.dumps(events, allow_nan=False))
    return found


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return events_of([500] * 20)


def test_each_fulfils_the_schema_and_can_be_read(events: list[dict[str, Any]]) -> None:
    schema = jsonschema.Draft202012Validator(alert_schema())
    for event in events:
        schema.validate(event)
        assert all(line.isprintable() for line in render_lines(event))


def test_all_reasons_occur_and_every_id_is_its_own(events: list[dict[str, Any]]) -> None:
    reasons = {(e["data"]["key"] is None, e["data"]["reason"]) for e in events}
    assert {reason for of_stream, reason in reasons if of_stream} == {
        "began",
        "escalated",
        "repeated",
        "ended",
    }
    assert {(False, "began"), (False, "ended")} <= reasons
    assert len({event["id"] for event in events}) == len(events)


def test_the_camera_that_drifts_first_is_named_first(events: list[dict[str, Any]]) -> None:
    of_keys = [event["data"] for event in events if event["data"]["key"] is not None]
    assert (of_keys[0]["key"], of_keys[0]["reason"]) == ("camera-7", "began")
    of_stream = next(event["data"] for event in events if event["data"]["key"] is None)
    assert of_stream["summary"].endswith("; camera-7 contributes most")


def test_segments_cut_in_another_way_change_no_id_and_no_sentence(
    events: list[dict[str, Any]],
) -> None:
    again = events_of([37, 1_200, 3, 640, 90])
    assert [e["id"] for e in again] == [e["id"] for e in events]
    assert [e["data"]["summary"] for e in again] == [e["data"]["summary"] for e in events]
