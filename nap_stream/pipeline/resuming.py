"""Where a partition is read from: its chain, its committed offset, and what wins."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from nap_stream.errors import OffsetRangeError, TopicReplacedError
from nap_stream.records import ChainPosition, TopicPartition

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
