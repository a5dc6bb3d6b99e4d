"""What a run asks of the broker, over connections that stay open for many runs."""

from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, errors
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.settings.schema import KafkaSettings
from tests.support.topics import PATIENT, read_topic, settings_without_topic
from tests.support.waiting import wait_until


class Broker:
    """Topics, committed offsets and ends of one broker. Used by one thread.

    Args:
        bootstrap: Its address.
    """

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._admin: Any = KafkaAdminClient(bootstrap_servers=bootstrap, **PATIENT)
        self._consumer = _consumer(bootstrap, "read_committed")
        self._uncommitted = _consumer(bootstrap, "read_uncommitted")

    def new_topic(self, partitions: int, session_timeout_s: float) -> tuple[KafkaSettings, str]:
        """Settings of a topic and a group that are new, and the name of its dead-letter topic."""
        settings = settings_without_topic(self.bootstrap, session_timeout_s=session_timeout_s)
        dead_letters = f"{settings.topic}-dead"
        self._admin.create_topics(
            {settings.topic: {"num_partitions": partitions}, dead_letters: {"num_partitions": 1}},
            wait_for_metadata=True,
        )
        return settings, dead_letters

    def delete(self, *topics: str) -> None:
        """Delete topics, so that the broker does not grow with the runs."""
        self._admin.delete_topics(list(topics))

    def ends(self, topic: str, partitions: int) -> dict[int, int]:
        """Where each partition ends, once no transaction is open.

        A producer hears of the end of its transaction before the partitions do. Until then their
        last stable offsets lie before it, and would be taken for the end of all that was sent.
        """
        wanted = [KafkaPartition(topic, number) for number in range(partitions)]
        found: dict[KafkaPartition, int] = {}

        def settled() -> bool:
            found.update(self._consumer.end_offsets(wanted))
            return bool(found == self._uncommitted.end_offsets(wanted))

        wait_until(settled, lambda: f"the end of each transaction on {topic}, stable up to {found}")
        return {native.partition: end for native, end in found.items()}

    def committed(self, group_id: str) -> dict[int, int]:
        """The offsets that a group has committed; nothing while nobody tells."""
        try:
            found = self._admin.list_group_offsets([group_id])[group_id]
        except errors.RetriableError:
            return {}
        return {native.partition: value.offset for native, value in found.items()}

    def members(self, group_id: str) -> dict[str, int]:
        """How many partitions each static member of a group has; nothing while nobody tells."""
        try:
            group = self._admin.describe_groups([group_id])[group_id]
        except errors.RetriableError:
            return {}
        return {
            member["group_instance_id"]: sum(
                len(topic["partitions"])
                for topic in (member["member_assignment"] or {}).get("assigned_partitions", ())
            )
            for member in group["members"]
        }

    def dead_letters(self, topic: str) -> set[tuple[int, int, int]]:
        """(partition, offset, index) of every dead letter."""
        found: set[tuple[int, int, int]] = set()
        for record in read_topic(self._consumer, topic):
            headers = dict(record.headers)
            place = (headers[f"nap-stream-{part}"] for part in ("partition", "offset", "index"))
            partition, offset, index = (int(value) for value in place)
            found.add((partition, offset, index))
        return found

    def close(self) -> None:
        """Close the connections."""
        self._admin.close()
        self._consumer.close()
        self._uncommitted.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _consumer(bootstrap: str, isolation_level: str) -> Any:
    return KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        isolation_level=isolation_level,
        **PATIENT,
    )
