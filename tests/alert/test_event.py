import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.alert.event import alert_event, cloud_event
from nap_stream.core.alert_state import Detector
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.records import Contribution, DriftAlert
from nap_stream.records import OffsetRange
from tests.alert.samples import (
    ALERTS,
    BEGAN,
    ENDED,
    ESCALATED,
    EXAMPLE,
    FACTS,
    KEY_BEGAN,
    NIGHT_MS,
    PLAN,
    SETTINGS,
    SHIFTED,
    event_tree,
    evidence_reading,
)
from tests.support.schemas import alert_schema
from tests.support.summaries import PER_CLASS_FACTS, partition, settings


def closed(schema: Any) -> Any:
    """The schema with every object closed, so that a field that it does not know is an error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tree = {key: closed(value) for key, value in schema.items()}
    return tree | {"additionalProperties": False} if "required" in tree else tree


OPEN = jsonschema.Draft202012Validator(alert_schema())
CLOSED = jsonschema.Draft202012Validator(closed(alert_schema()))


GOLDEN = Path(__file__).parent / "golden"


def rounded(text: str) -> Any:
    """A JSON tree without the digits in which machines may differ."""
    return json.loads(text, parse_float=lambda digits: round(float(digits), 9))


def test_the_event_is_what_its_version_says() -> None:
    """Whatever changes the golden file makes a new version of the data."""
    golden = (GOLDEN / "alert.json").read_text(encoding="utf-8")
    CLOSED.validate(json.loads(golden))
    assert rounded(json.dumps(event_tree(BEGAN))) == rounded(golden)


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_events_fulfil_the_schema(alert: DriftAlert) -> None:
    jsonschema.Draft202012Validator.check_schema(alert_schema())
    event = event_tree(alert)
    OPEN.validate(event)
    CLOSED.validate(event)


@pytest.mark.parametrize(
    "change",
    [
        {"firing_limit": None, "resolve_limit": None, "readings": ()},
        {"firing_limit": None, "resolve_limit": None},
        {"tail": None},
        {"keys": (), "classes": (), "examples": (), "offsets": ()},
    ],
)
@pytest.mark.parametrize("alert", [BEGAN, ENDED])
def test_what_is_not_known_yet_is_null(alert: DriftAlert, change: dict[str, Any]) -> None:
    if "readings" in change and alert is BEGAN:
        change = {**change, "readings": (evidence_reading(Detector.OOD_SEQUENTIAL, 1e9),)}
    CLOSED.validate(event_tree(replace(alert, **change)))


def test_without_keys_links_and_labels_and_per_class() -> None:
    bare = settings()
    plan = detection_plan(bare.drift, PER_CLASS_FACTS)
    event = event_tree(BEGAN, plan=plan, given=bare, facts=PER_CLASS_FACTS)
    CLOSED.validate(event)
    data = event["data"]
    assert (data["labels"], data["runbook_url"], data["dashboard_url"]) == ({}, None, None)
    # Asked for as a run length, not in words.
    assert (data["promise"]["false_alarms"], data["promise"]["run_length"]) == (None, 1e4)
    assert "calibration images, compared class by class, provided" in data["promise"]["words"]
    assert "for each key" not in data["promise"]["words"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("specversion",), "0.3"),
        (("id",), "x"),
        (("time",), "yesterday"),
        (("type",), "io.nap-stream.drift.flapping"),
        (("data", "state"), "inactive"),
        (("data", "reason"), "because"),
        (("data", "repeat"), -1),
        (("data", "previous_severity"), "info"),
        (("data", "summary"), ""),
        (("data", "onset"), None),
        (("data", "window", "fraction"), 1.5),
        (("data", "window", "records"), 0),
        (("data", "detectors", 0, "name"), "cusum"),
        (("data", "detectors", 0, "statistic"), "much"),
        (("data", "score_shift", "direction"), "sideways"),
        (("data", "contributors", "keys"), [{"name": "x" * 201, "flagged": 1}]),
        (("data", "promise", "confidence"), 1),
        (("data", "labels"), {"team": 3}),
        (("data", "runbook_url"), "javascript:alert(1)"),
        (("data", "examples"), [{}]),
        (("data", "offsets"), [{"partition": -1, "start": 0, "end": 1}]),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple[Any, ...], value: object) -> None:
    event = event_tree(SHIFTED)
    place = event
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        OPEN.validate(event)


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("window",),
        ("detectors", 0),
        ("score_shift",),
        ("since_onset",),
        ("contributors",),
        ("promise",),
        ("examples", 0),
    ],
)
def test_every_field_is_required(path: tuple[Any, ...]) -> None:
    def part(event: dict[str, Any]) -> dict[str, Any]:
        found = event["data"]
        for key in path:
            found = found[key]
        assert isinstance(found, dict)
        return found

    for key in part(event_tree(SHIFTED)):
        event = event_tree(SHIFTED)
        del part(event)[key]
        with pytest.raises(jsonschema.ValidationError, match=key):
            OPEN.validate(event)


def test_context_attributes() -> None:
    given = settings(kafka={"topic": "line-7"}, alerts={"monitor": "gate / 3"})
    event = event_tree(BEGAN, given=given)
    assert event["source"] == "/nap-stream/line-7/gate%20%2F%203"
    assert event["type"] == "io.nap-stream.drift.firing"
    assert event["dataschema"] == alert_schema()["$id"] == "urn:nap-stream:alert:5"
    assert event["subject"] == "line-7"
    assert event["time"] == "2026-01-31T02:03:20.000Z"
    assert event_tree(ENDED)["type"] == "io.nap-stream.drift.resolved"
    assert event_tree(KEY_BEGAN)["subject"] == "images/camera-7"


def test_evidence() -> None:
    data = event_tree(BEGAN)["data"]
    assert (data["monitor"], data["topic"], data["key"]) == ("ood-fraction", "images", None)
    assert (data["state"], data["reason"], data["repeat"]) == ("firing", "began", 0)
    assert (data["severity"], data["previous_severity"]) == ("warning", None)
    assert data["firing_since"] == "2026-01-31T02:03:20.000Z"
    assert data["onset"] == "2026-01-31T02:03:04.000Z"
    assert data["since_onset"] == {
        "start": "2026-01-31T02:03:04.000Z",
        "records": 816,
        "flagged": 61,
    }
    assert data["window"] == {
        "start": "2026-01-31T02:03:00.000Z",
        "end": "2026-01-31T02:03:20.000Z",
        "records": 1_020,
        "flagged": 65,
        "fraction": 65 / 1_020,
        "firing_limit": 61,
        "bound": 61 / 1_020,
        "resolve_limit": 30,
    }
    names = [(each["name"], each["active"]) for each in data["detectors"]]
    assert names == [("ood-window", True), ("ood-sequential", False), ("score-shift", False)]
    assert data["detectors"][0]["statistic"] == 65
    assert data["contributors"] == {
        "keys": [{"name": "camera-7", "flagged": 31}, {"name": "camera-2", "flagged": 4}],
        "classes": [{"name": "cat", "flagged": 28}, {"name": "truck", "flagged": 11}],
    }
    assert data["firing_keys"] == 1
    assert data["offsets"][1] == {"partition": 1, "start": 300, "end": 640}
    assert data["examples"] == [
        {
            "partition": 1,
            "offset": 321,
            "index": 2,
            "event_time": "2026-01-31T02:03:15.250Z",
            "key": "camera-7",
            "class_name": "cat",
            "ood_p_value": 0.0005,
            "segment": "topic=images/partition=1/00000000000000000300.parquet",
        }
    ]
    assert (data["alpha"], data["calibration_size"], data["per_class"]) == (0.02, 2_000, False)
    assert data["flag_rate"] == PLAN.flag_rate
    assert data["labels"] == {"site": "hall-2", "team": "vision"}
    assert data["runbook_url"] == "https://runbooks.example/ood"
    assert data["dashboard_url"] == "https://grafana.example/d/images"
    assert (data["model_fingerprint"], data["calibration_fingerprint"]) == ("f" * 64, "c" * 64)


def test_the_promise() -> None:
    promise = event_tree(BEGAN)["data"]["promise"]
    # Four detectors share 30 days at 50 images/s.
    assert (promise["run_length"], promise["detector_run_length"]) == (129_600_000, 518_400_000)
    assert promise["confidence"] == 0.95
    assert promise["false_alarms"] == "one per 30 days at 50 images/s"
    asked = "probability 0.01 in 7 days at 50 images/s"
    given = settings(drift={"expected_run_length": None, "false_alarms": asked})
    assert event_tree(BEGAN, given=given)["data"]["promise"]["false_alarms"] == asked


def test_a_score_shift() -> None:
    shift = event_tree(SHIFTED)["data"]["score_shift"]
    words = shift.pop("words")
    assert shift == {
        "tail": "p-value above 0.95",
        "direction": "more in-distribution",
        "highest_rate": {str(e): r for e, r in PLAN.tail_rates}["p-value above 0.95"],
        "since": "2026-01-31T02:03:04.000Z",
        "records": 816,
        "hits": 240,
    }
    assert "the most in-distribution 5 % of calibration images" in words
    assert event_tree(KEY_BEGAN)["data"]["score_shift"] is None


def test_an_escalation_names_the_severity_before() -> None:
    data = event_tree(ESCALATED)["data"]
    assert (data["severity"], data["previous_severity"]) == ("critical", "warning")
    assert (data["reason"], data["repeat"]) == ("escalated", 1)


@pytest.mark.parametrize(("alert", "key"), [(BEGAN, "gate"), (KEY_BEGAN, "gate/camera-7")])
def test_the_key_is_the_monitor_and_whose_alert_it_is(alert: DriftAlert, key: str) -> None:
    given = settings(alerts={"monitor": "gate"})
    assert alert_event(alert, PLAN, given, FACTS, "1").key == key


def test_the_id_is_that_of_the_decision() -> None:
    first = event_tree(BEGAN)["id"]
    assert first == "e3ff79dc802eba4d29d178eea5ea9336"
    # How the records were cut into segments shows in the evidence, not in the id.
    offsets = (OffsetRange(partition(0), 0, 9),)
    cut = replace(BEGAN, offsets=offsets, examples=(), firing_keys=0)
    assert event_tree(cut)["id"] == first
    firing = BEGAN.change.alert
    others = [
        event_tree(replace(BEGAN, key="camera-7")),
        event_tree(replace(BEGAN, key="")),
        event_tree(replace(BEGAN, time_ms=NIGHT_MS + 1_000)),
        event_tree(replace(BEGAN, change=ENDED.change)),
        event_tree(replace(BEGAN, change=ESCALATED.change)),
        event_tree(replace(BEGAN, change=replace(BEGAN.change, alert=replace(firing, repeats=1)))),
        event_tree(replace(BEGAN, change=replace(BEGAN.change, alert=replace(firing, since_ms=1)))),
        event_tree(BEGAN, plan=replace(PLAN, run_length=1e6)),
        event_tree(BEGAN, plan=replace(PLAN, confidence=0.9)),
        event_tree(BEGAN, plan=replace(PLAN, window_records=500)),
        event_tree(BEGAN, facts=replace(FACTS, fingerprint="d" * 64)),
        event_tree(BEGAN, given=settings(alerts={"monitor": "other"})),
        event_tree(BEGAN, given=settings(kafka={"topic": "other"})),
    ]
    assert len({first, *(event["id"] for event in others)}) == 14


@pytest.mark.parametrize("statistic", [0.0, 5e-324, sys.float_info.max, math.inf])
def test_numbers_are_finite_whatever_the_evidence(statistic: float) -> None:
    threshold = 1e15
    reading = replace(evidence_reading(Detector.OOD_SEQUENTIAL, statistic), threshold=threshold)
    found = event_tree(replace(KEY_BEGAN, readings=(reading,)))
    CLOSED.validate(found)
    assert found["data"]["detectors"][0]["statistic"] == min(statistic, sys.float_info.max)


@given(st.text(max_size=400))
def test_names_from_outside_are_bounded(name: str) -> None:
    alert = replace(
        BEGAN,
        classes=(Contribution(name, 3),),
        keys=(Contribution(name, 33),),
        examples=(replace(EXAMPLE, class_name=name),),
    )
    event = alert_event(alert, PLAN, SETTINGS, FACTS, "1").event
    CLOSED.validate(event)
    shown = event["data"]["contributors"]["classes"][0]["name"]
    assert shown == name or (len(name) > 200 and shown == name[:199] + "…")
    assert event["data"]["summary"].isprintable()


def test_an_event_without_a_time() -> None:
    event = cloud_event({}, settings(), kind="k", schema="s", identity=["a", 1, None], subject="x")
    assert event == {
        "specversion": "1.0",
        # printf '["a", 1, null]' | sha256sum | cut -c1-32
        "id": "30780d0daa72bce56290bae99d93fa5e",
        "source": "/nap-stream/images/ood-fraction",
        "type": "k",
        "subject": "x",
        "datacontenttype": "application/json",
        "dataschema": "s",
        "data": {},
    }


def test_a_monitor_of_several_topics_names_that_of_each_range_and_example() -> None:
    alert = replace(BEGAN, offsets=(OffsetRange(partition(1), 3, 9),))
    several = settings(kafka={"topic": "all", "topics": [partition(1).topic]})
    topics = [
        [each.get("topic") for each in alert_event(alert, PLAN, s, FACTS, "1").event["data"][name]]
        for s in (SETTINGS, several)
        for name in ("offsets", "examples")
    ]
    assert topics == [[None], [None], [partition(1).topic], [EXAMPLE.partition.topic]]
    told = [
        alert_event(alert, PLAN, each, FACTS, "1").event["data"]["offsets"]
        for each in (SETTINGS, several)
    ]
    bare = {"partition": 1, "start": 3, "end": 9}
    assert told == [[bare], [{"topic": partition(1).topic, **bare}]]
    CLOSED.validate(alert_event(alert, PLAN, several, FACTS, "1").event)
