"""What happens to images that cannot be decoded: dead letters to a Kafka topic."""

from collections.abc import Callable
from typing import Any, Protocol

import structlog
from kafka import KafkaProducer, errors

from nap_stream.clock import Deadline, SystemClock
from nap_stream.errors import BrokerError
from nap_stream.kafka.client import close_producer, open_client, producer_options, translated_errors
from nap_stream.records import FailedImage, TopicPartition
from nap_stream.settings.schema import KafkaSettings


class DeadLetters(Protocol):
    """Takes what cannot be decoded, as it came, at least once. Used by one thread."""

    def send(self, image: FailedImage) -> None:
        """Hand over an image; `flush` says whether it has arrived.

        One that was handed over before, and that a `flush` which failed left on its way, is not
        sent again: to try again takes no more memory, and doubles as little as can be.

        Raises:
            BrokerError: It was refused at once.
        """

    def flush(self, timeout_s: float) -> None:
        """Return when everything that was sent has arrived.

        Raises:
            BrokerError: Something has not. To try again, hand all of it over again.
        """

    def close(self) -> None:
        """Release connections. Safe to call twice."""


def dead_letter_headers(image: FailedImage) -> list[tuple[str, bytes]]:
    """Why an image is a dead letter, and where it came from."""
    origin = image.origin
    values = {
        "status": image.status.value,
        "error": image.error,
        "topic": origin.partition.topic,
        "partition": str(origin.partition.partition),
        "offset": str(origin.offset),
        "index": str(origin.index),
    }
    return [
        (f"nap-stream-{name}", value.encode("utf-8", "replace")) for name, value in values.items()
    ]


HEADERS_ALLOWANCE = 2**16
MAX_BLOCK_S = 5.0
"""How long `send` may wait for the topic's partitions to be known."""
CLOSE_TIMEOUT_S = 5.0

_Key = tuple[TopicPartition, int, int]


class KafkaDeadLetters:
    """A producer with acks=all, at least once and in order.

    The value is the payload as it came: the message's, or that of one image of a batch. The key
    and the kept headers go with it, and headers named ``nap-stream-…`` say why and from where.
    A payload that the topic is too small for is left out, and the header
    ``nap-stream-payload-left-out`` gives its size in bytes: one large message must not stop a
    partition for good. ``max_payload_bytes`` is the largest to try.

    Raises:
        BrokerError: The broker cannot be reached, or refuses.
    """

    def __init__(self, settings: KafkaSettings, topic: str, *, max_payload_bytes: int) -> None:
        self._settings, self._topic = settings, topic
        self._asked: set[_Key] = set()
        self._sent: dict[_Key, tuple[FailedImage, Any]] = {}
        options = producer_options(settings, max_payload_bytes + HEADERS_ALLOWANCE) | {
            # An idempotent producer of kafka-python sends nothing more after a refusal.
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,
            "max_block_ms": int(MAX_BLOCK_S * 1000),
        }
        with translated_errors(settings, f"opening dead-letter topic {topic}"):
            self._producer = open_client(KafkaProducer, options)

    def send(self, image: FailedImage) -> None:
        """Hand over an image; see `DeadLetters.send`."""
        key = image.origin.partition, image.origin.offset, image.origin.index
        if key not in self._sent:
            with translated_errors(self._settings, f"sending {image.origin} to {self._topic}"):
                try:
                    self._sent[key] = image, self._send(image)
                except errors.MessageSizeTooLargeError:
                    self._sent[key] = image, self._send_without_payload(image)
        self._asked.add(key)

    def flush(self, timeout_s: float) -> None:
        """Return when everything that was sent has arrived; see `DeadLetters.flush`."""
        deadline = Deadline(SystemClock(), timeout_s)
        asked, self._asked = self._asked, set()
        try:
            with translated_errors(self._settings, f"delivering to {self._topic}"):
                for key in [k for k in self._sent if k in asked]:
                    self._arrive(key, deadline)
        except BrokerError:
            self._forget(
                lambda key, future: future.failed() or (key not in asked and future.is_done)
            )
            raise
        self._forget(lambda key, future: key in asked or future.is_done)

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        close_producer(self._producer, CLOSE_TIMEOUT_S)

    def _arrive(self, key: _Key, deadline: Deadline) -> None:
        """Wait until an image has arrived, without its payload where the topic is too small."""
        image, sent = self._sent[key]
        if not _fits(sent, deadline):
            sent = self._send_without_payload(image)
            self._sent[key] = image, sent
            sent.get(timeout=deadline.remaining_s())

    def _forget(self, is_over: Callable[[_Key, Any], bool]) -> None:
        self._sent = {
            key: (image, sent)
            for key, (image, sent) in self._sent.items()
            if not is_over(key, sent)
        }

    def _send(self, image: FailedImage) -> Any:
        return self._producer.send(
            self._topic, key=_key(image), value=image.payload, headers=_headers(image)
        )

    def _send_without_payload(self, image: FailedImage) -> Any:
        size = len(image.payload or b"")
        structlog.get_logger().warning(
            "dead_letter_without_payload",
            origin=str(image.origin),
            payload_bytes=size,
            action=f"raise max.message.bytes of topic {self._topic}",
        )
        left_out = ("nap-stream-payload-left-out", str(size).encode())
        return self._producer.send(
            self._topic, key=image.origin.key, value=b"", headers=[*_headers(image), left_out]
        )


def _fits(future: Any, deadline: Deadline) -> bool:
    """Wait for a message's arrival; False where it is larger than the topic allows."""
    try:
        future.get(timeout=deadline.remaining_s())
    except (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError):
        return False
    return True


def _headers(image: FailedImage) -> list[tuple[str, bytes]]:
    # kafka-python sends no null as a header's value.
    kept = [(name, b"" if value is None else value) for name, value in image.origin.headers]
    return kept + dead_letter_headers(image)


def _key(image: FailedImage) -> bytes | None:
    """The image's own key; empty where neither key nor payload is there, which cannot be sent."""
    key = image.origin.key
    return b"" if key is None and image.payload is None else key
