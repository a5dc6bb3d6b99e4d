"""Alerts to a Kafka topic."""

import json

from kafka import KafkaProducer

from nap_stream.alert.base import AlertEvent
from nap_stream.kafka_client import close_producer, open_client, producer_options
from nap_stream.kafka_errors import translated_errors
from nap_stream.settings import KafkaSettings

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
MAX_ALERT_BYTES = 2**20
DELIVERY_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0


class KafkaAlertSink:
    """An idempotent producer with acks=all; the message key is the monitor's name.

    Args:
        settings: How to connect.
        topic: The alert topic.

    Raises:
        BrokerError: The broker cannot be reached, or refuses.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        options = producer_options(settings, MAX_ALERT_BYTES) | {
            "delivery_timeout_ms": int(DELIVERY_TIMEOUT_S * 1000),
            "request_timeout_ms": int(DELIVERY_TIMEOUT_S * 1000) // 2,
            "max_block_ms": int(DELIVERY_TIMEOUT_S * 1000),
        }
        with translated_errors(settings, f"opening alert topic {topic}"):
            self._producer = open_client(KafkaProducer, options)

    def publish(self, alert: AlertEvent) -> None:
        """Deliver an alert and return when all in-sync replicas have it.

        Raises:
            BrokerUnavailableError: It was not delivered in time.
            BrokerError: The broker refused it.
        """
        value = json.dumps(alert.event, ensure_ascii=False, allow_nan=False).encode()
        headers = [("content-type", CONTENT_TYPE.encode())]
        with translated_errors(self._settings, f"publishing to {self._topic}"):
            sent = self._producer.send(
                self._topic, key=alert.key.encode(), value=value, headers=headers
            )
            sent.get(timeout=DELIVERY_TIMEOUT_S)

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        close_producer(self._producer, CLOSE_TIMEOUT_S)
