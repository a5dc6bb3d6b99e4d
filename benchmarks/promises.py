"""Whether the package's detectors keep their run length, calibration by calibration.

Each calibration set is drawn anew: uniform scores, which a rank-based p-value cannot tell from
others. Its true rates follow from it, and streams of them show the average run length that it
really has.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.run_lengths import Detector, Draw, average_run_length, bernoulli, first_passages
from benchmarks.streams import (
    ALPHA,
    Keys,
    Multinomial,
    ScoreShift,
    Sequential,
    Together,
    Window,
    bin_rates,
    highest_rate,
    log_threshold,
    monitor_plan,
    tail_rates,
)
from nap_stream.core.bounds import scan_limit
from nap_stream.core.tails import EDGES

KEYS = 20
FEW, MANY, NEAR = 20, 100, 2.0
UNSCORED = "unscored-images"
UNSCORED_BOUND = 0.01
HORIZON, HORIZON_OF_KEYS = 2, 10
"""In run lengths: first alarms after that are censored. A key sees a share of the records only,
and takes the longer until it alarms as often as it ever will."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What was asked for: an average run length for a share of calibrations."""

    target: int
    confidence: float
    window: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A detector: how S of them are made and fed in panes, and the statistic that alarms.

    ``records`` are those of a pane over all keys, ``chunk`` how many streams are run together,
    ``horizon`` where they are censored, in run lengths.
    """

    name: str
    records: int
    chunk: int
    make: Callable[[int], Detector]
    draw: Callable[[NDArray[np.float64]], Draw]
    threshold: float
    horizon: int = HORIZON


def drawn_bin_rates(size: int, calibrations: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The true rates of the bins of p-values, float64 (calibrations, BIN_COUNT)."""
    return np.array([bin_rates(np.sort(rng.random(size))) for _ in range(calibrations)])


def flag_rates(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The true flag rates, float64 (S,), from those of the bins, float64 (S, BIN_COUNT)."""
    below: NDArray[np.float64] = rates[:, : EDGES.index(ALPHA) + 1].sum(axis=1)
    return below


def kinds(size: int, promise: Promise) -> tuple[Kind, ...]:
    """The detectors for calibration sets of that size."""
    flag_rate = highest_rate(size, promise.confidence)
    bets = np.array([flag_rate])
    tails = tail_rates(size, promise.confidence)
    plan = monitor_plan(size, promise.target, promise.confidence, promise.window)
    a = log_threshold(promise.target)

    def flags(records: int) -> Callable[[NDArray[np.float64]], Draw]:
        return lambda rates: bernoulli(flag_rates(rates), records)

    return (
        Kind(
            "ood-window",
            1,
            20_000,
            lambda streams: Window(promise.window, 1, streams),
            flags(1),
            scan_limit(promise.window, flag_rate, promise.target),
        ),
        Kind("ood-sequential", 10, 5_000, lambda s: Sequential(bets, 10, (s,)), flags(10), a),
        Kind("score-shift", 50, 1_000, lambda s: ScoreShift(tails, 50, (s,)), _bins(50), a),
        Kind(
            f"per key, {KEYS} keys",
            10 * KEYS,
            500,
            lambda s: Keys(bets, 10, (s, KEYS)),
            lambda rates: _of_keys(flag_rates(rates), 10),
            a,
            HORIZON_OF_KEYS,
        ),
        # No calibration has a part in it: at its bound it alarms as often as it may.
        Kind(
            UNSCORED,
            10,
            5_000,
            lambda s: Sequential(np.array([UNSCORED_BOUND]), 10, (s,)),
            lambda rates: bernoulli(np.full(len(rates), UNSCORED_BOUND), 10),
            a,
        ),
        Kind("together", 50, 1_000, lambda s: Together(plan, 50, s), _bins(50), 1.0),
    )


def run_lengths_of(
    kind: Kind, rates: NDArray[np.float64], promise: Promise, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The average run length of each calibration, float64 (C,); infinity without an alarm.

    By `FEW` streams each, and by `MANY` others where those come near the target.
    """
    found = _run_lengths(kind, rates, promise, FEW, rng)
    near = found < NEAR * promise.target
    if near.any():
        found[near] = _run_lengths(kind, rates[near], promise, MANY, rng)
    return found


def _run_lengths(
    kind: Kind,
    rates: NDArray[np.float64],
    promise: Promise,
    replicas: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    horizon = kind.horizon * promise.target
    each = np.repeat(rates, replicas, axis=0)
    passages = [
        first_passages(
            kind.make(len(chunk)),
            kind.draw(chunk),
            streams=np.arange(len(chunk)),
            thresholds=np.array([kind.threshold]),
            records=kind.records,
            panes=horizon // kind.records,
            rng=rng,
        )[:, 0]
        for chunk in np.array_split(each, -(-len(each) // kind.chunk))
    ]
    rows = np.concatenate(passages).reshape(len(rates), replicas)
    return np.array([average_run_length(row, horizon).mean for row in rows])


def _bins(records: int) -> Callable[[NDArray[np.float64]], Draw]:
    return lambda rates: Multinomial(rates, records)


def _of_keys(rates: NDArray[np.float64], records: int) -> Draw:
    def draw(rng: np.random.Generator, streams: NDArray[np.int64]) -> NDArray[np.int64]:
        return rng.binomial(records, rates[streams, np.newaxis], size=(len(streams), KEYS))

    return draw
