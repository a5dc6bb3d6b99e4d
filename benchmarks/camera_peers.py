"""river's, alibi-detect's and evidently's detectors on the streams of `benchmarks.camera_delays`.

    PEERS_PYTHON -m benchmarks.camera_peers STREAMS.npz RESULT.json [--only ADWIN]

Runs under an interpreter that has benchmarks/peers.txt, and needs nothing of nap_stream.

One detector a camera (MMD: one a site), each of the library's own objects with its defaults, but
for the one parameter that says how often it alarms: that is set to the false alarms that all
cameras of a site really have together, the same for every detector. It is found on the quiet
streams themselves, which nobody has before a fault: peers are given that. What is watched in one
pass is the number that each detector compares with that parameter; before its first alarm it does
not depend on the parameter. ADWIN has no such number, and is run for each value that is tried.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]  # peers.txt, as the next
from alibi_detect.cd import MMDDriftOnline  # type: ignore[import-not-found,unused-ignore]
from evidently.legacy.calculations import stattests  # type: ignore[import-not-found,unused-ignore]
from evidently.legacy.core import ColumnType  # type: ignore[import-not-found,unused-ignore]
from numpy.typing import NDArray
from river import drift  # type: ignore[import-not-found,unused-ignore]
from scipy.stats import hypergeom, ks_2samp

from benchmarks.camera_sites import (
    FEED_FRAMES,
    FRAMES_A_DAY,
    LOG_ALPHA,
    NEVER,
    Streams,
    faulty,
    fed,
    first_above,
    run_length,
    threshold_for,
)

MMD_WINDOW, MMD_RUN_LENGTH, MMD_BOOTSTRAPS = 10, 200, 2_000
FISHER_WINDOWS = (60, 240)
_STEPS, _RAREST = 7, 1e-30
"""Of the bisection of ADWIN's delta, and the smallest: on dependent frames 1e-12 is too large."""


Statistic = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]]
"""From cameras' baseline and watched frames, (C, B) and (C, W), to the largest statistic at each
step, float64."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A detector by what it watches, every so many ``frames``; ``whole`` where it takes a site."""

    name: str
    frames: int
    statistic: Statistic
    whole: bool = False


def by_statistic(peer: Peer, streams: Streams) -> dict[str, Any]:
    """Set a detector to the target and give its delays; see `delays`."""
    base = streams.baseline
    paths = [peer.statistic(site[:, :base], site[:, base:]) for site in streams.quiet]
    target = streams.target_days * FRAMES_A_DAY
    threshold = threshold_for(paths, peer.frames, target)
    firsts = [first_above(path, threshold, peer.frames) for path in paths]

    def alarm(frames: NDArray[np.float32]) -> float:
        path = peer.statistic(frames[:, :base], frames[:, base:])
        return first_above(path, threshold, peer.frames)

    length = run_length(firsts, paths, peer.frames)
    return _row(peer.name, threshold, length, alarm, streams, whole=peer.whole)


def _row(
    name: str,
    parameter: float,
    length: float,
    alarm: Callable[[NDArray[np.float32]], float],
    streams: Streams,
    *,
    whole: bool,
) -> dict[str, Any]:
    """Delays in frames of faults that had no alarm before; the others are left out, and counted."""
    found = []
    for fault in streams.faults:
        quiet = streams.quiet[fault.site]
        frames = faulty(quiet, fault)
        if whole:
            changed = quiet.copy()
            changed[list(fault.cameras)] = frames
            frames = changed
        delay = alarm(frames) - (fault.start - streams.baseline)
        found.append(None if delay <= 0 else delay if delay < NEVER else "never")
    return {"name": name, "parameter": parameter, "run_length": length, "delays": found}


def highest(rows: Any) -> NDArray[np.float64]:
    """The largest statistic of all cameras at each step, float64 (T,), of theirs (C, T)."""
    found: NDArray[np.float64] = np.asarray(rows, dtype=np.float64).max(axis=0)
    return found


def page_hinkley(feed: Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]) -> Statistic:
    """The upward statistic of `river.drift.PageHinkley`, which has seen the baseline's values."""

    def statistic(base: NDArray[np.float32], watched: NDArray[np.float32]) -> NDArray[np.float64]:
        rows = []
        for before, after in zip(feed(base), feed(watched), strict=True):
            detector, values = drift.PageHinkley(threshold=np.inf, mode="up"), []
            for value in before.tolist():
                detector.update(value)
            for value in after.tolist():
                detector.update(value)
                values.append(
                    detector._sum_increase - detector._min_increase  # noqa: SLF001  it has no name
                )
            rows.append(values)
        return highest(rows)

    return statistic


class _Smirnov:
    """`scipy.stats.ks_2samp` of two samples of one size, each p-value computed once."""

    def __init__(self, size: int) -> None:
        self._p_values = [
            float(ks_2samp(np.arange(size), np.arange(size) + shift + 0.5).pvalue)
            for shift in range(-1, size)
        ]

    def ks_2samp(self, first: list[float], second: list[float], method: str) -> tuple[float, float]:
        del method
        both, size = np.sort(np.array((first, second)), axis=1), len(first)
        above = [np.searchsorted(row, both.ravel(), side="right") for row in both]
        distance = int(np.abs(above[0] - above[1]).max())
        return distance / size, self._p_values[distance]


def kswin(base: NDArray[np.float32], watched: NDArray[np.float32]) -> NDArray[np.float64]:
    """-ln of the p-value of `river.drift.KSWIN`, on means.

    Its test takes 0.3 ms and more; as p-values depend on the distance alone, they are looked up.
    """
    vars(sys.modules[drift.KSWIN.__module__])["stats"] = _Smirnov(drift.KSWIN().stat_size)
    rows = []
    for before, after in zip(fed(base), fed(watched), strict=True):
        detector, values = drift.KSWIN(alpha=0.0, seed=1), []
        for value in before[-detector.window_size :].tolist():
            detector.update(value)
        for value in after.tolist():
            detector.update(value)
            values.append(-np.log(max(float(detector.p_value), 1e-300)))
        rows.append(values)
    return highest(rows)


def fisher(base: NDArray[np.float32], watched: NDArray[np.float32]) -> NDArray[np.float64]:
    """What `alibi_detect.cd.FETDriftOnline` watches: smoothed 1 - p of flags, its largest window.

    Computed in arrays as `benchmarks.fisher` does, and checked there against its `predict`.
    """
    flags = (watched >= LOG_ALPHA).astype(np.int64)
    hits, size = (base >= LOG_ALPHA).sum(axis=1), base.shape[1]
    smoothed = np.full(flags.shape, -np.inf)
    for window in FISHER_WINDOWS:
        padded = np.concatenate((np.zeros((len(flags), 1), np.int64), flags.cumsum(axis=1)), axis=1)
        counts = padded[:, window:] - padded[:, :-window]
        for row, (count, hit) in enumerate(zip(counts, hits.tolist(), strict=True)):
            inside = np.arange(window + 1)
            values = 1 - hypergeom.cdf(hit, size + window, hit + inside, size)
            smooth, path = 0.0, np.empty(len(count))
            for time, value in enumerate(values[count].tolist()):
                smooth = value if time == 0 else 0.01 * smooth + 0.99 * value
                path[time] = smooth
            place = slice(window - 1, None)
            smoothed[row, place] = np.maximum(smoothed[row, place], path)
    return highest(smoothed)


def mmd(base: NDArray[np.float32], watched: NDArray[np.float32]) -> NDArray[np.float64]:
    """The statistic of `alibi_detect.cd.MMDDriftOnline` less its threshold, on all cameras."""
    detector, values = _configured(fed(base).astype(np.float32).tobytes(), len(base)), []
    detector.reset_state()
    for vector in fed(watched).T.astype(np.float32):
        data = detector.predict(vector, return_test_stat=True)["data"]
        values.append(data["test_stat"] - data["threshold"])
    return np.array(values, dtype=np.float64)


@cache  # minutes, of which each site has need once
def _configured(reference: bytes, cameras: int) -> Any:
    np.random.seed(1)  # noqa: NPY002  its own generator is the global one
    return MMDDriftOnline(
        np.frombuffer(reference, dtype=np.float32).reshape(cameras, -1).T.copy(),
        ert=MMD_RUN_LENGTH,
        window_size=MMD_WINDOW,
        n_bootstraps=MMD_BOOTSTRAPS,
        backend="pytorch",
        verbose=False,
    )


def evidently(test: str) -> Statistic:
    """A day of each camera against its baseline, as evidently's data drift does by default.

    Its default is ``ks`` for at most 1,000 values of reference and ``wasserstein`` above.
    """

    def statistic(base: NDArray[np.float32], watched: NDArray[np.float32]) -> NDArray[np.float64]:
        chosen = stattests.ks_stat_test if test == "ks" else stattests.wasserstein_stat_test
        days = watched.shape[1] // FRAMES_A_DAY
        rows = np.empty((len(base), days))
        for row, (before, after) in enumerate(zip(base, watched, strict=True)):
            reference = pd.Series(before)
            for day in range(days):
                current = pd.Series(after[day * FRAMES_A_DAY : (day + 1) * FRAMES_A_DAY])
                score = chosen(reference, current, ColumnType.Numerical, None).drift_score
                rows[row, day] = -np.log(max(score, 1e-300)) if test == "ks" else score
        return highest(rows)

    return statistic


def adwin(streams: Streams, frames: int) -> dict[str, Any]:
    """`river.drift.ADWIN`, tuned by bisection of delta; see `by_statistic`."""
    base = streams.baseline
    feed = (lambda x: x) if frames == 1 else fed
    target = streams.target_days * FRAMES_A_DAY

    def alarm(rows: NDArray[np.float32], delta: float) -> float:
        first = NEVER
        for before, after in zip(feed(rows[:, :base]), feed(rows[:, base:]), strict=True):
            # What comes after another camera's alarm is of no interest.
            within = after if first == NEVER else after[: int(first)]
            first = min(first, _adwin_alarm(before.tolist(), within.tolist(), delta))
        return first * frames

    def length(delta: float) -> float:
        firsts = [alarm(site, delta) for site in streams.quiet]
        return run_length(firsts, [np.zeros(streams.watched // frames)] * len(firsts), frames)

    often, rarely = np.log(1.0), np.log(_RAREST)
    for _ in range(_STEPS):
        middle = (often + rarely) / 2
        if length(float(np.exp(middle))) < target:
            often = middle
        else:
            rarely = middle
    delta = float(np.exp(rarely))
    what = "frames" if frames == 1 else "means"
    name = f"ADWIN on {what}"
    return _row(name, delta, length(delta), lambda rows: alarm(rows, delta), streams, whole=False)


def _adwin_alarm(before: list[float], after: list[float], delta: float) -> float:
    detector = drift.ADWIN(delta=delta)
    for value in before:
        detector.update(value)
    for number, value in enumerate(after, start=1):
        detector.update(value)
        if detector.drift_detected:
            return number
    return NEVER


PEERS = (
    Peer("PageHinkley on frames", 1, page_hinkley(lambda rows: rows)),
    Peer("PageHinkley on means", FEED_FRAMES, page_hinkley(fed)),
    Peer("Fisher's test online, flags", 1, fisher),
    Peer("evidently, a day, Wasserstein", FRAMES_A_DAY, evidently("wasserstein")),
    Peer("evidently, a day, Kolmogorov-Smirnov", FRAMES_A_DAY, evidently("ks")),
    Peer("KSWIN on means", FEED_FRAMES, kswin),
    Peer("MMD online, means of all cameras", FEED_FRAMES, mmd, whole=True),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("streams", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--only", default="", help="peers whose names begin so")
    arguments = parser.parse_args()
    streams = Streams.load(arguments.streams)
    rows = json.loads(arguments.result.read_text()) if arguments.result.exists() else []
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "ADWIN on means": lambda: adwin(streams, FEED_FRAMES),
        **{peer.name: lambda peer=peer: by_statistic(peer, streams) for peer in PEERS},  # type: ignore[misc]
        "ADWIN on frames": lambda: adwin(streams, 1),
    }
    for name, work in works.items():
        if name.startswith(arguments.only) and name not in {row["name"] for row in rows}:
            rows.append(work())
            arguments.result.write_text(json.dumps(rows))
            print(f"done: {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
