"""Run lengths of detectors on many simulated streams at once; numpy alone, for any interpreter.

A run length is the number of records from a detector's start to its first alarm. Those of
in-distribution streams are censored at a horizon and averaged as exponential ones are: all records
seen, divided by the alarms seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

NEVER = np.iinfo(np.int64).max
"""The run length of a stream without an alarm."""
Draw = Callable[[np.random.Generator, NDArray[np.int64]], NDArray[np.int64]]
"""Counts (S, ...) of the next pane of the streams with the given numbers, int64 (S,)."""


class Detector(Protocol):
    """S detectors, each on its own stream."""

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take a pane of each stream; give the statistic, float64 (S,)."""
        ...

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the streams that are not kept, bool (S,)."""
        ...


def first_passages(
    detector: Detector,
    draw: Draw,
    *,
    streams: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    records: int,
    panes: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Run until the statistic has reached every threshold, or for so many panes.

    The detector is not reset at a threshold, so one run serves all of them.

    Args:
        detector: Of S streams; used up.
        draw: What they see.
        streams: int64 (S,), their numbers, for ``draw``.
        thresholds: float64 (G,), ascending.
        records: Of a pane.
        panes: At most.
        rng: Source of randomness.

    Returns:
        int64 (S, G), records until the statistic is at least the threshold, or `NEVER`.
    """
    passages = np.full((len(streams), len(thresholds)), NEVER)
    place = np.arange(len(streams))
    highest = np.full(len(streams), -np.inf)
    for pane in range(1, panes + 1):
        statistic = detector.step(draw(rng, streams[place]))
        rising = np.flatnonzero((statistic > highest) & (statistic >= thresholds[0]))
        if len(rising):
            reached = statistic[rising, np.newaxis] >= thresholds
            rows = passages[place[rising]]
            passages[place[rising]] = np.where(reached & (rows == NEVER), pane * records, rows)
        np.maximum(highest, statistic, out=highest)
        running = highest < thresholds[-1]
        if running.mean() < 0.9:
            if not running.any():
                break
            detector.keep(running)
            place, highest = place[running], highest[running]
    return passages


def detection_delays(
    detector: Detector,
    before: Draw,
    after: Draw,
    *,
    streams: int,
    thresholds: NDArray[np.float64],
    prefix: int,
    limit: int,
    rng: np.random.Generator,
) -> list[NDArray[np.int64]]:
    """Records from the change to the alarm, in panes of one, of streams not alarmed before it.

    Args:
        detector: Of so many streams; used up.
        before: What they see up to the change.
        after: What they see from then on.
        streams: How many.
        thresholds: float64 (G,), any order: an alarm is a statistic of at least that.
        prefix: Records before the change.
        limit: Records after it, at most.
        rng: Source of randomness.

    Returns:
        For each threshold int64 (S',), `NEVER` beyond the limit.
    """
    highest = np.full(streams, -np.inf)
    numbers = np.arange(streams)
    for _ in range(prefix):
        np.maximum(highest, detector.step(before(rng, numbers)), out=highest)
    ascending, places = np.unique(thresholds, return_inverse=True)
    passages = first_passages(
        detector,
        after,
        streams=numbers,
        thresholds=ascending,
        records=1,
        panes=limit,
        rng=rng,
    )
    return [passages[highest < ascending[place], place] for place in places]


def bernoulli(rates: NDArray[np.float64], records: int) -> Draw:
    """Flags of panes of so many records, int64 (S,); ``rates`` is float64 (S,) or (1,)."""

    def draw(rng: np.random.Generator, streams: NDArray[np.int64]) -> NDArray[np.int64]:
        rate = rates[streams] if len(rates) > 1 else rates
        if records == 1:
            return (rng.random(len(streams)) < rate).astype(np.int64)
        return rng.binomial(records, rate, size=len(streams))

    return draw


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isinf(self.high):
            return f"> {rounded(self.low)}"
        return f"{rounded(self.mean)} ({rounded(self.low)} to {rounded(self.high)})"


def average_run_length(run_lengths: NDArray[np.int64], horizon: int) -> Estimate:
    """The average run length, from first alarms that are censored at the horizon.

    The interval is that of a Poisson number of alarms, by its square root's normal law.
    """
    exposure = float(np.minimum(run_lengths, horizon).sum())
    alarms = int((run_lengths <= horizon).sum())
    least = (max(0.0, np.sqrt(alarms + 0.375) - 0.98)) ** 2 - 0.375
    most = (np.sqrt(alarms + 0.375) + 0.98) ** 2
    return Estimate(
        exposure / alarms if alarms else np.inf,
        exposure / most,
        exposure / least if least > 0 else np.inf,
    )


def mean_delay(delays: NDArray[np.int64], limit: int) -> Estimate:
    """The mean of delays that are censored at the limit, with a normal interval."""
    values = np.minimum(delays, limit).astype(np.float64)
    half = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values))
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half)


def rounded(value: float) -> str:
    """Three digits from a thousand up, one decimal below a hundred."""
    if not np.isfinite(value):
        return "∞"
    digits = 3 if value >= 1_000 else 1 if value < 100 else 0
    scale = 10 ** max(0, int(np.log10(value)) + 1 - digits) if digits == 3 else 1
    return f"{round(value / scale) * scale:,}" if digits != 1 else f"{value:.1f}"
