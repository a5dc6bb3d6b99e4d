"""From a verdict to an alert: a CloudEvents 1.0 event in JSON.

The event is a function of the verdict and the calibration alone, so that computing it again
gives the same id, time and data. `alert_schema` is the JSON Schema that every event fulfils.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from nap_stream.alert.base import AlertEvent
from nap_stream.core.alert_state import Transition
from nap_stream.core.bounds import highest_flag_limit
from nap_stream.records import CalibrationFacts, DriftVerdict, Example
from nap_stream.settings import Settings

DATA_SCHEMA = "urn:nap-stream:alert:2"
"""Names the version of ``data``. A change that a reader must know of makes a new one."""
TYPE_PREFIX = "io.nap-stream.drift."
DETECTOR = "rolling-ood-fraction"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def alert_event(
    verdict: DriftVerdict, settings: Settings, calibration: CalibrationFacts, version: str
) -> AlertEvent:
    """Make the alert of a transition.

    Args:
        verdict: One with a transition.
        settings: Name the monitor, the topic and the probabilities.
        calibration: What the flags are judged by.
        version: The program's.

    Raises:
        ValueError: The verdict is no transition.
    """
    if verdict.transition is None:
        raise ValueError("only a transition makes an alert")
    monitor, topic = settings.alerts.monitor, settings.kafka.topic
    probability = settings.drift.false_alarm_probability
    _, law = highest_flag_limit(verdict.records, calibration.flag_rate_laws, probability)
    event = {
        "specversion": "1.0",
        "id": _event_id(verdict, verdict.transition, settings, calibration),
        "source": f"/nap-stream/{quote(topic, safe='')}/{quote(monitor, safe='')}",
        "type": TYPE_PREFIX + verdict.transition.value,
        "subject": topic,
        "time": rfc3339(verdict.window_end_ms),
        "datacontenttype": "application/json",
        "dataschema": DATA_SCHEMA,
        "data": {
            "monitor": monitor,
            "detector": DETECTOR,
            "state": verdict.transition.value,
            "topic": topic,
            "fraction": verdict.fraction,
            "bound": verdict.bound,
            "flagged": verdict.flagged,
            "firing_limit": verdict.firing_limit,
            "resolve_limit": verdict.resolve_limit,
            "window": {
                "records": verdict.records,
                "start": rfc3339(verdict.window_start_ms),
                "end": rfc3339(verdict.window_end_ms),
            },
            "alpha": calibration.alpha,
            "calibration_size": calibration.size,
            "per_class": calibration.per_class,
            "bound_size": law.size,
            "flag_rank": law.flag_rank,
            "false_alarm_probability": probability,
            "resolve_probability": settings.drift.resolve_probability,
            "confidence": confidence_statement(verdict, settings, calibration),
            "offsets": [
                {"partition": r.partition.partition, "start": r.start, "end": r.end}
                for r in verdict.offsets
            ],
            "examples": [_example(example) for example in verdict.examples],
            "model_fingerprint": calibration.model_fingerprint,
            "calibration_fingerprint": calibration.fingerprint,
            "version": version,
        },
    }
    return AlertEvent(monitor, event)


def alert_schema() -> dict[str, Any]:
    """Read the JSON Schema (draft 2020-12) of alert events."""
    text = files("nap_stream.alert").joinpath("alert.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def confidence_statement(
    verdict: DriftVerdict, settings: Settings, calibration: CalibrationFacts
) -> str:
    """Say in words what the limits promise, and what they do not."""
    drift = settings.drift
    records = f"{verdict.records} in-distribution records"
    records += " of one predicted class, whichever," if calibration.per_class else ""
    if verdict.transition is Transition.RESOLVED:
        whose = _per_class_statement(verdict, drift.resolve_probability, calibration)
        return (
            f"A window of {records} holds {verdict.resolve_limit} or more flagged ones with a "
            f"probability of at most {drift.resolve_probability:g}; this one holds "
            f"{verdict.flagged}.{whose}"
        )
    whose = _per_class_statement(verdict, drift.false_alarm_probability, calibration)
    return (
        f"A window of {records} holds {verdict.firing_limit} or more flagged ones with a "
        f"probability of at most {drift.false_alarm_probability:g}, the uncertainty of a "
        f"calibration on {calibration.size} images included.{whose} That is for one window of "
        f"exchangeable records; windows overlap and each one is judged."
    )


def _per_class_statement(
    verdict: DriftVerdict, probability: float, calibration: CalibrationFacts
) -> str:
    if not calibration.per_class:
        return ""
    _, law = highest_flag_limit(verdict.records, calibration.flag_rate_laws, probability)
    return (
        f" The limit is that of the class with the highest: {law.size} calibration images, flag "
        f"rank {law.flag_rank}. For a mix of classes it is not proven."
    )


def rfc3339(time_ms: int) -> str:
    """Write milliseconds since the epoch as RFC 3339 in UTC, as in 2026-01-31T12:00:00.000Z.

    A time that has no such form is the nearest that has: event times come from outside.
    """
    earliest = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
    latest = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
    moment = _EPOCH + timedelta(milliseconds=min(max(time_ms, earliest), latest))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _event_id(
    verdict: DriftVerdict,
    transition: Transition,
    settings: Settings,
    calibration: CalibrationFacts,
) -> str:
    parts = [
        settings.alerts.monitor,
        settings.kafka.topic,
        DETECTOR,
        transition.value,
        verdict.window_start_ms,
        verdict.window_end_ms,
        verdict.records,
        verdict.flagged,
        verdict.firing_limit,
        verdict.resolve_limit,
        calibration.fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _example(example: Example) -> dict[str, Any]:
    return {
        "partition": example.partition.partition,
        "offset": example.offset,
        "index": example.index,
        "event_time": rfc3339(example.event_time_ms),
        "class_name": example.class_name,
        "ood_p_value": example.ood_p_value,
        "segment": example.segment,
    }
