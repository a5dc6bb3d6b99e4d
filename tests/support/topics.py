"""Topics and raw messages for tests, through kafka-python itself."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.errors import KafkaError
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.kafka.client import create_topics
from nap_stream.settings.schema import KafkaSettings
from tests.support.waiting import PATIENCE_S, wait_until

_PATIENCE_MS = int(PATIENCE_S * 1000)
PATIENT = {"bootstrap_timeout_ms": _PATIENCE_MS, "request_timeout_ms": _PATIENCE_MS // 5}
"""Options of any client: a broker that stands still for a while fails no test.

A request without an answer leaves time for another one, of whoever waits."""
PATIENT_PRODUCER = PATIENT | {"max_block_ms": _PATIENCE_MS, "delivery_timeout_ms": _PATIENCE_MS}


def settings_without_topic(bootstrap: str, **changes: Any) -> KafkaSettings:
    """Settings with a topic of their own, which is not there yet, and a group of their own."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    return KafkaSettings(
        **{
            "bootstrap_servers": (bootstrap,),
            "topic": name,
            "group_id": f"group-of-{name}",
            "connect_timeout_s": PATIENCE_S,
            **changes,
        }
    )


def new_settings(bootstrap: str, *, partitions: int = 1, **changes: Any) -> KafkaSettings:
    """Settings with a topic of their own, which exists, and a group of their own."""
    settings = settings_without_topic(bootstrap, **changes)
    create_topics(settings, [settings.topic], partitions)
    return settings


@contextmanager
def administering(bootstrap_servers: str | Sequence[str]) -> Iterator[Any]:
    """kafka-python's admin client, closed at the end."""
    servers = [bootstrap_servers] if isinstance(bootstrap_servers, str) else [*bootstrap_servers]
    with closing(KafkaAdminClient(bootstrap_servers=servers, **PATIENT)) as admin:
        yield admin


def _asked_of_group(settings: KafkaSettings, ask: Callable[[Any], Any]) -> Any:
    """An answer of the group's coordinator, which a broker that has just begun may not have yet."""
    answers: list[Any] = []

    def answered() -> bool:
        try:
            with administering(settings.bootstrap_servers) as admin:
                answers.append(ask(admin))
        except KafkaError as error:
            if not error.retriable:
                raise
        return bool(answers)

    wait_until(answered, f"the coordinator of {settings.group_id}")
    return answers[0]


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
        bootstrap_servers=list(settings.bootstrap_servers),
        acks="all",
        max_request_size=2**26,
        **PATIENT_PRODUCER,
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
        found = [future.get(timeout=PATIENCE_S) for future in sent]
    finally:
        producer.close()
    return [(metadata.partition, metadata.offset) for metadata in found]


def read_topic(consumer: Any, topic: str, count: int | None = None) -> list[Any]:
    """A topic's records from its start until there are so many, or else up to its present end.

    Args:
        consumer: kafka-python's, which has nothing assigned before and after.
        topic: It exists.
        count: How many.
    """
    # A client that is told of no topic for a moment says that there is none.
    wait_until(lambda: bool(consumer.partitions_for_topic(topic)), f"the topic {topic}")
    numbers = sorted(consumer.partitions_for_topic(topic))
    partitions = [KafkaPartition(topic, number) for number in numbers]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    ends = consumer.end_offsets(partitions)
    records: list[Any] = []

    def done() -> bool:
        for found in consumer.poll(200).values():
            records.extend(found)
        if count is not None:
            return len(records) >= count
        return all(consumer.position(partition) >= end for partition, end in ends.items())

    wait_until(done, f"{'all' if count is None else count} records in {topic}")
    consumer.unsubscribe()
    return records


def read_all(settings: KafkaSettings, topic: str, count: int) -> list[Any]:
    """The first ``count`` records of a topic, as kafka-python gives them."""
    with _consuming(settings) as consumer:
        return read_topic(consumer, topic, count)


def read_to_end(settings: KafkaSettings, topic: str) -> list[Any]:
    """All records of a topic."""
    with _consuming(settings) as consumer:
        return read_topic(consumer, topic)


@contextmanager
def _consuming(settings: KafkaSettings) -> Iterator[Any]:
    consumer = KafkaConsumer(
        bootstrap_servers=list(settings.bootstrap_servers),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **PATIENT,
    )
    with closing(consumer):
        yield consumer


def replace_topic(settings: KafkaSettings, messages: int) -> None:
    """Delete the topic, and make one of the same name that has so many messages."""
    with administering(settings.bootstrap_servers) as admin:
        admin.delete_topics([settings.topic])

    def gone() -> bool:
        with _consuming(settings) as consumer:
            return settings.topic not in consumer.topics()

    wait_until(gone, "the topic to be gone")
    create_topics(settings, [settings.topic], 1)
    send(settings, [b"g"] * messages)


def delete_before(settings: KafkaSettings, offset: int, partition: int = 0) -> None:
    """Have the broker forget a partition's messages before an offset, as retention does."""
    with administering(settings.bootstrap_servers) as admin:
        admin.delete_records({KafkaPartition(settings.topic, partition): offset})


def limit_messages(settings: KafkaSettings, max_message_bytes: int) -> None:
    """Have the broker refuse larger messages for the topic."""
    configs = {"max.message.bytes": str(max_message_bytes)}
    with administering(settings.bootstrap_servers) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic, configs)])


def describe_group(settings: KafkaSettings) -> dict[str, Any]:
    """Give the consumer group as the broker describes it."""
    group = settings.group_id
    found: dict[str, Any] = _asked_of_group(settings, lambda a: a.describe_groups([group])[group])
    return found


def remove_member(settings: KafkaSettings, name: str) -> None:
    """Throw a static member out of the consumer group."""
    member = MemberToRemove(group_instance_id=name)
    _asked_of_group(settings, lambda a: a.remove_group_members(settings.group_id, [member]))


def committed_offsets(settings: KafkaSettings) -> dict[int, int]:
    """The offsets that the group has committed, by partition."""
    group = settings.group_id
    found = _asked_of_group(settings, lambda admin: admin.list_group_offsets([group])[group])
    return {partition.partition: value.offset for partition, value in found.items()}
