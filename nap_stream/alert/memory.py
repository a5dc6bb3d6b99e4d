"""Alerts kept in memory, for tests."""

from nap_stream.alert.base import AlertEvent
from nap_stream.errors import BrokerUnavailableError


class MemoryAlertSink:
    """Keeps alerts in order; refuses them while ``available`` is false."""

    name = "memory"

    def __init__(self) -> None:
        self.alerts: list[AlertEvent] = []
        self.available = True
        self.closed = False

    def publish(self, alert: AlertEvent) -> None:
        """Keep an alert.

        Raises:
            BrokerUnavailableError: While not ``available``.
        """
        if not self.available:
            raise BrokerUnavailableError("the sink is away")
        self.alerts.append(alert)

    def delivered(self) -> frozenset[str]:
        """Ids of all alerts that it keeps."""
        return frozenset(alert.id for alert in self.alerts)

    def close(self) -> None:
        """Note that the sink is closed."""
        self.closed = True
