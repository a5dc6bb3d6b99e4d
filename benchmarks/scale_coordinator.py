"""What one coordinator costs as partitions and segments grow: by simulation, without Ray and Kafka.

    python -m benchmarks.scale_coordinator [--partitions 100 300 1000 3000] [--ages 5]
        [--keys 0 10000] [--workers 100] [--rate 10]

A real `Coordinator` gets the summary of a segment of every partition each ``--ages`` seconds
(`log.segment_max_age_s`), spread evenly over the partitions, and a report a second from every
worker, with the stage times of messages of one image each; it ticks four times a second. Its clock
is moved by hand, so a second of the simulation takes as long as the coordinator needs for it.
Summaries and reports come pickled, as Ray brings them: to load them counts, what Ray itself takes
for a call does not. Checkpoints go to a folder, where the coordinator writes them now, and alerts
into a list.

After `WARM_UP_S` seconds, CPU, ticks and checkpoint are measured for `MEASURED_S`, which hold one
checkpoint and one look into the log. Then the whole stream drifts, and the time to the alert counts
from the first drifted record. A coordinator keeps up while its CPU stays below 1 s per second. Each
cell runs in a process of its own.
"""

import argparse
import cProfile
import math
import multiprocessing
import pickle
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nap_stream.clock import ManualClock
from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.panes import NO_KEY, count_panes
from nap_stream.core.tails import FlagRateLaw
from nap_stream.drift.records import CalibrationFacts
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import Journal
from nap_stream.pipeline.line import POLL_S
from nap_stream.records import (
    Example,
    FlaggedClass,
    PartitionProgress,
    SegmentSummary,
    Status,
    TopicPartition,
    WorkerReport,
)
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import LogSummaries
from nap_stream.settings.schema import Settings
from tests.support.alert_sinks import FlakySink
from tests.support.memory import MIB, rss_bytes
from tests.support.summaries import TOPIC, all_scored, report, settings

WARM_UP_S, MEASURED_S, PATIENCE_S = 10, 30, 60
TICKS_PER_S = 4
"""As often as the driver has it tick."""
START_MS = 1_700_000_000_000
PANE_MS = 1_000
ALPHA, IMAGES, CLASSES = 0.05, 1_999, 10
DRIFTED = 0.1
"""Drifted p-values are uniform below it, so that half of the records are flagged."""
READ_AFTER_MS = 100
BATCH = 32


@dataclass(frozen=True, slots=True)
class Load:
    """What the coordinator gets. ``keys`` are of all partitions together; 0 for no monitors."""

    partitions: int
    workers: int
    segment_age_s: float
    rows_per_s: float
    keys: int

    @property
    def segments_per_s(self) -> float:
        """Summaries a second."""
        return self.partitions / self.segment_age_s


@dataclass(frozen=True, slots=True)
class Cost:
    """What that took.

    ``cpu`` is in seconds per simulated second, times are in milliseconds but ``alert_s``, which is
    in simulated seconds from the first drifted record, null where no alert came. ``grown_bytes`` is
    resident memory beyond that of the process before it had a coordinator.
    """

    load: Load
    cpu: float
    tick_ms: float
    worst_tick_ms: float
    checkpoint_ms: float
    checkpoint_bytes: int
    grown_bytes: int
    alert_s: float | None


@dataclass(slots=True)
class Source:
    """One partition: makes the summaries of its segments, in order."""

    load: Load
    number: int
    random: np.random.Generator
    offset: int = 0
    until_ms: int = START_MS

    def segment(self, now_ms: int, drifts_from_ms: float) -> SegmentSummary:
        """The segment of all that was read since the last one."""
        end_ms = now_ms - READ_AFTER_MS
        count = max(1, round((end_ms - self.until_ms) / 1000 * self.load.rows_per_s))
        times = np.linspace(self.until_ms, end_ms, count, endpoint=False).astype(np.int64)
        p_values = self.random.random(count) * np.where(times >= drifts_from_ms, DRIFTED, 1.0)
        flagged = p_values <= ALPHA
        names = self._names()
        name, base = TopicPartition(TOPIC, self.number), self.offset
        self.offset, self.until_ms = base + count, end_ms
        path = segment_path(name, base)
        examples = [
            Example(
                name, base + row, 0, int(times[row]), names[row % len(names)], "c-0",
                float(p_values[row]), path,
            )
            for row in np.argsort(p_values)[:5].tolist()
            if flagged[row]
        ]  # fmt: skip
        starts, counts = np.unique(times[flagged] // PANE_MS * PANE_MS, return_counts=True)
        return SegmentSummary(
            partition=name,
            base_offset=base,
            end_offset=self.offset,
            rows_by_status={Status.OK: count},
            panes=count_panes(
                times,
                p_values,
                flagged,
                pane_ms=PANE_MS,
                keys=names,
                key=np.arange(count) % len(names),
            ),
            images=all_scored(times, PANE_MS),
            max_event_time_ms=int(times[-1]),
            path=path,
            flagged_classes=tuple(
                FlaggedClass(start, f"c-{start // PANE_MS % CLASSES}", flags)
                for start, flags in zip(starts.tolist(), counts.tolist(), strict=True)
            ),
            examples=tuple(examples),
        )

    def _names(self) -> tuple[str, ...]:
        if not self.load.keys:
            return (NO_KEY,)
        own = range(self.number, self.load.keys, self.load.partitions)
        return tuple(f"camera-{key}" for key in own) or (f"camera-{self.number}",)


@dataclass(slots=True)
class Meter:
    """Adds up what the coordinator takes, and nothing of the simulation around it."""

    profile: AbstractContextManager[Any] = field(default_factory=nullcontext)
    cpu_s: float = 0.0
    ticks_s: list[float] = field(default_factory=list)

    def call(self, what: Callable[[], object]) -> float:
        """Call it; give its seconds."""
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with self.profile:
            what()
        self.cpu_s += time.process_time() - began_cpu_s
        return time.perf_counter() - began_s

    def clear(self) -> None:
        """Begin anew."""
        self.cpu_s = 0.0
        self.ticks_s.clear()


class WatchedStore(CheckpointStore):
    """Counts checkpoints and knows the size of the last one."""

    written, last_bytes = 0, 0

    def write(self, checkpoint: Any) -> None:
        """Write it as ever."""
        super().write(checkpoint)
        self.written += 1
        self.last_bytes = len(checkpoint.monitor)


class Simulation:
    """A coordinator with all that talks to it. ``folder`` is for checkpoints."""

    def __init__(self, load: Load, folder: Path, meter: Meter) -> None:
        self.load, self.meter = load, meter
        self.clock, self.sink = ManualClock(START_MS), FlakySink()
        self.drifts_from_ms = float("inf")
        store, chosen = LocalStore(folder), coordinator_settings(load)
        self.checkpoints = WatchedStore(store, chosen.alerts.monitor, TOPIC)
        self.coordinator = Coordinator(
            chosen,
            calibration_facts(),
            [self.sink],
            summaries=LogSummaries(store, chosen, calibration_facts().fingerprint),
            checkpoints=self.checkpoints,
            journal=Journal(store, chosen, self.clock),
            clock=self.clock,
        )
        seeds = np.random.SeedSequence(0).spawn(load.partitions)
        self._sources = [Source(load, i, np.random.default_rng(s)) for i, s in enumerate(seeds)]
        self._due_s = [load.segment_age_s * (1 + i / load.partitions) for i in range(len(seeds))]
        self._reported_s = 0.0
        self.checkpoint_ticks_s: list[float] = []

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Go on for so long, or until something holds after a tick."""
        for _ in range(round(seconds * TICKS_PER_S)):
            self.clock.advance(1 / TICKS_PER_S)
            for content in self._messages():
                self.meter.call(lambda content=content: self._take(content))  # type: ignore[misc]
            written = self.checkpoints.written
            took_s = self.meter.call(self.coordinator.tick)
            is_plain = self.checkpoints.written == written
            (self.meter.ticks_s if is_plain else self.checkpoint_ticks_s).append(took_s)
            if until():
                return

    def drift(self) -> None:
        """Have the stream drift from now on."""
        self.drifts_from_ms = self.clock.now_ms()

    def alert_s(self) -> float | None:
        """How long after the drift began the alert is out; None while it is not."""
        now_s = (self.clock.now_ms() - self.drifts_from_ms) / 1000
        fired = [a for a in self.sink.alerts if a.state == "firing" and a.key.endswith("fraction")]
        return now_s if fired else None

    def _take(self, content: bytes) -> None:
        message = pickle.loads(content)  # noqa: S301 - its own
        if isinstance(message, WorkerReport):
            self.coordinator.report(message)
        else:
            self.coordinator.submit(message)

    def _messages(self) -> Iterator[bytes]:
        now_s, now_ms = self.clock.monotonic(), self.clock.now_ms()
        for number, source in enumerate(self._sources):
            if self._due_s[number] <= now_s:
                self._due_s[number] += self.load.segment_age_s
                yield pickle.dumps(source.segment(now_ms, self.drifts_from_ms), protocol=5)
        if now_s - self._reported_s >= 1:
            self._reported_s = now_s
            yield from (pickle.dumps(self._report(w), protocol=5) for w in range(self.load.workers))

    def _report(self, worker: int) -> WorkerReport:
        own = self._sources[worker :: self.load.workers]
        rows = round(sum(source.offset for source in own))
        ahead = round(self.load.rows_per_s)
        return report(
            f"worker-{worker}",
            sent_at_ms=self.clock.now_ms(),
            work_done=rows,
            rows=rows,
            images_scored=rows,
            partitions=tuple(
                PartitionProgress(TopicPartition(TOPIC, s.number), s.offset + ahead, 1, 1_000)
                for s in own
            ),
            stage_seconds=tuple((stage, 0.01) for stage in stages_a_second(self.load, len(own))),
        )


def stages_a_second(load: Load, partitions: int) -> tuple[str, ...]:
    """What a worker of so many partitions times in a second.

    Messages have one image each. Each is polled by itself, and each segment committed by itself,
    which is the most that can be.
    """
    images = max(1, round(partitions * load.rows_per_s))
    polls = max(images, round(1 / POLL_S))
    segments = round(partitions / load.segment_age_s)
    return (
        *("decode",) * images,
        *("score", "batch") * math.ceil(images / BATCH),
        *("poll",) * polls,
        *("publish", "commit") * segments,
    )


def calibration_facts() -> CalibrationFacts:
    """Of `IMAGES` images whose scores are not tied."""
    scores, classes = np.arange(float(IMAGES)), np.zeros(IMAGES, dtype=np.int64)
    return CalibrationFacts(
        alpha=ALPHA,
        size=IMAGES,
        per_class=False,
        flag_rate_laws=(FlagRateLaw(round((IMAGES + 1) * ALPHA), IMAGES),),
        groups=1,
        tail_laws=ConformalTest(Rule(ALPHA), scores, classes, 1).tail_laws(),
        fingerprint="c" * 64,
        model_fingerprint="f" * 64,
    )


def coordinator_settings(load: Load) -> Settings:
    """The defaults, but for the workers and the keys."""
    drift: dict[str, Any] = {"window_records": 1_000, "pane_ms": PANE_MS}
    drift["expected_run_length"] = 1e8
    if load.keys:
        drift["keys"] = {"by": "key"}
    return settings(drift=drift, worker={"count": load.workers})


def measure(load: Load, meter: Meter | None = None) -> Cost:
    """Run one cell in this process."""
    meter = meter or Meter()
    with tempfile.TemporaryDirectory() as folder:
        before_bytes = rss_bytes(multiprocessing.process.current_process().pid or 0)
        one = Simulation(load, Path(folder), meter)
        one.coordinator.start()
        try:
            one.run(WARM_UP_S)
            meter.clear()
            one.checkpoint_ticks_s.clear()
            one.run(MEASURED_S)
            cpu, ticks_s = meter.cpu_s / MEASURED_S, list(meter.ticks_s)
            grown = rss_bytes(multiprocessing.process.current_process().pid or 0) - before_bytes
            one.drift()
            known = len(one.sink.alerts)
            one.run(PATIENCE_S, until=lambda: len(one.sink.alerts) > known)
            return Cost(
                load,
                cpu=cpu,
                tick_ms=1000 * statistics.median(ticks_s),
                worst_tick_ms=1000 * max(ticks_s),
                checkpoint_ms=1000 * max(one.checkpoint_ticks_s),
                checkpoint_bytes=one.checkpoints.last_bytes,
                grown_bytes=grown,
                alert_s=one.alert_s(),
            )
        finally:
            one.coordinator.close()


def show(cost: Cost) -> str:
    """One row of the table."""
    load = cost.load
    alert = "none" if cost.alert_s is None else f"{cost.alert_s:.2f}"
    return (
        f"| {load.partitions:,} | {load.segments_per_s:,.0f} | {load.keys:,} | {cost.cpu:.3f} "
        f"| {cost.tick_ms:.1f} | {cost.worst_tick_ms:.0f} | {cost.checkpoint_ms:.0f} "
        f"| {cost.checkpoint_bytes / 1024:,.0f} | {cost.grown_bytes / MIB:.0f} | {alert} |"
    )


HEADER = (
    "| partitions | segments/s | keys | CPU s/s | tick ms | worst tick ms "
    "| tick with checkpoint ms | checkpoint KiB | memory MiB | alert after s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--partitions", type=int, nargs="+", default=[100, 300, 1_000, 3_000])
    parser.add_argument("--ages", type=float, nargs="+", default=[5.0])
    parser.add_argument("--keys", type=int, nargs="+", default=[0, 10_000])
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--rate", type=float, default=10.0, help="rows/s of a partition")
    parser.add_argument("--profile", action="store_true", help="where the time goes, of each cell")
    arguments = parser.parse_args()
    cells = product(arguments.keys, arguments.ages, arguments.partitions)
    print(HEADER, flush=True)
    for keys, age_s, partitions in cells:
        load = Load(partitions, min(arguments.workers, partitions), age_s, arguments.rate, keys)
        if arguments.profile:
            profile = cProfile.Profile()
            print(show(measure(load, Meter(profile))), flush=True)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(show(pool.apply(measure, (load,))), flush=True)


if __name__ == "__main__":
    main()
