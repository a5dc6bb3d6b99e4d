"""Reading alerts back from their topic."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Clock
from nap_stream.errors import TopicNotFoundError
from nap_stream.kafka_client import client_options, translated_errors
from nap_stream.settings import KafkaSettings

MAX_EVENT_BYTES = 2**20
QUIET_S = 3.0
"""A reader that does not follow ends when nothing came for so long: end offsets are not asked,
because the embedded broker tells wrong ones."""


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
    """The alerts of a topic, in order within a partition. Joins no group and commits nothing.

    Args:
        settings: How to connect.
        topic: The alert topic.
        clock: For knowing when nothing more comes.
        follow: Go on waiting for new alerts.
        from_beginning: Start with the first alert that the topic has, not with new ones.
        should_stop: Ends the iteration within half a second.

    Yields:
        Each message, foreign ones with what is wrong with them.

    Raises:
        TopicNotFoundError: The topic does not exist.
        BrokerError: The broker cannot be reached, or refuses.
    """
    with _consumer(settings, topic, from_beginning=from_beginning) as consumer:
        heard_at = clock.monotonic()
        while not should_stop():
            for records in consumer.poll(500).values():
                for record in records:
                    heard_at = clock.monotonic()
                    yield _read(record)
            if not follow and clock.monotonic() - heard_at >= QUIET_S:
                return


@contextmanager
def _consumer(settings: KafkaSettings, topic: str, *, from_beginning: bool) -> Iterator[Any]:
    options = client_options(settings) | {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
    }
    with translated_errors(settings, f"reading {topic}"):
        consumer = KafkaConsumer(**options)
        try:
            numbers = consumer.partitions_for_topic(topic)
            if not numbers:
                raise TopicNotFoundError(
                    f"no such topic: {topic}",
                    ", ".join(settings.bootstrap_servers),
                    "Check alerts.topic, or --topic",
                )
            partitions = [KafkaPartition(topic, number) for number in sorted(numbers)]
            consumer.assign(partitions)
            if from_beginning:
                consumer.seek_to_beginning(*partitions)
            else:
                consumer.seek_to_end(*partitions)
            yield consumer
        finally:
            consumer.close()


def _read(record: Any) -> ReadAlert:
    try:
        event, problem = _parse(record.value), None
    except ValueError as error:
        event, problem = None, str(error)
    return ReadAlert(record.partition, record.offset, event, problem)


def _parse(value: bytes | None) -> Mapping[str, Any]:
    """An event from outside, or a ValueError that says what is wrong with it."""
    if value is None:
        raise ValueError("no value")
    if len(value) > MAX_EVENT_BYTES:
        raise ValueError(f"{len(value)} bytes, more than {MAX_EVENT_BYTES}")
    try:
        event = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({type(error).__name__})") from error
    if not isinstance(event, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  wrong input, not a wrong call
    return event
