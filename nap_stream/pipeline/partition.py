"""Where a partition is read from: its chain, its committed offset, and what wins.

The rows of one owned partition that are scored and not yet published.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from nap_stream.errors import OffsetRangeError, TopicReplacedError
from nap_stream.pipeline.scoring import ScoredMessage
from nap_stream.records import ChainPosition, FailedImage, ScoredRecord, TopicPartition
from nap_stream.settings.schema import LogSettings

ResumeFrom = Literal["log", "committed"]


class Disagreement(StrEnum):
    """How a committed offset differs from the end of the log."""

    AHEAD = "ahead"
    BEHIND = "behind"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Offsets:
    """What the broker says of a partition; see `PartitionListener.assigned`."""

    earliest: int
    latest: int
    committed: int | None
    start: int
    topic_id: str | None

    @property
    def first(self) -> int:
        """Where a chain begins that is not there yet."""
        return self.start if self.committed is None else max(self.earliest, self.committed)


def disagreement(position: ChainPosition, committed: int | None) -> Disagreement | None:
    """How the committed offset differs from the log; None where it does not.

    A group that has committed nothing agrees with a chain that has no segment.
    """
    if committed is None:
        return None if position.base is None else Disagreement.MISSING
    if committed == position.offset:
        return None
    return Disagreement.AHEAD if committed > position.offset else Disagreement.BEHIND


def require_same_topic(
    partition: TopicPartition, position: ChainPosition, topic_id: str | None
) -> ChainPosition:
    """Refuse a chain that was made from another topic of this name.

    Returns:
        The position; where the chain had no topic id, with that of the topic.

    Raises:
        TopicReplacedError: The ids differ.
    """
    if position.topic_id is None:
        return replace(position, topic_id=topic_id)
    if topic_id is not None and topic_id != position.topic_id:
        raise TopicReplacedError(
            f"the topic was deleted and made anew: its id is {topic_id}, and the log was made "
            f"from the topic with id {position.topic_id}",
            str(partition),
            "Its offsets mean other messages now: give the monitor a new log.root and a new "
            "kafka.group_id, and keep the old log",
        )
    return position


def require_within_topic(partition: TopicPartition, offsets: Offsets) -> None:
    """Refuse to go on from a committed offset that the topic does not reach.

    Raises:
        OffsetRangeError: It is past the end.
    """
    if offsets.committed is not None and offsets.committed > offsets.latest:
        raise OffsetRangeError(
            f"the committed offset is {offsets.committed}, and the topic ends at {offsets.latest}",
            str(partition),
            "Was the topic deleted and made anew? Then give the monitor a new kafka.group_id; "
            "else reset the group's offset to one that the topic has",
        )


ROW_BYTES = 512
"""What one row takes in memory, about: a record, its scores and its strings."""


@dataclass(slots=True)
class PartitionBuffer:
    """Rows in order of offset, from the chain's end on.

    ``epoch`` numbers the assignment: scored messages of another one do not belong here.
    ``end`` is the position that the next segment would have as its end. ``opened_at`` is the
    monotonic time at which the buffer got its first offset, in seconds. ``payload_bytes`` is
    what the failed images keep of their messages, in bytes; ``size_bytes`` includes it.
    """

    epoch: int
    position: ChainPosition
    end: int
    records: list[ScoredRecord] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    size_bytes: int = 0
    payload_bytes: int = 0
    opened_at: float | None = None

    def add(self, message: ScoredMessage, now: float) -> None:
        """Append a message's rows; messages arrive in the order of their offsets."""
        if self.opened_at is None:
            self.opened_at = now
        self.records.extend(message.records)
        self.failed.extend(message.failed)
        self.size_bytes += sum(ROW_BYTES + _origin_bytes(record) for record in message.records)
        payload_bytes = sum(len(image.payload or b"") for image in message.failed)
        self.payload_bytes += payload_bytes
        self.size_bytes += payload_bytes
        self.end = message.end

    def skip_to(self, end: int, now: float) -> None:
        """Take note that the topic has no messages up to ``end``."""
        if end > self.end:
            self.end = end
            self.opened_at = now if self.opened_at is None else self.opened_at

    def due(self, settings: LogSettings, now: float) -> bool:
        """Whether the buffer should become a segment: by rows, bytes or age."""
        if self.opened_at is None:
            return False
        return (
            len(self.records) >= settings.segment_max_rows
            or self.size_bytes >= settings.segment_max_bytes
            or now - self.opened_at >= settings.segment_max_age_s
        )

    def delivered(self) -> None:
        """Forget the failed images, which have become dead letters; their rows stay."""
        self.failed = []
        self.size_bytes -= self.payload_bytes
        self.payload_bytes = 0

    def published(self, position: ChainPosition) -> None:
        """Start anew after the segment that has just become durable."""
        self.position = position
        self.end = position.offset
        self.records, self.failed = [], []
        self.size_bytes = self.payload_bytes = 0
        self.opened_at = None


def _origin_bytes(record: ScoredRecord) -> int:
    """What a row repeats of its message."""
    headers = sum(len(name) + len(value or b"") for name, value in record.origin.headers)
    return len(record.origin.key or b"") + headers
