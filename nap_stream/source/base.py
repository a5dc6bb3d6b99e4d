"""What a source of messages is."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from nap_stream.records import Fetched, PartitionOffsets, TopicPartition

COMMIT_TIMEOUT_S = 5.0
"""For one attempt. The log is the truth and the next attempt comes soon, so it can be short."""


class PartitionListener(Protocol):
    """What a source tells its reader about the partitions that it owns.

    ``assigned`` is called on the reader's own thread, from within ``poll``. ``revoked`` and
    ``lost`` may be called on another thread while the reader is blocked in ``poll`` or
    ``close``: never at the same time as the reader's own code.
    """

    def assigned(self, offsets: PartitionOffsets) -> int | None:
        """Take a partition; return the offset to read from.

        Called again for a partition that is already owned where retention has deleted what the
        position needs: publish what is in flight first.

        Returns:
            None where that cannot be said now: the source holds the partition back, goes on
            with the others, and asks again at a later poll, a second later at the latest. A
            partition that is given up meanwhile is told to ``revoked`` or ``lost`` like any other.

        Raises:
            TopicReplacedError: The log of the partition was made from another topic of this
                name. A source of several topics leaves this one out, and asks again later.
            OffsetRangeError: The topic does not reach the offset; the same.
        """

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Give partitions up in good order: publish what is in flight. They can be committed."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop partitions that already belong to another member: publish nothing."""


class Source(Protocol):
    """Messages with their offsets, by partition. One thread uses it; only `close` blocks long."""

    def poll(self, timeout_s: float, max_messages: int) -> list[Fetched]:
        """Wait up to ``timeout_s`` seconds for messages.

        Returns:
            One `Fetched` per partition that moved on, messages in order of offset, each
            starting where the last one of that partition ended or where `seek` went.
            Empty where nothing came. Fetching is paused for partitions in `pause`.

        Raises:
            OffsetRangeError: A position is beyond the end of its partition.
            BrokerError: The broker refused, and trying again will not help.
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on. It must be assigned."""

    def pause(self) -> None:
        """Fetch nothing for any assigned partition until `resume`; membership is kept."""

    def resume(self) -> None:
        """Fetch again."""

    def commit(
        self, offsets: Mapping[TopicPartition, int], timeout_s: float = COMMIT_TIMEOUT_S
    ) -> bool:
        """Commit to the group the next offset to read of each partition.

        Returns:
            False where the group refused because this member no longer owns a partition, or
            the broker did not answer; the log is the truth, so that is no error.

        Raises:
            BrokerError: Another process has taken this member's place, or may not commit.
        """

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit without waiting for the answer. Safe within `PartitionListener.revoked`."""

    def lag(self, partition: TopicPartition) -> int | None:
        """Offsets between the position and the high watermark; None while unknown."""

    def away(self) -> str | None:
        """Why nothing comes: asks the broker anew and waits a few seconds at most.

        A poll that brings nothing does not tell: nothing comes from a broker that is away, too.

        Returns:
            None where the broker answers, and nothing keeps it from bringing messages.
        """

    def settled(self) -> bool:
        """Whether the group has given this member its partitions, and all of them are read.

        A poll that brings nothing does not tell: nothing comes while a rebalance goes on, too.
        """

    def left_out(self) -> Mapping[TopicPartition, str]:
        """The partitions that it has and cannot read, of several topics, and why.

        They are given up, as `PartitionListener.revoked` or ``lost`` says, and tried again.
        """

    def close(self, timeout_s: float) -> None:
        """Leave the consumer group and close connections. Safe to call twice."""
