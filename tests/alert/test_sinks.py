from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from nap_stream.alert import sinks
from nap_stream.alert.event import AlertEvent
from nap_stream.alert.sinks import LogAlertSink, open_sinks
from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError
from nap_stream.settings.alerts import WebhookSettings
from nap_stream.settings.schema import KafkaSettings, Settings
from tests.support.summaries import settings
from tests.support.topics import new_settings


def alert(state: str = "firing", **data: Any) -> AlertEvent:
    event = {"id": "abc", "type": f"io.nap-stream.drift.{state}", "data": data}
    return AlertEvent("ood-fraction", event)


def test_a_line_tells_what_the_event_has_to_say() -> None:
    with capture_logs() as logs:
        LogAlertSink().publish(
            alert(
                monitor="m",
                severity="critical",
                summary="30% flagged",
                key=None,
                detectors=[{"name": "x"}],
            )
        )

    assert logs == [
        {
            "event": "alert",
            "log_level": "warning",
            "monitor": "m",
            "state": "firing",
            "severity": "critical",
            "summary": "30% flagged",
            "id": "abc",
        }
    ]


@pytest.mark.parametrize(
    ("state", "level"), [("firing", "warning"), ("gap", "warning"), ("resolved", "info")]
)
def test_only_what_is_resolved_is_no_warning(state: str, level: str) -> None:
    with capture_logs() as logs:
        LogAlertSink().publish(alert(state))

    assert [(entry["state"], entry["log_level"]) for entry in logs] == [(state, level)]


def test_a_log_that_cannot_be_written_fails_nothing() -> None:
    before, closed = structlog.get_config(), StringIO()
    closed.close()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(closed),
    )
    try:
        with pytest.raises(ValueError, match="closed file"):
            structlog.get_logger().warning("nobody hears it")
        LogAlertSink().publish(alert())
    finally:
        structlog.configure(**before)


def settings_of(kafka: KafkaSettings, **alerts: Any) -> Settings:
    made = settings(alerts={"topic": kafka.topic, **alerts})
    return made.model_copy(update={"kafka": kafka})


@pytest.mark.embedded
def test_kafka_alone_or_with_what_is_configured(embedded: str) -> None:
    webhook = WebhookSettings(url="http://localhost:1/")
    kafka = new_settings(embedded)
    named = []
    for alerts in ({}, {"log": True}, {"webhook": webhook}, {"log": True, "webhook": webhook}):
        sinks = open_sinks(settings_of(kafka, **alerts), ManualClock())
        named.append([sink.name for sink in sinks])
        for sink in sinks:
            sink.close()

    assert named == [["kafka"], ["kafka", "log"], ["kafka", "webhook"], ["kafka", "log", "webhook"]]


def test_what_was_opened_is_closed_when_another_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Opened:
        closed = 0

        def __init__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            Opened.closed += 1

    monkeypatch.setattr(sinks, "KafkaAlertSink", Opened)
    (tmp_path / "empty.pem").touch()
    webhook = WebhookSettings(url="https://localhost/", ca_file=tmp_path / "empty.pem")

    with pytest.raises(ConfigError, match="ca_file"):
        open_sinks(settings_of(KafkaSettings(topic="t"), log=True, webhook=webhook), ManualClock())

    assert Opened.closed == 1
