"""Detection delays at an equal measured false-alarm rate.

The flags are Bernoulli(0.05) before the change. Each detector is tuned until its average run length
(ARL), measured on such flags, is the one that it is compared at; the package's still bet against
p_U, as their calibration set makes them. At an ARL too long to be measured they are not tuned but
promise it, so that theirs is longer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class Curve:
    """The measured ARL, float64 (G,), of a detector at each of its thresholds, ascending.

    ``promised`` is the threshold at which it promises an ARL.
    """

    make: Callable[[int], Detector]
    thresholds: NDArray[np.float64]
    run_lengths: NDArray[np.float64]
    promised: Callable[[float], float]

    def threshold(self, run_length: float, *, measured: bool) -> float:
        """Where the ARL is at least that, between two thresholds if they are no whole numbers."""
        if not measured:
            return self.promised(run_length)
        if np.all(self.thresholds == np.round(self.thresholds)):
            return float(self.thresholds[np.searchsorted(self.run_lengths, run_length)])
        logs = np.log(self.run_lengths)
        return float(np.interp(np.log(run_length), logs, self.thresholds))


def measured_curves(
    setting: Setting, rng: np.random.Generator
) -> tuple[dict[int, Curve], dict[int, Curve]]:
    """Curves of the e-detector and of the rolling window, by size of the calibration set."""
    sequential, window = {}, {}
    levels = np.linspace(LOWEST, log_threshold(2 * setting.target), 60)
    usual = round(setting.window * ALPHA)
    limits = np.arange(usual, 2 * usual).astype(np.float64)
    for size in setting.sizes:
        rate = highest_rate(size, setting.confidence)
        sequential[size] = _curve(_sequential(rate), levels, log_threshold, setting, rng)
        window[size] = _curve(
            _window(setting.window), limits, _promised_limit(setting.window, rate), setting, rng
        )
    return sequential, window


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
        f"The change comes after {setting.target // 2:,} records without an alarm. early: streams "
        f"that alarm within {setting.target // 10:,} in-distribution records; 10 % where alarms "
        f"come at a constant rate and the ARL is {setting.target:,}.\n"
    )
    sequential, window = measured_curves(setting, rng)
    for number, rate in enumerate(setting.drifted):
        print(f"Mean delay in records, flag rate {ALPHA:g} → {rate:g}:\n")
        print(
            "| peer | parameter | ARL | early | its delay | calibration set | e-detector | window |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for row in rows or [_no_peer(setting)]:
            for size in setting.sizes:
                if row["size"] in {None, str(size)}:
                    curves = (sequential[size], window[size])
                    line = _line(setting, row, number=number, size=size, curves=curves, rng=rng)
                    print(line, flush=True)
        print()


def _line(
    setting: Setting,
    row: dict[str, Any],
    *,
    number: int,
    size: int,
    curves: tuple[Curve, ...],
    rng: np.random.Generator,
) -> str:
    arl = Estimate(**row["run_length"])
    measured = arl.mean <= setting.target * TUNING_HORIZON / 2
    at = arl.mean if np.isfinite(arl.mean) else arl.low
    theirs = Estimate(**row["delays"][number]) if row["delays"] else None
    cells = []
    for curve in curves:
        ours = _delay(setting, curve, curve.threshold(at, measured=measured), number, rng)
        cells.append(f"{ours} {_verdict(ours, theirs)}".strip())
    missed = row["missed"][number] if row["delays"] else 0.0
    note = f", {missed:.0%} missed" if missed else ""
    shown = f"{theirs}{note}" if theirs else "-"
    early = f"{row['early']:.0%}" if row["delays"] else "-"
    columns = (row["name"], row["parameter"], str(arl), early, shown, f"{size:,}", *cells)
    return f"| {' | '.join(columns)} |"


def _verdict(ours: Estimate, theirs: Estimate | None) -> str:
    if theirs is None:
        return ""
    if ours.high < theirs.low:
        return "sooner"
    return "**later**" if ours.low > theirs.high else "alike"


def _delay(
    setting: Setting, curve: Curve, threshold: float, number: int, rng: np.random.Generator
) -> Estimate:
    found = detection_delays(
        curve.make(setting.streams),
        bernoulli(np.array([ALPHA]), 1),
        bernoulli(np.array([setting.drifted[number]]), 1),
        streams=setting.streams,
        threshold=threshold,
        prefix=setting.target // 2,
        limit=setting.limit,
        rng=rng,
    )
    return mean_delay(found, setting.limit)


def _curve(
    make: Callable[[int], Detector],
    thresholds: NDArray[np.float64],
    promised: Callable[[float], float],
    setting: Setting,
    rng: np.random.Generator,
) -> Curve:
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
    found = [average_run_length(column, horizon).mean for column in passages.T]
    return Curve(make, thresholds, np.array(found), promised)


def _sequential(rate: float) -> Callable[[int], Detector]:
    return lambda streams: Sequential(np.array([rate]), 1, (streams,))


def _window(records: int) -> Callable[[int], Detector]:
    return lambda streams: Window(records, 1, streams)


def _promised_limit(records: int, rate: float) -> Callable[[float], float]:
    return lambda run_length: scan_limit(records, rate, run_length)


def _no_peer(setting: Setting) -> dict[str, Any]:
    arl = {"mean": float(setting.target), "low": float(setting.target), "high": setting.target}
    return {"name": "none", "parameter": "-", "size": None, "run_length": arl, "delays": []}
