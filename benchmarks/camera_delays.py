"""Block monitors beside other projects' drift detectors, on cameras, at equal real false alarms.

    python -m benchmarks.camera_delays [--peers PEERS/bin/python] [--sites 6] [--cameras 20]
        [--baseline-days 14] [--days 30] [--target-days 10] [--runs 8] [--seed 1] [--keep FOLDER]

Sites of simulated cameras (`benchmarks.camera_sites`), each with a baseline. Every detector is
set to the same real time between two false alarms of a site, measured on its quiet days; then
cameras become faulty, one or all. ``--peers`` is an interpreter that has benchmarks/peers.txt; see
`benchmarks.camera_peers`. Delays are in hours of the cameras' time, with 95 % intervals of the
mean; a fault that nothing saw until the stream's end counts with the time until then.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.camera_sites import (
    ALPHA,
    FRAMES_A_DAY,
    NEVER,
    Streams,
    faults_at,
    faulty,
    first_above,
    run_length,
    site,
    threshold_for,
)
from nap_stream.core.block_monitors import BlockMonitors
from nap_stream.core.block_plan import BlockPlan, plan_blocks, references_of
from nap_stream.core.blocks import Blocks, added_up
from nap_stream.core.decorrelation import settle_blocks
from nap_stream.core.panes import NO_KEY, ClosedPane
from nap_stream.core.tails import BIN_COUNT, bins_of

FRAME_MS = 86_400_000 // FRAMES_A_DAY
FINE_MS = FRAME_MS
RUN_DAYS = 30
SETTLE_DAYS = 3
CONFIDENCE = 0.95
STRENGTHS = (0.1, 0.3, 1.0)
ROOT = Path(__file__).resolve().parent.parent
OURS = "blocks"


def main() -> None:
    arguments = _arguments()
    print(f"`python -m benchmarks.camera_delays {shlex.join(sys.argv[1:])}`\n", flush=True)
    keep = nullcontext(str(arguments.keep)) if arguments.keep else tempfile.TemporaryDirectory()
    with keep as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "streams.npz"
        write_streams(path, arguments)
        streams = Streams.load(path)
        rows = [ours(streams)]
        result = folder / "peers.json"
        if arguments.peers:
            command = [arguments.peers, "-m", "benchmarks.camera_peers", str(path), str(result)]
            subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603  the caller names it
        if result.exists():
            rows += json.loads(result.read_text(encoding="utf-8"))
    print_delays(streams, rows)


def write_streams(path: Path, arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(arguments.seed)
    days = arguments.baseline_days + arguments.days
    quiet = [site(rng, arguments.cameras, days) for _ in range(arguments.sites)]
    first = arguments.baseline_days * FRAMES_A_DAY
    # A fault begins in the second sixth of the quiet days: a detector has settled, and has time.
    begins = [first + round(arguments.days * FRAMES_A_DAY * share) for share in (1 / 6, 1 / 3)]
    faults = faults_at(
        arguments.sites,
        arguments.cameras,
        (begins[0], begins[1]),
        strengths=STRENGTHS,
        runs=arguments.runs,
        rng=rng,
    )
    task = {
        "baseline": first,
        "target_days": arguments.target_days,
        "faults": [asdict(fault) for fault in faults],
    }
    np.savez(path, quiet=np.stack(quiet), task=json.dumps(task))


def ours(streams: Streams) -> dict[str, Any]:
    """The same of the monitors of blocks, each site planned from its own baseline."""
    plans, paths = [], []
    for number, frames in enumerate(streams.quiet):
        settled = settle_blocks(blocks_of_frames(frames[:, : streams.baseline], FINE_MS))
        plan = plan_blocks(
            references_of(settled.blocks, settled.kinds),
            run_time_ms=RUN_DAYS * 86_400_000,
            confidence=CONFIDENCE,
        )
        plans.append(plan)
        paths.append(path_of(plan, _watched(plan, frames, streams.baseline)))
        choice = settled.choice
        print(
            f"site {number}: blocks of {choice.block_ms / 3.6e6:g} h, "
            f"{choice.median_blocks:g} of a camera, decorrelation time "
            f"{choice.decorrelation_ms / 60_000:.1f} min, kinds of time {settled.kinds.names}",
            flush=True,
        )
    return _row_of(plans, paths, streams)


def _row_of(
    plans: Sequence[BlockPlan],
    paths: Sequence[NDArray[np.float64]],
    streams: Streams,
) -> dict[str, Any]:
    # Paths are in frames: blocks of different sites may differ in length.
    spread = [
        np.repeat(path, plan.references.block_ms // FRAME_MS)
        for plan, path in zip(plans, paths, strict=True)
    ]
    stated = [first_above(path, 0.0, 1) for path in spread]
    threshold = threshold_for(spread, 1, streams.target_days * FRAMES_A_DAY)
    found: list[Any] = []
    for fault in streams.faults:
        plan, quiet = plans[fault.site], streams.quiet[fault.site]
        long = plan.references.block_ms // FRAME_MS
        # Before that nothing fires, as `stated` tells; the quiet frames settle the monitors.
        begin = (fault.start - SETTLE_DAYS * FRAMES_A_DAY) // long * long
        changed = quiet.copy()
        changed[list(fault.cameras)] = faulty(quiet, fault)
        path = path_of(plan, _watched(plan, changed, begin), until_above=threshold)
        delay = begin + first_above(path, threshold, long) - fault.start
        found.append(None if delay <= 0 else delay if delay < NEVER else "never")
    return {
        "name": OURS,
        "parameter": threshold,
        "run_length": run_length([first_above(path, threshold, 1) for path in spread], spread, 1),
        "stated_alarms": sum(first < NEVER for first in stated),
        "delays": found,
    }


def _watched(plan: BlockPlan, frames: NDArray[np.float32], begin: int) -> Blocks:
    """The blocks of a site from a frame on."""
    return blocks_of_frames(frames[:, begin:], plan.references.block_ms, begin)


def blocks_of_frames(frames: NDArray[np.float32], block_ms: int, first: int = 0) -> Blocks:
    """Count frames, -ln p in float32 (K, T), in blocks of each camera and of the stream.

    ``first`` is the number of the first frame, at the beginning of a block.
    """
    cameras, size = frames.shape
    long = block_ms // FRAME_MS
    blocks = -(-size // long)
    p = np.exp(-frames.astype(np.float64))
    place = np.arange(cameras)[:, np.newaxis] * blocks + np.arange(size) // long
    cells = cameras * blocks
    bins = np.bincount((place * BIN_COUNT + bins_of(p)).ravel(), minlength=cells * BIN_COUNT)
    counts = np.empty((cameras + 1, blocks, 2 + BIN_COUNT), dtype=np.int64)
    counts[1:, :, 2:] = bins.reshape(cameras, blocks, BIN_COUNT)
    counts[1:, :, 0] = counts[1:, :, 2:].sum(axis=2)
    counts[1:, :, 1] = np.bincount(place[p <= ALPHA], minlength=cells).reshape(cameras, blocks)
    counts[0] = counts[1:].sum(axis=0)
    keys = (NO_KEY, *(f"camera-{number:02}" for number in range(cameras)))
    key = np.repeat(np.arange(cameras + 1), blocks)
    time_ms = np.tile((first // long + np.arange(blocks)) * block_ms, cameras + 1)
    return added_up(key, time_ms, counts.reshape(-1, 2 + BIN_COUNT), keys, block_ms)


def path_of(plan: BlockPlan, blocks: Blocks, until_above: float = np.inf) -> NDArray[np.float64]:
    """The largest ln M of any monitor less its threshold, after each block; up to a value."""
    monitors = BlockMonitors(plan, max_keys=10_000, silence_ms=RUN_DAYS * 86_400_000)
    path: list[float] = []
    for pane in panes_of(blocks):
        monitors.update(pane)
        (reading,) = monitors.advance(pane.start_ms + blocks.block_ms)
        path.append(float((reading.log_statistic - reading.log_threshold).max()))
        if path[-1] > until_above:
            break
    return np.array(path)


def panes_of(blocks: Blocks) -> list[ClosedPane]:
    """Blocks as panes of their length."""
    panes = []
    order = np.lexsort((blocks.key, blocks.start_ms))
    cuts = np.flatnonzero(np.diff(blocks.start_ms[order])) + 1
    for rows in np.split(order, cuts):
        stream, keyed = rows[0], rows[1:]
        panes.append(
            ClosedPane(
                start_ms=int(blocks.start_ms[stream]),
                records=int(blocks.records[stream]),
                flagged=int(blocks.flagged[stream]),
                bins=blocks.bins[stream],
                keys=tuple(blocks.keys[number] for number in blocks.key[keyed].tolist()),
                key_records=blocks.records[keyed],
                key_flagged=blocks.flagged[keyed],
                key_bins=blocks.bins[keyed],
            )
        )
    return panes


def print_delays(streams: Streams, rows: Sequence[dict[str, Any]]) -> None:
    sites, cameras, _ = streams.quiet.shape
    days = streams.watched / FRAMES_A_DAY
    alarms = rows[0].get("stated_alarms")
    print(
        f"\n{sites} sites of {cameras} cameras, {days:g} quiet days each. At what {OURS} state, "
        f"one false alarm in {RUN_DAYS} days of a site, they raised {alarms} in "
        f"{sites * days:g} days.\n"
    )
    cases = list(dict.fromkeys((fault.name, fault.strength) for fault in streams.faults))
    head = " | ".join(f"{name}, {strength:.0%}" for name, strength in cases)
    print(f"| detector | real days between false alarms | {head} |")
    print("|---|---|" + "---|" * len(cases))
    for row in rows:
        cells = [_cell(streams, row, case) for case in cases]
        length = row["run_length"] / FRAMES_A_DAY
        print(f"| {row['name']} | {length:.3g} | {' | '.join(cells)} |", flush=True)


def _cell(streams: Streams, row: dict[str, Any], case: tuple[str, float]) -> str:
    hours, late = [], 0
    for fault, delay in zip(streams.faults, row["delays"], strict=True):
        if (fault.name, fault.strength) != case or delay is None:
            continue
        late += delay == "never"
        end = streams.quiet.shape[2] - fault.start
        hours.append((end if delay == "never" else delay) * FRAME_MS / 3.6e6)
    if not hours:
        return "no run"
    half = 1.96 * float(np.std(hours, ddof=1)) / np.sqrt(len(hours)) if len(hours) > 1 else 0.0
    missed = f", {late} of {len(hours)} not seen" if late else ""
    return f"{np.mean(hours):.3g} ± {half:.2g}{missed}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peers", help="interpreter that has benchmarks/peers.txt")
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--cameras", type=int, default=20)
    parser.add_argument("--baseline-days", type=int, default=14)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--target-days", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=8, help="of each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder of streams and of peers' rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
