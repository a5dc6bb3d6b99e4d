from io import StringIO
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.sinks import LogAlertSink


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
