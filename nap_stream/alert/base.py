"""What an alert is, and where alerts go.

The CloudEvents 1.0 envelope of every event, in JSON.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import quote

from nap_stream.settings.schema import Settings


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


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cloud_event(
    data: Mapping[str, Any],
    settings: Settings,
    *,
    kind: str,
    schema: str,
    identity: Sequence[str | float | None],
    subject: str,
    time_ms: int | None = None,
) -> dict[str, Any]:
    """Put data into an envelope.

    Args:
        data: A JSON tree.
        settings: Name the monitor and the topic of images.
        kind: The event's type.
        schema: Names the schema of the data and its version.
        identity: What makes the event another one; its id is the digest of it.
        subject: What it is about.
        time_ms: When that was, in milliseconds since the epoch; null where it has no time.
    """
    topic, monitor = (quote(n, safe="") for n in (settings.kafka.topic, settings.alerts.monitor))
    return {
        "specversion": "1.0",
        "id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        "source": f"/nap-stream/{topic}/{monitor}",
        "type": kind,
        "subject": subject,
        **({} if time_ms is None else {"time": rfc3339(time_ms)}),
        "datacontenttype": "application/json",
        "dataschema": schema,
        "data": data,
    }


def rfc3339(time_ms: int) -> str:
    """Write milliseconds since the epoch as RFC 3339 in UTC, as in 2026-01-31T12:00:00.000Z.

    A time that has no such form is the nearest that has: event times come from outside.
    """
    earliest = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
    latest = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
    moment = _EPOCH + timedelta(milliseconds=min(max(time_ms, earliest), latest))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_schema(name: str) -> dict[str, Any]:
    """Read a JSON Schema (draft 2020-12) of this package."""
    text = files("nap_stream.alert").joinpath(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
