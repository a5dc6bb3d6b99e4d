"""Merges what the workers tell, judges drift, delivers alerts, shows how the run is. No Ray.

Puts the coordinator together from settings. Knows no Ray.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import structlog

from nap_stream.alert.sinks import AlertSink, open_sinks
from nap_stream.clock import Clock, Deadline
from nap_stream.core.alert_state import Reason
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import CalibrationFacts, DriftUpdate
from nap_stream.metrics import Metrics
from nap_stream.monitor.alerts import AlertDesk
from nap_stream.monitor.checkpoint import CheckpointStore
from nap_stream.monitor.http import Health, MetricsServer
from nap_stream.monitor.outbox import Outboxes
from nap_stream.monitor.status import (
    FRESH_S,
    CoordinatorStatus,
    PartitionTable,
    WorkerTable,
    show_drift,
)
from nap_stream.monitor.summaries import LogSummaries, SummaryIntake, SummaryLog, Takeover
from nap_stream.records import SegmentSummary, Status, TopicPartition, WorkerReport
from nap_stream.scored_log.read import partitions, parts_backwards, require_root
from nap_stream.scored_log.stores.open import store_at
from nap_stream.settings.schema import Settings

HEALTHY_REPORT_AGE_S = 30.0
"""Thirty reports missed: the worker is gone or cannot reach the coordinator."""

READ_AHEAD_EVERY_S = 30.0
"""How often the log is asked for segments of which nobody has told: it lists folders."""


class Coordinator:
    """The one place where all workers' summaries meet. Safe for several threads.

    Alerts are delivered by `tick` and `flush`, never by `submit`: a broker that is down holds
    no worker up.

    Args:
        settings: Of the monitor.
        calibration: What flags are judged by.
        sinks: Where alerts go, the surest first; closed by `close`.
        summaries: Finds in the log what workers did not send.
        checkpoints: The monitor's own.
        clock: The time.

    Raises:
        ConfigError: The window is too small to fire.
    """

    def __init__(
        self,
        settings: Settings,
        calibration: CalibrationFacts,
        sinks: Sequence[AlertSink],
        *,
        summaries: SummaryLog,
        checkpoints: CheckpointStore,
        clock: Clock,
    ) -> None:
        self._settings, self._clock, self._summaries = settings, clock, summaries
        self._lock = threading.RLock()
        program = version("nap-stream")
        self.metrics = Metrics(program)
        self.metrics.workers_expected.set(settings.worker.count)
        plan = detection_plan(settings.drift, calibration)
        self.metrics.ood_fraction_expected.set(plan.flag_rate)
        self._monitor = DriftMonitor(plan, settings, clock)
        self._intake = SummaryIntake(
            self._monitor,
            summaries,
            self._apply,
            metrics=self.metrics,
            lock=self._lock,
            clock=clock,
        )
        self._outboxes = Outboxes(sinks, self.metrics, clock)
        self._desk = AlertDesk(
            self._monitor,
            calibration,
            self._outboxes,
            checkpoints,
            metrics=self.metrics,
            lock=self._lock,
            clock=clock,
            version=program,
        )
        self._workers = WorkerTable(self.metrics)
        driver = settings.driver
        self._partitions = PartitionTable(
            self.metrics, driver.stall_timeout_s, driver.start_timeout_s
        )
        self._server: MetricsServer | None = None
        self._rows: Counter[Status] = Counter()
        self._restarts = 0
        self._read_ahead_s = clock.monotonic()
        self._shown = self._monitor.snapshot()

    def start(self, since: Mapping[TopicPartition, int] | None = None) -> None:
        """Take up where the last coordinator was, from its checkpoint and the log; serve metrics.

        See `nap_stream.monitor.summaries`. An alert goes to the sinks that have not received it.

        Args:
            since: Offsets from which on the log's rows count in `status`, for a coordinator that
                takes the place of one that died; none of them do where None.

        Raises:
            ScoredLogError: The log cannot be read.
            ConfigError: The address of the metrics cannot be had.
        """
        if self._summaries.partitions():
            self._outboxes.read_back()
            self._take_over()
            with self._lock:
                self._partitions.wait_for(self._monitor.partitions(), self._clock.monotonic())
        # From here on whoever takes over has a checkpoint to begin with.
        self._desk.settle(at_once=True)
        if since is not None:
            self._count_since(since)
        with self._lock:
            self._show()
        self._server = MetricsServer(self._settings.metrics, self.metrics.registry, self.health)

    @property
    def metrics_url(self) -> str:
        """Where /metrics is; only between `start` and `close`."""
        if self._server is None:
            raise RuntimeError("the coordinator serves no metrics: it is not started, or closed")
        return self._server.url

    def submit(self, summary: SegmentSummary) -> None:
        """Take the summary of a durable segment. One that was taken before changes nothing."""
        self._intake.submit(summary)

    def report(self, report: WorkerReport) -> None:
        """Take a worker's sign of life."""
        with self._lock:
            now_s = self._clock.monotonic()
            if self._workers.take(report, now_s):
                for partition in self._partitions.take(report, now_s):
                    self._monitor.hold(partition)
                    # Whoever takes over must wait for it too.
                    self._desk.hurry()
            self._look_at_workers(now_s)

    def worker_restarted(self, worker: str) -> None:
        """Count the replacement of a worker."""
        structlog.get_logger().warning("worker_replaced", worker=worker)
        with self._lock:
            self._restarts += 1
            self.metrics.worker_restarts.inc()

    def tick(self) -> None:
        """Look for missing summaries, move the watermark on, deliver alerts."""
        self._intake.fill_holes()
        if self._clock.monotonic() - self._read_ahead_s >= READ_AHEAD_EVERY_S:
            self._read_ahead_s = self._clock.monotonic()
            self._intake.read_ahead()
        with self._lock:
            self._look_at_workers(self._clock.monotonic())
            self._apply(self._monitor.advance())
        self._desk.settle()
        self._outboxes.deliver()

    def flush(self, timeout_s: float, *, input_ended: bool = True) -> None:
        """Take what the log has, write a checkpoint, and deliver all alerts.

        Args:
            timeout_s: How long to go on trying to deliver; once at least.
            input_ended: Go on without offsets that are missing, and judge what waits for the
                watermark, too. After a stop the next run does: panes closed now would make late
                records of what their partitions still bring.
        """
        deadline = Deadline(self._clock, timeout_s)
        if input_ended:
            self._intake.close_holes()
        else:
            self._intake.read_ahead()
            self._intake.fill_holes()
        with self._lock:
            self._apply(self._monitor.flush() if input_ended else self._monitor.advance())
        self._desk.settle(at_once=True)
        self._outboxes.drain(deadline)
        # What was delivered is no longer on its way.
        self._desk.settle(at_once=True)

    def status(self) -> CoordinatorStatus:
        """Say how the run is."""
        with self._lock:
            drift, totals, reasons = self._shown, self._workers.totals, self._desk.reasons
            return CoordinatorStatus(
                rows=self._rows.total(),
                rows_by_status=dict(self._rows),
                images_scored=totals["images_scored"],
                images_per_second=self._workers.images_per_second(self._clock.monotonic()),
                ood_fraction=None if drift.bound is None else drift.fraction,
                bound=drift.bound,
                alert_state=drift.state,
                window_records=drift.window_records,
                window_size=self._settings.drift.window_records,
                alerts_fired=reasons[Reason.BEGAN],
                alerts_resolved=sum(
                    reasons[over] for over in (Reason.ENDED, Reason.SILENT, Reason.FORGOTTEN)
                ),
                alerts_waiting=len(self._desk),
                max_lag=self._partitions.max_lag(),
                dead_letters=totals["dead_letters"],
                late_records=drift.late_records,
                worker_restarts=self._restarts,
                workers=self._workers.reports(),
                waiting_for=self._waiting_for(),
                severity=drift.severity,
                keys=drift.keys,
                keys_firing=drift.keys_firing,
            )

    def health(self) -> Health:
        """Say whether all workers report and go on, and alerts can be delivered."""
        wanted, age_s = self._settings.worker.count, HEALTHY_REPORT_AGE_S
        with self._lock:
            heard = len(self._workers.heard_within(age_s, self._clock.monotonic()))
            waiting = self._waiting_for()
        reasons = []
        if heard < wanted:
            reasons.append(f"{heard} of {wanted} workers reported in the last {age_s:g} s")
        reasons.extend(f"{worker} waits for {what}" for worker, what in sorted(waiting.items()))
        if (failure := self._outboxes.failure) is not None:
            reasons.append(f"{len(self._outboxes)} alerts not delivered: {failure}")
        return Health(tuple(reasons))

    def close(self) -> None:
        """Stop serving and close the sinks. Safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._outboxes.close()

    def _take_over(self) -> None:
        takeover = Takeover(self._monitor, self._summaries, self._intake, self._desk)
        is_restored = takeover.restore()
        if not is_restored:
            takeover.begin_at_tail()
        # What was counted before is not counted again.
        self._shown = self._monitor.snapshot()
        if is_restored:
            takeover.go_on()

    def _count_since(self, since: Mapping[TopicPartition, int]) -> None:
        """Count what the log holds already; what comes after is counted as it comes."""
        for partition in self._monitor.partitions():
            start, end = since.get(partition, 0), self._monitor.end(partition)
            for summary in self._summaries.read(partition, start, end or 0):
                self._rows.update(summary.rows_by_status)

    def _waiting_for(self) -> Mapping[str, str]:
        return self._workers.waiting(HEALTHY_REPORT_AGE_S, self._clock.monotonic())

    def _look_at_workers(self, now_s: float) -> None:
        for partition in self._partitions.expected(now_s, self._monitor.end):
            self._monitor.hold(partition)
        self.metrics.workers.set(len(self._workers.heard_within(FRESH_S, now_s)))
        self.metrics.workers_waiting.set(len(self._workers.waiting(FRESH_S, now_s)))
        self.metrics.images_per_second.set(self._workers.images_per_second(now_s))

    def _apply(self, update: DriftUpdate) -> None:
        for summary in update.accepted:
            self._count(summary)
        self._desk.take(update)
        self._show()

    def _count(self, summary: SegmentSummary) -> None:
        for status, rows in summary.rows_by_status.items():
            self._rows[status] += rows
            self.metrics.records.labels(status.value).inc(rows)
        if summary.gap is not None:
            self.metrics.gaps.inc()
            self.metrics.gap_offsets.inc(summary.end_offset - summary.base_offset)

    def _show(self) -> None:
        before, self._shown = self._shown, self._monitor.snapshot()
        if before != self._shown:
            self._desk.changed()
        size, now_ms = self._settings.drift.window_records, self._clock.now_ms()
        show_drift(self.metrics, before, self._shown, size, now_ms)


ChainEnds = Mapping[TopicPartition, int]
"""The end offset of each chain of a topic; partitions without a segment are left out."""


def chain_ends(settings: Settings) -> ChainEnds:
    """Where the chains of the topic end now.

    Raises:
        ScoredLogError: The log cannot be read.
    """
    store = store_at(settings.log.root)
    return {
        partition: newest.end_offset
        for partition in partitions(store, settings.kafka.topic)
        if (newest := next(parts_backwards(store, partition), None)) is not None
    }


def open_coordinator(
    settings: Settings,
    calibration: CalibrationFacts,
    clock: Clock,
    since: ChainEnds | None = None,
) -> Coordinator:
    """A coordinator that knows from checkpoint and log where it is, serves metrics and can alert.

    Args:
        settings: Of the monitor.
        calibration: What flags are judged by.
        clock: The time.
        since: Where the chains ended when the run began, to count the rows that the log has got
            since then; None counts from now on.

    Raises:
        NapStreamError: What keeps it from starting.
    """
    store = store_at(settings.log.root)
    require_root(store)
    coordinator = Coordinator(
        settings,
        calibration,
        open_sinks(settings, clock),
        summaries=LogSummaries(store, settings, calibration.fingerprint),
        checkpoints=CheckpointStore(store, settings.alerts.monitor, settings.kafka.topic),
        clock=clock,
    )
    try:
        coordinator.start(since)
    except BaseException:
        coordinator.close()
        raise
    return coordinator
