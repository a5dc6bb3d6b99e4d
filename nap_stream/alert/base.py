"""What an alert is, and where alerts go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A CloudEvents 1.0 event, ready to send.

    ``key`` names the monitor. ``event`` is the JSON tree of the whole event: context
    attributes and data.
    """

    key: str
    event: Mapping[str, Any]

    @property
    def state(self) -> str:
        """The last part of the event's type: firing, resolved or gap."""
        return str(self.event["type"]).rsplit(".", maxsplit=1)[-1]


class AlertSink(Protocol):
    """Where alerts are delivered."""

    def publish(self, alert: AlertEvent) -> None:
        """Deliver an alert, in order, and return when it is delivered.

        Raises:
            BrokerError: It could not be delivered; `BrokerUnavailableError` is worth a retry.
        """
        ...

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
