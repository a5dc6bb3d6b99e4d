"""Sinks that fail as a broker does."""

from nap_stream.alert.event import AlertEvent
from nap_stream.errors import BrokerUnavailableError


class FlakySink:
    """Keeps alerts; fails while ``failures`` lasts."""

    def __init__(self, failures: int = 0, name: str = "memory") -> None:
        self.failures, self.name = failures, name
        self.attempts = 0
        self.alerts: list[AlertEvent] = []
        self.closed = 0

    def publish(self, alert: AlertEvent) -> None:
        self.attempts += 1
        if self.failures > 0:
            self.failures -= 1
            raise BrokerUnavailableError("no broker answers", "localhost:9092", "Start it")
        self.alerts.append(alert)

    def delivered(self) -> frozenset[str]:
        return frozenset(alert.id for alert in self.alerts)

    def close(self) -> None:
        self.closed += 1

    @property
    def states(self) -> list[str]:
        return [alert.state for alert in self.alerts]
