"""Do the monitors of blocks keep their word on rendered cameras, scored by a real network?

    python -m benchmarks.rendered_alarms FOLDER [--baseline-days 10] [--streams 400] [--repeat 1]

On the scores that `benchmarks.rendered_cameras` left in the folder. The first days are the
baseline: p-values are against its scores, one in a decorrelation time, as `nap-stream baseline`
takes them. Then: how many alarms in the quiet days that follow, of blocks, and of the e-detectors
of records; and for each injected fault, how soon one of the camera or the stream fires, beside what
`nap-stream plan --baseline` states for a fault of that strength. Wanted: no alarm in the quiet
days, and of the faults that `calibrate` calls visible 95 % within twice the stated mean.

A blur that grows is counted from when it has reached the strength that `calibrate` tries. With
``--repeat`` the frames of a fault that has grown come so many times, so that it lasts longer.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.camera_delays import FRAME_MS, blocks_of_frames, path_of
from benchmarks.camera_sites import ALPHA, FRAMES_A_DAY
from benchmarks.rendered_cameras import GROWS_FRAMES, INJECTED
from nap_stream.calibration.artifact import load_calibration
from nap_stream.core.block_plan import BlockPlan, plan_blocks, references_of
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.conformal import flag_rank
from nap_stream.core.decorrelation import Settled, settle_blocks
from nap_stream.core.sequential import bets_against, initial_state, step_alarm
from nap_stream.planning.block_delays import block_delays

RUN_DAYS = 30
CONFIDENCE = 0.95
_SETTLE_DAYS = 5
_GRAIN = 50
"""Strengths are told apart to so many parts of 1."""


def main() -> None:
    arguments = _arguments()
    print(f"`python -m benchmarks.rendered_alarms {shlex.join(sys.argv[1:])}`\n")
    scored = Scored.load(arguments.folder)
    first = arguments.baseline_days * FRAMES_A_DAY
    judged = _judged(scored, first)
    _print_quiet(scored, judged, first)
    _print_faults(arguments, scored, judged, first)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores of K cameras in T quiet frames, float64 (K, T), and p-values by the calibration.

    ``starts`` int64 (K, S) are where faults begin; ``faults`` float64 (K, S, F) by name.
    """

    quiet: NDArray[np.float64]
    quiet_p: NDArray[np.float64]
    starts: NDArray[np.int64]
    faults: dict[str, NDArray[np.float64]]

    @classmethod
    def load(cls, folder: Path) -> "Scored":
        """Read all cameras of a folder.

        Raises:
            SystemExit: There is none.
        """
        files = [np.load(path) for path in sorted(folder.glob("camera-*.npz"))]
        if not files:
            raise SystemExit(f"{folder}: no camera was scored; see benchmarks.rendered_cameras")
        faults = {name: np.stack([file[name] for file in files]) for name in INJECTED}
        quiet, p, starts = (np.stack([f[n] for f in files]) for n in ("quiet", "quiet_p", "starts"))
        return cls(quiet, p, starts, faults)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The baseline's reference scores, ascending, its blocks, and what they are held to."""

    reference: NDArray[np.float64]
    settled: Settled
    plan: BlockPlan

    def surprise(self, scores: NDArray[np.float64]) -> NDArray[np.float32]:
        """Give -ln of the conformal p-values of scores, float32 of their shape."""
        below = np.searchsorted(self.reference, scores, side="right")
        found: NDArray[np.float32] = -np.log((1 + below) / (len(self.reference) + 1))
        return found.astype(np.float32)


def _judged(scored: Scored, first: int) -> Judged:
    """Judge the baseline by all of its scores, find the decorrelation time, and thin them by it."""
    base, every = scored.quiet[:, :first], 1
    for _ in range(2):
        reference = np.sort(base[:, ::every].ravel())
        own = Judged(reference, *_planned(reference, base))
        every = max(1, round(own.settled.choice.decorrelation_ms / FRAME_MS))
    return own


def _planned(
    reference: NDArray[np.float64], base: NDArray[np.float64]
) -> tuple[Settled, BlockPlan]:
    below = np.searchsorted(reference, base, side="right")
    p = (1 + below) / (len(reference) + 1)
    settled = settle_blocks(blocks_of_frames(-np.log(p).astype(np.float32), FRAME_MS))
    plan = plan_blocks(
        references_of(settled.blocks, settled.kinds),
        run_time_ms=RUN_DAYS * 86_400_000,
        confidence=CONFIDENCE,
    )
    return settled, plan


def _path(judged: Judged, scores: NDArray[np.float64], begin: int) -> NDArray[np.float64]:
    """See `path_of`; of frames from ``begin`` on, where a block begins."""
    block_ms = judged.settled.blocks.block_ms
    return path_of(
        judged.plan, blocks_of_frames(judged.surprise(scores[:, begin:]), block_ms, begin)
    )


def _print_quiet(scored: Scored, judged: Judged, first: int) -> None:
    choice = judged.settled.choice
    cameras, frames = scored.quiet.shape
    days = (frames - first) / FRAMES_A_DAY
    path = _path(judged, scored.quiet, first)
    flags = judged.surprise(scored.quiet) >= -np.log(ALPHA)
    shares = [f"{share:.1%}" for share in flags[:, :first].mean(axis=1)]
    print(
        f"{cameras} cameras; blocks of {choice.block_ms / 3.6e6:g} h ({choice.reason}), "
        f"{choice.median_blocks:g} of a camera in the baseline; decorrelation time "
        f"{choice.decorrelation_ms / 60_000:.1f} min; kinds of time {judged.settled.kinds.names}"
    )
    print(
        f"Flagged in the baseline: {(scored.quiet_p[:, :first] <= ALPHA).mean():.1%} by the "
        f"calibration's images, {flags[:, :first].mean():.1%} by the baseline ({', '.join(shares)} "
        f"by camera)\n"
    )
    print(f"| alarms in {days:g} quiet days, at most one promised in {RUN_DAYS} days | |")
    print("|---|---|")
    print(f"| blocks | {_alarms(path)} |")
    rank = flag_rank(ALPHA, len(judged.reference))
    rate = upper_flag_rate(rank, len(judged.reference), CONFIDENCE)
    run = RUN_DAYS * FRAMES_A_DAY * cameras
    print(
        f"| e-detectors of records, by the baseline | {_of_records(flags[:, first:], rate, run)} |"
    )
    by_images = scored.quiet_p[:, first:] <= ALPHA
    print(f"| the same, by the calibration's images | {_of_records(by_images, 0.06, run)} |\n")


def _alarms(path: NDArray[np.float64]) -> int:
    fires = path >= 0
    return int(fires[0]) + int((fires[1:] & ~fires[:-1]).sum())


def _of_records(flags: NDArray[np.bool_], rate: float, run: float) -> int:
    """Alarms of the e-detectors of flags of each camera, which begin anew after each."""
    bets = bets_against(np.array([rate]))
    state, active = initial_state(bets, (len(flags),)), np.zeros(len(flags), dtype=np.bool_)
    one, zero, alarms = np.ones(len(flags), np.int64), np.zeros(len(flags), np.int64), 0
    for column in flags.T:
        after = step_alarm(
            state,
            bets,
            log_threshold=float(np.log(run)),
            active=active,
            records=one,
            hits=column[:, np.newaxis].astype(np.int64),
            start_ms=zero,
        )
        alarms += int((after.active & ~active).sum())
        state, active = after.state, after.active
    return alarms


def _print_faults(
    arguments: argparse.Namespace, scored: Scored, judged: Judged, first: int
) -> None:
    repeat: int = arguments.repeat
    seen = {
        each.fault: each
        for each in load_calibration(arguments.folder / "calibration").document.faults
    }

    @cache
    def stated(strength: float) -> float:
        """The mean delay in hours that a plan states; infinity for none."""
        one, *_ = block_delays(
            judged.plan,
            judged.settled.blocks,
            decorrelation_ms=judged.settled.choice.decorrelation_ms,
            alpha=ALPHA,
            strengths=(strength,),
            streams=arguments.streams,
            seed=0,
            advance=lambda _done, _total: None,
        )
        return np.inf if one.mean_ms is None else one.mean_ms / 3.6e6

    print(
        "| fault | as `calibrate` calls it | flags it sees | flags by the baseline | stated mean "
        "| measured mean | within twice the stated |"
    )
    print("|---|---|---|---|---|---|---|")
    for fault, name in INJECTED.items():
        grows = GROWS_FRAMES if fault == "growing blur" else 0
        shares, promised, delays = [], [], []
        for camera, starts in enumerate(scored.starts):
            usual = float((judged.surprise(scored.quiet[camera, :first]) >= -np.log(ALPHA)).mean())
            for run, start in enumerate(starts.tolist()):
                frames = scored.faults[fault][camera, run]
                again = np.tile(frames[grows:], repeat - 1)
                left = scored.quiet.shape[1] - start
                if left < len(frames) + len(again):
                    continue  # the stream ends before the fault
                frames = np.concatenate((frames, again))
                share = float((judged.surprise(frames[grows:]) >= -np.log(ALPHA)).mean())
                turned = max(0.0, (share - usual) / (1 - usual))
                shares.append(share)
                promised.append(stated(max(1, round(turned * _GRAIN)) / _GRAIN))
                delays.append(_delay(scored, judged, camera, (start, grows), frames))
        known = [d for d in delays if d is not None]
        within = [d is not None and d <= 2 * p for d, p in zip(delays, promised, strict=True)]
        hours = repeat * scored.faults[fault].shape[2] // 60
        missed = f", {len(delays) - len(known)} not within {hours} h"
        called = "" if name is None else f"{seen[name].flagged:.0%}"
        print(
            f"| {fault} | {name or 'not tried'} | {called} | {np.mean(shares):.0%} | "
            f"{np.mean(promised):.3g} h | {np.mean(known) if known else np.nan:.3g} h"
            f"{missed if len(known) < len(delays) else ''} | {sum(within)} of {len(within)} |",
            flush=True,
        )


def _delay(
    scored: Scored,
    judged: Judged,
    camera: int,
    begins: tuple[int, int],
    frames: NDArray[np.float64],
) -> float | None:
    """Hours from the fault's full strength to the alarm, 0 where it came before that."""
    start, grows = begins
    minutes = judged.settled.blocks.block_ms // FRAME_MS
    before = (start - _SETTLE_DAYS * FRAMES_A_DAY) // minutes * minutes
    scores = scored.quiet[:, : start + len(frames)].copy()
    scores[camera, start:] = frames
    path = _path(judged, scores, before)
    ends = before + minutes * np.arange(1, len(path) + 1)
    fired = ends[(path >= 0) & (ends > start) & (ends <= start + len(frames))]
    return max(0.0, float(fired[0] - start - grows) / 60) if len(fired) else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline-days", type=int, default=10)
    parser.add_argument("--streams", type=int, default=400, help="for each stated delay")
    parser.add_argument("--repeat", type=int, default=1, help="so often come a fault's frames")
    return parser.parse_args()


if __name__ == "__main__":
    main()
