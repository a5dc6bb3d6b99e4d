"""Tables of what workers have told: how far partitions are, and what each worker counts."""

from collections import Counter as Totals
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from prometheus_client import Counter

from nap_stream.metrics import WHY_LEFT_OUT, Metrics
from nap_stream.monitor.fleet import Fleet
from nap_stream.records import (
    EVIDENCE_OUTCOMES,
    TIME_PARTS,
    Disagreement,
    PartitionProgress,
    TopicPartition,
    WorkerReport,
)
from nap_stream.scored_log.summary import MAX_CLOCK_SKEW_MS
from nap_stream.settings.run import DriverSettings
from nap_stream.settings.topics import TopicSelection

HEALTHY_REPORT_AGE_S = 30.0
"""Thirty reports missed: the worker is gone or cannot reach the coordinator."""
ALIVE_S = 60.0
FRESH_S = 5.0
"""Workers report once a second; a partition without a report for so long has no worker."""
NOTHING_LEFT_S = 30.0
"""How long nobody must be able to read anything: a broker's rights may be given anew meanwhile."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a worker leaves a partition out, and when it said so last."""

    why: str
    told_s: float


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
    the driver's ``stall_timeout_s``; one that no worker has reported yet, for ``start_timeout_s``:
    workers load their models first. All times are of the monotonic clock.
    """

    def __init__(
        self, metrics: Metrics, patience: DriverSettings, reads: TopicSelection | None = None
    ) -> None:
        self._metrics, self._reads = metrics, reads or TopicSelection()
        self._stall_timeout_s = patience.stall_timeout_s
        self._start_timeout_s = patience.start_timeout_s
        self._seen: dict[TopicPartition, _Seen] = {}
        self._awaited_since_s: dict[TopicPartition, float] = {}
        self._listed: Mapping[str, int] | None = None
        self._refused: Mapping[TopicPartition, str] = {}
        self._refused_before: set[tuple[str, str]] = set()
        self._nothing_since_s: float | None = None
        self.topics_gone: Sequence[str] = ()
        """Those that a pattern read and finds no more, as of the last `lost`."""

    def wait_for(self, partitions: Iterable[TopicPartition], now_s: float) -> None:
        """Expect that a worker reports them: the log has them, and they may have more to bring."""
        self._awaited_since_s = dict.fromkeys(partitions, now_s)

    def listed(self, topics: Mapping[str, int] | None) -> None:
        """Learn how many partitions the broker has of each topic; None changes nothing."""
        if topics is not None:
            self._listed = {name: count for name, count in topics.items() if count}

    def refuse(self, told: Mapping[TopicPartition, Refusal], now_s: float) -> None:
        """Learn which partitions workers leave out, and why: nothing comes of them.

        Of one that a worker has, or had since, nobody's older word counts.
        """
        self._refused = {
            partition: refusal.why
            for partition, refusal in told.items()
            if (seen := self._seen.get(partition)) is None
            or (seen.worker is None and seen.reported_s <= refusal.told_s)
        }
        if not self._all_refused():
            self._nothing_since_s = None
        elif self._nothing_since_s is None:
            self._nothing_since_s = now_s

    def newly_refused(self) -> list[tuple[TopicPartition, str]]:
        """Give what is refused for a reason that was not given of its topic before, and why."""
        found = []
        for partition, why in sorted(self._refused.items()):
            if (partition.topic, why) not in self._refused_before:
                self._refused_before.add((partition.topic, why))
                found.append((partition, why))
        return found

    def lost(self, known: Iterable[TopicPartition]) -> list[TopicPartition]:
        """As `gone`, and show it."""
        found, left_out = self.gone(known), self.left_out()
        topics = {partition.topic for partition in found}
        self.topics_gone = self._reads.among(topics - left_out.keys())
        refused = len({partition.topic for partition in self._refused})
        counts = refused, len(left_out) - refused, len(self.topics_gone)
        for why, count in zip(WHY_LEFT_OUT, counts, strict=True):
            # Before the broker was asked nobody knows: 0 would make the first count a rise.
            if why == "refused" or self._listed is not None:
                self._metrics.topics_left_out.labels(why).set(count)
        return found

    def left_out(self) -> Mapping[str, str]:
        """Say of topics why nothing, or not all of them is read: refused, or named and away."""
        found = {
            name: f"the broker has no topic {name}: it was deleted, or may not be DESCRIBEd"
            for name in self.absent(self._reads.names)
        }
        for name, own in groupby(sorted(self._refused), key=lambda partition: partition.topic):
            refused = list(own)
            count, why = (self._listed or {}).get(name, 0), self._refused[refused[0]]
            part = f" ({len(refused)} of {count} partitions)" if len(refused) < count else ""
            why = why.removeprefix(f"topic {name}: ")
            found[name] = f"topic {name} is left out{part}: {why}"
        return found

    def gone(self, known: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Those of ``known`` whose topic neither the broker lists nor a worker reads, or can."""
        read = {partition.topic for partition, seen in self._seen.items() if seen.worker}
        return [
            partition
            for partition in known
            if partition in self._refused
            or not (self._listed is None or partition.topic in self._listed.keys() | read)
        ]

    def nothing_left(self, now_s: float) -> bool:
        """Whether all that the broker lists was refused for a while, and no worker has anything."""
        since_s = self._nothing_since_s
        return since_s is not None and now_s - since_s >= NOTHING_LEFT_S

    def _all_refused(self) -> bool:
        if not self._listed or any(seen.worker for seen in self._seen.values()):
            return False
        return all(
            TopicPartition(name, number) in self._refused
            for name, count in self._listed.items()
            for number in range(count)
        )

    def absent(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the topics that the broker does not list."""
        return () if self._listed is None else tuple(sorted({*names} - self._listed.keys()))

    def unread(self, now_s: float) -> list[TopicPartition]:
        """Those that the log has, and no worker has reported for `HEALTHY_REPORT_AGE_S` seconds."""
        late = [
            partition
            for partition, since_s in self._awaited_since_s.items()
            if HEALTHY_REPORT_AGE_S <= now_s - since_s < self._start_timeout_s
        ]
        gone = {*self.gone(late)}
        return sorted(partition for partition in late if partition not in gone)

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
        ``logged_end`` is the offset up to which summaries have come, or None. Nothing comes of a
        topic that is `gone`.
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
        gone = {*self.gone(expected)}
        return [partition for partition in expected if partition not in gone]

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


REPORTS = 5
"""As many are not all late where the coordinator was held up once."""
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
    of the monotonic clock. ``fleet`` is in force until `expect` tells another.
    """

    def __init__(self, metrics: Metrics, fleet: Fleet) -> None:
        self._metrics = metrics
        self._workers: dict[str, _Worker] = {}
        self._counted: dict[tuple[str, int], dict[str, int]] = {}
        self._timed: dict[tuple[str, int], dict[str, float]] = {}
        self._last_commit_ms = 0
        self._fleet = fleet
        self.totals: Totals[str] = Totals()
        self.clocks = ClockTable(metrics)
        self.restarts = 0

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

    def expect(self, fleet: Fleet) -> None:
        """Learn which workers there are to be; forget the others."""
        self._fleet = fleet
        self.clocks.expect(fleet.names)
        for name in self._workers.keys() - set(fleet.names):
            del self._workers[name]

    @property
    def expected(self) -> int:
        """How many workers are to report."""
        return self._fleet.expected

    def restarted(self) -> None:
        """Count the replacement of a worker."""
        self.restarts += 1
        self._metrics.worker_restarts.inc()

    def reports(self) -> Mapping[str, WorkerReport]:
        """Give each worker's newest report, without its stage times."""
        return {name: worker.report for name, worker in self._workers.items()}

    def heard_within(self, age_s: float, now_s: float) -> list[WorkerReport]:
        """Give the newest reports that came in the last ``age_s`` seconds."""
        known = self._workers.values()
        return [worker.report for worker in known if now_s - worker.received_s <= age_s]

    def left_out(self, now_s: float) -> Mapping[TopicPartition, Refusal]:
        """Give the partitions that workers leave out; of each the newest word."""
        return {
            partition: Refusal(why, worker.received_s)
            for worker in sorted(self._workers.values(), key=lambda worker: worker.received_s)
            if now_s - worker.received_s <= HEALTHY_REPORT_AGE_S
            for partition, why in worker.report.left_out.items()
        }

    def missing(self, now_s: float) -> tuple[str, ...]:
        """Say how many of the workers have reported, where some have not for long."""
        heard = len(self.heard_within(HEALTHY_REPORT_AGE_S, now_s))
        if heard >= self.expected:
            return ()
        return (
            f"{heard} of {self.expected} workers reported in the last {HEALTHY_REPORT_AGE_S:g} s",
        )

    def waiting(self, now_s: float, age_s: float = HEALTHY_REPORT_AGE_S) -> Mapping[str, str]:
        """Give what each worker waits for that has said so in the last ``age_s`` seconds.

        One without a process cannot say it: the driver does.
        """
        told = {
            report.worker: report.waiting_for
            for report in self.heard_within(age_s, now_s)
            if report.waiting_for is not None
        }
        return {**self._fleet.unplaced, **told}

    def show(self, now_s: float) -> None:
        """Set the gauges of all workers together."""
        self._metrics.workers_expected.set(self.expected)
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


class ClockTable:
    """How far the clocks of the workers' machines are from the coordinator's own.

    A report that was long on its way looks like a clock that is behind. So of a worker's last
    `REPORTS` the one counts that looks least so.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ahead_ms: dict[str, deque[int]] = {}

    def take(self, report: WorkerReport, now_ms: int) -> None:
        """Take a report that came at ``now_ms``, by the coordinator's clock."""
        ahead = self._ahead_ms.setdefault(report.worker, deque(maxlen=REPORTS))
        ahead.append(report.sent_at_ms - now_ms)
        self._metrics.clock_skew.set(max(map(abs, self._skews().values())) / 1000)

    def expect(self, names: Iterable[str]) -> None:
        """Forget all workers but these."""
        for name in self._ahead_ms.keys() - set(names):
            del self._ahead_ms[name]

    def wrong(self) -> tuple[str, ...]:
        """Say whose clock is far from the coordinator's."""
        return tuple(
            _wrong(worker, skew_ms)
            for worker, skew_ms in sorted(self._skews().items())
            if abs(skew_ms) > MAX_CLOCK_SKEW_MS
        )

    def _skews(self) -> dict[str, int]:
        return {worker: max(ahead) for worker, ahead in self._ahead_ms.items()}


def _wrong(worker: str, skew_ms: int) -> str:
    where = "ahead of" if skew_ms > 0 else "behind"
    return (
        f"the clock of {worker} is {abs(skew_ms) / 1000:,.0f} s {where} the coordinator's: the "
        "times of its rows are wrong, and drift may be judged wrongly. Set both machines' by NTP"
    )


def driver_silence(silence_s: float) -> tuple[str, ...]:
    """Say that nobody supervises the run, where the driver has not asked for long."""
    if silence_s < ALIVE_S:
        return ()
    return (f"the driver has not asked for {silence_s:.0f} s: it is gone, or hangs",)


def _age(report: WorkerReport) -> tuple[int, int]:
    return report.incarnation, report.number


def _rate(images: deque[tuple[float, int]], now_s: float) -> float:
    while images and now_s - images[0][0] > RATE_WINDOW_S:
        images.popleft()
    if len(images) < 2:  # noqa: PLR2004 - a rate needs two points
        return 0.0
    (first_s, first), (last_s, last) = images[0], images[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
