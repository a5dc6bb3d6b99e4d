"""What a scored log is: per partition, a chain of segments."""

from collections.abc import Sequence
from typing import Protocol

from nap_stream.records import ChainPosition, PublishedSegment, ScoredRecord, TopicPartition


class ScoredLog(Protocol):
    """The write side of the log. One instance may be used by several threads.

    Implementations hold no state about the chain: the caller carries the `ChainPosition` from
    one publish to the next, and asks for it with `end` after an assignment or a conflict.
    """

    def end(self, partition: TopicPartition, hint: int | None = None) -> ChainPosition | None:
        """Where the chain ends now; None where the partition has no genesis marker yet.

        Args:
            partition: Whose chain.
            hint: An offset near the end, such as the committed one: it saves listing the chain.

        Raises:
            ChainBrokenError: The last segment cannot be read or contradicts its name.
            ScoredLogError: The log cannot be read.
        """
        ...

    def begin(
        self, partition: TopicPartition, offset: int, topic_id: str | None = None
    ) -> ChainPosition:
        """Fix where a chain starts, by an exclusively created genesis marker.

        Args:
            partition: Whose chain.
            offset: The first segment's base offset.
            topic_id: The topic's id, where the broker has one.

        Returns:
            The chain's end: that of the winner where another writer was first.
        """
        ...

    def publish(
        self,
        partition: TopicPartition,
        position: ChainPosition,
        end_offset: int,
        records: Sequence[ScoredRecord],
        *,
        gap: str | None = None,
    ) -> PublishedSegment:
        """Make the segment ``[position.offset, end_offset)`` durable, or nothing at all.

        Args:
            partition: Whose chain.
            position: Where the chain ends, as the caller knows it.
            end_offset: The next segment's base offset; greater than ``position.offset``.
            records: The rows, ordered by (offset, index), all within the range. May be empty
                only for offsets that the topic skips, or with ``gap``.
            gap: Why offsets are missing, for a segment without rows that retention forced.

        Raises:
            SegmentConflictError: Another writer has published this base offset.
            ScoredLogError: The segment could not be made durable. Only where the very last step
                failed may it be there all the same: ask `end` before trying again.
            ValueError: The records are not within the range or not in order.
        """
        ...
