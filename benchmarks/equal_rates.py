"""Detection delays at an equal measured false-alarm rate.

The flags are Bernoulli(0.05) before the change. Each detector is tuned until its average run length
(ARL), measured on such flags, is the one that it is compared at; the package's still bet against
p_U, as their calibration set makes them. Where that ARL is too long to be measured for them, the
e-detector's threshold is extrapolated, since ln ARL grows in proportion to it, and the window's is
that of `scan_limit` at the true rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.horizons import UNSTABLE, Law
from benchmarks.run_lengths import (
    Detector,
    Estimate,
    average_run_length,
    bernoulli,
    detection_delays,
    first_passages,
    mean_delay,
)
from benchmarks.streams import ALPHA, Sequential, Window, highest_rate, log_threshold
from nap_stream.core.bounds import scan_limit

TUNING_STREAMS = 1_000
TUNING_HORIZON = 4
"""In run lengths asked for. An ARL of up to half of it is measured well enough to tune to."""
LOWEST = 1.6
"""The lowest threshold of an e-detector that is tried, a logarithm."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the delays are simulated at: sizes of calibration sets, rates after the change."""

    target: int
    confidence: float
    window: int
    sizes: tuple[int, ...]
    drifted: tuple[float, ...]
    streams: int
    limit: int

    @property
    def longest(self) -> float:
        """The longest ARL, in records, that thresholds are measured for."""
        return self.target * TUNING_HORIZON / 2


@dataclass(frozen=True, slots=True)
class Tuned:
    """A detector with a calibration set behind it: S of them, and the threshold for an ARL."""

    make: Callable[[int], Detector]
    threshold: Callable[[float], float]


def tuned_detectors(setting: Setting, rng: np.random.Generator) -> dict[int, tuple[Tuned, Tuned]]:
    """The e-detector and the rolling window, by size of the calibration set."""
    return {
        size: (
            _tuned_sequential(setting, highest_rate(size, setting.confidence), rng),
            _tuned_window(setting, rng),
        )
        for size in setting.sizes
    }


def print_comparison(
    setting: Setting, rows: list[dict[str, Any]], rng: np.random.Generator
) -> None:
    """Print a table for each drifted rate: a line for each peer, or one line without peers.

    Args:
        setting: What is simulated.
        rows: Of `benchmarks.peers`.
        rng: Source of randomness.
    """
    print(
        f"The change comes after {setting.target // 2:,} records without an alarm. †: the "
        f"package's thresholds for ARLs above {setting.longest:,.0f} are not measured: the "
        f"e-detector's is extrapolated, the window's is that of its bound. Where a peer's ARL is a "
        f"lower bound only (>), they are set to that bound, which favours the package. A peer with "
        f"{UNSTABLE}, or with too few alarms to tell, is met at what was read at its horizon: no "
        f"verdict.\n"
    )
    detectors = tuned_detectors(setting, rng)
    rows = rows or [_no_peer(setting)]
    for number, rate in enumerate(setting.drifted):
        print(f"Mean delay in records, flag rate {ALPHA:g} → {rate:g}:\n")
        print("| peer | parameter | ARL | its delay | calibration set | e-detector | window |")
        print("|---|---|---|---|---|---|---|")
        ours = {
            size: [_delays(setting, one, rows, rate, rng) for one in both]
            for size, both in detectors.items()
        }
        for index, row in enumerate(rows):
            for size in setting.sizes:
                if row["size"] in {None, str(size)}:
                    print(
                        _line(setting, row, number, size, [delays[index] for delays in ours[size]])
                    )
        print(flush=True)


def _delays(
    setting: Setting,
    detector: Tuned,
    rows: list[dict[str, Any]],
    rate: float,
    rng: np.random.Generator,
) -> list[Estimate]:
    """Its mean delay at the ARL of each row."""
    run_lengths = [_at(Estimate(**row["run_length"])) for row in rows]
    found = detection_delays(
        detector.make(setting.streams),
        bernoulli(np.array([ALPHA]), 1),
        bernoulli(np.array([rate]), 1),
        streams=setting.streams,
        thresholds=np.array([detector.threshold(length) for length in run_lengths]),
        prefix=setting.target // 2,
        limit=setting.limit,
        rng=rng,
    )
    return [mean_delay(delays, setting.limit) for delays in found]


def _at(run_length: Estimate) -> float:
    return run_length.mean if np.isfinite(run_length.mean) else run_length.low


def _line(
    setting: Setting, row: dict[str, Any], number: int, size: int, ours: list[Estimate]
) -> str:
    run_length = Estimate(**row["run_length"])
    labels = [row["name"], row["parameter"]]
    if not row["delays"]:
        return f"| {' | '.join([*labels, str(run_length), '-', f'{size:,}', *map(str, ours)])} |"
    theirs = Estimate(**row["delays"][number])
    missed = f", {row['missed'][number]:.1%} missed" if row["missed"][number] else ""
    law = Law(**row["law"])
    mark = "†" if _at(run_length) > setting.longest else ""
    if not law.stable:
        reading = f"{law}; {run_length} at a horizon of {law.horizon:,}"
        cells = [f"{one}{mark}" for one in ours]
    else:
        reading = str(run_length)
        cells = [f"{one}{mark} {_verdict(one, theirs)}" for one in ours]
    return f"| {' | '.join([*labels, reading, f'{theirs}{missed}', f'{size:,}', *cells])} |"


def _verdict(ours: Estimate, theirs: Estimate) -> str:
    if ours.high < theirs.low:
        return "sooner"
    return "**later**" if ours.low > theirs.high else "alike"


def _tuned_sequential(setting: Setting, rate: float, rng: np.random.Generator) -> Tuned:
    def make(streams: int) -> Detector:
        return Sequential(np.array([rate]), 1, (streams,))

    levels = np.linspace(LOWEST, log_threshold(2 * setting.target), 60)
    measured = _run_lengths(make, levels.astype(np.float64), setting, rng)
    upper = (measured >= setting.longest / 8) & (measured <= setting.longest)
    slope, start = np.polyfit(np.log(measured[upper]), levels[upper], 1)

    def threshold(run_length: float) -> float:
        if run_length > setting.longest:
            return float(start + slope * np.log(run_length))
        return float(np.interp(np.log(run_length), np.log(measured), levels))

    return Tuned(make, threshold)


def _tuned_window(setting: Setting, rng: np.random.Generator) -> Tuned:
    def make(streams: int) -> Detector:
        return Window(setting.window, 1, streams)

    usual = round(setting.window * ALPHA)
    limits = np.arange(usual, 2 * usual).astype(np.float64)
    measured = _run_lengths(make, limits, setting, rng)

    def threshold(run_length: float) -> float:
        if run_length > setting.longest:
            return scan_limit(setting.window, ALPHA, run_length)
        return float(limits[np.searchsorted(measured, run_length)])

    return Tuned(make, threshold)


def _run_lengths(
    make: Callable[[int], Detector],
    thresholds: NDArray[np.float64],
    setting: Setting,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The measured ARL at each threshold, float64 (G,)."""
    horizon = TUNING_HORIZON * setting.target
    passages = first_passages(
        make(TUNING_STREAMS),
        bernoulli(np.array([ALPHA]), 1),
        streams=np.arange(TUNING_STREAMS),
        thresholds=thresholds,
        records=1,
        panes=horizon,
        rng=rng,
    )
    return np.array([average_run_length(column, horizon).mean for column in passages.T])


def _no_peer(setting: Setting) -> dict[str, Any]:
    arl = {"mean": float(setting.target), "low": float(setting.target), "high": setting.target}
    return {"name": "none", "parameter": "-", "size": None, "run_length": arl, "delays": []}
