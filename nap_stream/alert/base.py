"""What an alert is, and where alerts go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A CloudEvents 1.0 event, ready to send.

    ``key`` names the monitor; after a "/" comes the key of images where it is one's alert, or
    "gap/" and the partition where offsets are missing. Alerts of one key are delivered in order.
    ``event`` is the JSON tree of the whole event: context attributes and data.
    """

    key: str
    event: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The event's id: the same whenever the same alert is computed again."""
        return str(self.event["id"])

    @property
    def state(self) -> str:
        """The last part of the event's type: firing, resolved or gap."""
        return str(self.event["type"]).rsplit(".", maxsplit=1)[-1]


class AlertSink(Protocol):
    """Where alerts are delivered. One thread publishes at a time; any may close."""

    @property
    def name(self) -> str:
        """What logs, metrics and `failure` call it: kafka, log, webhook, memory."""
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
