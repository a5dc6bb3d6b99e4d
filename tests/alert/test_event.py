import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from nap_stream.alert.event import alert_event, alert_schema, rfc3339
from nap_stream.core.alert_state import AlertState, Transition
from nap_stream.records import CalibrationFacts, DriftVerdict, Example, OffsetRange
from tests.support.summaries import FACTS, PER_CLASS_FACTS, TOPIC, partition, settings

EXAMPLE = Example(partition(1), 321, 2, 1_700_000_000_250, "cat", 0.005, "topic=images/x.parquet")
VERDICT = DriftVerdict(
    window_start_ms=1_700_000_000_000,
    window_end_ms=1_700_000_001_500,
    records=1_000,
    flagged=125,
    firing_limit=94,
    resolve_limit=77,
    state=AlertState.FIRING,
    transition=Transition.FIRING,
    offsets=(OffsetRange(partition(0), 0, 700), OffsetRange(partition(1), 300, 640)),
    examples=(EXAMPLE,),
)
RESOLVED = dataclasses.replace(
    VERDICT, flagged=70, state=AlertState.INACTIVE, transition=Transition.RESOLVED, examples=()
)

PER_CLASS_VERDICT = dataclasses.replace(VERDICT, flagged=180, firing_limit=170, resolve_limit=53)


def event_of(verdict: DriftVerdict, **sections: dict[str, Any]) -> dict[str, Any]:
    return event_by(FACTS, verdict, **sections)


def event_by(
    facts: CalibrationFacts, verdict: DriftVerdict, **sections: dict[str, Any]
) -> dict[str, Any]:
    alert = alert_event(verdict, settings(**sections), facts, "1.2.3")
    # Through JSON, as it travels.
    tree: dict[str, Any] = json.loads(json.dumps(alert.event))
    return tree


def closed(schema: Any) -> Any:
    """The schema with every object closed, so that a field that it does not know is an error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tree = {key: closed(value) for key, value in schema.items()}
    return tree | {"additionalProperties": False} if tree.get("type") == "object" else tree


@pytest.mark.parametrize("facts", [FACTS, PER_CLASS_FACTS])
@pytest.mark.parametrize("verdict", [VERDICT, RESOLVED])
def test_events_fulfil_the_schema(verdict: DriftVerdict, facts: CalibrationFacts) -> None:
    jsonschema.Draft202012Validator.check_schema(alert_schema())
    event = event_by(facts, verdict)
    jsonschema.validate(event, alert_schema())
    jsonschema.validate(event, closed(alert_schema()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("specversion",), "0.3"),
        (("id",), "x"),
        (("time",), "yesterday"),
        (("type",), "io.nap-stream.drift.flapping"),
        (("data", "state"), "inactive"),
        (("data", "fraction"), 1.5),
        (("data", "window", "records"), 0),
        (("data", "examples"), [{}]),
        (("data", "offsets"), [{"partition": -1, "start": 0, "end": 1}]),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple[str, ...], value: object) -> None:
    event = event_of(VERDICT)
    place = event
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event, alert_schema())


def test_every_field_is_required() -> None:
    for key in event_of(VERDICT)["data"]:
        event = event_of(VERDICT)
        del event["data"][key]
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate(event, alert_schema())


def test_context_attributes() -> None:
    event = event_of(VERDICT, kafka={"topic": "line-7"}, alerts={"monitor": "gate / 3"})
    assert event["source"] == "/nap-stream/line-7/gate%20%2F%203"
    assert event["type"] == "io.nap-stream.drift.firing"
    assert event["subject"] == "line-7"
    assert event["time"] == "2023-11-14T22:13:21.500Z"
    assert event_of(RESOLVED)["type"] == "io.nap-stream.drift.resolved"


def test_evidence() -> None:
    data = event_of(VERDICT)["data"]
    assert data["fraction"] == 0.125
    assert data["bound"] == 0.094
    assert (data["calibration_size"], data["per_class"]) == (199, False)
    assert (data["bound_size"], data["flag_rank"]) == (199, 10)
    assert data["window"] == {
        "records": 1_000,
        "start": "2023-11-14T22:13:20.000Z",
        "end": "2023-11-14T22:13:21.500Z",
    }
    assert data["topic"] == TOPIC
    assert data["offsets"][1] == {"partition": 1, "start": 300, "end": 640}
    assert data["examples"] == [
        {
            "partition": 1,
            "offset": 321,
            "index": 2,
            "event_time": "2023-11-14T22:13:20.250Z",
            "class_name": "cat",
            "ood_p_value": 0.005,
            "segment": "topic=images/x.parquet",
        }
    ]
    assert "94 or more flagged ones with a probability of at most 0.001" in data["confidence"]
    assert "calibration on 199 images" in data["confidence"]
    assert "77 or more" in event_of(RESOLVED)["data"]["confidence"]
    assert "class" not in data["confidence"] + event_of(RESOLVED)["data"]["confidence"]


def test_evidence_per_class_names_the_class_with_the_highest_limit() -> None:
    data = event_by(PER_CLASS_FACTS, PER_CLASS_VERDICT)["data"]
    assert (data["calibration_size"], data["per_class"]) == (238, True)
    assert (data["bound_size"], data["flag_rank"]) == (38, 1)
    assert data["confidence"] == (
        "A window of 1000 in-distribution records of one predicted class, whichever, holds 170 or "
        "more flagged ones with a probability of at most 0.001, the uncertainty of a calibration "
        "on 238 images included. The limit is that of the class with the highest: 38 calibration "
        "images, flag rank 1. For a mix of classes it is not proven. That is for one window of "
        "exchangeable records; windows overlap and each one is judged."
    )


def test_a_resolve_limit_names_its_own_class() -> None:
    """At 0.4 it is the large class that has the highest limit; the bound stays the small one's."""
    resolved = dataclasses.replace(
        PER_CLASS_VERDICT, flagged=40, state=AlertState.INACTIVE, transition=Transition.RESOLVED
    )
    data = event_by(PER_CLASS_FACTS, resolved, drift={"resolve_probability": 0.4})["data"]
    assert (data["bound_size"], data["flag_rank"]) == (38, 1)
    assert data["confidence"] == (
        "A window of 1000 in-distribution records of one predicted class, whichever, holds 53 or "
        "more flagged ones with a probability of at most 0.4; this one holds 40. The limit is "
        "that of the class with the highest: 200 calibration images, flag rank 10. For a mix of "
        "classes it is not proven."
    )


def test_the_key_is_the_monitor() -> None:
    assert alert_event(VERDICT, settings(), FACTS, "1").key == "ood-fraction"


def test_the_id_is_that_of_the_window() -> None:
    first = event_of(VERDICT)["id"]
    assert event_of(VERDICT)["id"] == first == "841a3a1ea9be29d3841be00138ae767c"
    # How the window was cut into segments shows in the evidence, not in the id.
    assert event_of(dataclasses.replace(VERDICT, offsets=(), examples=()))["id"] == first
    others = [
        event_of(RESOLVED)["id"],
        event_of(dataclasses.replace(VERDICT, flagged=126))["id"],
        event_of(dataclasses.replace(VERDICT, window_end_ms=1_700_000_001_510))["id"],
        event_of(VERDICT, alerts={"monitor": "other"})["id"],
        event_of(VERDICT, kafka={"topic": "other"})["id"],
    ]
    assert len({first, *others}) == 6


def test_only_a_transition_makes_an_alert() -> None:
    with pytest.raises(ValueError, match="transition"):
        event_of(dataclasses.replace(VERDICT, transition=None))


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_769_860_800_007, "2026-01-31T12:00:00.007Z"),
        (10**18, "9999-12-31T23:59:59.999Z"),
        (-(10**18), "0001-01-01T00:00:00.000Z"),
    ],
)
def test_rfc3339(time_ms: int, text: str) -> None:
    assert rfc3339(time_ms) == text
