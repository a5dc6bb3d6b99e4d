"""Merges what the workers tell, judges drift, delivers alerts, shows how the run is. No Ray."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import structlog

from nap_stream.alert.base import AlertSink
from nap_stream.alert.event import alert_event
from nap_stream.alert.gap import gap_event
from nap_stream.clock import Clock
from nap_stream.core.alert_state import AlertState, Transition
from nap_stream.deadline import Deadline
from nap_stream.drift.monitor import DriftMonitor, DriftUpdate
from nap_stream.metrics import Metrics
from nap_stream.records import (
    CalibrationFacts,
    DriftVerdict,
    SegmentSummary,
    Status,
    TopicPartition,
    WorkerReport,
)
from nap_stream.runtime.drift_metrics import show_drift
from nap_stream.runtime.http import Health, MetricsServer
from nap_stream.runtime.intake import ReadRange, SummaryIntake
from nap_stream.runtime.outbox import AlertOutbox
from nap_stream.runtime.partition_table import FRESH_S, PartitionTable
from nap_stream.runtime.worker_table import WorkerTable
from nap_stream.settings import Settings

HEALTHY_REPORT_AGE_S = 30.0
"""Thirty reports missed: the worker is gone or cannot reach the coordinator."""

ReadTail = Callable[[], Sequence[SegmentSummary]]
"""Summaries of the newest segments of each partition of the topic: at least the last one, and
together at least a window's records where the chain has them; in order within a partition."""

READ_AHEAD_EVERY_S = 30.0
"""How often the log is asked for segments of which nobody has told: it lists folders."""


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """The run now.

    Rows are those in the log since this coordinator started, or since the run did where it must
    end after so many; ``images_scored`` and
    ``dead_letters`` are the workers' own counts. ``ood_fraction`` and ``bound`` are null until
    the window is full, ``max_lag`` (offsets) until a lag is known. ``workers`` holds the last
    report of each, without stage times; ``waiting_for`` says of each that waits for something
    outside of it what that is.
    """

    rows: int
    rows_by_status: Mapping[Status, int]
    images_scored: int
    images_per_second: float
    ood_fraction: float | None
    bound: float | None
    alert_state: AlertState
    window_records: int
    window_size: int
    alerts_fired: int
    alerts_resolved: int
    alerts_waiting: int
    max_lag: int | None
    dead_letters: int
    late_records: int
    worker_restarts: int
    workers: Mapping[str, WorkerReport]
    waiting_for: Mapping[str, str] = field(default_factory=dict)


class Coordinator:
    """The one place where all workers' summaries meet. Safe for several threads.

    Alerts are delivered by `tick` and `flush`, never by `submit`: a broker that is down holds
    no worker up.

    Args:
        settings: Of the monitor.
        calibration: What flags are judged by.
        sink: Where alerts go; closed by `close`.
        read_range: Finds summaries in the log that workers did not send.
        read_tail: Finds where the log stands at the start.
        clock: The time.

    Raises:
        ConfigError: The window is too small to fire.
    """

    def __init__(
        self,
        settings: Settings,
        calibration: CalibrationFacts,
        sink: AlertSink,
        *,
        read_range: ReadRange,
        read_tail: ReadTail,
        clock: Clock,
    ) -> None:
        self._settings, self._calibration, self._clock = settings, calibration, clock
        self._read_tail, self._read_range = read_tail, read_range
        self._lock = threading.RLock()
        self._version = version("nap-stream")
        self.metrics = Metrics(self._version)
        self._monitor = DriftMonitor(
            settings.drift, calibration, examples=settings.alerts.examples, clock=clock
        )
        self._intake = SummaryIntake(
            self._monitor,
            read_range,
            self._apply,
            metrics=self.metrics,
            lock=self._lock,
            clock=clock,
        )
        self._outbox = AlertOutbox(sink, self.metrics, clock)
        self._workers = WorkerTable(self.metrics)
        self._partitions = PartitionTable(self.metrics, settings.driver.stall_timeout_s)
        self._server: MetricsServer | None = None
        self._rebuilt: list[DriftVerdict] = []
        self._rows: Counter[Status] = Counter()
        self._transitions: Counter[Transition] = Counter()
        self._restarts = 0
        self._read_ahead_s = clock.monotonic()
        self._shown = self._monitor.snapshot()

    def start(self, since: Mapping[TopicPartition, int] | None = None) -> None:
        """Rebuild the window from the log's tail, without alerts; serve /metrics and /healthz.

        Args:
            since: Offsets from which on the log's rows count in `status`, for a coordinator that
                takes the place of one that died; none of them do where None.

        Raises:
            ScoredLogError: The log cannot be read.
            ConfigError: The address of the metrics cannot be had.
        """
        verdicts = self._intake.rebuild(self._read_tail())
        self._rebuilt = [verdict for verdict in verdicts if verdict.transition is not None]
        if since is not None:
            self._count_since(since)
        with self._lock:
            self._show()
        self._server = MetricsServer(self._settings.metrics, self.metrics.registry, self.health)

    def announce_rebuilt(self) -> None:
        """Send the alert that the log's tail ends with, if any: for who stands in for another.

        The one that died may have judged it and not delivered it. Better twice than never.
        """
        with self._lock:
            for verdict in self._rebuilt[-1:]:
                if verdict.transition is not None:
                    self._announce(verdict, verdict.transition)
            self._rebuilt = []

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
        self._outbox.deliver()

    def flush(self, timeout_s: float) -> None:
        """Judge what is left, without waiting for the watermark, and deliver all alerts.

        Args:
            timeout_s: How long to go on trying to deliver; once at least.
        """
        deadline = Deadline(self._clock, timeout_s)
        self._intake.close_holes()
        with self._lock:
            self._apply(self._monitor.flush())
        self._outbox.drain(deadline)

    def status(self) -> CoordinatorStatus:
        """Say how the run is."""
        with self._lock:
            drift, totals = self._shown, self._workers.totals
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
                alerts_fired=self._transitions[Transition.FIRING],
                alerts_resolved=self._transitions[Transition.RESOLVED],
                alerts_waiting=len(self._outbox),
                max_lag=self._partitions.max_lag(),
                dead_letters=totals["dead_letters"],
                late_records=drift.late_records,
                worker_restarts=self._restarts,
                workers=self._workers.reports(),
                waiting_for=self._waiting_for(),
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
        if self._outbox.failure is not None:
            reasons.append(f"{len(self._outbox)} alerts not delivered: {self._outbox.failure}")
        return Health(tuple(reasons))

    def close(self) -> None:
        """Stop serving and close the sink. Safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._outbox.close()

    def _count_since(self, since: Mapping[TopicPartition, int]) -> None:
        """Count what the log holds already; what comes after is counted as it comes."""
        for partition in self._monitor.partitions():
            start, end = since.get(partition, 0), self._monitor.end(partition)
            for summary in self._read_range(partition, start, end or 0):
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
        for verdict in update.verdicts:
            if verdict.transition is not None:
                self._announce(verdict, verdict.transition)
        self._show()

    def _count(self, summary: SegmentSummary) -> None:
        for status, rows in summary.rows_by_status.items():
            self._rows[status] += rows
            self.metrics.records.labels(status.value).inc(rows)
        if summary.gap is not None:
            self.metrics.gaps.inc()
            self.metrics.gap_offsets.inc(summary.end_offset - summary.base_offset)
            self._outbox.put(gap_event(summary, self._settings, self._version))

    def _announce(self, verdict: DriftVerdict, transition: Transition) -> None:
        self._transitions[transition] += 1
        self._outbox.put(alert_event(verdict, self._settings, self._calibration, self._version))
        structlog.get_logger().warning(
            "drift_alert",
            state=transition.value,
            fraction=verdict.fraction,
            bound=verdict.bound,
            records=verdict.records,
        )

    def _show(self) -> None:
        before, self._shown = self._shown, self._monitor.snapshot()
        size = self._settings.drift.window_records
        show_drift(self.metrics, before, self._shown, size)
