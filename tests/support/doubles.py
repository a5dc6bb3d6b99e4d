"""Messages from memory, for tests: a topic that several sources may read one after another.

Dead letters kept in memory, for tests.

Alerts kept in memory, for tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import Clock
from nap_stream.errors import BrokerUnavailableError, OffsetRangeError
from nap_stream.records import FailedImage, Fetched, Message, PartitionOffsets, TopicPartition
from nap_stream.source.base import COMMIT_TIMEOUT_S, PartitionListener


@dataclass(slots=True)
class _Partition:
    messages: list[Message] = field(default_factory=list)
    earliest: int = 0
    end: int = 0


class MemoryTopic:
    """Partitions of messages, and the offsets that groups have committed.

    While ``available`` is false, sources get no answers, as from a broker that is away. While
    ``rebalances`` is true, they get answers and no messages.

    Args:
        name: Of the topic.
        partitions: How many it has.
        topic_id: What its broker says that its id is.
    """

    def __init__(self, name: str, partitions: int = 1, *, topic_id: str | None = "topic-0") -> None:
        self.topic_id = topic_id
        self.available = True
        self.rebalances = False
        self.partitions = {TopicPartition(name, n): _Partition() for n in range(partitions)}
        self.committed: dict[TopicPartition, int] = {}

    def append(
        self,
        partition: TopicPartition,
        value: bytes | None,
        *,
        timestamp_ms: int = 0,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes | None], ...] = (),
    ) -> int:
        """Add a message; return its offset."""
        log = self.partitions[partition]
        log.messages.append(Message(partition, log.end, timestamp_ms, key, value, headers))
        log.end += 1
        return log.end - 1

    def skip(self, partition: TopicPartition, offsets: int) -> None:
        """Leave offsets out, as transactions and compaction do."""
        self.partitions[partition].end += offsets

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        """Delete what retention deletes: messages before ``offset``."""
        log = self.partitions[partition]
        log.messages = [message for message in log.messages if message.offset >= offset]
        log.earliest = offset


class MemorySource:
    """A source that owns all partitions of a `MemoryTopic` from its first poll on.

    Args:
        topic: What to read.
        listener: Told about partitions.
        clock: Waited on where there is nothing to read.
    """

    def __init__(
        self,
        topic: MemoryTopic,
        listener: PartitionListener,
        *,
        clock: Clock,
    ) -> None:
        self._topic, self._listener, self._clock = topic, listener, clock
        self._fresh = set(topic.partitions)
        self._positions: dict[TopicPartition, int] = {}
        self._paused = False
        self._closed = False

    def poll(self, timeout_s: float, max_messages: int) -> list[Fetched]:
        """Messages up to ``max_messages``; see `Source.poll`."""
        away = not self._topic.available or self._topic.rebalances
        if not away:
            self._place_fresh()
        fetched = [] if self._paused or away else self._read(max_messages)
        if not fetched:
            self._clock.sleep(timeout_s)
        return fetched

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on. It must be assigned."""
        if partition not in self._positions:
            raise ValueError(f"not assigned: {partition}")
        self._positions[partition] = offset

    def pause(self) -> None:
        """Give nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Give messages again."""
        self._paused = False

    def commit(
        self,
        offsets: Mapping[TopicPartition, int],
        timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> bool:
        """Commit positions; False where the topic is away or a partition is not owned."""
        if not self._topic.available or not offsets.keys() <= self._positions.keys():
            return False
        self._topic.committed.update(offsets)
        return True

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit at once."""
        self.commit(offsets)

    def lag(self, partition: TopicPartition) -> int | None:
        """Offsets between the position and the end; None where it is not read."""
        position = self._positions.get(partition)
        if position is None or partition in self._fresh:
            return None
        return self._topic.partitions[partition].end - position

    def away(self) -> str | None:
        """It does not answer unless the topic is ``available``."""
        return None if self._topic.available else "it does not answer"

    def settled(self) -> bool:
        """Whether all partitions are placed, and the topic does not stand for a rebalance."""
        return not self._fresh and not self._topic.rebalances

    def left_out(self) -> Mapping[TopicPartition, str]:
        """It has one topic."""
        return {}

    def close(self, timeout_s: float) -> None:
        """Give all partitions up. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self.revoke()

    def revoke(self) -> None:
        """Have another member take all partitions, in good order."""
        if self._positions:
            self._listener.revoked(sorted(self._positions))
        self._positions.clear()
        self._fresh.clear()

    def lose(self) -> None:
        """Have another member own all partitions already."""
        self._listener.lost(sorted(self._positions))
        self._positions.clear()
        self._fresh.clear()

    def _place_fresh(self) -> None:
        for partition in sorted(self._fresh):
            log = self._topic.partitions[partition]
            # It may be committed from within `assigned`, and given up where it is held back.
            self._positions.setdefault(partition, log.earliest)
            offset = self._listener.assigned(
                PartitionOffsets(
                    partition,
                    log.earliest,
                    log.end,
                    self._topic.committed.get(partition),
                    self._topic.topic_id,
                )
            )
            if offset is not None:
                self._positions[partition] = offset
                self._fresh.discard(partition)

    def _read(self, max_messages: int) -> list[Fetched]:
        fetched: list[Fetched] = []
        for partition, position in list(self._positions.items()):
            if partition in self._fresh:
                continue
            log = self._topic.partitions[partition]
            if position > log.end:
                raise OffsetRangeError(
                    f"the next offset to read is {position}, and the topic ends at {log.end}",
                    str(partition),
                )
            if position < log.earliest:
                self._fresh.add(partition)
                continue
            left = max_messages - sum(len(part.messages) for part in fetched)
            if left <= 0:
                break
            ahead = [message for message in log.messages if message.offset >= position]
            messages = tuple(ahead[:left])
            end = log.end if len(messages) == len(ahead) else messages[-1].offset + 1
            if end > position:
                fetched.append(Fetched(partition, messages, end))
                self._positions[partition] = end
        return fetched


class MemoryDeadLetters:
    """Keeps dead letters in order; `flush` fails while ``available`` is false."""

    def __init__(self) -> None:
        self.images: list[FailedImage] = []
        self.available = True
        self._sent: list[FailedImage] = []

    def send(self, image: FailedImage) -> None:
        """Hand over an image."""
        self._sent.append(image)

    def flush(self, timeout_s: float) -> None:
        """Keep everything that was sent.

        Raises:
            BrokerUnavailableError: While not ``available``.
        """
        sent, self._sent = self._sent, []
        if not self.available:
            raise BrokerUnavailableError(f"the topic is away, waited {timeout_s:g} s")
        self.images.extend(sent)

    def close(self) -> None:
        """Nothing to release."""


class MemoryAlertSink:
    """Keeps alerts in order; refuses them while ``available`` is false."""

    name = "memory"

    def __init__(self) -> None:
        self.alerts: list[AlertEvent] = []
        self.available = True
        self.closed = False

    def publish(self, alert: AlertEvent) -> None:
        """Keep an alert.

        Raises:
            BrokerUnavailableError: While not ``available``.
        """
        if not self.available:
            raise BrokerUnavailableError("the sink is away")
        self.alerts.append(alert)

    def delivered(self) -> frozenset[str]:
        """Ids of all alerts that it keeps."""
        return frozenset(alert.id for alert in self.alerts)

    def close(self) -> None:
        """Note that the sink is closed."""
        self.closed = True
