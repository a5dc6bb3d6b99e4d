"""Where alerts go: what every sink does, the one that writes to the log, and how all are opened."""

from contextlib import suppress
from typing import Protocol

import structlog

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.alert.webhook import WebhookAlertSink
from nap_stream.clock import Clock
from nap_stream.settings.schema import Settings

FIELDS = ("severity", "reason", "topic", "key", "summary", "onset", "runbook_url")
"""What a line shows of an event's data, where the event has it."""


class AlertSink(Protocol):
    """Where alerts are delivered. One thread publishes at a time; any may close."""

    @property
    def name(self) -> str:
        """What logs and metrics call it: kafka, log or webhook."""
        ...

    def publish(self, alert: AlertEvent) -> None:
        """Deliver an alert, in order, and return when it is delivered.

        Raises:
            BrokerError: Kafka did not take it.
            AlertRefusedError: The destination will never take this one.
            AlertDeliveryError: Another destination did not take it.
        """
        ...

    def delivered(self) -> frozenset[str]:
        """Ids of the events that the destination has lately received.

        They let a coordinator that stands in for another neither repeat nor forget. Empty where
        the destination cannot tell.

        Raises:
            BrokerError: Kafka could not be asked.
        """
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...


class LogAlertSink:
    """One structured line, ``alert``, for each alert. Publishing never fails."""

    name = "log"

    def publish(self, alert: AlertEvent) -> None:
        """Write the line: a warning, but for what is resolved."""
        data = alert.event.get("data") or {}
        shown = {name: data[name] for name in FIELDS if data.get(name) is not None}
        monitor = data.get("monitor") or alert.key
        line = {"monitor": monitor, "state": alert.state, **shown, "id": alert.id}
        log = structlog.get_logger()
        # A log that cannot be written has nobody to tell it to, and the alert has other ways.
        with suppress(OSError, ValueError):
            (log.info if alert.state == "resolved" else log.warning)("alert", **line)

    def delivered(self) -> frozenset[str]:
        """Nothing: a log cannot be asked."""
        return frozenset()

    def close(self) -> None:
        """Nothing to release."""


def open_sinks(settings: Settings, clock: Clock) -> tuple[AlertSink, ...]:
    """Open the sinks of alerts that the settings name: Kafka's first, which there always is.

    Raises:
        BrokerError: The broker cannot be reached, or refuses.
        ConfigError: The webhook's certificates cannot be read.
    """
    alerts = settings.alerts
    sinks: list[AlertSink] = [KafkaAlertSink(settings.kafka, alerts.topic, clock)]
    try:
        if alerts.log:
            sinks.append(LogAlertSink())
        if alerts.webhook is not None:
            sinks.append(WebhookAlertSink(alerts, alerts.webhook, clock))
    except BaseException:
        for sink in sinks:
            sink.close()
        raise
    return tuple(sinks)
