"""What the broker says of a partition's offsets before it is read, and what may be wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka import KafkaConsumer
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.errors import BrokerError, OffsetRangeError
from nap_stream.source.kafka_names import from_native

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


def past_the_end(native: KafkaPartition, position: int, end: int) -> OffsetRangeError:
    """The error for a position that the partition has not reached."""
    return OffsetRangeError(
        f"the next offset to read is {position}, and the topic ends at {end}",
        str(from_native(native)),
        "Was the topic deleted and made anew? Then give the monitor a new log.root",
    )


def unreadable(ends: Mapping[KafkaPartition, int], error: UnicodeDecodeError) -> BrokerError:
    """The error for a message whose header has a name that kafka-python cannot read.

    Args:
        ends: Where each partition stands.
        error: Kafka-python's, which does not say in which message.
    """
    at = ", ".join(f"{from_native(native)}@{end}" for native, end in sorted(ends.items()))
    return BrokerError(
        f"a message has a header whose name is not UTF-8 ({error})",
        f"at or after one of {at}",
        "Find its producer; delete the records up to it, which the log will declare as a gap",
    )
