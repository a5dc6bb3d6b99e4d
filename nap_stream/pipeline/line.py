"""The worker's line: one thread that polls, publishes and commits, beside the scoring stage."""

from collections.abc import Callable, Iterable, Sequence

import structlog

from nap_stream.clock import Clock, Deadline
from nap_stream.dead_letter import DeadLetters
from nap_stream.errors import SegmentConflictError
from nap_stream.pipeline.commits import Commit, Publisher, Reporter, Summarise, WorkerCounters
from nap_stream.pipeline.evidence import EvidenceKeeper
from nap_stream.pipeline.partition import Partition, ResumeFrom, disagreement
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.pipeline.waiting import BrokerWatch, Unavailable, Waiting
from nap_stream.records import (
    Disagreement,
    PartitionOffsets,
    PartitionProgress,
    TopicPartition,
)
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.settings.log import LogSettings
from nap_stream.settings.run import WorkerSettings
from nap_stream.source.base import COMMIT_TIMEOUT_S, PartitionListener, Source
from nap_stream.tracing import OFF, Tracing

POLL_S = 0.1
REPORT_EVERY_S = 1.0
DEAD_LETTER_TIMEOUT_S = 5.0
"""For one attempt, which holds up polling. What it does not deliver is waited for."""
EVIDENCE_TIMEOUT_S = 5.0
"""For what still waits to be kept at the end, after everything is committed, or failed."""
DEAD_LETTER_AT_LEAST_S = 1.0
"""For a partition that comes after others that have used up that time."""


class WorkerLine:
    """Everything between Kafka and the log for the partitions of one consumer.

    It is the listener of the source that ``open_source`` opens: `assigned` recovers a partition's
    chain, `revoked` publishes what is in flight, `lost` drops it.

    Where a log or a dead-letter topic takes nothing, the line fetches nothing for any of its
    partitions, goes on polling, so that it stays a member of the group, tries again with backoff
    and says in its reports what it waits for. ``reading_waits_for`` tells what those wait for who
    read messages.
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
        counters: WorkerCounters,
        resume_from: ResumeFrom = "log",
        reading_waits_for: Callable[[], str | None] = lambda: None,
        evidence: EvidenceKeeper | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self._evidence = evidence
        self._stage, self._reporter = stage, reporter
        self._log_settings, self._worker = log_settings, worker_settings
        self._clock, self._counters, self._resume_from = clock, counters, resume_from
        self._publisher = Publisher(
            *(log, dead_letters, reporter, summarise),
            counters=counters,
            clock=clock,
            tracing=tracing,
        )
        self._waiting, self._reading_waits_for = Waiting(clock), reading_waits_for
        self._partitions: dict[TopicPartition, Partition] = {}
        self._epoch = 0
        self._paused = False
        self._last_poll_empty = False
        self._reported_at = float("-inf")
        self._source = open_source(self)
        self._broker = BrokerWatch(self._source.away, clock)

    def run(
        self,
        should_stop: Callable[[], bool],
        deadline_s: float,
        *,
        stop_age_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Work until told to stop; then publish, commit and leave within ``deadline_s`` seconds.

        ``stop_age_s`` tells how much of them had passed when the last step ended: one that waits
        for a broker takes seconds.

        Raises:
            NapStreamError: Whatever cannot be mended here; or what kept the rows in flight from
                being published at the end: they are read again. The source is closed all the
                same, and nothing more is published.
        """
        try:
            while not should_stop():
                self._step()
            self._finish(Deadline(self._clock, max(0.0, deadline_s - stop_age_s())))
        except BaseException:
            self._disown(list(self._partitions))
            self._close_after_error(deadline_s)
            raise

    def assigned(self, offsets: PartitionOffsets) -> int | None:
        """Recover the chain of a partition, or begin one; return where to read from.

        None while the log cannot be read or written.
        """
        partition = offsets.partition
        if not self._waiting.may_try(partition):
            return None
        try:
            offset = self._take_over(offsets)
        except Unavailable as unavailable:
            self._waiting.failed(partition, unavailable)
            return None
        if offset is not None:
            self._waiting.over(partition)
        return offset

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Publish what is in flight of partitions that go to another worker.

        What cannot be published by the deadline is dropped: the next owner reads it again.
        """
        mine = [self._partitions[name] for name in partitions if name in self._partitions]
        deadline = Deadline(self._clock, self._worker.revoke_deadline_s)
        if mine:
            drained = self._drain(mine, deadline.remaining_s() / 2)
            unavailable = self._publish_last(mine, deadline, self._source.commit_soon)
            structlog.get_logger().info(
                "partitions_revoked",
                partitions=[str(partition.name) for partition in mine],
                drained=drained,
                published=unavailable is None,
            )
        self._disown(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop what is in flight of partitions that another worker already owns."""
        self._disown(partitions)
        structlog.get_logger().warning("partitions_lost", partitions=[str(p) for p in partitions])

    def _step(self) -> None:
        self._poll()
        self._collect()
        self._stage.note_log(is_slow=True)
        self._publish(self._due())
        self._stage.note_log(is_slow=bool(self._waiting))
        self._balance()
        self._report_when_due()

    def _poll(self) -> None:
        """Hand what the source brings to the scoring stage."""
        room = self._worker.max_in_hand_images - self._stage.in_flight()[0]
        began = self._clock.monotonic()
        with self._counters.timed("poll", self._clock):
            timeout_s = 0.0 if self._paused else POLL_S
            fetched = self._source.poll(timeout_s, max(1, room))
        self._last_poll_empty = not fetched and not self._paused
        if fetched:
            self._broker.heard()
        for part in fetched:
            partition = self._partitions.get(part.partition)
            if partition is None:
                continue
            self._stage.submit(part, partition.epoch, began)
            if not part.messages:
                partition.skipped_to = part.end
        if self._paused:
            self._stage.wait_for_scored(POLL_S)

    def _collect(self) -> None:
        """Give what has been scored to its partition, where that has not been placed anew since."""
        for scored in self._stage.take():
            self._counters.work_done += 1
            partition = self._partitions.get(scored.partition)
            if partition is not None and partition.epoch == scored.epoch:
                partition.add(scored, self._clock.monotonic())
                if self._evidence is not None:
                    self._evidence.offer(scored)
                self._counters.images_scored += scored.scored
                self._counters.decode_warnings += scored.decode_warnings
        for partition in self._partitions.values():
            if partition.skipped_to is not None and not self._stage.has_in_flight(partition.name):
                partition.skip(self._clock.monotonic())

    def _due(self) -> list[Partition]:
        now = self._clock.monotonic()
        # Payloads alone must not keep fetching paused until their segments are old enough.
        crowded = self._paused and self._payload_bytes() * 2 > self._worker.max_in_hand_bytes
        return [
            partition
            for partition in self._partitions.values()
            if partition.due(self._log_settings, now)
            or (crowded and partition.payload_bytes > 0)
            # One whose dead letters have been delivered may have become too small to be due.
            or (partition.name in self._waiting and partition.opened_at is not None)
        ]

    def _payload_bytes(self) -> int:
        return sum(partition.payload_bytes for partition in self._partitions.values())

    def _publish(self, partitions: Iterable[Partition]) -> None:
        """Make rows durable; a partition that cannot has all of them wait.

        The loser of a race drops its rows, adopts the winner's segments, and goes on behind them.
        """
        ready = [one for one in partitions if self._waiting.may_try(one.name)]
        failures: dict[TopicPartition, Unavailable] = {}
        for one in self._publisher.checkpoint(
            ready,
            Deadline(self._clock, DEAD_LETTER_TIMEOUT_S),
            self._source.commit,
            dead_letters_at_least_s=DEAD_LETTER_AT_LEAST_S,
        ):
            if isinstance(one.cause, Unavailable):
                failures[one.partition.name] = one.cause
                continue
            try:
                self._adopt_winner(one.partition, one.cause)
            except Unavailable as unavailable:
                failures[one.partition.name] = unavailable
        for partition in ready:
            if (failure := failures.get(partition.name)) is not None:
                self._waiting.failed(partition.name, failure)
            else:
                self._waiting.over(partition.name)

    def _adopt_winner(self, partition: Partition, conflict: SegmentConflictError) -> None:
        partition.place(self._next_epoch(), self._publisher.winner(partition, conflict))
        self._source.seek(partition.name, partition.end)
        # A worker whose place another has taken learns it from the group's answer alone. A refusal
        # is made up for: nothing else may come to this partition, whose commit would be behind.
        partition.pending = partition.end
        self._publisher.commit([partition], self._source.commit, fresh={partition.name})

    def _publish_last(
        self, partitions: Iterable[Partition], deadline: Deadline, commit: Commit
    ) -> Unavailable | None:
        """Publish what partitions hold that are given up; say what kept one from it."""
        ready: list[Partition] = []
        failures: list[tuple[Partition, Unavailable]] = []
        for partition in partitions:
            try:
                self._publisher.renew_pending(partition)
                ready.append(partition)
            except Unavailable as unavailable:
                failures.append((partition, unavailable))
        for one in self._publisher.checkpoint(ready, deadline, commit):
            if isinstance(one.cause, Unavailable):
                failures.append((one.partition, one.cause))
            else:
                self._publisher.commit([one.partition], commit)
                structlog.get_logger().warning("segment_conflict", conflict=str(one.cause))
                self._counters.segment_conflicts += 1
        for partition, cause in failures:
            structlog.get_logger().warning(
                "rows_dropped", partition=str(partition.name), cause=str(cause)
            )
        return failures[0][1] if failures else None

    def _drain(self, partitions: Iterable[Partition], timeout_s: float) -> bool:
        """Wait until nothing of partitions is in flight; whether that was in time."""
        done = self._stage.wait_until_done(frozenset(one.name for one in partitions), timeout_s)
        self._collect()
        return done

    def _take_over(self, offsets: PartitionOffsets) -> int | None:
        """Own a partition from its chain's end on; None where rows of before must wait."""
        name, committed = offsets.partition, offsets.committed
        before = self._partitions.get(name)
        if before is not None:
            self._drain([before], self._worker.revoke_deadline_s)
            self._publish([before])
            if name in self._waiting:
                return None
        position = self._publisher.recover(offsets)
        partition = Partition(name, self._next_epoch(), position, position.offset)
        if before is not None:
            partition.pending, partition.newest_ms = before.pending, before.newest_ms
        self._publisher.declare_gaps(partition, offsets, self._resume_from, self._source.commit)
        self._partitions[name] = partition
        # The coordinator must know of a partition before its siblings' watermarks move on.
        self._reported_at = float("-inf")
        if before is None:
            self._counters.rebalances += 1
            self._note_disagreement(name, disagreement(position, committed))
        # A chain without a segment needs no offset: the next owner begins there, too.
        known = position.offset if committed is None and position.base is None else committed
        if partition.end != known:
            partition.pending = partition.end
        structlog.get_logger().info(
            "partition_assigned",
            partition=str(name),
            offset=partition.end,
            log_end=position.offset,
            committed=committed,
        )
        return partition.end

    def _note_disagreement(self, partition: TopicPartition, kind: Disagreement | None) -> None:
        if kind is None:
            return
        self._counters.disagreements[kind] += 1
        ahead = kind is Disagreement.AHEAD
        (structlog.get_logger().warning if ahead else structlog.get_logger().info)(
            "committed_offset_differs",
            partition=str(partition),
            committed_offset=kind.value,
            resume_from=self._resume_from if ahead else "log",
        )

    def _balance(self) -> None:
        """Pause fetching when enough is in flight or something is waited for; else go on.

        What is in flight includes the payloads of failed images, which wait for their segment.
        """
        images, size = self._stage.in_flight()
        size += self._payload_bytes()
        limits, waits = self._worker, bool(self._waiting)
        full = images >= limits.max_in_hand_images or size >= limits.max_in_hand_bytes
        low = images * 2 <= limits.max_in_hand_images and size * 2 <= limits.max_in_hand_bytes
        if (full or waits) and not self._paused:
            self._source.pause()
            self._paused = True
        elif low and not waits and self._paused:
            self._source.resume()
            self._paused = False

    def _finish(self, deadline: Deadline) -> None:
        mine = list(self._partitions.values())
        drained = self._drain(mine, deadline.remaining_s() / 2)
        patience = Deadline(self._clock, deadline.remaining_s() / 2)
        unavailable = self._publish_last(mine, patience, self._commit_by(patience))
        self._commit_last(Deadline(self._clock, deadline.remaining_s() / 2))
        if self._evidence is not None:
            self._evidence.close(min(EVIDENCE_TIMEOUT_S, deadline.remaining_s() / 2))
        self._report()
        if unavailable is not None:
            # Closing gives partitions up, which would try once more.
            self._disown(list(self._partitions))
        self._source.close(deadline.remaining_s())
        if unavailable is not None:
            raise unavailable.cause
        structlog.get_logger().info("worker_finished", drained=drained, rows=self._counters.rows)

    def _commit_last(self, deadline: Deadline) -> None:
        """Commit what is pending; a group that rebalances takes it once its members have polled."""
        self._source.pause()
        while not self._commit_pending(self._commit_by(deadline)) and not deadline.expired():
            self._source.poll(min(POLL_S, deadline.remaining_s()), 1)

    def _commit_pending(self, commit: Commit) -> bool:
        return self._publisher.commit(self._partitions.values(), commit)

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
        if self._evidence is not None:
            # Rows of what waits may be durable: then nobody scores them again.
            self._evidence.close(min(EVIDENCE_TIMEOUT_S, deadline_s))

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _disown(self, partitions: Iterable[TopicPartition]) -> None:
        for name in partitions:
            if self._partitions.pop(name, None) is not None:
                self._counters.rebalances += 1
            self._waiting.forget(name)

    def _report_when_due(self) -> None:
        if self._clock.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._commit_pending(self._source.commit)
            self._report()

    def _report(self) -> None:
        self._reported_at = self._clock.monotonic()
        owned = [partition for _, partition in sorted(self._partitions.items())]
        nothing_to_score = self._stage.in_flight()[0] == 0 and not self._waiting
        rests = nothing_to_score and self._last_poll_empty and self._broker.ask()
        # Rows may wait for their segment's time longer than a stalled worker is tolerated.
        self._counters.work_done += rests
        nothing_to_publish = all(partition.opened_at is None for partition in owned)
        idle = rests and nothing_to_publish and self._source.settled()
        report = self._counters.report(
            self._clock.now_ms(),
            tuple(self._progress(partition) for partition in owned),
            idle=idle,
            waiting_for=self._waiting.text or self._broker.text or self._reading_waits_for(),
            time_parts=self._stage.time_parts(),
            left_out=self._source.left_out(),
        )
        self._reporter.report(report)

    def _progress(self, partition: Partition) -> PartitionProgress:
        lag, newest_ms = self._source.lag(partition.name), partition.newest_ms
        age_ms = None if newest_ms is None else max(0, self._clock.now_ms() - newest_ms)
        caught_up = lag == 0 and partition.opened_at is None
        return PartitionProgress(partition.name, partition.end, lag, 0 if caught_up else age_ms)
