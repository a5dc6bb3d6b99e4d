"""A look at messages of a topic: no group is joined, and nothing committed."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

from kafka import KafkaConsumer
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import BrokerUnavailableError, OffsetRangeError, TopicNotFoundError
from nap_stream.kafka.client import client_options, from_native, open_client, translated_errors
from nap_stream.records import Message, TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka_group import (
    OFFSETS_TIMEOUT_S,
    SHARE_BYTES,
    at_least_1_ms,
    message,
    unreadable,
)

TIMEOUT_S = 20.0
"""For the whole look, after the connection stands."""
_POLL_MS = 500
_FARTHER = 8
"""So many times as far back is looked where compaction or transactions have left few messages."""
_LOOKS = 4


@dataclass(frozen=True, slots=True)
class Peeked:
    """The newest messages of a topic, by partition and offset.

    ``offsets`` are those between the beginning and the end of all its ``partitions`` together: at
    least as many as there are messages. ``whole`` says that all of the topic was read.
    """

    messages: tuple[Message, ...]
    partitions: int
    offsets: int
    whole: bool


@dataclass(frozen=True, slots=True)
class _Span:
    """What a partition holds: offsets from ``earliest`` up to, without, ``end``."""

    earliest: int
    end: int

    def __len__(self) -> int:
        return self.end - self.earliest

    def start(self, back: int) -> int:
        return max(self.earliest, self.end - back)


def peek(
    settings: KafkaSettings, limit: int, *, timeout_s: float = TIMEOUT_S, clock: Clock | None = None
) -> Peeked:
    """Read the newest messages of ``settings.topic``, ``limit`` at most, from all its partitions.

    Nothing is committed, and no group is joined: whoever consumes the topic does not notice.

    Raises:
        TopicNotFoundError: There is no such topic.
        BrokerUnavailableError: Nobody answers, or ``timeout_s`` are over.
        BrokerError: The broker refuses, or a message cannot be read at all.
    """
    deadline = Deadline(clock or SystemClock(), timeout_s)
    with (
        translated_errors(settings, f"looking at topic {settings.topic}"),
        closing(open_client(KafkaConsumer, _options(settings))) as consumer,
    ):
        spans = _spans(consumer, settings)
        held = {native: span for native, span in spans.items() if len(span)}
        # The newest of a few partitions say as much as those of hundreds.
        looked_at = dict(sorted(held.items(), key=lambda item: -len(item[1]))[:limit])
        back = -(-limit // max(1, len(looked_at)))
        found: list[Message] = []
        for _ in range(_LOOKS):
            found = _newest(consumer, looked_at, back, limit, deadline)
            if len(found) >= limit or all(back >= len(span) for span in looked_at.values()):
                break
            back *= _FARTHER
    whole = len(looked_at) == len(held) and all(back >= len(span) for span in held.values())
    return Peeked(
        messages=tuple(sorted(found, key=lambda one: (one.partition, one.offset))),
        partitions=len(spans),
        offsets=sum(len(span) for span in spans.values()),
        whole=whole and len(found) < limit,
    )


def fetch_one(
    settings: KafkaSettings, partition: int, offset: int, *, timeout_s: float = TIMEOUT_S
) -> Message:
    """Read one message of ``settings.topic``, as `peek` does.

    Raises:
        OffsetRangeError: The partition does not have it, any more or yet.
        BrokerError: As for `peek`.
    """
    deadline, native = Deadline(SystemClock(), timeout_s), KafkaPartition(settings.topic, partition)
    with (
        translated_errors(settings, f"reading topic {settings.topic}"),
        closing(open_client(KafkaConsumer, _options(settings))) as consumer,
    ):
        span, found = _spans(consumer, settings).get(native, _Span(0, 0)), []
        if span.earliest <= offset < span.end:
            found = _newest(consumer, {native: _Span(offset, offset + 1)}, 1, 1, deadline)
    if not found or found[0].offset != offset:
        raise OffsetRangeError(
            f"the topic has no such message: it holds the offsets from {span.earliest} to "
            f"{span.end - 1}, and none that compaction or a transaction has left out",
            f"{from_native(native)}@{offset}",
        )
    return found[0]


def messages_between(
    settings: KafkaSettings,
    partition: TopicPartition,
    start: int,
    end: int,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Message]:
    """Read what a partition still has of the offsets ``[start, end)``, in order, as `peek` does.

    Raises:
        BrokerUnavailableError: Nobody answers, or nothing came for ``timeout_s``.
        BrokerError: As for `peek`.
    """
    native = KafkaPartition(partition.topic, partition.partition)
    with (
        translated_errors(settings, f"reading topic {partition.topic}"),
        closing(open_client(KafkaConsumer, _options(settings))) as consumer,
    ):
        consumer.assign([native])
        consumer.seek(native, start)
        deadline, position = Deadline(SystemClock(), timeout_s), start
        while position < end:
            batch = _polled(consumer, {native: start}, deadline, None).get(native, ())
            for one in batch:
                if start <= one.offset < end:
                    yield message(partition, one)
            # Behind the last message there may be none: what a transaction or compaction left out.
            if (now := consumer.position(native)) > position:
                deadline, position = Deadline(SystemClock(), timeout_s), now


def _options(settings: KafkaSettings) -> dict[str, Any]:
    return client_options(settings) | {
        "client_id": "nap-stream-peek",
        "group_id": None,
        "enable_auto_commit": False,
        # Retention may delete what is looked for meanwhile.
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "check_crcs": True,
        "fetch_max_bytes": settings.max_fetch_bytes,
        "max_partition_fetch_bytes": min(SHARE_BYTES, settings.max_fetch_bytes),
    }


def _spans(consumer: KafkaConsumer, settings: KafkaSettings) -> Mapping[KafkaPartition, _Span]:
    numbers = consumer.partitions_for_topic(settings.topic)
    if not numbers:
        raise TopicNotFoundError(
            f"no such topic: {settings.topic}",
            ", ".join(settings.bootstrap_servers),
            "Check kafka.topic, or create it",
        )
    partitions = [KafkaPartition(settings.topic, number) for number in sorted(numbers)]
    timeout_ms = OFFSETS_TIMEOUT_S * 1000
    first = consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
    end = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
    return {one: _Span(first[one], max(first[one], end[one])) for one in partitions}


def _newest(
    consumer: KafkaConsumer,
    spans: Mapping[KafkaPartition, _Span],
    back: int,
    limit: int,
    deadline: Deadline,
) -> list[Message]:
    """The last messages of each partition among so many offsets, ``limit`` in all at most."""
    kept: dict[KafkaPartition, deque[Message]] = {one: deque(maxlen=limit) for one in spans}
    starts = {native: span.start(back) for native, span in spans.items()}
    consumer.assign(list(spans))
    for native, start in starts.items():
        consumer.seek(native, start)
    while unfinished := [one for one, span in spans.items() if consumer.position(one) < span.end]:
        records = _polled(consumer, {one: starts[one] for one in unfinished}, deadline, limit)
        for native, batch in records.items():
            before_end = (one for one in batch if one.offset < spans[native].end)
            kept[native].extend(message(from_native(native), one) for one in before_end)
    return _shared_out(list(kept.values()), limit)


def _polled(
    consumer: KafkaConsumer,
    starts: Mapping[KafkaPartition, int],
    deadline: Deadline,
    limit: int | None,
) -> Mapping[KafkaPartition, Sequence[Any]]:
    """What has come; ``starts`` are where the partitions that are waited for were begun."""
    if deadline.expired():
        raise BrokerUnavailableError(
            "the messages did not arrive in time",
            ", ".join(str(from_native(one)) for one in starts),
            "Try again, or check the network between here and the brokers",
        )
    try:
        wait_ms = min(_POLL_MS, at_least_1_ms(deadline))
        found: Mapping[KafkaPartition, Sequence[Any]] = consumer.poll(wait_ms, max_records=limit)
    except UnicodeDecodeError as error:
        raise unreadable(starts, error) from error
    return found


def _shared_out(queues: Sequence[Iterable[Message]], limit: int) -> list[Message]:
    """The newest of each queue in turn, until there are ``limit``."""
    newest_first = [list(reversed(tuple(queue))) for queue in queues]
    longest = max(map(len, newest_first), default=0)
    rounds = (
        [queue[turn] for queue in newest_first if turn < len(queue)] for turn in range(longest)
    )
    return list(chain.from_iterable(rounds))[:limit]
