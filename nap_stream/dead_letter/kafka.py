"""Dead letters to a Kafka topic."""

from typing import Any

from kafka import KafkaProducer, errors

from nap_stream.clock import Clock, SystemClock
from nap_stream.dead_letter.base import dead_letter_headers
from nap_stream.deadline import Deadline
from nap_stream.kafka_client import producer_options, translated_errors
from nap_stream.records import FailedImage
from nap_stream.settings import KafkaSettings

HEADERS_ALLOWANCE = 2**16


class KafkaDeadLetters:
    """An idempotent producer with acks=all.

    The value is the payload as it came: the message's, or that of one image of a batch. The key
    and the kept headers go with it, and headers named ``nap-stream-…`` say why and from where.

    Args:
        settings: How to connect.
        topic: The dead-letter topic.
        max_payload_bytes: The largest payload that may come.
        clock: For time-outs.

    Raises:
        BrokerError: The broker cannot be reached, or refuses.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        max_payload_bytes: int,
        clock: Clock | None = None,
    ) -> None:
        self._settings, self._topic = settings, topic
        self._clock = clock or SystemClock()
        self._sent: list[Any] = []
        options = producer_options(settings, max_payload_bytes + HEADERS_ALLOWANCE)
        with translated_errors(settings, f"opening dead-letter topic {topic}"):
            self._producer = KafkaProducer(**options)

    def send(self, image: FailedImage) -> None:
        """Hand over an image; see `DeadLetters.send`."""
        headers = [(name, value) for name, value in image.origin.headers if value is not None]
        with translated_errors(self._settings, f"sending {image.origin} to {self._topic}"):
            self._sent.append(
                self._producer.send(
                    self._topic,
                    key=_key(image),
                    value=image.payload,
                    headers=headers + dead_letter_headers(image),
                )
            )

    def flush(self, timeout_s: float) -> None:
        """Return when everything that was sent has arrived; see `DeadLetters.flush`."""
        deadline = Deadline(self._clock, timeout_s)
        sent, self._sent = self._sent, []
        with translated_errors(self._settings, f"delivering to {self._topic}"):
            for future in sent:
                future.get(timeout=deadline.remaining_s())

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        try:
            self._producer.close(timeout=5)
        except errors.KafkaTimeoutError:
            return


def _key(image: FailedImage) -> bytes | None:
    """The image's own key; empty where neither key nor payload is there, which cannot be sent."""
    key = image.origin.key
    return b"" if key is None and image.payload is None else key
