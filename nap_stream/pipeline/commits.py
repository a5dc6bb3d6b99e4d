"""What a worker does to the chains of its partitions: recover, publish, declare gaps.

What follows a durable segment: its offset is committed, and then the coordinator is told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from nap_stream.clock import Clock
from nap_stream.dead_letter import DeadLetters
from nap_stream.errors import BrokerError, LogRootError, ScoredLogError, SegmentConflictError
from nap_stream.pipeline.partition import (
    Offsets,
    PartitionBuffer,
    ResumeFrom,
    require_same_topic,
    require_within_topic,
)
from nap_stream.pipeline.tally import Tally
from nap_stream.pipeline.waiting import Unavailable
from nap_stream.records import (
    ChainPosition,
    FailedImage,
    PublishedSegment,
    ScoredRecord,
    SegmentSummary,
    TopicPartition,
    WorkerReport,
)
from nap_stream.scored_log.chain import ScoredLog

SCORED_LOG = "the scored log"
DEAD_LETTERS = "the dead-letter topic"
_RETENTION = "retention deleted them before they were read"
_COMMITTED = "left out for the committed offset, which kafka.resume_from says to follow"


@dataclass(frozen=True, slots=True)
class Durable:
    """A segment that is published and neither committed nor summarised yet."""

    segment: PublishedSegment
    records: Sequence[ScoredRecord]
    gap: str | None = None


class ChainWriter:
    """Publishes segments, their dead letters first. Holds no state of a partition.

    What may be mended outside of the worker is raised as `Unavailable`, from every method: a
    disk that is full, a folder that cannot be written to, a dead-letter topic that takes
    nothing. All of them may be called again after it.

    Args:
        log: Where segments are published.
        dead_letters: Where undecodable payloads go, before their segment is published.
        tally: Counts dead letters and conflicts, and takes stage times.
        clock: For stage times.
    """

    def __init__(
        self, log: ScoredLog, dead_letters: DeadLetters, tally: Tally, clock: Clock
    ) -> None:
        self._log, self._dead_letters = log, dead_letters
        self._tally, self._clock = tally, clock

    def recover(self, partition: TopicPartition, offsets: Offsets) -> ChainPosition:
        """Find where the chain ends, or begin one.

        Raises:
            TopicReplacedError: The chain was made from another topic of this name.
            OffsetRangeError: There is no chain, and it would begin past the topic's end.
            ChainBrokenError: The chain cannot be read.
        """
        with _mendable_log():
            position = self._log.end(partition, offsets.committed)
            if position is None:
                require_within_topic(partition, offsets)
                position = self._log.begin(partition, offsets.first, offsets.topic_id)
                _note_beginning(partition, position, offsets)
        return require_same_topic(partition, position, offsets.topic_id)

    def end(self, partition: TopicPartition, hint: int) -> int | None:
        """The offset at which the chain ends, whoever has published last; None without one.

        Args:
            partition: Whose.
            hint: An offset near the end.
        """
        with _mendable_log():
            position = self._log.end(partition, hint)
        return None if position is None else position.offset

    def concede(
        self, partition: TopicPartition, lost: ChainPosition, conflict: SegmentConflictError
    ) -> ChainPosition:
        """Where the chain ends now that another writer was first at ``lost``."""
        with _mendable_log():
            position = self._log.end(partition, lost.offset)
        if position is None:
            raise conflict
        self._tally.segment_conflicts += 1
        structlog.get_logger().warning("segment_conflict", conflict=str(conflict))
        return require_same_topic(partition, position, lost.topic_id)

    def publish(
        self, partition: TopicPartition, buffer: PartitionBuffer, timeout_s: float
    ) -> list[Durable]:
        """Make what a buffer holds durable, if anything, and have it start anew.

        Args:
            partition: Whose.
            buffer: Its rows.
            timeout_s: How long dead letters may take, in seconds.

        Raises:
            SegmentConflictError: Another writer has published this base offset; or this one
                has, where an earlier attempt failed after it had taken the name.
        """
        if buffer.end == buffer.position.offset:
            return []
        self._send_dead_letters(buffer, timeout_s)
        records = buffer.records
        with _mendable_log(), self._tally.timed("publish", self._clock):
            segment = self._log.publish(partition, buffer.position, buffer.end, records)
        buffer.published(segment.position)
        return [Durable(segment, records)]

    def declare_gaps(
        self,
        partition: TopicPartition,
        buffer: PartitionBuffer,
        offsets: Offsets,
        resume_from: ResumeFrom,
    ) -> list[Durable]:
        """Say in the log which offsets it will never have, and why.

        Args:
            partition: Whose.
            buffer: It has no rows; it goes on after the gaps.
            offsets: What the broker has.
            resume_from: Whether a committed offset ahead of the log is followed.

        Raises:
            OffsetRangeError: It is followed, and past the topic's end.
        """
        gaps = self._declare_gap(partition, buffer, offsets.earliest, _RETENTION)
        if resume_from == "committed" and (offsets.committed or 0) > buffer.end:
            require_within_topic(partition, offsets)
            gaps += self._declare_gap(partition, buffer, offsets.committed or 0, _COMMITTED)
        return gaps

    def _declare_gap(
        self, partition: TopicPartition, buffer: PartitionBuffer, end: int, reason: str
    ) -> list[Durable]:
        """Declare a gap up to ``end``, unless another writer has done so."""
        while buffer.end < end:
            gap = f"offsets [{buffer.end}, {end}): {reason}"
            try:
                with _mendable_log():
                    segment = self._log.publish(partition, buffer.position, end, (), gap=gap)
            except SegmentConflictError as conflict:
                buffer.published(self.concede(partition, buffer.position, conflict))
                continue
            structlog.get_logger().error("offsets_lost", partition=str(partition), gap=gap)
            buffer.published(segment.position)
            return [Durable(segment, (), gap)]
        return []

    def _send_dead_letters(self, buffer: PartitionBuffer, timeout_s: float) -> None:
        if not buffer.failed:
            return
        with self._tally.timed("dead_letters", self._clock):
            self._deliver(buffer.failed, timeout_s)
        self._tally.dead_letters += len(buffer.failed)
        buffer.delivered()

    def _deliver(self, images: Sequence[FailedImage], timeout_s: float) -> None:
        try:
            for image in images:
                self._dead_letters.send(image)
            self._dead_letters.flush(timeout_s)
        except BrokerError as error:
            raise Unavailable(DEAD_LETTERS, error) from error


def _note_beginning(partition: TopicPartition, position: ChainPosition, offsets: Offsets) -> None:
    """Warn where a group that has read before has no log: its folder may not be mounted."""
    log = structlog.get_logger()
    tell = log.info if offsets.committed is None else log.warning
    tell(
        "chain_begun",
        partition=str(partition),
        offset=position.offset,
        committed=offsets.committed,
    )


@contextmanager
def _mendable_log() -> Iterator[None]:
    """Raise as `Unavailable` what a person or time may mend while the worker waits."""
    try:
        yield
    except SegmentConflictError:
        raise
    except ScoredLogError as error:
        if error.retriable or isinstance(error, LogRootError):
            raise Unavailable(SCORED_LOG, error) from error
        raise


class Reporter(Protocol):
    """Where a worker's summaries and reports go. Neither call waits for an answer."""

    def submit(self, summary: SegmentSummary) -> None:
        """Hand on the summary of a segment that is durable."""
        ...

    def report(self, report: WorkerReport) -> None:
        """Give a sign of life."""
        ...


Summarise = Callable[[PublishedSegment, Sequence[ScoredRecord], str | None], SegmentSummary]
Commit = Callable[[Mapping[TopicPartition, int]], bool | None]


class Announcer:
    """Commits what is durable, keeps what was refused for later, submits summaries.

    Args:
        reporter: Receives summaries.
        summarise: (segment, its rows, gap) → summary.
        tally: Counts what is published.
        clock: For stage times, and when was committed last.
    """

    def __init__(
        self, reporter: Reporter, summarise: Summarise, tally: Tally, clock: Clock
    ) -> None:
        self._reporter, self._summarise = reporter, summarise
        self._tally, self._clock = tally, clock
        self._uncommitted: dict[TopicPartition, int] = {}
        self._newest_ms: dict[TopicPartition, int] = {}

    def announce(self, durable: Sequence[Durable], commit: Commit) -> None:
        """Commit what is durable, and only then tell the coordinator."""
        if not durable:
            return
        self._uncommitted |= {d.segment.partition: d.segment.position.offset for d in durable}
        self.commit(commit)
        for one in durable:
            self._tally.segments_published += 1
            self._tally.work_done += 1
            self._tally.rows += len(one.records)
            if one.records:
                newest_ms = max(record.origin.event_time_ms for record in one.records)
                self._newest_ms[one.segment.partition] = newest_ms
            self._reporter.submit(self._summarise(one.segment, one.records, one.gap))

    def owe(self, partition: TopicPartition, offset: int) -> None:
        """Take note that a partition's offset is to be committed."""
        self._uncommitted[partition] = offset

    def commit(self, commit: Commit) -> None:
        """Commit what is not yet; a group that rebalances refuses, and is asked again later."""
        if not self._uncommitted:
            return
        with self._tally.timed("commit", self._clock):
            if commit(self._uncommitted):
                self._uncommitted.clear()
                self._tally.last_commit_ms = self._clock.now_ms()

    @property
    def owes(self) -> bool:
        """Whether something is still to be committed."""
        return bool(self._uncommitted)

    def owed(self, partition: TopicPartition) -> int | None:
        """The offset of a partition that is still to be committed; None where there is none."""
        return self._uncommitted.get(partition)

    def forgive(self, partition: TopicPartition) -> None:
        """Commit nothing of a partition that was owed until now."""
        self._uncommitted.pop(partition, None)

    def newest_ms(self, partition: TopicPartition) -> int | None:
        """The newest event time of the last segment with rows; None before the first one."""
        return self._newest_ms.get(partition)

    def forget(self, partition: TopicPartition) -> None:
        """Drop what is known of a partition that is owned no longer."""
        self._uncommitted.pop(partition, None)
        self._newest_ms.pop(partition, None)
