"""Messages from Kafka, as a static member of a consumer group."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, errors
from kafka.coordinator.base import MemberState
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Clock, SystemClock
from nap_stream.deadline import Deadline
from nap_stream.errors import BrokerError, OffsetRangeError
from nap_stream.kafka_client import open_client
from nap_stream.kafka_errors import translated_errors
from nap_stream.records import Fetched, Message, TopicPartition
from nap_stream.settings import KafkaSettings
from nap_stream.source.base import PartitionListener
from nap_stream.source.kafka_group import at_least_1_ms, consumer_options, leave_group

COMMIT_TIMEOUT_S = 10.0
OFFSETS_TIMEOUT_S = 5.0
"""For one question about offsets. `poll` asks again when nobody answered, so it can be short."""
POSITION_TIMEOUT_S = 1.0
_COMMIT_REFUSED = (
    errors.CommitFailedError,
    errors.RebalanceInProgressError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
)


class KafkaSource:
    """A consumer of one topic, in a group, with static membership and manual commits.

    Partitions move by cooperative-sticky assignment. A new partition is held back until its
    listener has said where to read from, which happens in the next `poll`.

    Args:
        settings: Topic, group, time-outs and connection.
        listener: Told about partitions.
        instance_id: The static member's name: stable over restarts, unique within the group.
        clock: For the deadline of `close`.

    Raises:
        BrokerUnavailableError: No broker answers in time.
        BrokerError: The broker refuses.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        listener: PartitionListener,
        *,
        instance_id: str,
        clock: Clock | None = None,
    ) -> None:
        self._settings, self._listener, self._instance_id = settings, listener, instance_id
        self._clock = clock or SystemClock()
        self._commits: list[Any] = []
        self._fresh: set[KafkaPartition] = set()
        self._ends: dict[KafkaPartition, int] = {}
        self._paused = False
        self._closed = False
        with translated_errors(settings, f"joining group {settings.group_id}"):
            self._consumer = open_client(KafkaConsumer, consumer_options(settings, instance_id))
            # A member that leads the group and does not know the partitions yet assigns none.
            self._consumer.partitions_for_topic(settings.topic)
            self._consumer.subscribe([settings.topic], listener=_Rebalances(self))

    def poll(self, timeout_s: float, max_messages: int) -> list[Fetched]:
        """Wait up to ``timeout_s`` seconds for messages; see `Source.poll`."""
        with self._typed_errors("fetching"):
            if not self._place_fresh():
                return []
            try:
                records = self._consumer.poll(int(timeout_s * 1000), max_records=max_messages)
            except errors.OffsetOutOfRangeError as error:
                self._out_of_range(error.args[0])
                return []
            except UnicodeDecodeError as error:
                raise self._unreadable(error) from error
            return [
                fetched
                for partition in self._consumer.assignment() - self._fresh
                if (fetched := self._fetched(partition, records.get(partition, ())))
            ]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on. It must be assigned."""
        native = _native(partition)
        self._consumer.seek(native, offset)
        self._ends[native] = offset

    def reassign(self, partition: TopicPartition) -> None:
        """Call the listener's ``assigned`` again for a partition, at the next poll."""
        self._hold_back([_native(partition)])

    def pause(self) -> None:
        """Fetch nothing for any assigned partition until `resume`; membership is kept."""
        self._paused = True
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Fetch again."""
        self._paused = False
        self._consumer.resume(*(self._consumer.assignment() - self._fresh))

    def commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit positions to the consumer group; see `Source.commit`."""
        try:
            self._consumer.commit(_native_offsets(offsets), timeout_ms=COMMIT_TIMEOUT_S * 1000)
        except errors.FencedInstanceIdError as error:
            raise BrokerError(
                "another process has joined the group as this worker and taken its place",
                f"group {self._settings.group_id}, static member {self._instance_id}",
                "Run one monitor a consumer group; nothing is lost or doubled in the log",
            ) from error
        except errors.KafkaError as error:
            if not (isinstance(error, _COMMIT_REFUSED) or error.retriable):
                with translated_errors(self._settings, "committing"):
                    raise
            cause = f"{type(error).__name__}: {error}"
            structlog.get_logger().warning("commit_failed", cause=cause)
            return False
        return True

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit without waiting for the answer. Safe within `PartitionListener.revoked`."""
        self._commits = [commit for commit in self._commits if not commit.is_done]
        try:
            commit = self._consumer.commit_async(_native_offsets(offsets), callback=_note_failure)
        except errors.KafkaError as error:
            _note_failure(offsets, error)
        else:
            self._commits.append(commit)

    def lag(self, partition: TopicPartition) -> int | None:
        """Offsets between the position and the high watermark; None while unknown."""
        native = _native(partition)
        if native not in self._ends or native not in self._consumer.assignment():
            return None
        high_watermark = self._consumer.highwater(native)
        return None if high_watermark is None else max(0, high_watermark - self._ends[native])

    def close(self, timeout_s: float) -> None:
        """Leave the consumer group and close connections. Safe to call twice.

        Partitions are given up on the caller's own thread, so that heartbeats go on meanwhile.

        Raises:
            Exception: What the listener raised. The group is left and closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        deadline = Deadline(self._clock, timeout_s)
        member = self._consumer.group_metadata()
        try:
            self.give_up(sorted(self._ends), lost=member.generation_id < 0)
            self._wait_for_commits(deadline)
        finally:
            with self._typed_errors("closing"):
                self._consumer.close(autocommit=False, timeout_ms=at_least_1_ms(deadline))
            # One whose first join is not answered yet has no id, and is in the group all the same.
            if member.member_id or member.state is not MemberState.UNJOINED:
                leave_group(self._settings, self._instance_id, member.member_id, deadline)

    def take(self, partitions: Iterable[KafkaPartition]) -> None:
        """Hold new partitions back until `poll` has placed them. For the rebalance listener."""
        self._hold_back(partitions)

    def give_up(self, partitions: Iterable[KafkaPartition], *, lost: bool) -> None:
        """Let go of partitions. For the rebalance listener."""
        known = [native for native in partitions if native in self._ends]
        self._fresh.difference_update(partitions)
        told = [_ours(native) for native in known]
        try:
            if known and lost:
                self._listener.lost(told)
            elif known:
                self._listener.revoked(told)
        finally:
            for native in known:
                del self._ends[native]

    def _hold_back(self, partitions: Iterable[KafkaPartition]) -> None:
        for native in partitions:
            # A position must be set, or the consumer asks for the committed one by itself.
            self._consumer.seek(native, 0)
            self._consumer.pause(native)
            self._fresh.add(native)

    def _place_fresh(self) -> bool:
        """Ask the listener where to read new partitions from; on the reader's own thread.

        Returns:
            False where nobody answered: the partitions wait for the next call.
        """
        waiting = sorted(self._fresh)
        if not waiting:
            return True
        timeout_ms = OFFSETS_TIMEOUT_S * 1000
        try:
            earliest = self._consumer.beginning_offsets(waiting, timeout_ms=timeout_ms)
            latest = self._consumer.end_offsets(waiting, timeout_ms=timeout_ms)
            committed = {
                native: self._consumer.committed(native, timeout_ms=timeout_ms)
                for native in waiting
            }
        except errors.RetriableError as error:
            cause = f"{type(error).__name__}: {error}"
            structlog.get_logger().warning("partitions_wait_for_offsets", cause=cause)
            return False
        for native in waiting:
            offset = self._listener.assigned(
                _ours(native),
                earliest=earliest[native],
                committed=committed[native],
                start=(earliest if self._settings.start == "earliest" else latest)[native],
            )
            self._fresh.discard(native)
            self.seek(_ours(native), offset)
            if not self._paused:
                self._consumer.resume(native)
        return True

    def _fetched(self, native: KafkaPartition, records: Sequence[Any]) -> Fetched | None:
        position = self._consumer.position(native, timeout_ms=POSITION_TIMEOUT_S * 1000)
        if position is None and records:
            position = records[-1].offset + 1
        if position is None or (not records and position <= self._ends.get(native, position)):
            return None
        self._ends[native] = position
        partition = _ours(native)
        return Fetched(partition, tuple(_message(partition, r) for r in records), position)

    def _out_of_range(self, positions: Mapping[KafkaPartition, int]) -> None:
        """Have partitions placed anew whose position retention has deleted.

        Raises:
            OffsetRangeError: The position is past the end: it belongs to another topic.
        """
        ends = self._consumer.end_offsets(list(positions), timeout_ms=OFFSETS_TIMEOUT_S * 1000)
        for native, position in positions.items():
            if position > ends[native]:
                raise OffsetRangeError(
                    f"the next offset to read is {position}, and the topic ends at {ends[native]}",
                    str(_ours(native)),
                    "Was the topic deleted and made anew? Then give the monitor a new log.root",
                )
            structlog.get_logger().warning(
                "offset_out_of_range", partition=str(_ours(native)), position=position
            )
            self._hold_back([native])

    def _unreadable(self, error: UnicodeDecodeError) -> BrokerError:
        """kafka-python reads no message whose header has a name that is not UTF-8."""
        ends = ", ".join(f"{_ours(native)}@{end}" for native, end in sorted(self._ends.items()))
        return BrokerError(
            f"a message has a header whose name is not UTF-8 ({error})",
            f"at or after one of {ends}",
            "Find its producer; delete the records up to it, which the log will declare as a gap",
        )

    def _wait_for_commits(self, deadline: Deadline) -> None:
        """Let commits arrive that were sent without waiting: closing would cut them off."""
        for commit in self._commits:
            answered = Event()
            commit.add_both(lambda _answer, answered=answered: answered.set())
            answered.wait(deadline.remaining_s())

    @contextmanager
    def _typed_errors(self, what: str) -> Iterator[None]:
        """Our errors for Kafka's; what the listener raised as itself."""
        with translated_errors(self._settings, f"{what} {self._settings.topic}"):
            try:
                yield
            except errors.KafkaError as error:
                if type(error) is errors.KafkaError and error.__cause__ is not None:
                    raise error.__cause__ from None
                raise


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Hands kafka-python's events, which come on its own thread, to the source."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        self._source.take(assigned)

    def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        self._source.give_up(revoked, lost=False)

    def on_partitions_lost(self, lost: Iterable[KafkaPartition]) -> None:
        self._source.give_up(lost, lost=True)


def _message(partition: TopicPartition, record: Any) -> Message:
    return Message(
        partition=partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )


def _note_failure(_offsets: Any, response: Any) -> None:
    if isinstance(response, Exception):
        structlog.get_logger().warning("commit_failed", cause=f"{type(response).__name__}")


def _native(partition: TopicPartition) -> KafkaPartition:
    return KafkaPartition(partition.topic, partition.partition)


def _ours(native: KafkaPartition) -> TopicPartition:
    return TopicPartition(native.topic, native.partition)


def _native_offsets(offsets: Mapping[TopicPartition, int]) -> dict[KafkaPartition, Any]:
    return {_native(p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
