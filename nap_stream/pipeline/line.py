"""The worker's line: one thread that polls, publishes and commits, beside the scoring stage."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from nap_stream.clock import Clock
from nap_stream.dead_letter.base import DeadLetters
from nap_stream.deadline import Deadline
from nap_stream.errors import SegmentConflictError
from nap_stream.pipeline.buffer import PartitionBuffer
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.pipeline.tally import Tally
from nap_stream.records import (
    ChainPosition,
    PartitionProgress,
    PublishedSegment,
    ScoredRecord,
    SegmentSummary,
    Status,
    TopicPartition,
    WorkerReport,
)
from nap_stream.scored_log.base import ScoredLog
from nap_stream.settings import LogSettings, WorkerSettings
from nap_stream.source.base import PartitionListener, Source

POLL_S = 0.1
REPORT_EVERY_S = 1.0
DEAD_LETTER_TIMEOUT_S = 30.0
"""Longer than a leader election takes, much shorter than max_poll_interval_s should be."""


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


@dataclass(frozen=True, slots=True)
class _Durable:
    """A segment that is published and neither committed nor summarised yet."""

    segment: PublishedSegment
    records: Sequence[ScoredRecord]
    gap: str | None = None


class WorkerLine:
    """Everything between Kafka and the log for the partitions of one consumer.

    It is the source's listener: `assigned` recovers a partition's chain, `revoked` publishes
    what is in hand, `lost` drops it.

    Args:
        open_source: Opens the source that reports its partitions to this line.
        stage: Decodes and scores.
        log: Where segments are published.
        dead_letters: Where undecodable payloads go, before their segment is published.
        reporter: Receives summaries and reports.
        summarise: (segment, its rows, gap) → summary.
        log_settings: When a segment is due.
        worker_settings: How much may be in hand, how long a revocation may take.
        clock: The time.
        tally: The counts for the reports.
    """

    def __init__(
        self,
        open_source: Callable[[PartitionListener], Source],
        *,
        stage: ScoringStage,
        log: ScoredLog,
        dead_letters: DeadLetters,
        reporter: Reporter,
        summarise: Summarise,
        log_settings: LogSettings,
        worker_settings: WorkerSettings,
        clock: Clock,
        tally: Tally,
    ) -> None:
        self._stage, self._log, self._dead_letters = stage, log, dead_letters
        self._reporter, self._summarise = reporter, summarise
        self._log_settings, self._worker = log_settings, worker_settings
        self._clock, self._tally = clock, tally
        self._buffers: dict[TopicPartition, PartitionBuffer] = {}
        self._newest_ms: dict[TopicPartition, int] = {}
        self._skips: dict[TopicPartition, int] = {}
        self._uncommitted: dict[TopicPartition, int] = {}
        self._epoch = 0
        self._paused = False
        self._last_poll_empty = False
        self._reported_at = float("-inf")
        self._source = open_source(self)

    def run(self, should_stop: Callable[[], bool], deadline_s: float) -> None:
        """Work until told to stop; then publish, commit and leave within ``deadline_s`` seconds.

        Raises:
            NapStreamError: Whatever cannot be mended here. The source is closed all the same,
                and nothing more is published.
        """
        try:
            while not should_stop():
                self._step()
            self._finish(Deadline(self._clock, deadline_s))
        except BaseException:
            self._disown(list(self._buffers))
            self._close_after_error(deadline_s)
            raise

    def assigned(
        self, partition: TopicPartition, *, earliest: int, committed: int | None, start: int
    ) -> int:
        """Recover the chain of a partition, or begin one; return where to read from."""
        if partition in self._buffers:
            self._drain([partition], self._worker.revoke_deadline_s)
            self._announce(self._publish([partition], DEAD_LETTER_TIMEOUT_S), self._source.commit)
        position = self._log.end(partition)
        if position is None:
            first = start if committed is None else max(earliest, committed)
            position = self._log.begin(partition, first)
        self._own(PartitionBuffer(self._next_epoch(), position, position.offset), partition)
        # The coordinator must know of a partition before its siblings' watermarks move on.
        self._reported_at = float("-inf")
        self._announce(self._declare_gap(partition, earliest), self._source.commit)
        resume_at = self._buffers[partition].end
        if resume_at != (start if committed is None else committed):
            self._uncommitted[partition] = resume_at
        structlog.get_logger().info(
            "partition_assigned", partition=str(partition), offset=resume_at, committed=committed
        )
        return resume_at

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Publish what is in hand of partitions that go to another worker."""
        mine = [partition for partition in partitions if partition in self._buffers]
        if not mine:
            return
        deadline = Deadline(self._clock, self._worker.revoke_deadline_s)
        drained = self._drain(mine, deadline.remaining_s() / 2)
        durable = self._publish(mine, deadline.remaining_s(), goes_on=False)
        self._announce(durable, self._source.commit_soon)
        self._disown(mine)
        structlog.get_logger().info(
            "partitions_revoked", partitions=[str(p) for p in mine], drained=drained
        )

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop what is in hand of partitions that another worker already owns."""
        self._disown(partitions)
        structlog.get_logger().warning("partitions_lost", partitions=[str(p) for p in partitions])

    def _step(self) -> None:
        self._poll()
        self._collect()
        now = self._clock.monotonic()
        due = [p for p, buffer in self._buffers.items() if buffer.due(self._log_settings, now)]
        self._announce(self._publish(due, DEAD_LETTER_TIMEOUT_S), self._source.commit)
        self._balance()
        self._report_when_due()

    def _poll(self) -> None:
        room = self._worker.max_in_hand_images - self._stage.in_hand()[0]
        with self._timed("poll"):
            timeout_s = 0.0 if self._paused else POLL_S
            fetched = self._source.poll(timeout_s, max(1, room))
        self._last_poll_empty = not fetched and not self._paused
        for part in fetched:
            buffer = self._buffers.get(part.partition)
            if buffer is None:
                continue
            self._stage.submit(part, buffer.epoch)
            if not part.messages:
                self._skips[part.partition] = part.end
        if self._paused:
            self._stage.wait_for_scored(POLL_S)

    def _collect(self) -> None:
        """Move what has been scored into the buffers of the assignment that it was read under."""
        for message in self._stage.take():
            self._tally.work_done += 1
            buffer = self._buffers.get(message.partition)
            if buffer is not None and buffer.epoch == message.epoch:
                buffer.add(message, self._clock.monotonic())
                self._tally.images_scored += sum(r.status is Status.OK for r in message.records)
        for partition in [p for p in self._skips if not self._stage.has_in_hand(p)]:
            end = self._skips.pop(partition)
            self._buffers[partition].skip_to(end, self._clock.monotonic())

    def _drain(self, partitions: Iterable[TopicPartition], timeout_s: float) -> bool:
        done = self._stage.wait_until_done(frozenset(partitions), timeout_s)
        self._collect()
        return done

    def _publish(
        self, partitions: Iterable[TopicPartition], timeout_s: float, *, goes_on: bool = True
    ) -> list[_Durable]:
        """Make what is in hand durable; the loser of a race takes the winner's end, or gives up."""
        durable = []
        for partition in partitions:
            try:
                durable.extend(self._publish_one(partition, timeout_s))
            except SegmentConflictError as conflict:
                self._note_conflict(conflict)
                if goes_on:
                    self._concede(partition, conflict)
        return durable

    def _publish_one(self, partition: TopicPartition, timeout_s: float) -> list[_Durable]:
        buffer = self._buffers[partition]
        if buffer.end == buffer.position.offset:
            return []
        self._send_dead_letters(buffer, timeout_s)
        records = buffer.records
        with self._timed("publish"):
            segment = self._log.publish(partition, buffer.position, buffer.end, records)
        buffer.published(segment.position)
        return [_Durable(segment, records)]

    def _declare_gap(self, partition: TopicPartition, earliest: int) -> list[_Durable]:
        """Declare offsets that the topic no longer has, unless another writer has done so."""
        buffer = self._buffers[partition]
        while buffer.end < earliest:
            gap = f"retention deleted offsets [{buffer.end}, {earliest}) before they were read"
            try:
                segment = self._log.publish(partition, buffer.position, earliest, (), gap=gap)
            except SegmentConflictError as conflict:
                self._note_conflict(conflict)
                buffer.published(self._end_of(partition, conflict))
                continue
            structlog.get_logger().error("offsets_lost", partition=str(partition), gap=gap)
            buffer.published(segment.position)
            return [_Durable(segment, (), gap)]
        return []

    def _announce(self, durable: Sequence[_Durable], commit: Commit) -> None:
        """Commit what is durable, and only then tell the coordinator."""
        if not durable:
            return
        self._uncommitted |= {d.segment.partition: d.segment.position.offset for d in durable}
        self._commit(commit)
        for one in durable:
            self._tally.segments_published += 1
            self._tally.work_done += 1
            self._tally.rows += len(one.records)
            if one.records:
                newest_ms = max(record.origin.event_time_ms for record in one.records)
                self._newest_ms[one.segment.partition] = newest_ms
            self._reporter.submit(self._summarise(one.segment, one.records, one.gap))

    def _commit(self, commit: Commit) -> None:
        """Commit what is not yet; a group that rebalances refuses, and is asked again later."""
        if not self._uncommitted:
            return
        with self._timed("commit"):
            if commit(self._uncommitted):
                self._uncommitted.clear()
                self._tally.last_commit_ms = self._clock.now_ms()

    def _send_dead_letters(self, buffer: PartitionBuffer, timeout_s: float) -> None:
        if not buffer.failed:
            return
        with self._timed("dead_letters"):
            for image in buffer.failed:
                self._dead_letters.send(image)
            self._dead_letters.flush(timeout_s)
        self._tally.dead_letters += len(buffer.failed)
        buffer.failed.clear()

    def _note_conflict(self, conflict: SegmentConflictError) -> None:
        self._tally.segment_conflicts += 1
        structlog.get_logger().warning("segment_conflict", conflict=str(conflict))

    def _end_of(self, partition: TopicPartition, conflict: SegmentConflictError) -> ChainPosition:
        position = self._log.end(partition)
        if position is None:
            raise conflict
        return position

    def _concede(self, partition: TopicPartition, conflict: SegmentConflictError) -> None:
        """Another writer was first: drop these rows and go on from the winner's end."""
        position = self._end_of(partition, conflict)
        self._own(PartitionBuffer(self._next_epoch(), position, position.offset), partition)
        self._source.seek(partition, position.offset)
        # A worker whose place another has taken learns it from the group's answer alone.
        self._source.commit({partition: position.offset})

    def _balance(self) -> None:
        """Pause fetching when enough is in hand, go on when half of it is done."""
        images, size = self._stage.in_hand()
        limits = self._worker
        full = images >= limits.max_in_hand_images or size >= limits.max_in_hand_bytes
        low = images * 2 <= limits.max_in_hand_images and size * 2 <= limits.max_in_hand_bytes
        if full and not self._paused:
            self._source.pause()
            self._paused = True
        elif low and self._paused:
            self._source.resume()
            self._paused = False

    def _finish(self, deadline: Deadline) -> None:
        drained = self._drain(list(self._buffers), deadline.remaining_s() / 2)
        durable = self._publish(list(self._buffers), deadline.remaining_s() / 2)
        self._announce(durable, self._source.commit)
        self._commit(self._source.commit)
        self._report()
        self._source.close(deadline.remaining_s())
        structlog.get_logger().info("worker_finished", drained=drained, rows=self._tally.rows)

    def _close_after_error(self, deadline_s: float) -> None:
        """Leave without hiding what ended the line."""
        try:
            self._source.close(deadline_s)
        except Exception as error:  # noqa: BLE001  the first error is the one to raise
            structlog.get_logger().warning("source_not_closed", cause=str(error))

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _own(self, buffer: PartitionBuffer, partition: TopicPartition) -> None:
        if partition not in self._buffers:
            self._tally.rebalances += 1
        self._skips.pop(partition, None)
        self._buffers[partition] = buffer

    def _disown(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            if self._buffers.pop(partition, None) is not None:
                self._tally.rebalances += 1
            self._newest_ms.pop(partition, None)
            self._skips.pop(partition, None)
            self._uncommitted.pop(partition, None)

    def _report_when_due(self) -> None:
        if self._clock.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._commit(self._source.commit)
            self._report()

    def _report(self) -> None:
        self._reported_at = self._clock.monotonic()
        progress = tuple(self._progress(p, buffer) for p, buffer in sorted(self._buffers.items()))
        idle = self._last_poll_empty and self._stage.in_hand()[0] == 0
        idle = idle and all(buffer.opened_at is None for buffer in self._buffers.values())
        self._reporter.report(self._tally.report(self._clock.now_ms(), progress, idle=idle))

    def _progress(self, partition: TopicPartition, buffer: PartitionBuffer) -> PartitionProgress:
        lag, newest_ms = self._source.lag(partition), self._newest_ms.get(partition)
        age_ms = None if newest_ms is None else max(0, self._clock.now_ms() - newest_ms)
        caught_up = lag == 0 and buffer.opened_at is None
        return PartitionProgress(partition, buffer.end, lag, 0 if caught_up else age_ms)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = self._clock.monotonic()
        yield
        self._tally.observe(stage, self._clock.monotonic() - started)
