"""The worker's line: one thread that polls, publishes and commits, beside the scoring stage."""

from collections.abc import Callable, Iterable, Sequence

import structlog

from nap_stream.clock import Clock, Deadline
from nap_stream.dead_letter import DeadLetters
from nap_stream.errors import SegmentConflictError
from nap_stream.pipeline.commits import Announcer, ChainWriter, Commit, Durable, Reporter, Summarise
from nap_stream.pipeline.partition import (
    Disagreement,
    Offsets,
    PartitionBuffer,
    ResumeFrom,
    disagreement,
)
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.pipeline.tally import Tally
from nap_stream.pipeline.waiting import BrokerWatch, Unavailable, Waiting
from nap_stream.records import (
    PartitionProgress,
    Status,
    TopicPartition,
)
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.settings.schema import LogSettings, WorkerSettings
from nap_stream.source.base import COMMIT_TIMEOUT_S, PartitionListener, Source

POLL_S = 0.1
REPORT_EVERY_S = 1.0
DEAD_LETTER_TIMEOUT_S = 5.0
"""For one attempt, which holds up polling. What it does not deliver is waited for."""
DEAD_LETTER_AT_LEAST_S = 1.0
"""For a partition that comes after others that have used up that time."""


class WorkerLine:
    """Everything between Kafka and the log for the partitions of one consumer.

    It is the source's listener: `assigned` recovers a partition's chain, `revoked` publishes
    what is in hand, `lost` drops it.

    Where a log or a dead-letter topic takes nothing, the line fetches nothing for any of its
    partitions, goes on polling, so that it stays a member of the group, tries again with backoff
    and says in its reports what it waits for.

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
        resume_from: What wins where the committed offset is ahead of the log.
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
        resume_from: ResumeFrom = "log",
    ) -> None:
        self._stage, self._reporter = stage, reporter
        self._log_settings, self._worker = log_settings, worker_settings
        self._clock, self._tally, self._resume_from = clock, tally, resume_from
        self._writer = ChainWriter(log, dead_letters, tally, clock)
        self._announcer = Announcer(reporter, summarise, tally, clock)
        self._waiting = Waiting(clock)
        self._buffers: dict[TopicPartition, PartitionBuffer] = {}
        self._skips: dict[TopicPartition, int] = {}
        self._epoch = 0
        self._paused = False
        self._last_poll_empty = False
        self._reported_at = float("-inf")
        self._source = open_source(self)
        self._broker = BrokerWatch(self._source.reachable, clock)

    def run(
        self,
        should_stop: Callable[[], bool],
        deadline_s: float,
        *,
        stop_age_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Work until told to stop; then publish, commit and leave.

        Args:
            should_stop: Asked between any two steps.
            deadline_s: For publishing, committing and leaving, in seconds.
            stop_age_s: How much of it had passed when the last step ended: one that waits for a
                broker takes seconds.

        Raises:
            NapStreamError: Whatever cannot be mended here; or what kept the rows in hand from
                being published at the end: they are read again. The source is closed all the
                same, and nothing more is published.
        """
        try:
            while not should_stop():
                self._step()
            self._finish(Deadline(self._clock, max(0.0, deadline_s - stop_age_s())))
        except BaseException:
            self._disown(list(self._buffers))
            self._close_after_error(deadline_s)
            raise

    def assigned(
        self,
        partition: TopicPartition,
        *,
        earliest: int,
        latest: int,
        committed: int | None,
        start: int,
        topic_id: str | None,
    ) -> int | None:
        """Recover the chain of a partition, or begin one; return where to read from.

        None while the log cannot be read or written.
        """
        if not self._waiting.may_try(partition):
            return None
        try:
            offset = self._take_over(
                partition, Offsets(earliest, latest, committed, start, topic_id)
            )
        except Unavailable as unavailable:
            self._waiting.failed(partition, unavailable)
            return None
        if offset is not None:
            self._waiting.over(partition)
        return offset

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Publish what is in hand of partitions that go to another worker.

        What cannot be published by the deadline is dropped: the next owner reads it again.
        """
        mine = [partition for partition in partitions if partition in self._buffers]
        deadline = Deadline(self._clock, self._worker.revoke_deadline_s)
        if mine:
            drained = self._drain(mine, deadline.remaining_s() / 2)
            unavailable = self._publish_last(mine, deadline, self._source.commit_soon)
            structlog.get_logger().info(
                "partitions_revoked",
                partitions=[str(p) for p in mine],
                drained=drained,
                published=unavailable is None,
            )
        self._disown(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop what is in hand of partitions that another worker already owns."""
        self._disown(partitions)
        structlog.get_logger().warning("partitions_lost", partitions=[str(p) for p in partitions])

    def _step(self) -> None:
        self._poll()
        self._collect()
        self._publish_and_announce(self._due())
        self._balance()
        self._report_when_due()

    def _due(self) -> list[TopicPartition]:
        now = self._clock.monotonic()
        # Payloads alone must not keep fetching paused until their segments are old enough.
        crowded = self._paused and self._payload_bytes() * 2 > self._worker.max_in_hand_bytes
        return [
            partition
            for partition, buffer in self._buffers.items()
            if buffer.due(self._log_settings, now)
            or (crowded and buffer.payload_bytes > 0)
            # One whose dead letters have been delivered may have become too small to be due.
            or (partition in self._waiting and buffer.opened_at is not None)
        ]

    def _payload_bytes(self) -> int:
        return sum(buffer.payload_bytes for buffer in self._buffers.values())

    def _poll(self) -> None:
        room = self._worker.max_in_hand_images - self._stage.in_hand()[0]
        with self._tally.timed("poll", self._clock):
            timeout_s = 0.0 if self._paused else POLL_S
            fetched = self._source.poll(timeout_s, max(1, room))
        self._last_poll_empty = not fetched and not self._paused
        if fetched:
            self._broker.heard()
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

    def _take_over(self, partition: TopicPartition, offsets: Offsets) -> int | None:
        """Own a partition from its chain's end on; None where rows of before must wait."""
        is_new = partition not in self._buffers
        if not is_new:
            self._drain([partition], self._worker.revoke_deadline_s)
            self._publish_and_announce([partition])
            if partition in self._waiting:
                return None
        position = self._writer.recover(partition, offsets)
        buffer = PartitionBuffer(self._next_epoch(), position, position.offset)
        gaps = self._writer.declare_gaps(partition, buffer, offsets, self._resume_from)
        self._own(buffer, partition)
        # The coordinator must know of a partition before its siblings' watermarks move on.
        self._reported_at = float("-inf")
        self._announcer.announce(gaps, self._source.commit)
        if is_new:
            self._note_disagreement(partition, disagreement(position, offsets.committed))
        if buffer.end != (offsets.start if offsets.committed is None else offsets.committed):
            self._announcer.owe(partition, buffer.end)
        structlog.get_logger().info(
            "partition_assigned",
            partition=str(partition),
            offset=buffer.end,
            log_end=position.offset,
            committed=offsets.committed,
        )
        return buffer.end

    def _note_disagreement(self, partition: TopicPartition, kind: Disagreement | None) -> None:
        if kind is None:
            return
        self._tally.disagreements[kind] += 1
        ahead = kind is Disagreement.AHEAD
        (structlog.get_logger().warning if ahead else structlog.get_logger().info)(
            "committed_offset_differs",
            partition=str(partition),
            committed_offset=kind.value,
            resume_from=self._resume_from if ahead else "log",
        )

    def _publish_and_announce(self, partitions: Iterable[TopicPartition]) -> None:
        """Make what is in hand durable; a partition that cannot has all of them wait."""
        deadline = Deadline(self._clock, DEAD_LETTER_TIMEOUT_S)
        durable = []
        for partition in partitions:
            if not self._waiting.may_try(partition):
                continue
            try:
                durable.extend(self._publish_or_concede(partition, deadline))
            except Unavailable as unavailable:
                self._waiting.failed(partition, unavailable)
            else:
                self._waiting.over(partition)
        self._announcer.announce(durable, self._source.commit)

    def _publish_or_concede(self, partition: TopicPartition, deadline: Deadline) -> list[Durable]:
        """Publish; the loser of a race drops its rows and goes on from the winner's end."""
        buffer = self._buffers[partition]
        try:
            timeout_s = max(DEAD_LETTER_AT_LEAST_S, deadline.remaining_s())
            return self._writer.publish(partition, buffer, timeout_s)
        except SegmentConflictError as conflict:
            position = self._writer.concede(partition, buffer.position, conflict)
        self._own(PartitionBuffer(self._next_epoch(), position, position.offset), partition)
        self._source.seek(partition, position.offset)
        # A worker whose place another has taken learns it from the group's answer alone. A refusal
        # is made up for: nothing else may come to this partition, whose commit would be behind.
        self._announcer.owe(partition, position.offset)
        self._announcer.commit(self._source.commit)
        return []

    def _publish_last(
        self, partitions: Iterable[TopicPartition], deadline: Deadline, commit: Commit
    ) -> Unavailable | None:
        """Publish what is in hand of partitions that are given up; say what kept one from it."""
        durable: list[Durable] = []
        failure = None
        for partition in partitions:
            buffer = self._buffers[partition]
            try:
                self._look_up_owed(partition)
                durable.extend(self._writer.publish(partition, buffer, deadline.remaining_s()))
            except SegmentConflictError as conflict:
                structlog.get_logger().warning("segment_conflict", conflict=str(conflict))
                self._tally.segment_conflicts += 1
            except Unavailable as unavailable:
                failure = failure or unavailable
                structlog.get_logger().warning(
                    "rows_dropped", partition=str(partition), cause=str(unavailable)
                )
        self._announcer.announce(durable, commit)
        if not durable:
            # What earlier segments could not commit: nobody else will.
            self._announcer.commit(commit)
        return failure

    def _look_up_owed(self, partition: TopicPartition) -> None:
        """Owe the chain's end where a commit was refused before.

        Whoever was thrown out of the group learns it late, and another may have committed more.
        """
        offset = self._announcer.owed(partition)
        if offset is None:
            return
        self._announcer.forgive(partition)
        end = self._writer.end(partition, offset)
        if end is not None:
            self._announcer.owe(partition, end)

    def _balance(self) -> None:
        """Pause fetching when enough is in hand or something is waited for; else go on.

        What is in hand includes the payloads of failed images, which wait for their segment.
        """
        images, size = self._stage.in_hand()
        size += self._payload_bytes()
        limits, waits = self._worker, len(self._waiting) > 0
        full = images >= limits.max_in_hand_images or size >= limits.max_in_hand_bytes
        low = images * 2 <= limits.max_in_hand_images and size * 2 <= limits.max_in_hand_bytes
        if (full or waits) and not self._paused:
            self._source.pause()
            self._paused = True
        elif low and not waits and self._paused:
            self._source.resume()
            self._paused = False

    def _finish(self, deadline: Deadline) -> None:
        mine = list(self._buffers)
        drained = self._drain(mine, deadline.remaining_s() / 2)
        patience = Deadline(self._clock, deadline.remaining_s() / 2)
        unavailable = self._publish_last(mine, patience, self._commit_by(patience))
        self._commit_last(Deadline(self._clock, deadline.remaining_s() / 2))
        self._report()
        if unavailable is not None:
            # Closing gives partitions up, which would try once more.
            self._disown(mine)
        self._source.close(deadline.remaining_s())
        if unavailable is not None:
            raise unavailable.cause
        structlog.get_logger().info("worker_finished", drained=drained, rows=self._tally.rows)

    def _commit_last(self, deadline: Deadline) -> None:
        """Commit what is not yet; a group that rebalances takes it once its members have polled."""
        commit = self._commit_by(deadline)
        self._source.pause()
        self._announcer.commit(commit)
        while self._announcer.owes and not deadline.expired():
            self._source.poll(min(POLL_S, deadline.remaining_s()), 1)
            self._announcer.commit(commit)

    def _commit_by(self, deadline: Deadline) -> Commit:
        """Commits that do not outlast a deadline."""
        return lambda offsets: self._source.commit(
            offsets, min(COMMIT_TIMEOUT_S, deadline.remaining_s())
        )

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
            self._waiting.forget(partition)
            self._announcer.forget(partition)
            self._skips.pop(partition, None)

    def _report_when_due(self) -> None:
        if self._clock.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._announcer.commit(self._source.commit)
            self._report()

    def _report(self) -> None:
        self._reported_at = self._clock.monotonic()
        progress = tuple(self._progress(p, buffer) for p, buffer in sorted(self._buffers.items()))
        rests = self._has_nothing_to_score() and self._broker.ask()
        # Rows may wait for their segment's time longer than a stalled worker is borne with.
        self._tally.work_done += rests
        nothing_in_hand = all(buffer.opened_at is None for buffer in self._buffers.values())
        idle = rests and nothing_in_hand and self._source.settled()
        waiting_for = self._waiting.text or self._broker.text
        self._reporter.report(
            self._tally.report(self._clock.now_ms(), progress, idle=idle, waiting_for=waiting_for)
        )

    def _has_nothing_to_score(self) -> bool:
        return self._last_poll_empty and not len(self._waiting) and self._stage.in_hand()[0] == 0

    def _progress(self, partition: TopicPartition, buffer: PartitionBuffer) -> PartitionProgress:
        lag, newest_ms = self._source.lag(partition), self._announcer.newest_ms(partition)
        age_ms = None if newest_ms is None else max(0, self._clock.now_ms() - newest_ms)
        caught_up = lag == 0 and buffer.opened_at is None
        return PartitionProgress(partition, buffer.end, lag, 0 if caught_up else age_ms)
