"""The worker's line: one thread that polls, publishes and commits, beside the scoring stage."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
Commit = Callable[[Mapping[TopicPartition, int]], object]


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
        self._time_lag_ms: dict[TopicPartition, int] = {}
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
            self._buffers.clear()
            self._source.close(deadline_s)
            raise

    def assigned(
        self, partition: TopicPartition, *, earliest: int, committed: int | None, start: int
    ) -> int:
        """Recover the chain of a partition, or begin one; return where to read from."""
        if partition in self._buffers:
            self._drain([partition], self._worker.revoke_deadline_s)
            self._publish_or_concede([partition])
        position = self._log.end(partition)
        if position is None:
            first = start if committed is None else max(earliest, committed)
            position = self._log.begin(partition, first)
        self._own(PartitionBuffer(self._next_epoch(), position, position.offset), partition)
        # The coordinator must know of a partition before its siblings' watermarks move on.
        self._reported_at = float("-inf")
        if position.offset < earliest:
            self._publish_gap(partition, earliest)
        resume_at = self._buffers[partition].end
        structlog.get_logger().info(
            "partition_assigned", partition=str(partition), offset=resume_at, committed=committed
        )
        return resume_at

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Publish what is in hand of partitions that go to another worker."""
        mine = [partition for partition in partitions if partition in self._buffers]
        if not mine:
            return
        drained = self._drain(mine, self._worker.revoke_deadline_s)
        for partition in mine:
            with suppress(SegmentConflictError):
                self._publish(partition, self._source.commit_soon)
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
        self._publish_or_concede(
            [p for p, buffer in self._buffers.items() if buffer.due(self._log_settings, now)]
        )
        self._balance()
        self._report_when_due()

    def _poll(self) -> None:
        with self._timed("poll"):
            timeout_s = 0.0 if self._paused else POLL_S
            fetched = self._source.poll(timeout_s, self._worker.max_in_hand_images)
        self._last_poll_empty = not fetched and not self._paused
        for part in fetched:
            buffer = self._buffers.get(part.partition)
            if buffer is None:
                continue
            if part.messages:
                self._stage.submit(part, buffer.epoch)
            elif not self._stage.has_in_hand(part.partition):
                buffer.skip_to(part.end, self._clock.monotonic())
        if self._paused:
            self._stage.wait_for_scored(POLL_S)

    def _collect(self) -> None:
        """Move what has been scored into the buffers of the assignment that it was read under."""
        for message in self._stage.take():
            self._tally.work_done += 1
            buffer = self._buffers.get(message.partition)
            if buffer is not None and buffer.epoch == message.epoch:
                buffer.add(message, self._clock.monotonic())

    def _drain(self, partitions: Iterable[TopicPartition], timeout_s: float) -> bool:
        done = self._stage.wait_until_done(frozenset(partitions), timeout_s)
        self._collect()
        return done

    def _publish_or_concede(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            try:
                self._publish(partition, self._source.commit)
            except SegmentConflictError as conflict:
                self._concede(partition, conflict)

    def _publish(self, partition: TopicPartition, commit: Commit) -> None:
        """Segment, commit, summary: in this order, each only after the one before."""
        buffer = self._buffers[partition]
        if buffer.end == buffer.position.offset:
            return
        self._send_dead_letters(buffer)
        records = buffer.records
        with self._timed("publish"):
            try:
                segment = self._log.publish(partition, buffer.position, buffer.end, records)
            except SegmentConflictError:
                self._tally.segment_conflicts += 1
                raise
        buffer.published(segment.position)
        self._published(segment, records, None, commit)

    def _publish_gap(self, partition: TopicPartition, earliest: int) -> None:
        """Declare offsets that the topic no longer has; the loser of a race takes the winner's."""
        buffer = self._buffers[partition]
        gap = f"offsets [{buffer.end}, {earliest}) were deleted by retention before they were read"
        structlog.get_logger().error("offsets_lost", partition=str(partition), gap=gap)
        segment = self._log.publish(partition, buffer.position, earliest, (), gap=gap)
        buffer.published(segment.position)
        self._published(segment, (), gap, self._source.commit)

    def _published(
        self,
        segment: PublishedSegment,
        records: Sequence[ScoredRecord],
        gap: str | None,
        commit: Commit,
    ) -> None:
        self._tally.segments_published += 1
        self._tally.work_done += 1
        self._tally.rows += len(records)
        self._tally.images_scored += sum(record.status is Status.OK for record in records)
        if records:
            newest = max(record.origin.event_time_ms for record in records)
            self._time_lag_ms[segment.partition] = self._clock.now_ms() - newest
        with self._timed("commit"):
            if commit({segment.partition: segment.position.offset}) is not False:
                self._tally.last_commit_ms = self._clock.now_ms()
        self._reporter.submit(self._summarise(segment, records, gap))

    def _send_dead_letters(self, buffer: PartitionBuffer) -> None:
        if not buffer.failed:
            return
        with self._timed("dead_letters"):
            for image in buffer.failed:
                self._dead_letters.send(image)
            self._dead_letters.flush(DEAD_LETTER_TIMEOUT_S)
        self._tally.dead_letters += len(buffer.failed)
        buffer.failed.clear()

    def _concede(self, partition: TopicPartition, conflict: SegmentConflictError) -> None:
        """Another writer was first: drop these rows and go on from the winner's end."""
        structlog.get_logger().warning("segment_conflict", conflict=str(conflict))
        position = self._log.end(partition)
        if position is None:
            raise conflict
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
        self._publish_or_concede(list(self._buffers))
        self._report()
        self._source.close(deadline.remaining_s())
        structlog.get_logger().info("worker_finished", drained=drained, rows=self._tally.rows)

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _own(self, buffer: PartitionBuffer, partition: TopicPartition) -> None:
        if partition not in self._buffers:
            self._tally.rebalances += 1
        self._buffers[partition] = buffer

    def _disown(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            if self._buffers.pop(partition, None) is not None:
                self._tally.rebalances += 1
            self._time_lag_ms.pop(partition, None)

    def _report_when_due(self) -> None:
        if self._clock.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._report()

    def _report(self) -> None:
        self._reported_at = self._clock.monotonic()
        progress = tuple(
            PartitionProgress(p, buffer.end, self._source.lag(p), self._time_lag_ms.get(p))
            for p, buffer in sorted(self._buffers.items())
        )
        idle = self._last_poll_empty and self._stage.in_hand()[0] == 0
        idle = idle and all(buffer.opened_at is None for buffer in self._buffers.values())
        self._reporter.report(self._tally.report(self._clock.now_ms(), progress, idle=idle))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = self._clock.monotonic()
        yield
        self._tally.observe(stage, self._clock.monotonic() - started)
