"""Alerts to a Kafka topic, and back from it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, errors
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import (
    AlertRefusedError,
    BrokerError,
    BrokerUnavailableError,
    TopicNotFoundError,
)
from nap_stream.kafka.client import (
    client_options,
    close_producer,
    open_client,
    producer_options,
    translated_errors,
)
from nap_stream.settings.schema import KafkaSettings

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
MAX_EVENT_BYTES = 2**20
DELIVERY_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
MAX_ID = 200
"""Characters of an id that is remembered; ours have 32."""
LAST_OFFSETS = 1_000
"""How many offsets of each partition are searched for the ids of delivered alerts."""
READ_BACK_S = 30.0
"""How long that may take."""
POLL_MS = 500
SILENCE_S = 30.0
"""How long a reader that does not follow waits for alerts that the broker says it has."""
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


class KafkaAlertSink:
    """An idempotent producer with acks=all; the message key is the alert's.

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

        Messages that are no event with an id are passed over; a topic that does not exist has
        none. Where others write to the topic, their messages are among those offsets.

        Raises:
            BrokerUnavailableError: It was not all read in half a minute.
            BrokerError: The broker cannot be reached, or refuses.
        """
        try:
            with _consumer(self._settings, self._topic) as consumer:
                ends = consumer.end_offsets(consumer.assignment())
                for partition, end in ends.items():
                    consumer.seek(partition, max(0, end - LAST_OFFSETS))
                return frozenset(_ids_until(consumer, ends, Deadline(self._clock, READ_BACK_S)))
        except TopicNotFoundError:
            return frozenset()

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        self._closed = True
        self._drop()

    def _open(self) -> Any:
        if self._closed:
            raise BrokerError("the alert sink is closed", self._topic)
        options = producer_options(self._settings, MAX_EVENT_BYTES) | {
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


@dataclass(frozen=True, slots=True)
class ReadAlert:
    """A message of the alert topic: its event, or what is wrong with it."""

    partition: int
    offset: int
    event: Mapping[str, Any] | None
    problem: str | None


def read_alerts(
    settings: KafkaSettings,
    topic: str,
    *,
    clock: Clock,
    follow: bool,
    from_beginning: bool,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[ReadAlert]:
    """The messages of a topic of alerts, in order within a partition.

    Joins no group and commits nothing. Begins with the first message that the topic has, or with
    new ones, and ends with the last one unless it is to follow. ``should_stop`` ends it within
    half a second.

    Raises:
        TopicNotFoundError: The topic does not exist.
        BrokerError: The broker cannot be reached, or refuses.
    """
    with _consumer(settings, topic) as consumer:
        seek = consumer.seek_to_beginning if from_beginning else consumer.seek_to_end
        seek(*consumer.assignment())
        ends = {} if follow else consumer.end_offsets(consumer.assignment())
        patience = Deadline(clock, SILENCE_S)
        while not should_stop():
            found = _poll(consumer)
            yield from found
            if found:
                patience = Deadline(clock, SILENCE_S)
            # The embedded broker tells too small an end: only a poll without alerts shows it.
            elif not follow and _at_end(consumer, ends):
                return
            elif not follow and patience.expired():
                raise BrokerUnavailableError(
                    f"the broker has alerts, and sent none for {SILENCE_S:g} s",
                    f"{', '.join(settings.bootstrap_servers)}, topic {topic}",
                    "Check that the broker runs, and try again",
                )


def _ids_until(
    consumer: Any, ends: Mapping[KafkaPartition, int], deadline: Deadline
) -> Iterator[str]:
    while True:
        found = _poll(consumer)
        for name in (alert.event.get("id") for alert in found if alert.event is not None):
            if isinstance(name, str) and len(name) <= MAX_ID:
                yield name
        # The embedded broker tells too small an end, so a poll without records decides, unless
        # others write so much that there is none.
        if (not found or deadline.expired()) and _at_end(consumer, ends):
            return
        if deadline.expired():
            raise BrokerUnavailableError(
                f"the last alerts were not read in {READ_BACK_S:g} s",
                f"topic {next(iter(ends)).topic}",
                "Check that the broker runs",
            )


@contextmanager
def _consumer(settings: KafkaSettings, topic: str) -> Iterator[Any]:
    options = client_options(settings) | {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
    }
    with translated_errors(settings, f"reading {topic}"):
        consumer = open_client(KafkaConsumer, options)
        try:
            numbers = consumer.partitions_for_topic(topic)
            if not numbers:
                raise TopicNotFoundError(
                    f"no such topic: {topic}",
                    ", ".join(settings.bootstrap_servers),
                    "Check alerts.topic, or --topic",
                )
            consumer.assign([KafkaPartition(topic, number) for number in sorted(numbers)])
            yield consumer
        finally:
            consumer.close()


def _at_end(consumer: Any, ends: Mapping[KafkaPartition, int]) -> bool:
    positions = ((consumer.position(p, timeout_ms=POLL_MS), end) for p, end in ends.items())
    return all(position is not None and position >= end for position, end in positions)


def _poll(consumer: Any) -> list[ReadAlert]:
    batches = consumer.poll(POLL_MS).values()
    return [_read(record) for records in batches for record in records]


def _read(record: Any) -> ReadAlert:
    found = _event_or_problem(record.value)
    event, problem = (None, found) if isinstance(found, str) else (found, None)
    return ReadAlert(record.partition, record.offset, event, problem)


def _event_or_problem(value: bytes | None) -> Mapping[str, Any] | str:
    if value is None:
        return "no value"
    if len(value) > MAX_EVENT_BYTES:
        return f"{len(value)} bytes, more than {MAX_EVENT_BYTES}"
    try:
        event = json.loads(value)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({type(error).__name__})"
    return event if isinstance(event, dict) else "not a JSON object"
