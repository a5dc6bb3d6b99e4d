"""What follows a durable segment: its offset is committed, and then the coordinator is told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from nap_stream.clock import Clock
from nap_stream.pipeline.chain_writer import Durable
from nap_stream.pipeline.tally import Tally
from nap_stream.records import (
    PublishedSegment,
    ScoredRecord,
    SegmentSummary,
    TopicPartition,
    WorkerReport,
)


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
