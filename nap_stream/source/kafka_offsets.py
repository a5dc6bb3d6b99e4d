"""What the broker says of a partition before it is read: offsets, and the topic's id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event

from kafka import KafkaConsumer, errors
from kafka.structs import TopicPartition as KafkaPartition

OFFSETS_TIMEOUT_S = 5.0
"""For one question. `poll` asks again when nobody answered, so it can be short."""


@dataclass(frozen=True, slots=True)
class FoundOffsets:
    """The first and the next offset of a partition, and the group's committed one, if any."""

    earliest: int
    latest: int
    committed: int | None


def ask_offsets(
    consumer: KafkaConsumer, partitions: Sequence[KafkaPartition]
) -> Mapping[KafkaPartition, FoundOffsets]:
    """Ask the broker for the offsets of partitions.

    Raises:
        RetriableError: kafka-python's own; nobody answered in time.
    """
    timeout_ms = OFFSETS_TIMEOUT_S * 1000
    earliest = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
    latest = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
    return {
        native: FoundOffsets(
            earliest[native], latest[native], consumer.committed(native, timeout_ms=timeout_ms)
        )
        for native in partitions
    }


def newest_topic_id(consumer: KafkaConsumer, topic: str) -> str | None:
    """The topic's id, asked anew; None from a broker that gives none.

    Raises:
        KafkaTimeoutError: kafka-python's own; nobody answered in time.
    """
    # kafka-python shows a consumer's metadata nowhere else.
    refreshed = consumer._cluster.request_update()  # noqa: SLF001
    answered = Event()
    refreshed.add_both(lambda _answer: answered.set())
    if not answered.wait(OFFSETS_TIMEOUT_S):
        raise errors.KafkaTimeoutError("no answer to a question for metadata")
    return known_topic_id(consumer, topic)


def known_topic_id(consumer: KafkaConsumer, topic: str) -> str | None:
    """The topic's id by the metadata of last time; None where there is none."""
    found = consumer._cluster.topic_id(topic)  # noqa: SLF001  as above
    return str(found) if found else None
