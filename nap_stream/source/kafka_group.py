"""Joining and leaving a consumer group as a static member."""

from collections.abc import Callable, Iterable
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaAdminClient, errors
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.deadline import Deadline
from nap_stream.kafka_client import client_options, open_client
from nap_stream.settings import KafkaSettings

SHARES = 16
"""Of what a fetch may bring, one partition's share: the consumer keeps as much for each of them
until it is polled. A first message that is larger comes all the same."""
MIN_SHARE_BYTES = 2**20
METADATA_MAX_AGE_MS = 30_000
"""How soon new partitions are noticed, and an assignment that was made without knowing them."""


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Hands on kafka-python's events, which come on its own thread.

    Args:
        take: Told of partitions that are new.
        give_up: Told of partitions that go, and whether they are lost already.
    """

    def __init__(
        self,
        take: Callable[[Iterable[KafkaPartition]], None],
        give_up: Callable[[Iterable[KafkaPartition], bool], None],
    ) -> None:
        self._take, self._give_up = take, give_up

    def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        """Take partitions."""
        self._take(assigned)

    def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        """Give partitions up in good order."""
        self._give_up(revoked, False)

    def on_partitions_lost(self, lost: Iterable[KafkaPartition]) -> None:
        """Drop partitions that another member has."""
        self._give_up(lost, True)


def consumer_options(settings: KafkaSettings, instance_id: str) -> dict[str, Any]:
    """For a consumer that reads nothing twice and skips nothing by itself.

    Args:
        settings: How to connect, the group and its time-outs.
        instance_id: The static member's name.
    """
    session_ms = int(settings.session_timeout_s * 1000)
    return client_options(settings) | {
        "client_id": f"nap-stream-{instance_id}",
        "group_id": settings.group_id,
        "group_instance_id": instance_id,
        "partition_assignment_strategy": (CooperativeStickyAssignor(),),
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "check_crcs": True,
        "fetch_max_bytes": settings.max_fetch_bytes,
        "max_partition_fetch_bytes": max(MIN_SHARE_BYTES, settings.max_fetch_bytes // SHARES),
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": min(3_000, session_ms // 3),
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "max_poll_interval_ms": int(settings.max_poll_interval_s * 1000),
    }


def leave_group(
    settings: KafkaSettings, instance_id: str, member_id: str, deadline: Deadline
) -> None:
    """Free a static member's partitions now, which else wait for the session time-out.

    kafka-python, like Kafka's own client, does not do so when the consumer closes. A failure is
    logged and no error: the session time-out has the same effect, later.

    Args:
        settings: How to connect, and the group.
        instance_id: The static member's name.
        member_id: As the group knows this very process: it keeps one that was replaced from
            removing its replacement.
        deadline: For all of it.
    """
    within_ms = at_least_1_ms(deadline)
    options = client_options(settings) | {
        "bootstrap_timeout_ms": within_ms,
        "request_timeout_ms": within_ms,
    }
    member = MemberToRemove(member_id=member_id, group_instance_id=instance_id)
    try:
        admin = open_client(KafkaAdminClient, options)
        try:
            answers = admin.remove_group_members(settings.group_id, [member])
        finally:
            admin.close()
    except errors.KafkaError as error:
        structlog.get_logger().warning("group_not_left", cause=f"{type(error).__name__}: {error}")
        return
    refused = [kind.__name__ for kind in answers.values() if kind is not errors.NoError]
    if refused:
        structlog.get_logger().warning("group_not_left", cause=", ".join(refused))


def at_least_1_ms(deadline: Deadline) -> int:
    """What is left, in milliseconds; kafka-python takes 0 for its own default."""
    return max(1, int(deadline.remaining_s() * 1000))
