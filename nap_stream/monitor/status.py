"""How a run is: what workers have told, where drift stands, and how that is shown.

Tables of partitions and workers, the status made of them, and its display: gauges, a live line in
a terminal, an event now and then elsewhere.
"""

import math
from collections import Counter as Totals
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import structlog
from prometheus_client import Counter
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nap_stream.clock import Clock, SystemClock
from nap_stream.core.alert_state import AlertState
from nap_stream.drift.records import DriftSnapshot, MonthlyEffect
from nap_stream.metrics import Metrics
from nap_stream.records import (
    EVIDENCE_OUTCOMES,
    TIME_PARTS,
    Disagreement,
    PartitionProgress,
    Status,
    TopicPartition,
    WorkerReport,
)
from nap_stream.text import duration, moment, rfc3339

HEALTHY_REPORT_AGE_S = 30.0
"""Thirty reports missed: the worker is gone or cannot reach the coordinator."""
ALIVE_S = 60.0
FRESH_S = 5.0
"""Workers report once a second; a partition without a report for so long has no worker."""


@dataclass(slots=True)
class _Seen:
    """A partition as last reported. ``moved_s`` is when its position last changed."""

    worker: str | None
    progress: PartitionProgress
    first_position: int
    reported_s: float
    moved_s: float


class PartitionTable:
    """The progress of each partition; tells which are expected to bring more.

    A partition that does not move, or that no worker has, is expected to bring more for at most
    ``stall_timeout_s``; one that no worker has reported yet, for ``start_timeout_s``: workers load
    their models first. All times are of the monotonic clock.
    """

    def __init__(self, metrics: Metrics, stall_timeout_s: float, start_timeout_s: float) -> None:
        self._metrics = metrics
        self._stall_timeout_s, self._start_timeout_s = stall_timeout_s, start_timeout_s
        self._seen: dict[TopicPartition, _Seen] = {}
        self._awaited_since_s: dict[TopicPartition, float] = {}

    def wait_for(self, partitions: Iterable[TopicPartition], now_s: float) -> None:
        """Expect that a worker reports them: the log has them, and they may have more to bring."""
        self._awaited_since_s = dict.fromkeys(partitions, now_s)

    def take(self, report: WorkerReport, now_s: float) -> list[TopicPartition]:
        """Take a worker's newest report; give the partitions that were not known before."""
        new = [p.partition for p in report.partitions if p.partition not in self._seen]
        for progress in report.partitions:
            self._awaited_since_s.pop(progress.partition, None)
            self._see(report.worker, progress, now_s)
        reported = {progress.partition for progress in report.partitions}
        for partition, seen in self._seen.items():
            if seen.worker == report.worker and partition not in reported:
                self._disown(partition, seen)
        return new

    def expected(
        self, now_s: float, logged_end: Callable[[TopicPartition], int | None]
    ) -> list[TopicPartition]:
        """Give the partitions that have, or may have, records that no summary has told yet.

        That is where the lag is not 0, where the position is past the logged end, and where no
        worker reports, or has yet: what came in the meantime is known only once one does.
        ``logged_end`` is the offset up to which summaries have come, or None.
        """
        expected = [
            partition
            for partition, since_s in self._awaited_since_s.items()
            if now_s - since_s < self._start_timeout_s
        ]
        for partition, seen in self._seen.items():
            if now_s - seen.reported_s > FRESH_S:
                self._disown(partition, seen)
                since_s = seen.reported_s
            elif _is_behind(seen, logged_end(partition)):
                since_s = seen.moved_s
            else:
                continue
            if now_s - since_s < self._stall_timeout_s:
                expected.append(partition)
        return expected

    def max_lag(self) -> int | None:
        """Give the largest known lag, in offsets, of partitions that a worker has."""
        lags = [seen.progress.lag for seen in self._seen.values() if seen.worker]
        return max((lag for lag in lags if lag is not None), default=None)

    def _see(self, worker: str, progress: PartitionProgress, now_s: float) -> None:
        self._metrics.set_partition(progress.partition, progress.lag, progress.time_lag_ms)
        new = _Seen(worker, progress, progress.position, now_s, now_s)
        seen = self._seen.setdefault(progress.partition, new)
        if progress.position != seen.progress.position:
            seen.moved_s = now_s
        seen.worker, seen.progress, seen.reported_s = worker, progress, now_s

    def _disown(self, partition: TopicPartition, seen: _Seen) -> None:
        if seen.worker is not None:
            seen.worker = None
            self._metrics.remove_partition(partition)


def _is_behind(seen: _Seen, logged_end: int | None) -> bool:
    done = seen.first_position if logged_end is None else logged_end
    return seen.progress.lag != 0 or seen.progress.position > done


RATE_WINDOW_S = 10.0
"""Ten reports: long enough to be steady, short enough to follow."""
_TOTALS = (
    *("images_scored", "dead_letters", "segments_published", "segment_conflicts", "rebalances"),
    *("out_of_memory", "decode_warnings", "evidence_bytes"),
)
_DISAGREEMENTS = {f"offsets_{kind}": kind for kind in Disagreement}


@dataclass(slots=True)
class _Worker:
    report: WorkerReport
    received_s: float
    images: deque[tuple[float, int]] = field(default_factory=deque)


class WorkerTable:
    """The last report of each worker, and counters made of their totals.

    A report carries totals of one incarnation. They are kept by (worker, incarnation), and
    only what they grow by is counted, so that reports may be lost, repeated or late. All times are
    of the monotonic clock.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._workers: dict[str, _Worker] = {}
        self._counted: dict[tuple[str, int], dict[str, int]] = {}
        self._timed: dict[tuple[str, int], dict[str, float]] = {}
        self._last_commit_ms = 0
        self.totals: Totals[str] = Totals()

    def take(self, report: WorkerReport, now_s: float) -> bool:
        """Take a report, received at ``now_s``; return whether it is the worker's newest."""
        for stage, seconds in report.stage_seconds:
            self._metrics.observe_stage(stage, seconds)
        self._count(report)
        if report.last_commit_ms is not None and report.last_commit_ms > self._last_commit_ms:
            self._last_commit_ms = report.last_commit_ms
            self._metrics.last_commit.set(report.last_commit_ms / 1000)
        known = self._workers.get(report.worker)
        if known is not None and _age(report) < _age(known.report):
            return False
        slim = replace(report, stage_seconds=())
        if known is None or known.report.incarnation != report.incarnation:
            known = self._workers[report.worker] = _Worker(slim, now_s)
        known.report, known.received_s = slim, now_s
        known.images.append((now_s, report.images_scored))
        return True

    def reports(self) -> Mapping[str, WorkerReport]:
        """Give each worker's newest report, without its stage times."""
        return {name: worker.report for name, worker in self._workers.items()}

    def heard_within(self, age_s: float, now_s: float) -> list[WorkerReport]:
        """Give the newest reports that came in the last ``age_s`` seconds."""
        known = self._workers.values()
        return [worker.report for worker in known if now_s - worker.received_s <= age_s]

    def missing(self, wanted: int, now_s: float) -> tuple[str, ...]:
        """Say how many of the ``wanted`` workers have reported, where some have not for long."""
        heard = len(self.heard_within(HEALTHY_REPORT_AGE_S, now_s))
        if heard >= wanted:
            return ()
        return (f"{heard} of {wanted} workers reported in the last {HEALTHY_REPORT_AGE_S:g} s",)

    def waiting(self, now_s: float, age_s: float = HEALTHY_REPORT_AGE_S) -> Mapping[str, str]:
        """Give what each worker waits for that has said so in the last ``age_s`` seconds."""
        return {
            report.worker: report.waiting_for
            for report in self.heard_within(age_s, now_s)
            if report.waiting_for is not None
        }

    def show(self, now_s: float) -> None:
        """Set the gauges of all workers together."""
        self._metrics.workers.set(len(self.heard_within(FRESH_S, now_s)))
        self._metrics.workers_waiting.set(len(self.waiting(now_s, FRESH_S)))
        self._metrics.images_per_second.set(self.images_per_second(now_s))

    def images_per_second(self, now_s: float) -> float:
        """Give the rate of all workers together over the last `RATE_WINDOW_S` seconds."""
        return sum(_rate(worker.images, now_s) for worker in self._workers.values())

    def _count(self, report: WorkerReport) -> None:
        counted = self._counted.setdefault((report.worker, report.incarnation), {})
        timed = self._timed.setdefault((report.worker, report.incarnation), {})
        for name in (*_TOTALS, *_DISAGREEMENTS):
            total: int = getattr(report, name)
            grown = total - counted.get(name, 0)
            if grown > 0:
                counted[name] = total
                self.totals[name] += grown
                self._counter(name).inc(grown)
        for outcome, images in zip(EVIDENCE_OUTCOMES, report.evidence, strict=True):
            if (grown := images - counted.get(outcome, 0)) > 0:
                counted[outcome] = images
                self._metrics.evidence_images.labels(outcome).inc(grown)
        for part, seconds in zip(TIME_PARTS, report.time_parts, strict=True):
            spent = seconds - timed.get(part, 0.0)
            if spent > 0:
                timed[part] = seconds
                self._metrics.scoring_seconds.labels(part).inc(spent)
        # The one before may still have a report on its way; older ones have not.
        self._counted.pop((report.worker, report.incarnation - 2), None)
        self._timed.pop((report.worker, report.incarnation - 2), None)

    def _counter(self, name: str) -> Counter:
        if name in _DISAGREEMENTS:
            return self._metrics.offset_disagreements.labels(_DISAGREEMENTS[name])
        counter: Counter = getattr(self._metrics, name)
        return counter


def driver_silence(silence_s: float) -> tuple[str, ...]:
    """Say that nobody supervises the run, where the driver has not asked for long."""
    if silence_s < ALIVE_S:
        return ()
    return (f"the driver has not asked for {silence_s:.0f} s: it is gone, or hangs",)


def _age(report: WorkerReport) -> tuple[int, int]:
    return report.incarnation, report.sent_at_ms


def _rate(images: deque[tuple[float, int]], now_s: float) -> float:
    while images and now_s - images[0][0] > RATE_WINDOW_S:
        images.popleft()
    if len(images) < 2:  # noqa: PLR2004 - a rate needs two points
        return 0.0
    (first_s, first), (last_s, last) = images[0], images[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """The run now.

    ``rows_by_status`` counts those in the log since this coordinator started, or since the run did
    where it must end after so many; ``images_scored`` and ``dead_letters`` are the workers' own
    counts. ``window_size`` is how many records a full window has. ``max_lag`` (offsets) is null
    until a lag is known. ``alerts_fired`` and ``alerts_resolved`` count those that began and ended
    here, of the stream and of keys. ``workers`` holds the last report of each, without stage times;
    ``waiting_for`` says of each that waits for something outside of it what that is. ``now_ms`` is
    when all this was so. An OOD fraction is stale whose newest image is older than
    ``stale_after_s``. ``workers_expected`` is how many the settings ask for. ``signing_failure``
    says why the log's newest signed checkpoint was not made; None where it was, or none is wanted.
    ``events_lost`` says what the log's chain of events lacks for good. ``started_ms`` is when this
    coordinator started, and ``metrics_url`` where it is scraped, once it is.
    """

    rows_by_status: Mapping[Status, int]
    drift: DriftSnapshot
    window_size: int
    images_scored: int
    images_per_second: float
    alerts_fired: int
    alerts_resolved: int
    alerts_waiting: int
    max_lag: int | None
    dead_letters: int
    worker_restarts: int
    workers: Mapping[str, WorkerReport]
    waiting_for: Mapping[str, str] = field(default_factory=dict)
    now_ms: int = 0
    stale_after_s: float = math.inf
    workers_expected: int = 1
    signing_failure: str | None = None
    events_lost: str | None = None
    started_ms: int = 0
    metrics_url: str | None = None

    @property
    def rows(self) -> int:
        """All rows, whatever their status."""
        return sum(self.rows_by_status.values())

    @property
    def ood_fraction(self) -> float | None:
        """The OOD fraction of the window; None until that is full."""
        return None if self.drift.bound is None else self.drift.fraction

    @property
    def stale_since_ms(self) -> int | None:
        """As of when the OOD fraction is, where that is long ago; None where it is of now."""
        end_ms = self.drift.window_end_ms
        is_stale = end_ms is not None and self.now_ms - end_ms > self.stale_after_s * 1000
        return end_ms if is_stale else None

    @property
    def decides(self) -> str | None:
        """What decides, and how the month compares; None where single records do."""
        blocks = self.drift.blocks
        if blocks is None:
            return None
        new = f"; {blocks.new_keys:,} keys are new" if blocks.new_keys else ""
        waiting = f", {blocks.waiting_keys:,} have no room to learn" if blocks.waiting_keys else ""
        return f"{blocks.words}{new}{waiting}{_month_words(blocks.month)}"

    def degraded(self) -> tuple[str, ...]:
        """Say what the alert state and the OOD fraction do not: that they are blind, or old."""
        return tuple(_degraded(self))


def _month_words(month: MonthlyEffect | None) -> str:
    if month is None:
        return ""
    low, high = (f"{100 * bound:+.1f}" for bound in (month.low, month.high))
    return (
        f"; {rfc3339(month.month_ms)[:7]}: {month.share:.1%} out-of-distribution, "
        f"{100 * month.change:+.1f} points from the baseline (95 %: {low} to {high})"
    )


def _degraded(status: CoordinatorStatus) -> Iterator[str]:
    drift, unscored = status.drift, status.drift.unscored
    if status.signing_failure is not None:
        yield f"where the log ends was not signed: {status.signing_failure}"
    if status.events_lost is not None:
        yield status.events_lost
    if unscored is not None and unscored.severity is not None:
        since = moment(rfc3339(drift.unscored_since_ms or unscored.start_ms))
        statuses = ", ".join(f"{name} {count:,}" for name, count in unscored.by_status)
        yield (
            f"unscored-images fires since {since} ({unscored.severity}): {unscored.unscored:,} of "
            f"the last {unscored.images:,} images have no scores ({statuses})"
        )
    stale_ms = status.stale_since_ms
    if unscored is not None and drift.window_end_ms is None:
        yield "no image was scored yet: nothing is known of drift"
    elif stale_ms is not None and drift.fraction is not None:
        if unscored is None:
            why = "no image was scored since"
        elif unscored.end_ms > stale_ms:
            why = "none of the images since could be scored"
        elif status.max_lag:
            why = f"no later one was scored yet, with {status.max_lag:,} offsets still to be read"
        else:
            why = "no image came since"
        as_of = moment(rfc3339(stale_ms))
        yield f"the OOD fraction of {drift.fraction:.1%} is as of {as_of}: {why}"


EVENT_EVERY_S = 10.0

Show = Callable[[CoordinatorStatus], None]


@contextmanager
def status_display(console: Console, clock: Clock | None = None) -> Iterator[Show]:
    """A function that shows a status: live on a terminal, as a log event every 10 s elsewhere."""
    clock = clock or SystemClock()
    if not console.is_terminal:
        yield _events(clock)
        return
    waits = Text("starting: Ray, and the coordinator…")
    with Live(waits, console=console, refresh_per_second=4, transient=False) as live:
        yield lambda status: live.update(status_text(status))


def status_text(status: CoordinatorStatus) -> Text:
    """One line for a person: rates, the OOD fraction against its bound, lag, alert state."""
    drift = status.drift
    is_firing = drift.state is AlertState.FIRING
    text = Text.assemble(
        (f" {_state(drift)} ", "bold white on red" if is_firing else "black on green"),
        f"  {status.rows:,} rows",
        f"  {status.images_per_second:,.1f} images/s",
        _ood_words(status),
        f"  lag {'?' if status.max_lag is None else format(status.max_lag, ',')}",
        f"  workers {len(status.workers)}",
    )
    if drift.unscored is not None and drift.unscored.unscored:
        share = drift.unscored
        is_told = share.severity is not None
        firing = f"UNSCORED IMAGES {share.severity.upper()}: " if share.severity else "unscored "
        text.append(
            f"  {firing}{share.unscored:,} of {share.images:,} ({share.share:.1%})",
            "bold red" if is_told else "yellow" if share.share > share.bound else "",
        )
    if status.decides:
        text.append(f"  {status.decides}", "dim")
    if awaited := first_wait(status):
        text.append(f"  {awaited}", "cyan")
    if drift.keys_firing:
        text.append(f"  keys firing {drift.keys_firing:,} of {drift.keys:,}", "bold red")
    if status.dead_letters:
        text.append(f"  dead letters {status.dead_letters:,}", "yellow")
    if status.alerts_waiting:
        text.append(f"  alerts waiting {status.alerts_waiting:,}", "bold red")
    if status.waiting_for:
        text.append(f"  waiting: {_first_wait(status)}", "yellow")
    return text


def _events(clock: Clock) -> Show:
    shown_at = float("-inf")

    def show(status: CoordinatorStatus) -> None:
        nonlocal shown_at
        if clock.monotonic() - shown_at < EVENT_EVERY_S:
            return
        shown_at, unscored = clock.monotonic(), status.drift.unscored
        structlog.get_logger().info(
            "status",
            alert_state=str(status.drift.state),
            severity=status.drift.severity,
            keys_firing=status.drift.keys_firing,
            rows=status.rows,
            images_per_second=round(status.images_per_second, 1),
            ood_fraction=status.ood_fraction,
            ood_fraction_as_of=_time(status.drift.window_end_ms),
            bound=status.drift.bound,
            unscored=None if unscored is None else unscored.share,
            degraded=list(status.degraded()),
            **({} if status.decides is None else {"decides": status.decides}),
            awaits=first_wait(status),
            max_lag=status.max_lag,
            dead_letters=status.dead_letters,
            waiting_for=dict(status.waiting_for),
        )

    return show


def first_wait(status: CoordinatorStatus) -> str:
    """Say what a run waits for until its window is full; empty afterwards."""
    if status.ood_fraction is not None:
        return ""
    drift, size = status.drift, status.window_size
    heard, wanted = len(status.workers), status.workers_expected
    if drift.window_records:
        return f"{drift.window_records:,} of {size:,} images until the window is full"
    if heard < wanted:
        return f"waiting for {wanted - heard} of {wanted} workers to load the model"
    if not any(report.partitions for report in status.workers.values()):
        return "waiting to join the group"
    if not status.rows and not status.images_scored:
        return "waiting for the first images" if not status.max_lag else "scoring the first images"
    return "waiting for the first images with scores to be judged"


def _ood_words(status: CoordinatorStatus) -> tuple[str, str]:
    drift = status.drift
    words = f"  OOD {_percent(status.ood_fraction)}"
    if (stale_ms := status.stale_since_ms) is not None:
        ago = duration(status.now_ms - stale_ms)
        words += f" as of {moment(rfc3339(stale_ms))}, {ago} ago"
    return f"{words} (bound {_percent(drift.bound)})", "" if stale_ms is None else "yellow"


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else rfc3339(time_ms)


def _state(drift: DriftSnapshot) -> str:
    severity = "" if drift.severity is None else f" {drift.severity.upper()}"
    return f"{drift.state.upper()}{severity}"


def _first_wait(status: CoordinatorStatus) -> str:
    worker, what = min(status.waiting_for.items())
    others = len(status.waiting_for) - 1
    return f"{worker}: {what}" + (f" (and {others} more)" if others else "")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"
