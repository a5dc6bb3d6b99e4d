"""Alerts to a Kafka topic."""

import json
from typing import Any

from kafka import KafkaProducer, errors

from nap_stream.alert.base import AlertEvent
from nap_stream.alert.consume import read_last_ids
from nap_stream.clock import Clock, SystemClock
from nap_stream.errors import AlertRefusedError, BrokerError
from nap_stream.kafka_client import close_producer, open_client, producer_options
from nap_stream.kafka_errors import translated_errors
from nap_stream.settings import KafkaSettings

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
MAX_ALERT_BYTES = 2**20
DELIVERY_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


class KafkaAlertSink:
    """An idempotent producer with acks=all; the message key is the alert's.

    Args:
        settings: How to connect.
        topic: The alert topic.
        clock: For giving up reading back; the machine's own where None.

    Raises:
        BrokerError: The broker cannot be reached, or refuses.
    """

    name = "kafka"

    def __init__(self, settings: KafkaSettings, topic: str, clock: Clock | None = None) -> None:
        self._settings, self._topic = settings, topic
        self._clock = clock or SystemClock()
        self._closed = False
        self._producer: Any = self._open()

    def publish(self, alert: AlertEvent) -> None:
        """Deliver an alert and return when all in-sync replicas have it.

        Raises:
            AlertRefusedError: It is larger than the producer or the topic allows.
            BrokerUnavailableError: It was not delivered in time.
            BrokerError: The broker refused it.
        """
        value = json.dumps(alert.event, ensure_ascii=False, allow_nan=False).encode()
        headers = [("content-type", CONTENT_TYPE.encode())]
        if self._producer is None:
            self._producer = self._open()
        with translated_errors(self._settings, f"publishing to {self._topic}"):
            try:
                sent = self._producer.send(
                    self._topic, key=alert.key.encode(), value=value, headers=headers
                )
                sent.get(timeout=DELIVERY_TIMEOUT_S)
            except errors.KafkaError as error:
                # An idempotent producer of kafka-python sends nothing more after a refusal, nor
                # after a message whose time has run out.
                self._drop()
                if isinstance(error, _TOO_LARGE):
                    raise AlertRefusedError(
                        f"the alert is too large: {error}",
                        f"topic {self._topic}",
                        "Raise the topic's max.message.bytes, or show less: alerts.examples",
                    ) from error
                raise

    def delivered(self) -> frozenset[str]:
        """Ids of the events among the last 1,000 offsets of each partition of the topic.

        Raises:
            BrokerError: The broker cannot be reached, refuses, or takes half a minute.
        """
        return read_last_ids(self._settings, self._topic, clock=self._clock)

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        self._closed = True
        self._drop()

    def _open(self) -> Any:
        if self._closed:
            raise BrokerError("the alert sink is closed", self._topic)
        options = producer_options(self._settings, MAX_ALERT_BYTES) | {
            "delivery_timeout_ms": int(DELIVERY_TIMEOUT_S * 1000),
            "request_timeout_ms": int(DELIVERY_TIMEOUT_S * 1000) // 2,
            "max_block_ms": int(DELIVERY_TIMEOUT_S * 1000),
        }
        with translated_errors(self._settings, f"opening alert topic {self._topic}"):
            return open_client(KafkaProducer, options)

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            close_producer(producer, CLOSE_TIMEOUT_S)
