"""Messages from Kafka, read as a static member of a consumer group while the topic stays one."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import structlog
from kafka import KafkaConsumer, errors
from kafka.coordinator.base import MemberState
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Deadline, SystemClock
from nap_stream.errors import (
    BrokerError,
    BrokerUnavailableError,
    NapStreamError,
    OffsetRangeError,
    TopicReplacedError,
)
from nap_stream.kafka.client import (
    from_native,
    open_client,
    to_native,
    translated_errors,
)
from nap_stream.records import Fetched, PartitionOffsets, TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.settings.topics import TopicSelection
from nap_stream.source.base import COMMIT_TIMEOUT_S, PartitionListener
from nap_stream.source.kafka_group import (
    OFFSETS_TIMEOUT_S,
    Commits,
    Joins,
    Rebalances,
    ask_offsets,
    at_least_1_ms,
    consumer_options,
    leave_group,
    message,
    past_the_end,
    unreadable,
)
from nap_stream.source.kafka_topics import (
    REACHABLE_TIMEOUT_S,
    LeftOut,
    TopicWatch,
    take_metadata_as_it_is,
    why_silent,
)

JOIN_MS = 50
"""How long a poll waits at least while the group rebalances: a join goes on in polls alone."""
PLACE_AGAIN_S = 1.0
POSITION_TIMEOUT_S = 1.0


class KafkaSource:
    """A consumer of topics, in a group, with static membership and manual commits.

    ``reads`` says of which; by default of those that the settings name.

    Partitions move by cooperative-sticky assignment. A new partition is held back until its
    listener has said where to read from, which happens in the next `poll`.

    Of several topics, one that may not be read, or is not the one that its log was made from, is
    left out: its partitions are given up and held back, and tried again with backoff. Where one
    topic is named alone, that is an error.

    ``instance_id`` is the static member's name: stable over restarts, unique within the group.

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
        reads: TopicSelection | None = None,
    ) -> None:
        self._reads = reads or settings.selection()
        self._settings, self._listener, self._instance_id = settings, listener, instance_id
        self._clock = SystemClock()
        self._fresh: set[KafkaPartition] = set()
        self._ends: dict[KafkaPartition, int] = {}
        self._told: set[KafkaPartition] = set()
        self._silent: set[str] = set()
        self._place_at = float("-inf")
        self._waits = False
        self._paused = False
        self._closed = False
        self._has_joined = False
        self._rejoins = False
        self._several = len(self._reads.names) != 1
        with translated_errors(settings, f"joining group {settings.group_id}"):
            self._consumer = open_client(KafkaConsumer, consumer_options(settings, instance_id))
            self._left_out = LeftOut(
                *(settings, self._consumer, self._clock, self._drop), several=self._several
            )
            if self._several:
                take_metadata_as_it_is(self._consumer, self._left_out.forbidden.update)
            self._subscribe(Rebalances(self._take, self._give_up))
        self._topics = TopicWatch(self._consumer, self._clock)
        self._commits = Commits(self._consumer, settings, instance_id)
        self._joins = Joins(self._consumer)

    def poll(self, timeout_s: float, max_messages: int) -> list[Fetched]:
        """Wait up to ``timeout_s`` seconds for messages; see `Source.poll`."""
        with self._typed_errors("fetching"):
            self._topics.revive()
            self._notice_new_topic()
            if self._topics.may_be_others:
                # What is fetched now may be another topic's: it would be taken for this one's.
                return []
            self._leave_out_wrong()
            self._place_fresh()
            # Not before: while the group is asked for a place, it answers nothing else.
            self._rejoin_if_needed()
            try:
                timeout_ms = max(int(timeout_s * 1000), JOIN_MS if self._joins.under_way else 0)
                records = self._consumer.poll(timeout_ms, max_records=max_messages)
            except errors.OffsetOutOfRangeError as error:
                self._out_of_range(error.args[0])
                return []
            except errors.TopicAuthorizationFailedError as error:
                reads = self._consumer.assignment() - self._fresh
                self._left_out.note_forbidden(error, {native.topic for native in reads})
                return []
            except errors.LogTruncationError as error:
                self._left_out.truncated |= error.divergent_offsets
                return []
            except UnicodeDecodeError as error:
                raise unreadable(self._ends, error) from error
            self._left_out.fetched({native.topic for native in records})
            return [
                fetched
                for partition in self._consumer.assignment() - self._fresh
                if (fetched := self._fetched(partition, records.get(partition, ())))
            ]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on. It must be assigned."""
        native = to_native(partition)
        self._consumer.seek(native, offset)
        self._ends[native] = offset

    def pause(self) -> None:
        """Fetch nothing for any assigned partition until `resume`; membership is kept."""
        self._paused = True
        self._topics.paused()
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Fetch again."""
        self._paused = False
        self._topics.resumed()
        self._consumer.resume(*(self._consumer.assignment() - self._fresh))

    def commit(
        self, offsets: Mapping[TopicPartition, int], timeout_s: float = COMMIT_TIMEOUT_S
    ) -> bool:
        """Commit positions to the consumer group; see `Source.commit`."""
        try:
            return self._commits.commit(offsets, timeout_s)
        except BrokerError as error:
            cause = error.__cause__
            if not (self._several and isinstance(cause, errors.TopicAuthorizationFailedError)):
                raise
            self._left_out.note_forbidden(cause, {partition.topic for partition in offsets})
            return False

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit without waiting for the answer. Safe within `PartitionListener.revoked`."""
        self._commits.commit_soon(offsets)

    def lag(self, partition: TopicPartition) -> int | None:
        """Offsets between the position and the high watermark; None while unknown."""
        native = to_native(partition)
        if native not in self._consumer.assignment() - self._fresh or native not in self._ends:
            return None
        high_watermark = self._consumer.highwater(native)
        return None if high_watermark is None else max(0, high_watermark - self._ends[native])

    def away(self) -> str | None:
        """Why the leaders of the partitions do not answer; see `Source.away`.

        Raises:
            BrokerError: The broker answers that it refuses.
        """
        asked = self._consumer.assignment()
        if not asked:
            known = self._consumer._cluster.topics()  # noqa: SLF001  without asking anybody
            names = self._reads.among(known) if self._several else self._reads.names
            if not names:
                return f"it has no {self._reads}; were they deleted, or may this user not see them?"
            asked = {KafkaPartition(name, 0) for name in names}
        asked = {native for native in asked if native not in self._left_out}
        try:
            with self._typed_errors("asking for the ends of"):
                self._ask_ends(asked)
        except BrokerUnavailableError:
            # A topic that is not there has no leaders: kafka-python waits for them until its time
            # is up.
            topics = sorted({native.topic for native in asked})
            return why_silent(self._settings, topics, several=self._several)
        return None

    def settled(self) -> bool:
        """Whether no rebalance is under way or asked for, and no partition is held back."""
        is_member = self._consumer.group_metadata().state is MemberState.STABLE
        waits = any(native not in self._left_out for native in self._fresh)
        return is_member and not self._rejoins and not waits

    def left_out(self) -> Mapping[TopicPartition, str]:
        """The partitions that are left out, and why; see `Source.left_out`."""
        return {
            from_native(native): why
            for native in self._fresh
            if (why := self._left_out.why(native)) is not None
        }

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
            self._give_up(sorted(self._told), lost=member.generation_id < 0)
            self._commits.wait(deadline)
        finally:
            with self._typed_errors("closing"):
                self._consumer.close(autocommit=False, timeout_ms=at_least_1_ms(deadline))
            # One whose first join is not answered yet has no id, and is in the group all the same.
            if member.member_id or member.state is not MemberState.UNJOINED:
                leave_group(self._settings, self._instance_id, member.member_id, deadline)

    def _subscribe(self, listener: Rebalances) -> None:
        # A member that leads the group and does not know the partitions yet assigns none.
        if self._reads.pattern is not None:
            self._consumer.topics()
            self._consumer.subscribe(pattern=self._reads.regex, listener=listener)
            return
        for name in self._reads.names:
            self._consumer.partitions_for_topic(name)
        self._consumer.subscribe(list(self._reads.names), listener=listener)

    def _take(self, partitions: Iterable[KafkaPartition]) -> None:
        self._hold_back(partitions)
        joins, self._has_joined = not self._has_joined, True
        # The one whose place it takes may have given partitions up and died before it asked for
        # the rebalance that hands them on: then nobody else asks for it. A group's first
        # generation has no such past, and a second rebalance would cost its start some seconds.
        self._rejoins |= joins and self._consumer.group_metadata().generation_id > 1

    def _rejoin_if_needed(self) -> None:
        if self._rejoins:
            self._rejoins = False
            self._consumer._coordinator.request_rejoin()  # noqa: SLF001  kafka-python has no other

    def _give_up(self, partitions: Iterable[KafkaPartition], lost: bool) -> None:
        known = [native for native in partitions if native in self._told]
        self._fresh.difference_update(partitions)
        told = [from_native(native) for native in known]
        try:
            if known and lost:
                self._listener.lost(told)
            elif known:
                self._listener.revoked(told)
        finally:
            self._told.difference_update(known)
            for native in known:
                self._ends.pop(native, None)

    def _hold_back(self, partitions: Iterable[KafkaPartition]) -> None:
        for native in partitions:
            # A position must be set, or the consumer asks for the committed one by itself.
            self._consumer.seek(native, 0)
            self._consumer.pause(native)
            self._fresh.add(native)
        self._place_at = float("-inf")

    def _place_fresh(self) -> None:
        """Ask the listener where to read new partitions from; on the reader's own thread.

        Where neither broker nor listener can say, or the group rebalances, the partitions wait for
        a later call; of several topics, those alone of which the broker cannot.
        """
        if self._joins.under_way or self._clock.monotonic() < self._place_at:
            return
        waiting = self._left_out.due(self._fresh)
        if not waiting:
            return
        found: dict[KafkaPartition, PartitionOffsets] = {}
        cause: Exception | None = None
        try:
            self._ask_by_topic(waiting, found)
        except errors.RetriableError as error:
            cause = error
        try:
            self._topics.refresh()
        except errors.RetriableError as error:
            found, cause = {}, error
        self._wait(None if cause is None else f"{type(cause).__name__}: {cause}")
        self._place_found(found)
        if self._fresh:
            self._place_at = self._clock.monotonic() + PLACE_AGAIN_S

    def _place_found(self, found: Mapping[KafkaPartition, PartitionOffsets]) -> None:
        """Place each topic's partitions; of several topics, what is refused is left out."""
        for topic, natives in groupby(sorted(found), key=lambda native: native.topic):
            topic_id = self._topics.ids.get(topic)
            try:
                for native in natives:
                    try:
                        self._place(native, replace(found[native], topic_id=topic_id))
                    except OffsetRangeError as error:
                        self._left_out.partition(native, error)
            except TopicReplacedError as error:
                self._left_out.topic(topic, error)
            else:
                self._left_out.placed(topic, self._fresh)

    def _ask_by_topic(
        self, waiting: Sequence[KafkaPartition], found: dict[KafkaPartition, PartitionOffsets]
    ) -> None:
        """Add offsets to ``found``; the topics of which nobody answered the last time come last.

        A partition without a leader takes the time of a whole question, of which one is enough.

        Raises:
            RetriableError: kafka-python's own; nobody answered for one of the topics.
        """
        topics = {native.topic for native in waiting}
        for topic in sorted(topics, key=lambda topic: (topic in self._silent, topic)):
            self._silent.add(topic)
            of_topic = [native for native in waiting if native.topic == topic]
            try:
                found |= ask_offsets(self._consumer, of_topic)
            except errors.TopicAuthorizationFailedError as error:
                self._left_out.note_forbidden(error, [topic])
            self._silent.discard(topic)

    def _place(self, native: KafkaPartition, found: PartitionOffsets) -> None:
        was_told = native in self._told
        self._told.add(native)
        try:
            offset = self._listener.assigned(found)
            if offset is None:
                return
            was_told = True
            if native in self._left_out:
                if offset > found.end:
                    raise past_the_end(native, offset, found.end)
                # What is parked there is a refusal of before.
                self._consumer._fetcher._paused_completed_fetches.pop(native, None)  # noqa: SLF001
        except NapStreamError:
            if not was_told:
                self._told.discard(native)
            raise
        self._fresh.discard(native)
        self.seek(found.partition, offset)
        if not self._paused:
            self._consumer.resume(native)

    def _wait(self, cause: str | None) -> None:
        """Say once that new partitions wait for the broker, and once that they do no more."""
        log = structlog.get_logger()
        if cause is not None and not self._waits:
            log.warning("partitions_wait_for_offsets", cause=cause)
        elif cause is None and self._waits:
            log.info("offsets_found")
        self._waits = cause is not None

    def _notice_new_topic(self) -> None:
        """Have partitions placed anew whose topic was deleted and made anew meanwhile.

        What is in flight may be of either topic, so it is dropped.
        """
        if replaced := self._topics.replaced():
            self._left_out.made_anew(replaced)
            self._drop(sorted(one for one in self._told if one.topic in replaced), lost=True)

    def _ask_ends(self, asked: Collection[KafkaPartition]) -> None:
        if not asked:
            return
        try:
            self._consumer.end_offsets(list(asked), timeout_ms=REACHABLE_TIMEOUT_S * 1000)
        except errors.TopicAuthorizationFailedError as error:
            self._left_out.note_forbidden(error, {native.topic for native in asked})

    def _leave_out_wrong(self) -> None:
        """Leave out what it was noticed of that it cannot be read on.

        Raises:
            OffsetRangeError: It is of the only topic that is read.
        """
        if self._left_out.truncated:
            self._topics.look_again()
            self._notice_new_topic()
            self._left_out.drop_truncated(self._told - self._fresh)
        self._left_out.drop_forbidden()

    def _drop(self, natives: Iterable[KafkaPartition], lost: bool) -> None:
        """Give partitions up, in good order unless they are lost, and hold them back."""
        self._give_up(natives, lost=lost)
        self._hold_back(natives)

    def _fetched(self, native: KafkaPartition, records: Sequence[Any]) -> Fetched | None:
        try:
            position = self._consumer.position(native, timeout_ms=POSITION_TIMEOUT_S * 1000)
        except errors.LogTruncationError as error:
            # It may be of another partition, and what was fetched of this one counts.
            self._left_out.truncated |= error.divergent_offsets
            position = None
        if position is None and records:
            position = records[-1].offset + 1
        if position is None or (not records and position <= self._ends.get(native, position)):
            return None
        self._ends[native] = position
        partition = from_native(native)
        return Fetched(partition, tuple(message(partition, r) for r in records), position)

    def _out_of_range(self, positions: Mapping[KafkaPartition, int]) -> None:
        """Have partitions placed anew whose position retention has deleted.

        Raises:
            OffsetRangeError: The position is past the end of the only topic: it belongs to another.
        """
        self._topics.look_again()
        self._notice_new_topic()
        positions = {p: offset for p, offset in positions.items() if p not in self._fresh}
        try:
            ends = self._consumer.end_offsets(list(positions), timeout_ms=OFFSETS_TIMEOUT_S * 1000)
        except errors.TopicAuthorizationFailedError as error:
            self._left_out.note_forbidden(error, {native.topic for native in positions})
            return
        except errors.KafkaTimeoutError as error:
            # The next fetch is refused as well, and asks again.
            structlog.get_logger().warning("ends_not_told", cause=str(error))
            return
        for native, position in positions.items():
            if position > ends[native]:
                past = past_the_end(native, position, ends[native])
                self._left_out.partition(native, past)
                continue
            structlog.get_logger().warning(
                "offset_out_of_range", partition=str(from_native(native)), position=position
            )
            self._hold_back([native])

    @contextmanager
    def _typed_errors(self, what: str) -> Iterator[None]:
        """Our errors for Kafka's; what the listener raised as itself."""
        with translated_errors(self._settings, f"{what} {self._reads}"):
            try:
                yield
            except errors.KafkaError as error:
                if type(error) is errors.KafkaError and error.__cause__ is not None:
                    raise error.__cause__ from None
                raise
