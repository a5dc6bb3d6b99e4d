"""The one place where all workers' summaries meet: drift is judged here. Knows no Ray."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

import structlog

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.sinks import LAST_ATTEMPT_S, AlertSink
from nap_stream.clock import Clock, Deadline
from nap_stream.core.alert_state import OVER, Reason
from nap_stream.drift.block_alerts import block_watch
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import CalibrationFacts, DriftAlert, DriftUpdate, UnscoredAlert
from nap_stream.http_server import MetricsServer
from nap_stream.metrics import Metrics
from nap_stream.monitor.alerts import (
    AlertDispatcher,
    CatchUpFilter,
    CheckpointStore,
    MonitorSnapshot,
)
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.gauges import show_drift
from nap_stream.monitor.holes import Holes
from nap_stream.monitor.journal import Journal
from nap_stream.monitor.page import LivePage
from nap_stream.monitor.signing import LAST_WAIT_S, LogSigner
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.monitor.tables import PartitionTable, WorkerTable, driver_silence
from nap_stream.records import OffsetRange, SegmentSummary, Status, TopicPartition, WorkerReport
from nap_stream.scored_log.acceptances import AcceptanceReader
from nap_stream.scored_log.summary import LAST_OFFSET, Chains, LogEnds, LogSummaries, in_event_time
from nap_stream.settings.schema import Settings

READ_AHEAD_EVERY_S = 30.0
"""How often the log is asked for segments of which nobody has told: it lists folders."""
LOOK_EVERY_S = 0.25
"""How often what workers tell is looked at as a whole, at most: that takes time for each partition
and worker. `tick` and `status`, which the driver asks for as often, always look."""
HOLE_PATIENCE_S = 30.0
"""How long the log is asked for missing offsets before the monitor goes on without them."""


class Coordinator:
    """Owns the drift monitor: feeds it, restores it, tells what it decided and how the run is.

    Safe for several threads: one lock guards the drift monitor and what is known of workers and
    partitions. The log is read, checkpoints are written and alerts delivered without it, so that
    neither a slow disk nor a broker that is down holds a worker up. Alerts are delivered by `tick`
    and `flush`, never by `submit`. The surest of the sinks comes first; `close` closes them.

    ``acceptances`` tell what was accepted; None for nothing. ``node`` is this machine's address, to
    be shown where /metrics is on all of them.

    Raises:
        ConfigError: The window is too small to fire, or the baseline does not fit the settings.
    """

    def __init__(
        self,
        settings: Settings,
        calibration: CalibrationFacts,
        sinks: Sequence[AlertSink],
        *,
        summaries: LogSummaries,
        checkpoints: CheckpointStore,
        journal: Journal,
        clock: Clock,
        acceptances: AcceptanceReader | None = None,
        node: str = "localhost",
    ) -> None:
        self._settings, self._clock, self._log = settings, clock, summaries
        self._node, self._started_ms = node, clock.now_ms()
        self._plan = detection_plan(settings.drift, calibration)
        watch = block_watch(settings.drift, calibration)
        self._acceptances = None if watch is None else acceptances
        self.metrics = Metrics(version("nap-stream"))
        self.metrics.start_time.set(self._started_ms / 1000)
        self.metrics.ood_fraction_expected.set(self._plan.flag_rate)
        self._calibration, self._journal = calibration, journal
        self._dispatcher = AlertDispatcher(
            *(self._plan, settings, calibration, sinks, checkpoints),
            journal=journal,
            metrics=self.metrics,
            clock=clock,
        )
        self._page = LivePage(settings, self.metrics.registry, journal)
        self._signer = LogSigner(checkpoints.store, settings, self.metrics, clock)
        self._server: MetricsServer | None = None
        self._asked_s = clock.monotonic()
        # One thread at a time sends: an older state must not take the place of a newer one.
        self._sending = threading.Lock()
        # For `tick` and `flush` alone, as `_holes` is.
        self._read_ahead_s = clock.monotonic()
        # Guards all that follows.
        self._lock = threading.Lock()
        self._monitor = DriftMonitor(self._plan, settings, clock, watch=watch)
        self._holes = Holes(
            *(self._monitor, summaries, self._lock, clock),
            apply=self._apply,
            lost=self._count_gap,
        )
        self._shown = self._monitor.snapshot()
        self._revision = 0
        self._is_urgent = False
        self._past: CatchUpFilter | None = None
        self._looked_s = -math.inf
        self._workers = WorkerTable(self.metrics, Fleet(settings.worker.at_least))
        self._partitions = PartitionTable(self.metrics, settings.driver, settings.reads)
        self._rows: Counter[Status] = Counter()

    def start(self, since: LogEnds | None = None) -> None:
        """Take up where the last coordinator was, from its checkpoint and the log; serve metrics.

        An alert goes to the sinks that have not received it. ``since`` is where the chains ended
        when the monitor began: `status` counts the rows that the log has got since then, whoever
        was coordinator. None counts what is submitted from now.

        Raises:
            ScoredLogError: The log cannot be read.
            ConfigError: The address of the metrics cannot be had.
        """
        by_blocks = self._shown.blocks is not None
        self._journal.started(self._plan, self._calibration, by_blocks=by_blocks)
        self._accept_new()
        if self._log.partitions():
            self._take_over()
            self._wait_for_workers()
        # From here on whoever takes over has a checkpoint to begin with.
        self._send(at_once=True)
        if since is not None:
            self._count_since(since)
        with self._lock:
            self._show()
        self._server = MetricsServer(
            *(self._settings.metrics, self.metrics.registry, self.health),
            degraded=lambda: self._status().degraded(),
            decides=lambda: self._status().decides,
            probes={"/livez": self.alive, "/readyz": self.ready},
            page=lambda: self._page.write(self._status(), self.health()),
            node=self._node,
        )

    @property
    def metrics_url(self) -> str:
        """Where /metrics is; only between `start` and `close`."""
        if self._server is None:
            raise RuntimeError("the coordinator serves no metrics: it is not started, or closed")
        return self._server.url

    def submit(self, summary: SegmentSummary) -> None:
        """Take the summary of a durable segment. One that was taken before changes nothing.

        The first one of a partition may not tell of the chain's beginning, if the worker that
        published that died before it could. What stands before it in the log comes first.
        """
        with self._lock:
            is_first = self._monitor.partitions.end(summary.partition) is None
        beginning: Sequence[SegmentSummary] | None = ()
        if is_first and summary.base_offset > 0:
            beginning = self._log.find(OffsetRange(summary.partition, 0, summary.base_offset))
        if beginning is None:
            # Taken by itself it would be the beginning. The log has it: `_read_ahead` finds it.
            return
        with self._lock:
            for each in (*beginning, summary):
                self._apply(self._monitor.add(each))
            self._look(self._clock.monotonic())

    def report(self, report: WorkerReport) -> None:
        """Take a worker's sign of life."""
        with self._lock:
            now_s = self._clock.monotonic()
            self._workers.clocks.take(report, self._clock.now_ms())
            if self._workers.take(report, now_s):
                for partition in self._partitions.take(report, now_s):
                    self._monitor.partitions.hold(partition)
                    # Whoever takes over must wait for it too.
                    self._revision += 1
                    self._is_urgent = True
            self._workers.show(now_s)
            self._look(now_s)

    def worker_restarted(self, worker: str) -> None:
        """Count the replacement of a worker."""
        structlog.get_logger().warning("worker_replaced", worker=worker)
        with self._lock:
            self._workers.restarted()

    def tick(self, fleet: Fleet | None = None) -> None:
        """Look for missing summaries and acceptances, move the watermark on, deliver alerts.

        ``fleet`` is of which workers there are to be, where that is known.
        """
        self._accept_new()
        self._holes.fill(HOLE_PATIENCE_S)
        if self._clock.monotonic() - self._read_ahead_s >= READ_AHEAD_EVERY_S:
            self._read_ahead_s = self._clock.monotonic()
            self._read_ahead()
        with self._lock:
            if fleet is not None:
                self._workers.expect(fleet)
                self._partitions.listed(fleet.topics)
            self._look_at_workers(self._clock.monotonic())
            self._apply(self._monitor.advance())
            self._show()
            refused = self._partitions.newly_refused()
        self._journal.left_out(refused)
        self._send()
        self._signer.tick()
        self._dispatcher.outboxes.deliver()

    def flush(self, timeout_s: float, *, input_ended: bool = True) -> None:
        """Take what the log has, write a checkpoint, and deliver all alerts.

        Delivery is tried for ``timeout_s`` seconds, and once at least.

        With ``input_ended``, go on without offsets that are missing, and judge what waits for the
        watermark, too. After a stop the next run does: panes closed now would make late records of
        what their partitions still bring.
        """
        deadline = Deadline(self._clock, timeout_s)
        self._accept_new()
        self._read_ahead()
        if input_ended:
            # A hole of which the log cannot be read stays.
            while self._holes.fill(0.0):
                pass
        else:
            self._holes.fill(HOLE_PATIENCE_S)
        with self._lock:
            self._apply(self._monitor.flush() if input_ended else self._monitor.advance())
            self._show()
        self._send(at_once=True)
        self._dispatcher.outboxes.drain(deadline)
        # What was delivered is no longer on its way.
        self._send(at_once=True, last_wait_s=max(LAST_ATTEMPT_S, deadline.remaining_s()))

    def stopped(self, reason: str, timeout_s: float = math.inf) -> None:
        """Have the chain of events say that the run is over, and why; sign where chains end.

        Signing is waited for so long, but for `LAST_WAIT_S` at most; it is told where it was not.
        """
        with self._lock:
            rows = dict(self._rows)
        self._journal.stopped(reason, rows, LAST_WAIT_S)
        self._signer.begin()
        self._signer.finish(min(timeout_s, LAST_WAIT_S))

    def status(self) -> CoordinatorStatus:
        """Say to the driver how the run is, and show it in the metrics. Decides nothing."""
        self._asked_s = self._clock.monotonic()
        return self._status()

    def _status(self) -> CoordinatorStatus:
        with self._lock:
            self._show()
            totals, reasons = self._workers.totals, self._dispatcher.reasons
            now_s = self._clock.monotonic()
            return CoordinatorStatus(
                rows_by_status=dict(self._rows),
                drift=self._shown,
                window_size=self._settings.drift.window_records,
                images_scored=totals["images_scored"],
                images_per_second=self._workers.images_per_second(now_s),
                alerts_fired=reasons[Reason.BEGAN],
                alerts_resolved=sum(reasons[over] for over in OVER),
                alerts_waiting=len(self._dispatcher),
                max_lag=self._partitions.max_lag(),
                dead_letters=totals["dead_letters"],
                worker_restarts=self._workers.restarts,
                workers=self._workers.reports(),
                waiting_for=self._workers.waiting(now_s),
                now_ms=self._clock.now_ms(),
                started_ms=self._started_ms,
                metrics_url=None if self._server is None else self._server.url,
                stale_after_s=self._settings.drift.stale_after_s,
                workers_expected=self._workers.expected,
                signing_failure=self._signer.failure,
                events_lost=self._journal.loss,
                wrong_clocks=self._workers.clocks.wrong(),
                topics_gone=self._partitions.topics_gone,
                topics_left_out=self._partitions.left_out(),
                nothing_left=self._partitions.nothing_left(now_s),
                unread=tuple(map(str, self._partitions.unread(now_s))),
            )

    def health(self) -> tuple[str, ...]:
        """Say which workers do not report or go on, and why alerts are not delivered or kept."""
        with self._lock:
            waiting = self._workers.waiting(self._clock.monotonic())
            left_out = self._partitions.left_out()
        waits = (f"{worker} waits for {what}" for worker, what in sorted(waiting.items()))
        return (*self.ready(), *left_out.values(), *waits, *self._dispatcher.problems())

    def ready(self) -> tuple[str, ...]:
        """Say where workers are missing: they start, or are gone. One that waits is there."""
        with self._lock:
            return self._workers.missing(self._clock.monotonic())

    def alive(self) -> tuple[str, ...]:
        """Say what only a new start mends: the driver is gone. Waits for no lock."""
        return driver_silence(self._clock.monotonic() - self._asked_s)

    def close(self) -> None:
        """Stop serving and close the sinks. Safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._dispatcher.outboxes.close()

    def _accept_new(self) -> None:
        """Learn of acceptances that were made since the last look."""
        found = () if self._acceptances is None else self._acceptances.new()
        if found:
            with self._lock:
                self._monitor.accept(found)

    def _take_over(self) -> None:
        """Take up the story, before anybody tells anything.

        With a checkpoint the story goes on: what the log has beyond it is judged and told. Without
        one that fits, the log's tail is judged and nothing told of what is over; an alert that
        fires at its end is.
        """
        is_restored = self._restore(self._dispatcher.restore())
        how = "monitor_restored" if is_restored else "monitor_rebuilt_from_log"
        structlog.get_logger().info(how)
        if not is_restored:
            self._begin_at_tail()
        # What was counted before is not counted again.
        self._shown = self._monitor.snapshot()
        if is_restored:
            reached = self._monitor.partitions.ends()
            chains = {
                name: self._log.read(name, reached.get(name, 0), LAST_OFFSET)
                for name in self._log.partitions()
            }
            self._catch_up(chains, self._decide)

    def _wait_for_workers(self) -> None:
        """Wait for what the log has of the topics that are read; of others nothing comes."""
        reads = self._settings.reads
        with self._lock:
            names = self._monitor.partitions.names
            awaited = {name for name in names if name.topic in reads}
            self._partitions.wait_for(awaited, self._clock.monotonic())
            for name in awaited.symmetric_difference(names):
                self._monitor.partitions.release(name)

    def _restore(self, content: bytes | None) -> bool:
        """Take up where a checkpoint says; False where it does not fit the settings or the log."""
        if content is None or not self._monitor.restore(content):
            return False
        ends, reads = self._log.ends(), self._settings.reads
        reached = self._monitor.partitions.ends()
        # The log is asked for the topics that are read: what is read no more has no end there.
        ahead = [
            str(name)
            for name, end in reached.items()
            if name.topic in reads and end > ends.get(name, 0)
        ]
        if ahead:
            # All that comes would be taken for known.
            structlog.get_logger().warning("checkpoint_ahead_of_log", partitions=ahead)
            self._monitor.reset()
        return not ahead

    def _begin_at_tail(self) -> None:
        """Judge the log's tail; tell only what fires at its end."""
        decided: list[DriftUpdate] = []
        tails = {name: self._log.tail(name) for name in self._log.partitions()}
        self._catch_up(tails, decided.append)
        newest_ms = self._monitor.partitions.newest_ms()
        if newest_ms is not None:
            self._past = CatchUpFilter(newest_ms - newest_ms % self._settings.drift.pane_ms)
            with self._lock:
                self._decide(
                    DriftUpdate(
                        alerts=tuple(alert for update in decided for alert in update.alerts),
                        unscored=tuple(alert for update in decided for alert in update.unscored),
                    )
                )

    def _count_since(self, since: LogEnds) -> None:
        """Count what the log holds already; what comes after is counted as it comes."""
        for partition, end in self._monitor.partitions.ends().items():
            for summary in self._log.read(partition, since.get(partition, 0), end):
                self._rows.update(summary.rows_by_status)

    def _catch_up(self, chains: Chains, on_update: Callable[[DriftUpdate], None]) -> None:
        """Take what the log has, as if all of it came at once: no partition is idle meanwhile.

        ``on_update`` is called under the lock with what came of each summary, in order.
        """
        with self._lock:
            self._hold(chains)
        for _, summary in in_event_time(chains):
            if summary is not None:
                with self._lock:
                    self._hold(chains)
                    on_update(self._monitor.add(summary))

    def _read_ahead(self) -> None:
        """Take from the log what a worker published last and died before it could tell."""
        with self._lock:
            reached = self._monitor.partitions.ends()
        found = {n: self._log.find(OffsetRange(n, at, LAST_OFFSET)) for n, at in reached.items()}
        self._catch_up({name: iter(each) for name, each in found.items() if each}, self._apply)

    def _hold(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._monitor.partitions.hold(partition)

    def _apply(self, update: DriftUpdate) -> None:
        """Count and tell what the monitor did. Under the lock."""
        for summary in update.accepted:
            self._count(summary)
        self._decide(update)

    def _decide(self, update: DriftUpdate) -> None:
        """Tell what the monitor decided, with the next `_send`; count gaps. Under the lock."""
        for gap in (summary for summary in update.accepted if summary.gap is not None):
            self._count_gap(gap.base_offset, gap.end_offset)
        alerts: Sequence[DriftAlert | UnscoredAlert] = update.decided
        if self._past is not None:
            told = self._past.take(alerts, self._monitor.judged_until_ms)
            self._past = None if told is not None else self._past
            alerts = told or ()
        self._dispatcher.decide(update.accepted, alerts)
        if update.accepted or update.decided:
            self._revision += 1

    def _send(self, *, at_once: bool = False, last_wait_s: float | None = None) -> None:
        """Send what was decided, with the state of a monitor that has decided that and no more.

        ``at_once`` writes a checkpoint wherever something has changed.
        """
        with self._sending:
            with self._lock:
                decided = self._dispatcher.decided()
                state = self._state_for(decided, at_once=at_once)
            self._dispatcher.send(decided, state, last_wait_s)

    def _state_for(self, decided: Sequence[AlertEvent], *, at_once: bool) -> MonitorSnapshot | None:
        """The monitor's state, if a checkpoint is due. Under the lock."""
        if self._past is not None:
            # Whoever took over with it would tell what is over.
            return None
        at_once = at_once or self._is_urgent
        if not self._dispatcher.needs_state(self._revision, decided, at_once=at_once):
            return None
        self._is_urgent = False
        try:
            return MonitorSnapshot(self._revision, self._monitor.dump())
        except Exception:  # noqa: BLE001 - no defect of a checkpoint may keep alerts back
            structlog.get_logger().exception("checkpoint_not_made")
            self._dispatcher.checkpoint_failed()
            return None

    def _count(self, summary: SegmentSummary) -> None:
        for status, rows in summary.rows_by_status.items():
            self._rows[status] += rows
            self.metrics.records.labels(status.value).inc(rows)

    def _count_gap(self, start: int, end: int) -> None:
        self.metrics.gaps.inc()
        self.metrics.gap_offsets.inc(end - start)

    def _show(self) -> None:
        before, self._shown = self._shown, self._monitor.snapshot()
        if before != self._shown:
            self._revision += 1
        size, now_ms = self._settings.drift.window_records, self._clock.now_ms()
        show_drift(self.metrics, before, self._shown, size, now_ms)
        self._page.note(now_ms, self._shown)

    def _look(self, now_s: float) -> None:
        """Look at workers and show the monitor, unless that was done a moment ago."""
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._look_at_workers(now_s)
            self._show()

    def _look_at_workers(self, now_s: float) -> None:
        self._looked_s = now_s
        self._partitions.refuse(self._workers.left_out(now_s), now_s)
        for partition in self._partitions.lost(self._monitor.partitions.names):
            self._monitor.partitions.release(partition)
        self._hold(self._partitions.expected(now_s, self._monitor.partitions.end))
        self._workers.show(now_s)
