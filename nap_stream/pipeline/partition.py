"""One owned partition: where its chain ends, and what is scored and not yet published of it."""

from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from nap_stream.clock import Timed
from nap_stream.errors import OffsetRangeError, TopicReplacedError
from nap_stream.records import (
    ChainPosition,
    Disagreement,
    FailedImage,
    PartitionOffsets,
    ScoredRows,
    TopicPartition,
)
from nap_stream.scored_log.format import ROWS
from nap_stream.settings.log import LogSettings

ResumeFrom = Literal["log", "committed"]
"""What wins where the committed offset is ahead of the log."""


@dataclass(slots=True)
class Partition:
    """All that a worker knows of a partition that it owns.

    Its rows are in order of offset, from the chain's end on.

    Attributes:
        name: Topic and number.
        epoch: The number of this placement, among those of all partitions. A message that was
            fetched under another number was fetched before a seek, and is dropped.
        position: Where the chain ends, as far as this worker knows.
        end: What the next segment would have as its end.
        skipped_to: The topic has no messages up to there. `skip` moves ``end`` there as soon as
            nothing of the partition is in flight. None where nothing was skipped.
        batches: Rows of the next segment, with the columns of `ROWS`.
        row_count: How many they are.
        failed: Those of its images that go to the dead-letter topic first.
        size_bytes: What rows and failed images take in memory, about.
        payload_bytes: What failed images keep of their messages, part of ``size_bytes``.
        opened_at: When the next segment got its first offset, monotonic seconds.
        pending: The offset that is to be committed; None where it is committed.
        newest_ms: The newest event time of the last segment with rows; None before the first.
        steps: What was done for the next segment, and when, where that is traced.
    """

    name: TopicPartition
    epoch: int
    position: ChainPosition
    end: int
    skipped_to: int | None = None
    batches: list[pa.RecordBatch] = field(default_factory=list)
    row_count: int = 0
    failed: list[FailedImage] = field(default_factory=list)
    size_bytes: int = 0
    payload_bytes: int = 0
    opened_at: float | None = None
    pending: int | None = None
    newest_ms: int | None = None
    steps: list[Timed] = field(default_factory=list)

    def place(self, epoch: int, position: ChainPosition) -> None:
        """Read it from another position on; what is not published is dropped."""
        self.epoch = epoch
        self.skipped_to = None
        self.published(position)

    @property
    def rows(self) -> pa.Table:
        """The rows of the next segment, each column in one piece."""
        return pa.Table.from_batches(self.batches, ROWS).combine_chunks()

    def add(self, scored: ScoredRows, now: float) -> None:
        """Append rows; they arrive in the order of their offsets."""
        if self.opened_at is None:
            self.opened_at = now
        self.batches.append(scored.rows)
        self.row_count += scored.rows.num_rows
        self.failed.extend(scored.failed)
        payload_bytes = sum(len(image.payload or b"") for image in scored.failed)
        self.payload_bytes += payload_bytes
        self.size_bytes += payload_bytes + scored.rows.nbytes
        self.end = scored.end
        self.steps.extend(scored.steps)

    def skip(self, now: float) -> None:
        """Move on to ``skipped_to``: nothing of the partition is in flight any more."""
        end, self.skipped_to = self.skipped_to, None
        if end is not None and end > self.end:
            self.end = end
            self.opened_at = now if self.opened_at is None else self.opened_at

    def due(self, settings: LogSettings, now: float) -> bool:
        """Whether the rows should become a segment: by their number, bytes or age."""
        if self.opened_at is None:
            return False
        return (
            self.row_count >= settings.segment_max_rows
            or self.size_bytes >= settings.segment_max_bytes
            or now - self.opened_at >= settings.segment_max_age_s
        )

    def delivered(self) -> None:
        """Forget the failed images, which have become dead letters; their rows stay."""
        self.failed = []
        self.size_bytes -= self.payload_bytes
        self.payload_bytes = 0

    def published(self, position: ChainPosition) -> None:
        """Begin the next segment, after the one that has just become durable."""
        self.position = position
        self.end = position.offset
        self.batches, self.failed, self.row_count, self.steps = [], [], 0, []
        self.size_bytes = self.payload_bytes = 0
        self.opened_at = None


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

    Returns the position; where the chain had no topic id, with that of the topic.

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


def require_within_topic(offsets: PartitionOffsets) -> None:
    """Refuse to go on from a committed offset that the topic does not reach.

    Raises:
        OffsetRangeError: It is past the end.
    """
    if offsets.committed is not None and offsets.committed > offsets.end:
        raise OffsetRangeError(
            f"the committed offset is {offsets.committed}, and the topic ends at {offsets.end}",
            str(offsets.partition),
            "Was the topic deleted and made anew? Then give the monitor a new kafka.group_id; "
            "else reset the group's offset to one that the topic has",
        )
