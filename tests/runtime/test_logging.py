"""What the log shows, and how often."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from kafka.errors import Cancelled

from nap_stream.process import configure_logging
from tests.support.logs import kept_logging


@pytest.fixture
def configured() -> Iterator[None]:
    with kept_logging():
        configure_logging(for_people=False)
        yield


def events(text: str, *wanted: str) -> list[str]:
    """The events that begin so; threads of other tests may log too."""
    lines = [json.loads(line)["event"] for line in text.splitlines() if line.startswith("{")]
    return [event for event in lines if event.startswith(wanted)]


@pytest.mark.usefixtures("configured")
def test_what_kafka_says_with_every_attempt_is_shown_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for attempt in range(3):
        logging.getLogger("kafka.net.manager").error("connection failed, attempt %s", attempt)
    logging.getLogger("kafka.net.manager").error("something else")

    assert events(capsys.readouterr().err, "connection failed", "something") == [
        "connection failed, attempt 0",
        "something else",
    ]


@pytest.mark.usefixtures("configured")
def test_what_is_cancelled_when_a_client_is_closed_is_no_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger("kafka.cluster").error("refresh: failed %s", Cancelled())
    logging.getLogger("kafka.cluster").error("refresh: failed %s", TimeoutError())

    assert len(events(capsys.readouterr().err, "refresh")) == 1


@pytest.mark.usefixtures("configured")
def test_everybody_else_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in range(2):
        logging.getLogger("somebody").warning("attempt %s", attempt)
        structlog.get_logger().warning("mine")

    assert events(capsys.readouterr().err, "attempt", "mine") == [
        "attempt 0",
        "mine",
        "attempt 1",
        "mine",
    ]
