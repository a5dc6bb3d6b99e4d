"""Between the names and records of kafka-python and ours."""

from collections.abc import Mapping
from typing import Any

from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.records import Message, TopicPartition


def to_native(partition: TopicPartition) -> KafkaPartition:
    """Our partition as kafka-python names it."""
    return KafkaPartition(partition.topic, partition.partition)


def from_native(native: KafkaPartition) -> TopicPartition:
    """Kafka-python's partition as we name it."""
    return TopicPartition(native.topic, native.partition)


def native_offsets(offsets: Mapping[TopicPartition, int]) -> dict[KafkaPartition, Any]:
    """Offsets to commit, without metadata and leader epoch."""
    return {to_native(p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}


def message(partition: TopicPartition, record: Any) -> Message:
    """A consumed record as a message."""
    return Message(
        partition=partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )
