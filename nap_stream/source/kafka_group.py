"""A static member of a consumer group in kafka-python: its options, joins, commits and offsets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from threading import Event
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, errors
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Deadline
from nap_stream.errors import BrokerError, OffsetRangeError
from nap_stream.kafka.client import (
    client_options,
    from_native,
    open_client,
    to_native,
    translated_errors,
)
from nap_stream.records import Message, PartitionOffsets, TopicPartition
from nap_stream.settings.schema import KafkaSettings


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


class Joins:
    """Keeps the group's answer to a join until the consumer takes it, and has it taken.

    kafka-python forgets an answer that comes between two polls, and joins anew. Where this member
    leads the group, all members must then join anew: a rebalance that need not end, and that of a
    consumer that polls without waiting never does. Where the leader joined for partitions that are
    new, it does not join anew either: it stays in the rebalance for good, without heartbeats.

    To be made before the consumer's first poll.
    """

    def __init__(self, consumer: KafkaConsumer) -> None:
        # kafka-python has no other way to reach its joins.
        self._coordinator = consumer._coordinator  # noqa: SLF001
        self._ask = self._coordinator._do_join_and_sync_async  # noqa: SLF001
        self._complete = self._coordinator._on_join_complete_async  # noqa: SLF001
        self._answer: tuple[object, bytes] | None = None
        self._coordinator._do_join_and_sync_async = self._join  # noqa: SLF001
        self._coordinator._on_join_complete_async = self._take  # noqa: SLF001

    @property
    def under_way(self) -> bool:
        """Whether a join has begun whose answer the consumer has not taken."""
        return bool(self._coordinator.rebalance_in_progress())

    async def _join(self) -> bytes:
        """The assignment, as bytes: that of an answer that nobody took, else of a new one."""
        self._coordinator.request_rejoin()
        if self._answer is not None and self.under_way:
            generation, kept = self._answer
            if generation == self._coordinator._generation:  # noqa: SLF001
                return kept
        self._answer = None
        assignment: bytes = await self._ask()
        self._answer = self._coordinator._generation, assignment  # noqa: SLF001
        return assignment

    async def _take(self, *answer: object) -> None:
        self._answer = None
        await self._complete(*answer)


SHARE_BYTES = 2**20
"""Of what a fetch may bring, one partition's share: the consumer keeps as much for each of them
until it is polled. A first message that is larger comes all the same. Larger shares are slower:
kafka-python copies an answer several times, and a small one stays in the processor's cache."""
HEARTBEAT_MS = 1_000
"""How soon a member hears that the group rebalances; partitions that move pause for as long."""
METADATA_MAX_AGE_MS = 5_000
"""How soon new partitions are noticed, and an assignment that was made without knowing them."""


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Hands on kafka-python's events, which come on its own thread.

    ``give_up`` is told of partitions that go, and whether they are lost already.
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
    """For a consumer that reads nothing twice and skips nothing by itself."""
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
        "max_partition_fetch_bytes": min(SHARE_BYTES, settings.max_fetch_bytes),
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": min(HEARTBEAT_MS, session_ms // 3),
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "max_poll_interval_ms": int(settings.max_poll_interval_s * 1000),
    }


def leave_group(
    settings: KafkaSettings, instance_id: str, member_id: str, deadline: Deadline
) -> None:
    """Free a static member's partitions now, which else wait for the session time-out.

    kafka-python, like Kafka's own client, does not do so when the consumer closes. A failure is
    logged and no error: the session time-out has the same effect, later. ``member_id`` is as the
    group knows this very process: it keeps one that was replaced from removing its replacement.
    """
    within_ms = at_least_1_ms(deadline)
    options = client_options(settings) | {
        "bootstrap_timeout_ms": within_ms,
        "request_timeout_ms": within_ms,
    }
    member = MemberToRemove(member_id=member_id, group_instance_id=instance_id)
    try:
        with closing(open_client(KafkaAdminClient, options)) as admin:
            answers = admin.remove_group_members(settings.group_id, [member])
    except errors.KafkaError as error:
        structlog.get_logger().warning("group_not_left", cause=f"{type(error).__name__}: {error}")
        return
    refused = [kind.__name__ for kind in answers.values() if kind is not errors.NoError]
    if refused:
        structlog.get_logger().warning("group_not_left", cause=", ".join(refused))


def at_least_1_ms(deadline: Deadline) -> int:
    """What is left, in milliseconds; kafka-python takes 0 for its own default."""
    return max(1, int(deadline.remaining_s() * 1000))


_REFUSED = (
    errors.CommitFailedError,
    errors.RebalanceInProgressError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
)


class Commits:
    """The commits of one consumer. Failures are logged once, until a commit succeeds."""

    def __init__(self, consumer: KafkaConsumer, settings: KafkaSettings, instance_id: str) -> None:
        self._consumer, self._settings, self._instance_id = consumer, settings, instance_id
        self._pending: list[Any] = []
        self._failed: str | None = None

    def commit(self, offsets: Mapping[TopicPartition, int], timeout_s: float) -> bool:
        """Commit and wait for the answer; False where the group or the network refused.

        Raises:
            BrokerError: Another process has taken this member's place, or may not commit.
        """
        try:
            # kafka-python takes 0 for its own default.
            timeout_ms = max(1.0, timeout_s * 1000)
            self._consumer.commit(native_offsets(offsets), timeout_ms=timeout_ms)
        except errors.FencedInstanceIdError as error:
            raise BrokerError(
                "another process has joined the group as this worker and taken its place",
                f"group {self._settings.group_id}, static member {self._instance_id}",
                "Run one monitor a consumer group; nothing is lost or doubled in the log",
            ) from error
        except errors.KafkaError as error:
            if not (isinstance(error, _REFUSED) or error.retriable):
                with translated_errors(self._settings, "committing"):
                    raise
            self._note_failure(offsets, error)
            return False
        if self._failed is not None:
            structlog.get_logger().info("commits_go_on", after=self._failed)
            self._failed = None
        return True

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit without waiting for the answer."""
        self._pending = [commit for commit in self._pending if not commit.is_done]
        try:
            commit = self._consumer.commit_async(
                native_offsets(offsets), callback=self._note_failure
            )
        except errors.KafkaError as error:
            self._note_failure(offsets, error)
        else:
            self._pending.append(commit)

    def wait(self, deadline: Deadline) -> None:
        """Let commits arrive that were sent without waiting: closing would cut them off."""
        for commit in self._pending:
            answered = Event()
            commit.add_both(lambda _answer, answered=answered: answered.set())
            answered.wait(deadline.remaining_s())

    def _note_failure(self, _offsets: Any, response: Any) -> None:
        if not isinstance(response, Exception):
            return
        cause = type(response).__name__
        if cause != self._failed:
            structlog.get_logger().warning("commit_failed", cause=f"{cause}: {response}")
        self._failed = cause


OFFSETS_TIMEOUT_S = 5.0
"""For one question. `poll` asks again when nobody answered, so it can be short."""


def ask_offsets(
    consumer: KafkaConsumer, partitions: Sequence[KafkaPartition]
) -> Mapping[KafkaPartition, PartitionOffsets]:
    """Ask the broker for the offsets of partitions; of the topic's id it says nothing here.

    Raises:
        RetriableError: kafka-python's own; nobody answered in time.
    """
    timeout_ms = OFFSETS_TIMEOUT_S * 1000
    earliest = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
    end = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
    return {
        native: PartitionOffsets(
            from_native(native),
            earliest[native],
            end[native],
            consumer.committed(native, timeout_ms=timeout_ms),
            topic_id=None,
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


def truncated(native: KafkaPartition, at: Any) -> OffsetRangeError:
    """The error for a partition whose leader has lost messages that were read.

    ``at`` is the first of them as kafka-python says it, None where that is not known.
    """
    first = "" if at is None else f", from offset {at.offset} on"
    return OffsetRangeError(
        f"the broker has lost messages that were read{first}",
        str(from_native(native)),
        "Was a leader elected uncleanly? The log keeps the rows of what was lost; of what came in "
        "its place it can take none. Read on from the partition's end in a new log.root, or start "
        "anew to go on here once the topic has come so far",
    )


def unreadable(ends: Mapping[KafkaPartition, int], error: UnicodeDecodeError) -> BrokerError:
    """The error for a message whose header has a name that kafka-python cannot read.

    Its own ``error`` does not say in which message; ``ends`` is where each partition stands.
    """
    at = ", ".join(f"{from_native(native)}@{end}" for native, end in sorted(ends.items()))
    return BrokerError(
        f"a message has a header whose name is not UTF-8 ({error})",
        f"at or after one of {at}",
        "Find its producer; delete the records up to it, which the log will declare as a gap",
    )
