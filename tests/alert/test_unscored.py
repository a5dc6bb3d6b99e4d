"""The alert of images without scores: its event, its sentences, and its form in each sink."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.render import render_lines
from nap_stream.alert.sinks import LogAlertSink
from nap_stream.alert.unscored import event_of, summary
from nap_stream.alert.webhook import alertmanager_alerts
from nap_stream.core.alert_state import Change, Reason, Severity
from nap_stream.drift.records import UnscoredAlert
from tests.alert.samples import (
    BEGAN,
    FACTS,
    FIRST_UNREADABLE,
    NIGHT_MS,
    PLAN,
    SETTINGS,
    UNREADABLE,
    UNSCORED_ALERTS,
    UNSCORED_BEGAN,
    UNSCORED_ENDED,
    event_tree,
)
from tests.alert.test_event import closed
from tests.support.schemas import unscored_schema
from tests.support.summaries import settings

CLOSED = jsonschema.Draft202012Validator(closed(unscored_schema()))
EACH = pytest.mark.parametrize("alert", UNSCORED_ALERTS.values(), ids=UNSCORED_ALERTS)


def event_with(alert: UnscoredAlert = UNSCORED_BEGAN) -> AlertEvent:
    return event_of(alert, PLAN, SETTINGS, FACTS, "1.2.3")


@EACH
def test_events_fulfil_the_schema_and_can_be_read(alert: UnscoredAlert) -> None:
    jsonschema.Draft202012Validator.check_schema(unscored_schema())
    event = event_tree(alert)
    CLOSED.validate(event)
    lines = render_lines(event)
    assert all(line.isprintable() for line in lines)
    assert not any("Unknown version" in line for line in lines)


def test_examples_of_a_monitor_of_several_topics_name_theirs() -> None:
    several = settings(kafka={"topic": "all", "topics": ["images"]})
    event = event_of(UNSCORED_BEGAN, PLAN, several, FACTS, "1").event
    CLOSED.validate(event)
    assert {each["topic"] for each in event["data"]["examples"]} == {"images"}
    assert any("topic/partition/offset/index images/" in line for line in render_lines(event))


def test_context_attributes() -> None:
    event = event_with()
    assert event.key == "ood-fraction/unscored-images"
    assert event.state == "firing"
    assert event.event["type"] == "io.nap-stream.unscored.firing"
    assert event.event["dataschema"] == unscored_schema()["$id"] == "urn:nap-stream:unscored:1"
    assert event.event["subject"] == "images"
    assert event.event["time"] == "2026-01-31T02:03:20.000Z"


def test_the_id_is_of_the_decision_alone() -> None:
    assert event_with().id == event_with().id
    other_words = replace(UNSCORED_BEGAN, reasons=(), examples=(), keys=())
    assert event_with(other_words).id == event_with().id
    later = replace(UNSCORED_BEGAN, time_ms=NIGHT_MS + 1_000)
    ids = {event_with(alert).id for alert in (UNSCORED_BEGAN, UNSCORED_ENDED, later)}
    assert len({*ids, event_of(BEGAN, PLAN, SETTINGS, FACTS, "1.2.3").id}) == 4


def test_one_sentence_says_what_since_when_and_what_is_old() -> None:
    assert summary(UNSCORED_BEGAN) == (
        "423 of 816 images (51.8 %) since about 02:03:04 UTC could not be scored, at most 1 % "
        "expected: unsupported, not a JPEG, PNG or WebP image: starts with 42 4d 36 00; camera-7 "
        "has most of them. None was scored since 02:03:04 UTC: the OOD fraction of 5.1 % is as of "
        "then"
    )
    assert summary(FIRST_UNREADABLE).endswith(
        ". No image was scored yet: nothing is known of drift"
    )
    assert summary(UNSCORED_ENDED) == (
        "Over after 1 h 5 min: images can be scored again; 12 of the last 1,024 could not (1.17 %)"
    )
    escalated = Change(Reason.ESCALATED, UNSCORED_BEGAN.change.alert, Severity.WARNING)
    assert summary(replace(UNSCORED_BEGAN, change=escalated)).startswith("Now critical: 423 of")


def test_says_what_a_person_needs() -> None:
    lines = render_lines(event_tree(UNSCORED_BEGAN))
    assert lines[0] == "FIRING  CRITICAL  unscored-images  ood-fraction  2026-01-31T02:03:20.000Z"
    assert lines[2:9] == [
        "  Began about 2026-01-31 02:03:04 UTC; firing since 2026-01-31 02:03:20 UTC",
        "  Why they could not be scored:",
        "    420: unsupported, not a JPEG, PNG or WebP image: starts with 42 4d 36 00",
        "    3: corrupt, it cannot be decoded",
        "  Most of them, keys: camera-7 (420)",
        "  What to do: https://runbooks.example/ood",
        "  Where to look: https://grafana.example/d/images",
    ]
    text = "\n".join(lines)
    assert "    unscored-images: 423 of 816 images since about 02:03:04 UTC have no scores." in text
    assert (
        "  Without scores: 423 of the last 1,024 images (41.3 %, at most 1 % expected): "
        "unsupported 420, corrupt 3"
    ) in lines
    assert (
        "  OOD fraction as of 2026-01-31 02:03:04 UTC: 5.1 % of 1,000 scored records, 16 s before "
        "this"
    ) in lines
    assert (
        "    partition/offset/index 1/301/0  unsupported  key camera-7  not a JPEG, PNG or WebP "
        "image: starts with 42 4d 36 00  2026-01-31T02:03:04.250Z  "
        "topic=images/partition=1/00000000000000000300.parquet"
    ) in lines


def test_hostile_texts_reach_nobody_as_they_are() -> None:
    evil = replace(UNREADABLE, error="\x1b[2J[red]" + "x" * 5_000, key="\x1b[31mcam")
    event = event_tree(replace(UNSCORED_BEGAN, reasons=(evil,), examples=(evil,)))
    CLOSED.validate(event)
    assert all(line.isprintable() for line in render_lines(event))
    assert len(event["data"]["reasons"][0]["error"]) <= 200
    damaged: dict[str, Any] = json.loads(json.dumps(event))
    for name in list(damaged["data"]):
        assert render_lines(damaged | {"data": damaged["data"] | {name: [1, None, "x"]}})
        assert render_lines(
            damaged | {"data": {k: v for k, v in event["data"].items() if k != name}}
        )


def test_to_alertmanager_it_is_an_alert_of_its_own() -> None:
    firing, over = (
        alertmanager_alerts(event_with(alert), SETTINGS.alerts, NIGHT_MS + 5_000)
        for alert in (UNSCORED_BEGAN, UNSCORED_ENDED)
    )
    assert firing[0]["labels"] == {
        "alertname": "NapStreamUnscored",
        "monitor": "ood-fraction",
        "topic": "images",
        "severity": "critical",
        "site": "hall-2",
        "team": "vision",
    }
    assert over[0]["labels"] == firing[0]["labels"]
    assert over[0]["endsAt"] == "2026-01-31T02:03:20.000Z"
    assert firing[0]["annotations"]["summary"] == summary(UNSCORED_BEGAN)
    assert "Why they could not be scored" in firing[0]["annotations"]["description"]
    escalated = Change(Reason.ESCALATED, UNSCORED_BEGAN.change.alert, Severity.WARNING)
    both = alertmanager_alerts(
        event_with(replace(UNSCORED_BEGAN, change=escalated)), SETTINGS.alerts, NIGHT_MS + 5_000
    )
    assert [each["labels"]["severity"] for each in both] == ["warning", "critical"]


def test_the_log_has_its_line() -> None:
    with capture_logs() as lines:
        LogAlertSink().publish(event_with())
        LogAlertSink().publish(event_with(UNSCORED_ENDED))
    assert [(line["state"], line["log_level"]) for line in lines] == [
        ("firing", "warning"),
        ("resolved", "info"),
    ]
    assert lines[0]["summary"] == summary(UNSCORED_BEGAN)


def test_an_alert_of_drift_has_the_share_beside_it() -> None:
    data = event_tree(BEGAN)["data"]
    assert data["unscored"]["share"] == 4 / 1_024
    assert data["unscored"]["severity"] is None
