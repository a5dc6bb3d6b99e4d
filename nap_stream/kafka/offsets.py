"""What a broker and a consumer group say about a topic's offsets, without joining the group."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

from kafka import KafkaAdminClient, errors
from kafka.admin import OffsetSpec
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Deadline, SystemClock
from nap_stream.errors import TopicNotFoundError
from nap_stream.kafka.client import (
    client_options,
    described,
    from_native,
    open_client,
    translated_errors,
)
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.settings.topics import TopicSelection

PAUSE_S = 0.2
Answer = TypeVar("Answer")


def committed_offsets(
    settings: KafkaSettings, reads: TopicSelection | None = None
) -> Mapping[TopicPartition, int]:
    """The offsets that the group has committed in the topics that it ``reads``, by partition.

    Raises:
        BrokerUnavailableError: None answered in ``connect_timeout_s``.
        BrokerError: The broker refuses.
    """

    def ask(admin: Any) -> Any:
        return admin.list_group_offsets([settings.group_id])[settings.group_id]

    reads = reads or settings.selection()
    found = _asked(settings, f"asking for the offsets of group {settings.group_id}", ask)
    return {
        from_native(native): committed.offset
        for native, committed in found.items()
        if native.topic in reads and committed.offset >= 0
    }


def offsets_of(
    settings: KafkaSettings, committed: Mapping[TopicPartition, int], topics: Sequence[str]
) -> list[PartitionOffsets]:
    """The first and the next offset of each partition of topics, with those ``committed``.

    Raises:
        TopicNotFoundError: A topic does not exist.
        BrokerUnavailableError: None answered in ``connect_timeout_s``.
        BrokerError: The broker refuses.
    """

    def ask(admin: Any) -> list[PartitionOffsets]:
        found = {topic["name"]: topic for topic in described(admin, settings, topics)}
        if missing := [name for name in topics if name not in found]:
            raise TopicNotFoundError(
                f"no such topic: {', '.join(missing)}", ", ".join(settings.bootstrap_servers)
            )
        natives = [
            KafkaPartition(name, partition["partition_index"])
            for name in topics
            for partition in found[name]["partitions"]
        ]
        earliest = _offsets(admin, natives, OffsetSpec.EARLIEST)
        end = _offsets(admin, natives, OffsetSpec.LATEST)
        ids = {
            name: str(topic["topic_id"]) for name, topic in found.items() if topic.get("topic_id")
        }
        return [
            PartitionOffsets(one, earliest[one], end[one], committed.get(one), ids.get(one.topic))
            for one in sorted(earliest)
        ]

    what = f"topic {topics[0]}" if len(topics) == 1 else f"{len(topics)} topics"
    return _asked(settings, f"asking for the offsets of {what}", ask)


def _asked(settings: KafkaSettings, what: str, ask: Callable[[Any], Answer]) -> Answer:
    """What a broker answers. A coordinator or leader that is not there yet is asked again."""
    clock = SystemClock()
    deadline = Deadline(clock, settings.connect_timeout_s)
    with (
        translated_errors(settings, what),
        closing(open_client(KafkaAdminClient, client_options(settings))) as admin,
    ):
        while True:
            try:
                return ask(admin)
            except errors.KafkaError as error:
                if not error.retriable or deadline.expired():
                    raise
            clock.sleep(PAUSE_S)


def _offsets(admin: Any, natives: list[KafkaPartition], spec: Any) -> dict[TopicPartition, int]:
    found = admin.list_partition_offsets(dict.fromkeys(natives, spec))
    return {from_native(native): answer.offset for native, answer in found.items()}
