"""What makes rows durable and known: dead letters, segment, commit, summary, in that order.

The counts of what a worker has done stand here too, for its reports.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa
import structlog

from nap_stream.clock import Clock, Deadline, Timed
from nap_stream.dead_letter import DeadLetters
from nap_stream.errors import BrokerError, LogRootError, ScoredLogError, SegmentConflictError
from nap_stream.pipeline.partition import (
    Partition,
    ResumeFrom,
    require_same_topic,
    require_within_topic,
)
from nap_stream.pipeline.waiting import Unavailable
from nap_stream.records import (
    EVIDENCE_OUTCOMES,
    TIME_PARTS,
    ChainPosition,
    Disagreement,
    EvidenceOutcome,
    PartitionOffsets,
    PartitionProgress,
    PublishedSegment,
    SegmentSummary,
    TimePart,
    TopicPartition,
    WorkerReport,
)
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.scored_log.format import ROWS
from nap_stream.scored_log.segment import event_time_range
from nap_stream.tracing import OFF, Tracing

SCORED_LOG = "the scored log"
DEAD_LETTERS = "the dead-letter topic"
_RETENTION = "retention deleted them before they were read"
_COMMITTED = "left out for the committed offset, which kafka.resume_from says to follow"


class Reporter(Protocol):
    """Where a worker's summaries and reports go. Neither call waits for an answer."""

    def submit(self, summary: SegmentSummary) -> None:
        """Hand on the summary of a segment that is durable."""

    def report(self, report: WorkerReport) -> None:
        """Give a sign of life."""


Summarise = Callable[[PublishedSegment, pa.Table, str | None], SegmentSummary]
"""(segment, its rows, why it is a gap) → summary."""
Commit = Callable[[Mapping[TopicPartition, int]], bool | None]
"""Commits next offsets to read; true where the group has taken them."""


@dataclass(frozen=True, slots=True)
class Unpublished:
    """A partition whose rows did not become a segment, and why."""

    partition: Partition
    cause: SegmentConflictError | Unavailable


@dataclass(frozen=True, slots=True)
class _Durable:
    """A segment that is published and neither committed nor summarised yet."""

    partition: Partition
    segment: PublishedSegment
    rows: pa.Table
    gap: str | None = None
    steps: tuple[Timed, ...] = ()


class WorkerCounters:
    """Counts of one incarnation of a worker, and stage times since the last report.

    Stage times, batches that did not fit, and what became of evidence, come from several threads;
    all other counts belong to the thread that polls. ``incarnation`` is how often the worker has
    been started before.
    """

    def __init__(self, worker: str, incarnation: int) -> None:
        self._worker, self._incarnation = worker, incarnation
        self._lock = threading.Lock()
        self._stage_seconds: list[tuple[str, float]] = []
        self._out_of_memory = 0
        self._evidence = dict.fromkeys(EVIDENCE_OUTCOMES, 0)
        self._evidence_bytes = 0
        self._reports = 0
        self.work_done = self.rows = self.images_scored = self.dead_letters = 0
        self.decode_warnings = 0
        self.segments_published = self.segment_conflicts = self.rebalances = 0
        self.disagreements: Counter[Disagreement] = Counter()
        self.last_commit_ms: int | None = None

    def observe(self, stage: str, seconds: float) -> None:
        """Remember how long a stage took."""
        with self._lock:
            self._stage_seconds.append((stage, seconds))

    def note_out_of_memory(self) -> None:
        """Count a batch that did not fit its device's memory."""
        with self._lock:
            self._out_of_memory += 1

    def note_evidence(self, outcome: EvidenceOutcome, size: int) -> None:
        """Count an image that was to be kept, and the bytes that were written of it."""
        with self._lock:
            self._evidence[outcome] += 1
            self._evidence_bytes += size

    @contextmanager
    def timed(self, stage: str, clock: Clock) -> Iterator[None]:
        """Remember how long what is within took, unless it fails."""
        started = clock.monotonic()
        yield
        self.observe(stage, clock.monotonic() - started)

    def report(
        self,
        sent_at_ms: int,
        partitions: tuple[PartitionProgress, ...],
        *,
        idle: bool,
        waiting_for: str | None,
        time_parts: Mapping[TimePart, float],
        left_out: Mapping[TopicPartition, str],
    ) -> WorkerReport:
        """The totals, and the stage times since the last report."""
        with self._lock:
            seconds, self._stage_seconds = tuple(self._stage_seconds), []
            out_of_memory = self._out_of_memory
            evidence, evidence_bytes = tuple(self._evidence.values()), self._evidence_bytes
        self._reports += 1
        return WorkerReport(
            worker=self._worker,
            incarnation=self._incarnation,
            number=self._reports,
            sent_at_ms=sent_at_ms,
            work_done=self.work_done,
            idle=idle,
            rows=self.rows,
            images_scored=self.images_scored,
            dead_letters=self.dead_letters,
            segments_published=self.segments_published,
            segment_conflicts=self.segment_conflicts,
            rebalances=self.rebalances,
            last_commit_ms=self.last_commit_ms,
            partitions=partitions,
            stage_seconds=seconds,
            waiting_for=waiting_for,
            offsets_ahead=self.disagreements[Disagreement.AHEAD],
            offsets_behind=self.disagreements[Disagreement.BEHIND],
            offsets_missing=self.disagreements[Disagreement.MISSING],
            time_parts=tuple(time_parts[part] for part in TIME_PARTS),
            out_of_memory=out_of_memory,
            decode_warnings=self.decode_warnings,
            evidence=evidence,
            evidence_bytes=evidence_bytes,
            left_out=left_out,
        )


class Publisher:
    """Finds where chains end, and brings rows from memory to where they are known.

    What may be mended outside of the worker is `Unavailable`: a disk that is full, a folder that
    cannot be written to, a dead-letter topic that takes nothing. Every method may be called again
    after it.
    """

    def __init__(
        self,
        log: ScoredLog,
        dead_letters: DeadLetters,
        reporter: Reporter,
        summarise: Summarise,
        *,
        counters: WorkerCounters,
        clock: Clock,
        tracing: Tracing = OFF,
    ) -> None:
        self._log, self._dead_letters, self._tracing = log, dead_letters, tracing
        self._reporter, self._summarise = reporter, summarise
        self._counters, self._clock = counters, clock

    def checkpoint(
        self,
        partitions: Iterable[Partition],
        deadline: Deadline,
        commit: Commit,
        *,
        dead_letters_at_least_s: float = 0.0,
    ) -> list[Unpublished]:
        """Make what partitions hold durable, and then let others know. Four steps, in this order.

        1. Dead letters: the failed images of a partition go to the dead-letter topic. A row that
           says so must not stand in the log before its payload is safe.
        2. Segment: its rows become a segment at the chain's end, by an exclusive create.
        3. Commit: the ends of all new segments, and what was refused before, are committed. A
           committed offset never runs ahead of the log. What is pending of a partition that has
           lost a race is not committed here: the winner's end is further.
        4. Summary: the coordinator is told of the new segments. An alert never speaks of a record
           that the log does not hold.

        Where 1 or 2 fails for a partition, it keeps its rows and the others go on. A group that
        rebalances refuses 3: the offsets stay pending, and 4 goes on, since the log is the truth
        and the committed offset a hint.

        Partitions that hold nothing are passed over. The deadline is for the dead letters; one
        whose turn comes after it has ``dead_letters_at_least_s`` seconds.

        Returns:
            The partitions that could not be published. A `SegmentConflictError` says that a
            segment with this base offset is there already. Another writer has published it; or
            this one has, in an attempt that failed after it had taken the name.
        """
        partitions = list(partitions)
        durable: list[_Durable] = []
        unpublished: list[Unpublished] = []
        for partition in partitions:
            if partition.end == partition.position.offset:
                continue
            try:
                timeout_s = max(dead_letters_at_least_s, deadline.remaining_s())
                self._send_dead_letters(partition, timeout_s)
                durable.append(self._publish(partition))
            except (SegmentConflictError, Unavailable) as cause:
                unpublished.append(Unpublished(partition, cause))
        began = self._clock.monotonic()
        lost = {one.partition.name for one in unpublished if not isinstance(one.cause, Unavailable)}
        self.commit(
            [one for one in partitions if one.name not in lost],
            commit,
            fresh=frozenset(one.partition.name for one in durable),
        )
        self._submit(durable, ("commit", began, self._clock.monotonic()))
        return unpublished

    def commit(
        self,
        partitions: Iterable[Partition],
        commit: Commit,
        *,
        fresh: AbstractSet[TopicPartition] = frozenset(),
    ) -> bool:
        """Commit what is pending, and say whether nothing is left: the group may refuse.

        A worker that slept can have been thrown out of the group and have joined it again in the
        meantime, while another one published and committed more. So the chain's end is read again,
        and committed, but of ``fresh`` partitions, whose end has just been published or read. The
        group refuses the commit of a worker that sleeps after that.
        """
        ready, all_read = [], True
        for partition in partitions:
            pending = partition.pending
            try:
                if partition.name not in fresh:
                    self.renew_pending(partition)
                ready.append(partition)
            except Unavailable:
                partition.pending, all_read = pending, False
        pendings = {p.name: p.pending for p in ready if p.pending is not None}
        if not pendings:
            return all_read
        with self._counters.timed("commit", self._clock):
            if not commit(pendings):
                return False
        for partition in ready:
            partition.pending = None
        self._counters.last_commit_ms = self._clock.now_ms()
        return all_read

    def recover(self, offsets: PartitionOffsets) -> ChainPosition:
        """Find where the chain ends, or begin one at 0.

        A first run begins the chains elsewhere before it starts workers. A partition without one
        was added later: all of its messages came while the log was kept. An offset that was
        committed there is of a topic of before, or another's: it counts as it does with a chain.

        Raises:
            TopicReplacedError: The chain was made from another topic of this name.
            ChainBrokenError: The chain cannot be read.
            Unavailable: The log cannot be read or written now.
        """
        partition, committed = offsets.partition, offsets.committed
        with _mendable_log():
            position = self._log.end(partition, committed)
            if position is None:
                position = self._log.begin(partition, 0, offsets.topic_id)
                note_beginning(offsets, position)
        return require_same_topic(partition, position, offsets.topic_id)

    def declare_gaps(
        self,
        partition: Partition,
        offsets: PartitionOffsets,
        resume_from: ResumeFrom,
        commit: Commit,
    ) -> None:
        """Say in the log which offsets it will never have, and why; commit, and tell of it.

        The partition holds no rows; it goes on after the gaps.

        Raises:
            OffsetRangeError: The committed offset is followed, and past the topic's end.
            Unavailable: The log cannot be written now.
        """
        gaps = self._declare_gap(partition, offsets.earliest, _RETENTION)
        committed = offsets.committed or 0
        if resume_from == "committed" and committed > partition.end:
            require_within_topic(offsets)
            gaps += self._declare_gap(partition, committed, _COMMITTED)
        if gaps:
            self.commit([partition], commit, fresh={partition.name})
        self._submit(gaps)

    def winner(self, partition: Partition, conflict: SegmentConflictError) -> ChainPosition:
        """Where the chain ends now that another writer was first.

        Raises:
            SegmentConflictError: There is no chain any more.
            TopicReplacedError: It is of another topic.
            Unavailable: The log cannot be read now.
        """
        lost = partition.position
        with _mendable_log():
            position = self._log.end(partition.name, lost.offset)
        if position is None:
            raise conflict
        self._counters.segment_conflicts += 1
        structlog.get_logger().warning("segment_conflict", conflict=str(conflict))
        return require_same_topic(partition.name, position, lost.topic_id)

    def renew_pending(self, partition: Partition) -> None:
        """Where a commit was refused before, have the chain's end committed instead.

        Whoever was thrown out of the group learns it late, and another may have committed more.

        Raises:
            Unavailable: The log cannot be read now; then nothing is pending.
        """
        refused, partition.pending = partition.pending, None
        if refused is None:
            return
        with _mendable_log():
            position = self._log.end(partition.name, refused)
        partition.pending = None if position is None else position.offset

    def _send_dead_letters(self, partition: Partition, timeout_s: float) -> None:
        if not partition.failed:
            return
        began = self._clock.monotonic()
        # Two monitors that read each other's would send one to and fro for ever. Its row stays.
        letters = [image for image in partition.failed if not image.origin.is_letter]
        with self._counters.timed("dead_letters", self._clock):
            try:
                for image in letters:
                    self._dead_letters.send(image)
                self._dead_letters.flush(timeout_s)
            except BrokerError as error:
                raise Unavailable(DEAD_LETTERS, error) from error
        self._counters.dead_letters += len(letters)
        partition.delivered()
        partition.steps.append(("dead_letters", began, self._clock.monotonic()))

    def _publish(self, partition: Partition) -> _Durable:
        rows, began = partition.rows, self._clock.monotonic()
        with _mendable_log(), self._counters.timed("publish", self._clock):
            segment = self._log.publish(partition.name, partition.position, partition.end, rows)
        steps = (*partition.steps, ("publish", began, self._clock.monotonic()))
        return replace(self._published(partition, segment, rows), steps=steps)

    def _published(
        self,
        partition: Partition,
        segment: PublishedSegment,
        rows: pa.Table,
        gap: str | None = None,
    ) -> _Durable:
        partition.published(segment.position)
        partition.pending = segment.position.offset
        return _Durable(partition, segment, rows, gap)

    def _submit(self, durable: Iterable[_Durable], *more: Timed) -> None:
        for one in durable:
            self._counters.segments_published += 1
            self._counters.work_done += 1
            self._counters.rows += one.rows.num_rows
            if one.rows.num_rows:
                one.partition.newest_ms = event_time_range(one.rows)[1]
            summary = self._summarise(one.segment, one.rows, one.gap)
            if self._tracing.is_on:
                trace = self._tracing.segment(summary, (*one.steps, *more))
                summary = replace(summary, trace=trace)
            with self._tracing.span("submit", summary.trace):
                self._reporter.submit(summary)

    def _declare_gap(self, partition: Partition, end: int, reason: str) -> list[_Durable]:
        """Declare a gap up to ``end``, unless another writer has done so."""
        nothing = ROWS.empty_table()
        while partition.end < end:
            gap = f"offsets [{partition.end}, {end}): {reason}"
            try:
                with _mendable_log():
                    segment = self._log.publish(
                        partition.name, partition.position, end, nothing, gap=gap
                    )
            except SegmentConflictError as conflict:
                partition.published(self.winner(partition, conflict))
                continue
            structlog.get_logger().error("offsets_lost", partition=str(partition.name), gap=gap)
            return [self._published(partition, segment, nothing, gap)]
        return []


def note_beginning(offsets: PartitionOffsets, position: ChainPosition) -> None:
    """Warn where a group that has read before has no log: its folder may not be mounted."""
    log = structlog.get_logger()
    tell = log.info if offsets.committed is None else log.warning
    tell(
        "chain_begun",
        partition=str(offsets.partition),
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
