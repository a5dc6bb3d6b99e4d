"""The shape of alerts that Alertmanager takes."""

from typing import Any

import pytest

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.webhook import alertmanager_alerts
from nap_stream.settings.alerts import AlertSettings
from tests.alert.samples import ALERTS, event_tree

NOON_MS = 1_767_268_800_000
NOON = "2026-01-01T12:00:00.000Z"
MONITOR = "ood-fraction"


def drift(state: str = "firing", **data: Any) -> AlertEvent:
    tree = {
        "monitor": MONITOR,
        "topic": "images",
        "key": None,
        "state": state,
        "severity": "warning",
        "reason": "began",
        "summary": "12% of the last 1000 images are out of distribution",
        "firing_since": "2026-01-01T11:00:00.000Z",
        "onset": "2026-01-01T10:58:00.000Z",
        "previous_severity": None,
        **data,
    }
    event = {
        "id": "0123456789abcdef",
        "type": f"io.nap-stream.drift.{state}",
        "time": "2026-01-01T11:30:00.000Z",
        "data": tree,
    }
    return AlertEvent(MONITOR if tree["key"] is None else f"{MONITOR}/{tree['key']}", event)


def gap(base_offset: int = 100) -> AlertEvent:
    data = {
        "monitor": MONITOR,
        "topic": "images",
        "partition": 3,
        "base_offset": base_offset,
        "end_offset": 250,
        "offsets": 250 - base_offset,
        "reason": "the broker has deleted them",
        "segment": "topic=images/partition=3/00000000000000000100.parquet",
    }
    return AlertEvent(MONITOR, {"id": "feed", "type": "io.nap-stream.gap", "data": data})


def shape(alert: AlertEvent, **settings: Any) -> list[dict[str, Any]]:
    return alertmanager_alerts(alert, AlertSettings(**settings), NOON_MS)


class TestShape:
    def test_a_firing_alert_lasts_two_repeat_intervals_unless_repeated(self) -> None:
        (sent,) = shape(drift(), repeat_interval_s=3_600, labels={"team": "vision"})

        assert sent["labels"] == {
            "alertname": "NapStreamDrift",
            "monitor": MONITOR,
            "topic": "images",
            "severity": "warning",
            "team": "vision",
        }
        assert sent["startsAt"] == "2026-01-01T11:00:00.000Z"
        assert sent["endsAt"] == "2026-01-01T14:00:00.000Z"
        assert sent["annotations"]["summary"].startswith("12% of")
        assert sent["annotations"]["onset"] == "2026-01-01T10:58:00.000Z"
        assert sent["annotations"]["id"] == "0123456789abcdef"
        assert "generatorURL" not in sent
        assert "runbook_url" not in sent["annotations"]

    def test_firing_repeated_and_resolved_are_one_alert(self) -> None:
        (began,) = shape(drift())
        (repeated,) = shape(drift(reason="repeated", repeat=1, onset=None, summary="still 14%"))
        (resolved,) = shape(drift("resolved", reason="ended", summary="back to 5%"))

        assert began["labels"] == repeated["labels"] == resolved["labels"]
        assert resolved["startsAt"] == began["startsAt"]
        assert resolved["endsAt"] == "2026-01-01T11:30:00.000Z"

    def test_an_escalation_ends_the_alert_of_the_former_severity(self) -> None:
        escalated = drift(reason="escalated", severity="critical", previous_severity="warning")

        former, new = shape(escalated)

        assert former["labels"] == shape(drift())[0]["labels"]
        assert (former["endsAt"], former["startsAt"]) == (NOON, "2026-01-01T11:00:00.000Z")
        assert new["labels"] == former["labels"] | {"severity": "critical"}
        assert new["endsAt"] > NOON
        (resolved,) = shape(drift("resolved", severity="critical", previous_severity="critical"))
        assert resolved["labels"] == new["labels"]

    @pytest.mark.parametrize(
        ("since", "time", "starts", "ends"),
        [
            ("2026-01-01T13:00:00.000Z", "2026-01-01T14:00:00.000Z", NOON, NOON),
            (
                "2026-01-01T11:00:00.000Z",
                "2026-01-01T10:00:00.000Z",
                "2026-01-01T11:00:00.000Z",
                "2026-01-01T11:00:00.000Z",
            ),
            ("yesterday", None, NOON, NOON),
            ("2026-01-01T11:00:00", "9999-12-31T23:59:59Z", NOON, NOON),
        ],
        ids=["ahead-of-the-clock", "ends-before-it-starts", "unreadable", "no-zone"],
    )
    def test_what_is_over_ends_now_at_the_latest_and_not_before_it_starts(
        self, since: str, time: str | None, starts: str, ends: str
    ) -> None:
        event = dict(drift("resolved", firing_since=since).event) | {"time": time}

        (sent,) = shape(AlertEvent(MONITOR, event))

        assert (sent["startsAt"], sent["endsAt"]) == (starts, ends)

    def test_each_key_is_an_alert_of_its_own_also_an_empty_one(self) -> None:
        labels = [shape(drift(key=key))[0]["labels"].get("key") for key in (None, "", "cam-7")]

        assert labels == [None, '""', "cam-7"]
        assert shape(drift(key="cam-7"))[0]["labels"]["monitor"] == MONITOR

    def test_the_description_says_more_than_the_summary(self) -> None:
        detectors = [{"name": "ood-window", "active": True, "words": "12% in 1,000 records"}]

        shown = shape(drift(detectors=detectors))[0]["annotations"]

        assert "\n  ood-window: 12% in 1,000 records" in shown["description"]
        assert shown["summary"] not in shown["description"]

    def test_links_come_from_the_event_or_the_settings(self) -> None:
        (sent,) = shape(drift(dashboard_url="http://event/d"), runbook_url="http://settings/r")

        assert sent["generatorURL"] == "http://event/d"
        assert sent["annotations"]["dashboard_url"] == "http://event/d"
        assert sent["annotations"]["runbook_url"] == "http://settings/r"

    def test_own_labels_are_not_overwritten(self) -> None:
        settings = AlertSettings.model_construct(labels={"topic": "x"}, repeat_interval_s=1.0)

        (sent,) = alertmanager_alerts(drift(), settings, NOON_MS)

        assert sent["labels"]["topic"] == "images"

    def test_the_monitor_s_own_events_keep_their_labels_from_beginning_to_end(self) -> None:
        sent = {
            name: shape(AlertEvent("unused", event_tree(alert))) for name, alert in ALERTS.items()
        }
        severities = {name: [a["labels"]["severity"] for a in sent[name]] for name in sent}

        assert severities == {
            "began": ["warning"],
            "key": ["critical"],
            "escalated": ["warning", "critical"],
            "shifted": ["warning"],
            "ended": ["warning"],
        }
        same = sent["began"][0]["labels"] | {"severity": None}
        for name, alerts in sent.items():
            key = {"key": "camera-7"} if name == "key" else {}
            assert all(a["labels"] | {"severity": None} == same | key for a in alerts)
        for alert in (each for alerts in sent.values() for each in alerts):
            assert all(isinstance(text, str) and text for text in alert["annotations"].values())
            assert alert["startsAt"] <= alert["endsAt"]

    def test_each_gap_is_an_alert_of_its_own(self) -> None:
        (sent,), (other,) = shape(gap(), repeat_interval_s=3_600), shape(gap(200))

        assert sent["labels"] == {
            "alertname": "NapStreamGap",
            "monitor": MONITOR,
            "topic": "images",
            "severity": "warning",
            "partition": "3",
            "base_offset": "100",
        }
        assert other["labels"] != sent["labels"]
        assert (sent["startsAt"], sent["endsAt"]) == (NOON, "2026-01-01T14:00:00.000Z")
        assert "partition 3 offsets [100, 250)" in sent["annotations"]["summary"]
        assert "the broker has deleted them" in sent["annotations"]["description"]

    def test_an_event_without_data_still_makes_an_alert_of_strings(self) -> None:
        bare = AlertEvent(MONITOR, {"id": "1", "type": "io.nap-stream.drift.firing"})

        (sent,) = shape(bare)

        assert sent["labels"]["monitor"] == MONITOR
        texts = {**sent["labels"], **sent["annotations"]}
        assert all(isinstance(value, str) for value in texts.values())
