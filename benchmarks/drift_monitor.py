"""What the drift monitor takes in, in one process, and what 100,000 keys cost it.

    .venv/bin/python -m benchmarks.drift_monitor
    .venv/bin/python -m benchmarks.drift_monitor --keys 20000 --rounds 3

First the monitors of keys alone, by records and by blocks: memory of all keys, and records/s of
panes of 1 s. Then the whole drift monitor, by records and by blocks of 20 s, fed with the summaries
of segments of 5 s from 4 partitions, as workers send them: a stream at the calibrated rate, and one
in which every key has drifted. Its state is what its arrays hold, its checkpoint what it writes.
Making the panes and summaries is not timed; in production workers do it. Records/s are the median
of the rounds, each with a new monitor; those for each second of CPU time leave out what other
processes took.
"""

import argparse
import gc
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nap_stream.clock import ManualClock
from nap_stream.core.block_monitors import BlockMonitors
from nap_stream.core.block_plan import BlockPlan, plan_blocks, references_of
from nap_stream.core.blocks import Blocks
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.key_monitors import KeyMonitors
from nap_stream.core.panes import NO_KEY, ClosedPane, closed_pane, count_panes
from nap_stream.core.sequential import bets_against
from nap_stream.core.tails import BIN_COUNT, EDGES, FlagRateLaw
from nap_stream.core.time_kinds import DAY_MS, TimeKinds
from nap_stream.drift.block_alerts import BlockWatch
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import BaselineFacts, CalibrationFacts
from nap_stream.records import Example, FlaggedClass, SegmentSummary, Status, TopicPartition
from nap_stream.settings.schema import Settings
from tests.support.memory import MIB, rss_bytes
from tests.support.summaries import all_scored

ALPHA = 0.05
CALIBRATION_IMAGES = 2_000
DRIFTED_RATE = 0.5
PANE_MS = 1_000
SILENCE_MS = 4 * 3_600_000
BLOCK_MS = 20_000
KINDS = TimeKinds((6, 18))
SEGMENT_S = 5
PARTITIONS = 4
CLASSES = 10
EXAMPLES = 5
TARGET = 200_000
TOPIC = "images"


@dataclass(frozen=True, slots=True)
class Speed:
    """Records for each second of wall-clock time and of CPU time."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Load:
    """A stream: images a second, over how many keys (0: none are told apart), and for how long.

    With ``blocks``, they decide.
    """

    images_per_s: int
    keys: int
    seconds: int
    drifted: bool = False
    blocks: bool = False


def main() -> None:
    options = _options()
    print(f"{os.cpu_count()} cores, {options.rounds} rounds, pane of {PANE_MS} ms\n")
    if not options.only_blocks:
        _show_keys(options.keys, options.rounds)
    _show_blocks(options.keys, options.rounds)
    if not options.only_keys:
        loads = [x for x in _loads(options.keys) if x.blocks or not options.only_blocks]
        _show_monitor(loads, options.rounds)


def _show_keys(keys: int, rounds: int) -> None:
    rng = np.random.default_rng(1)
    before = rss_bytes(os.getpid())
    monitors = _key_monitors(keys)
    for start in range(0, keys, 50_000):
        monitors.update(_pane(np.arange(start, min(keys, start + 50_000)), 0, rng))
    gc.collect()
    grown = rss_bytes(os.getpid()) - before
    print(f"{len(monitors):,} keys: resident memory +{grown / MIB:.0f} MiB,", end=" ")
    size = sum(column.nbytes for column in monitors.arrays().values())
    print(f"of which rows {size / MIB:.0f} MiB ({size / keys:.0f} bytes a key)\n")
    print("| monitors of keys, images/s | keys in a pane | records/s | records/CPU s | of target |")
    print("|---:|---:|---:|---:|---:|")
    for images_per_s, panes in ((50_000, 20), (5_000, 100)):
        chosen = [rng.integers(0, keys, images_per_s) for _ in range(panes)]
        stream = [_pane(which, i + 1, rng) for i, which in enumerate(chosen)]
        calls = [partial(_update, monitors, stream)] * rounds
        speed, _ = _speed(calls, panes * images_per_s)
        names = statistics.mean(len(pane.keys) for pane in stream)
        print(f"| {images_per_s:,} | {names:,.0f} | {_columns(speed)}")
    print()


def _show_blocks(keys: int, rounds: int) -> None:
    """Half of the keys are known, half are new and learn. Blocks are short: each is judged soon."""
    rng = np.random.default_rng(1)
    known = keys // 2
    blocks = _known_blocks(known, rng)
    begun = time.perf_counter()
    references_of(blocks, KINDS)
    took = time.perf_counter() - begun
    gc.collect()
    tracemalloc.start()
    plan = _plan(blocks, keys - known)
    references = plan.references
    gc.collect()
    of_plan, _ = tracemalloc.get_traced_memory()
    monitors = BlockMonitors(plan, keys, SILENCE_MS)
    for half in (0, known):
        monitors.update(_pane(np.arange(half, half + keys - known), 0, rng))
        monitors.advance(DAY_MS)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"{len(monitors):,} keys by blocks, {known:,} of them known at {references.kinds.count} "
        f"kinds of time, {monitors.new_count:,} new: {held / keys:.0f} bytes a key, of which the "
        f"plan {of_plan / known:.0f} bytes a known key, made in {took:.1f} s\n"
    )
    print("| monitors of blocks, images/s | block | records/s | records/CPU s | of target |")
    print("|---:|---:|---:|---:|---:|")
    for images_per_s in (50_000, 5_000):
        panes = 2 * BLOCK_MS // PANE_MS
        chosen = [rng.integers(0, keys, images_per_s) for _ in range(panes)]
        stream = [_pane(which, i + 1, rng) for i, which in enumerate(chosen)]
        calls = [partial(_update_blocks, monitors, stream)] * rounds
        speed, _ = _speed(calls, panes * images_per_s)
        print(f"| {images_per_s:,} | {BLOCK_MS / 1_000:g} s | {_columns(speed)}")
    print()


def _plan(blocks: Blocks, new_keys: int) -> BlockPlan:
    references = references_of(blocks, KINDS)
    return plan_blocks(references, run_time_ms=30 * DAY_MS, confidence=0.95, new_keys=new_keys)


def _watch(keys: int) -> BlockWatch:
    """The baseline of half of the keys."""
    blocks = _known_blocks(keys // 2, np.random.default_rng(1))
    baseline = BaselineFacts(
        name="log",
        by="key",
        since_ms=0,
        until_ms=DAY_MS,
        made_ms=0,
        made_by="benchmark",
        reason="speed",
        blocks=blocks,
        kinds=KINDS,
    )
    return BlockWatch(baseline, _plan(blocks, keys - keys // 2))


def _known_blocks(keys: int, rng: np.random.Generator) -> Blocks:
    """Twelve blocks of each key by day, and as many by night."""
    names = (NO_KEY, *(f"camera-{number:06}" for number in range(keys)))
    start = np.arange(24) * DAY_MS // 24
    bins = rng.multinomial(30, np.diff([0.0, *EDGES, 1.0]), (keys, 24))
    bins = np.concatenate((bins.sum(axis=0, keepdims=True), bins)).reshape(-1, BIN_COUNT)
    flagged = bins[:, : EDGES.index(ALPHA) + 1].sum(axis=1)
    return Blocks(
        np.repeat(np.arange(keys + 1), 24),
        np.tile(start - start % BLOCK_MS, keys + 1),
        bins.sum(axis=1),
        flagged,
        bins,
        names,
        BLOCK_MS,
    )


def _update_blocks(monitors: BlockMonitors, stream: Sequence[ClosedPane]) -> int:
    judged = [reading for pane in stream for reading in monitors.update(pane)]
    return sum(int(reading.active.sum()) for reading in judged)


def _show_monitor(loads: Sequence[Load], rounds: int) -> None:
    print(
        "| drift monitor, images/s | keys | stream | decides | alerts | records/s | records/CPU s "
        "| of target | state, bytes a key | checkpoint, MiB | bytes a key | s |"
    )
    print("|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    watches = {load.keys: _watch(load.keys) for load in loads if load.blocks}
    for load in loads:
        stream = list(_summaries(load))
        watch = watches[load.keys] if load.blocks else None
        monitors = [_monitor(load.keys, watch) for _ in range(rounds)]
        calls = [partial(_take, monitor, stream) for monitor in monitors]
        speed, alerts = _speed(calls, load.images_per_s * load.seconds)
        known = max(1, monitors[-1].snapshot().keys)
        state = sum(array.nbytes for array in monitors[-1].state().arrays.values())
        begun = time.perf_counter()
        size = len(monitors[-1].dump())
        took = time.perf_counter() - begun
        print(
            f"| {load.images_per_s:,} | {load.keys:,} | {'drifted' if load.drifted else 'usual'} "
            f"| {'blocks' if load.blocks else 'records'} | {alerts} | {_columns(speed)} "
            f"{state / known:,.0f} | {size / MIB:.1f} | {size / known:,.0f} | {took:.2f} |",
            flush=True,
        )


def _loads(keys: int) -> Iterator[Load]:
    yield Load(50, 0, 4_000)
    yield Load(1_000, 0, 1_000)
    yield Load(20_000, 0, 100)
    yield Load(1_000, 0, 1_000, drifted=True)
    for blocks in (False, True):
        yield Load(50, keys, 4_000, blocks=blocks)
        yield Load(1_000, keys, 400, blocks=blocks)
        yield Load(20_000, keys, 50, blocks=blocks)
        yield Load(20_000, keys, 50, drifted=True, blocks=blocks)


def _update(monitors: KeyMonitors, stream: Sequence[ClosedPane]) -> int:
    return sum(int(monitors.update(pane).active.sum()) for pane in stream)


def _take(monitor: DriftMonitor, stream: Sequence[SegmentSummary]) -> int:
    return sum(len(monitor.add(summary).alerts) for summary in stream)


def _speed(calls: Sequence[Callable[[], int]], records: int) -> tuple[Speed, int]:
    """Give the median over the calls, and what the last one returned."""
    wall, cpu, found = [], [], 0
    for call in calls:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        found = call()
        cpu.append(time.process_time() - begun_cpu)
        wall.append(time.perf_counter() - begun)
    return Speed(records / statistics.median(wall), records / statistics.median(cpu)), found


def _columns(speed: Speed) -> str:
    return f"{speed.wall:,.0f} | {speed.cpu:,.0f} | {speed.wall / TARGET:.2f} |"


def _key_monitors(max_keys: int) -> KeyMonitors:
    rank = int(ALPHA * (CALIBRATION_IMAGES + 1))
    rate = upper_flag_rate(rank, CALIBRATION_IMAGES, 0.95)
    bets = bets_against(np.array([rate]))
    return KeyMonitors(bets, float(np.log(5e8)), max_keys, SILENCE_MS)


def _pane(which: NDArray[np.int64], number: int, rng: np.random.Generator) -> ClosedPane:
    """One record of each of the keys ``which``, which may repeat."""
    p_values = rng.random(len(which))
    keys, key = _names(which)
    counts = count_panes(
        np.full(len(which), number * PANE_MS),
        p_values,
        p_values <= ALPHA,
        pane_ms=PANE_MS,
        keys=keys,
        key=key,
    )
    return closed_pane(number * PANE_MS, [counts], one_per_pane=False)


def _names(which: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Give distinct names, and which of them each has."""
    found, key = np.unique(which, return_inverse=True)
    return tuple(f"camera-{number:06}" for number in found.tolist()), key.astype(np.int64)


def _monitor(keys: int, watch: BlockWatch | None) -> DriftMonitor:
    drift = {"keys": {"max_keys": keys}} if keys else {}
    settings = Settings.model_validate(
        {
            "kafka": {"topic": TOPIC},
            "model": {"factory": "models:net"},
            "calibration": "calibration",
            "log": {"root": "log"},
            "drift": {"pane_ms": PANE_MS, **drift},
        }
    )
    scores = np.arange(float(CALIBRATION_IMAGES))
    test = ConformalTest(
        Rule(ALPHA, per_class=False), scores, np.zeros(len(scores), dtype=np.int64), 1
    )
    facts = CalibrationFacts(
        alpha=ALPHA,
        size=CALIBRATION_IMAGES,
        per_class=False,
        flag_rate_laws=(FlagRateLaw(int(ALPHA * (len(scores) + 1)), len(scores)),),
        groups=1,
        tail_laws=test.tail_laws(),
        fingerprint="c" * 64,
        model_fingerprint="f" * 64,
    )
    plan = detection_plan(settings.drift, facts)
    return DriftMonitor(plan, settings, ManualClock(), watch=watch)


def _summaries(load: Load) -> Iterator[SegmentSummary]:
    """The segments of all partitions, in order of event time."""
    rng = np.random.default_rng(2)
    size = load.images_per_s * SEGMENT_S // PARTITIONS
    for number in range(load.seconds // SEGMENT_S):
        for partition in range(PARTITIONS):
            yield _summary(load, TopicPartition(TOPIC, partition), number, size, rng)


def _summary(
    load: Load, partition: TopicPartition, number: int, size: int, rng: np.random.Generator
) -> SegmentSummary:
    times = (number * SEGMENT_S * 1_000 + np.sort(rng.integers(0, SEGMENT_S * 1_000, size))).astype(
        np.int64
    )
    p_values = rng.random(size)
    if load.drifted:
        p_values = np.where(rng.random(size) < DRIFTED_RATE, p_values * ALPHA, p_values)
    flagged = p_values <= ALPHA
    keys: tuple[str, ...] = (NO_KEY,)
    key = np.zeros(size, dtype=np.int64)
    if load.keys:
        # A key is always in the same partition.
        own = rng.integers(0, load.keys // PARTITIONS, size)
        keys, key = _names(own * PARTITIONS + partition.partition)
    panes = count_panes(times, p_values, flagged, pane_ms=PANE_MS, keys=keys, key=key)
    path = f"topic={TOPIC}/partition={partition.partition}/{number * size:020}.parquet"
    return SegmentSummary(
        partition=partition,
        base_offset=number * size,
        end_offset=(number + 1) * size,
        rows_by_status={Status.OK: size},
        panes=panes,
        images=all_scored(times, PANE_MS),
        max_event_time_ms=int(times[-1]),
        path=path,
        flagged_classes=tuple(_classes(panes.start_ms, panes.flagged, rng)),
        examples=tuple(
            Example(
                partition,
                number * size + i,
                0,
                int(times[i]),
                NO_KEY,
                "0",
                float(p_values[i]),
                path,
            )
            for i in np.sort(np.argsort(p_values)[:EXAMPLES]).tolist()
        ),
    )


def _classes(
    starts: NDArray[np.int64], flagged: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[FlaggedClass]:
    for start in np.unique(starts).tolist():
        total = int(flagged[starts == start].sum())
        counts = rng.multinomial(total, np.full(CLASSES, 1 / CLASSES)).tolist()
        yield from (FlaggedClass(start, str(i), count) for i, count in enumerate(counts) if count)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-blocks", action="store_true", help="what is watched by blocks")
    parser.add_argument("--only-keys", action="store_true", help="the monitors of keys alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
