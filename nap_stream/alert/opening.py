"""Opens the sinks that the settings name."""

from nap_stream.alert.base import AlertSink
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.alert.log import LogAlertSink
from nap_stream.alert.webhook import WebhookAlertSink
from nap_stream.clock import Clock
from nap_stream.settings import Settings


def open_sinks(settings: Settings, clock: Clock) -> tuple[AlertSink, ...]:
    """Open the sinks of alerts: Kafka's first, which there always is.

    Args:
        settings: Of the monitor.
        clock: The time.

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
