"""Topics and raw messages for tests, through kafka-python itself."""

import uuid
from collections.abc import Iterable
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.kafka.client import create_topics
from nap_stream.settings.schema import KafkaSettings
from tests.support.waiting import wait_until


def new_settings(bootstrap: str, *, partitions: int = 1, **changes: Any) -> KafkaSettings:
    """Settings with a topic of their own, which exists, and a group of their own."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    settings = KafkaSettings(
        **{
            "bootstrap_servers": (bootstrap,),
            "topic": name,
            "group_id": f"group-of-{name}",
            "connect_timeout_s": 20,
            **changes,
        }
    )
    create_topics(settings, [settings.topic], partitions)
    return settings


def send(
    settings: KafkaSettings,
    values: Iterable[bytes | None],
    *,
    topic: str | None = None,
    partition: int | None = None,
    headers: list[tuple[str, bytes]] | None = None,
) -> list[tuple[int, int]]:
    """Send messages and return their (partition, offset) when all have arrived."""
    producer = KafkaProducer(
        bootstrap_servers=list(settings.bootstrap_servers), acks="all", max_request_size=2**26
    )
    try:
        sent = [
            producer.send(
                topic or settings.topic,
                key=b"" if value is None else None,  # kafka-python sends no message without both
                value=value,
                partition=partition,
                headers=headers or [],
            )
            for value in values
        ]
        found = [future.get(timeout=30) for future in sent]
    finally:
        producer.close()
    return [(metadata.partition, metadata.offset) for metadata in found]


def read_all(settings: KafkaSettings, topic: str, count: int, deadline_s: float = 30) -> list[Any]:
    """The first ``count`` records of a topic, as kafka-python gives them."""
    consumer = KafkaConsumer(
        bootstrap_servers=list(settings.bootstrap_servers),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    records: list[Any] = []
    try:
        numbers = sorted(consumer.partitions_for_topic(topic))
        consumer.assign([KafkaPartition(topic, number) for number in numbers])
        consumer.seek_to_beginning()

        def enough() -> bool:
            for found in consumer.poll(200).values():
                records.extend(found)
            return len(records) >= count

        wait_until(enough, deadline_s, f"{count} records in {topic}")
    finally:
        consumer.close()
    return records


def read_to_end(settings: KafkaSettings, topic: str) -> list[Any]:
    """All records of a topic without transactions."""
    consumer = KafkaConsumer(bootstrap_servers=list(settings.bootstrap_servers), group_id=None)
    try:
        numbers = consumer.partitions_for_topic(topic)
        ends = consumer.end_offsets([KafkaPartition(topic, number) for number in numbers])
    finally:
        consumer.close()
    return read_all(settings, topic, sum(ends.values()))


def replace_topic(settings: KafkaSettings, messages: int) -> None:
    """Delete the topic, and make one of the same name that has so many messages."""
    admin = KafkaAdminClient(bootstrap_servers=list(settings.bootstrap_servers))
    try:
        admin.delete_topics([settings.topic])
    finally:
        admin.close()

    def gone() -> bool:
        consumer = KafkaConsumer(bootstrap_servers=list(settings.bootstrap_servers), group_id=None)
        try:
            return settings.topic not in consumer.topics()
        finally:
            consumer.close()

    wait_until(gone, 30, "the topic to be gone")
    create_topics(settings, [settings.topic], 1)
    send(settings, [b"g"] * messages)


def limit_messages(settings: KafkaSettings, max_message_bytes: int) -> None:
    """Have the broker refuse larger messages for the topic."""
    admin = KafkaAdminClient(bootstrap_servers=list(settings.bootstrap_servers))
    configs = {"max.message.bytes": str(max_message_bytes)}
    try:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic, configs)])
    finally:
        admin.close()


def describe_group(settings: KafkaSettings) -> dict[str, Any]:
    """Give the consumer group as the broker describes it."""
    admin = KafkaAdminClient(bootstrap_servers=list(settings.bootstrap_servers))
    try:
        found: dict[str, Any] = admin.describe_groups([settings.group_id])[settings.group_id]
    finally:
        admin.close()
    return found


def committed_offsets(settings: KafkaSettings) -> dict[int, int]:
    """The offsets that the group has committed, by partition."""
    admin = KafkaAdminClient(bootstrap_servers=list(settings.bootstrap_servers))
    try:
        found = admin.list_group_offsets([settings.group_id])[settings.group_id]
    finally:
        admin.close()
    return {partition.partition: value.offset for partition, value in found.items()}
