"""The package's detectors, each on many simulated streams at once (see `benchmarks.run_lengths`).

They are set as `nap_stream.core.detection` sets them, but one at a time: each has the whole run
length and the whole confidence to itself. `Together` has the settings of a monitor.
"""

import math
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from nap_stream.core import sequential
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.conformal import flag_rank, threshold
from nap_stream.core.detection import DetectionPlan, plan_detection
from nap_stream.core.tails import EDGES, TAIL_EVENTS, FlagRateLaw, TailEvent, tail_counts
from tests.support.limits import window_limits

ALPHA = 0.05


def tail_laws(size: int) -> tuple[tuple[TailEvent, tuple[FlagRateLaw, ...]], ...]:
    """The law of the rate of each tail event, given a calibration set of that size."""
    return tuple((event, (_law(event, size),)) for event in TAIL_EVENTS)


def tail_rates(size: int, confidence: float) -> NDArray[np.float64]:
    """Their upper rates, float64 (J,), that hold together with the confidence."""
    each = 1 - (1 - confidence) / len(TAIL_EVENTS)
    laws = [_law(event, size) for event in TAIL_EVENTS]
    return np.array([upper_flag_rate(law.flag_rank, law.size, each) for law in laws])


def bin_rates(sorted_scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The true rate of each bin of p-values, float64 (BIN_COUNT,).

    Given calibration scores whose law is uniform on [0, 1], ascending: new scores have it too.
    """
    below = [threshold(sorted_scores, edge) for edge in EDGES]
    return np.diff([0.0, *below, 1.0])


class Multinomial:
    """Records of a pane by bin of the p-value, int64 (S, BIN_COUNT).

    Args:
        rates: float64 (S, BIN_COUNT).
        records: Of a pane.
    """

    def __init__(self, rates: NDArray[np.float64], records: int) -> None:
        self._rates, self._records = rates, records

    def __call__(self, rng: np.random.Generator, streams: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `benchmarks.run_lengths.Draw`."""
        return rng.multinomial(self._records, self._rates[streams])


class Window:
    """The rolling window; its statistic is the number of flags, -1 until it is full."""

    def __init__(self, records: int, pane: int, streams: int) -> None:
        if records % pane:
            raise ValueError(f"expected whole panes, got {records = }, {pane = }")
        self._ring = np.zeros((records // pane, streams), dtype=np.int16)
        self._flagged = np.zeros(streams, dtype=np.int64)
        self._time = 0

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take the flags of a pane, int64 (S,)."""
        slot = self._time % len(self._ring)
        self._flagged += counts - self._ring[slot]
        self._ring[slot] = counts
        self._time += 1
        if self._time < len(self._ring):
            return np.full(len(counts), -1.0)
        return self._flagged.astype(np.float64)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """See `benchmarks.run_lengths.Detector`."""
        self._ring, self._flagged = self._ring[:, kept], self._flagged[kept]


class Sequential:
    """The e-detector of flags; its statistic is ln M."""

    def __init__(self, rates: NDArray[np.float64], pane: int, shape: tuple[int, ...]) -> None:
        self._bets = self._bets_against(rates)
        self._state = sequential.initial_state(self._bets, shape)
        self._pane = pane

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take the flags of a pane, int64 (S,)."""
        return self._take(counts[..., np.newaxis])

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """See `benchmarks.run_lengths.Detector`."""
        parts = (getattr(self._state, field.name)[kept] for field in fields(self._state))
        self._state = sequential.SequentialState(*parts)

    def _bets_against(self, rates: NDArray[np.float64]) -> sequential.Bets:
        return sequential.bets_for_drift(rates)

    def _take(self, hits: NDArray[np.int64]) -> NDArray[np.float64]:
        shape = hits.shape[:-1]
        records = np.full(shape, self._pane)
        start = np.zeros(shape, dtype=np.int64)
        self._state = sequential.update(self._state, self._bets, records, hits, start)
        return sequential.log_mixture(self._state)


class Keys(Sequential):
    """One e-detector for each of K keys; the statistic is that of the highest."""

    def _bets_against(self, rates: NDArray[np.float64]) -> sequential.Bets:
        return sequential.bets_against(rates)

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take a pane of each key, int64 (S, K)."""
        highest: NDArray[np.float64] = super().step(counts).max(axis=1)
        return highest


class ScoreShift(Sequential):
    """The e-detector of the tail events."""

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take the bins of a pane, int64 (S, BIN_COUNT)."""
        return self._take(tail_counts(counts, TAIL_EVENTS))


class Together:
    """Window, e-detector and score shift as a monitor has them; 1 where any alarms, else 0."""

    def __init__(self, plan: DetectionPlan, pane: int, streams: int) -> None:
        rates = np.array([rate for _, rate in plan.tail_rates])
        self._window = Window(plan.window_records, pane, streams)
        self._flags = Sequential(np.array([plan.flag_rate]), pane, (streams,))
        self._shift = ScoreShift(rates, pane, (streams,))
        self._limit, _ = window_limits(plan, plan.window_records)
        self._log_threshold = plan.log_threshold

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take the bins of a pane, int64 (S, BIN_COUNT)."""
        flags = counts[:, : EDGES.index(ALPHA) + 1].sum(axis=1)
        fired = self._window.step(flags) >= self._limit
        fired |= self._flags.step(flags) >= self._log_threshold
        fired |= self._shift.step(counts) >= self._log_threshold
        return fired.astype(np.float64)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """See `benchmarks.run_lengths.Detector`."""
        for part in (self._window, self._flags, self._shift):
            part.keep(kept)


def monitor_plan(size: int, target: float, confidence: float, window: int) -> DetectionPlan:
    """What a monitor without keys is set to, for a calibration set of that size."""
    return plan_detection(
        run_length=target,
        confidence=confidence,
        window_records=window,
        resolve_probability=0.05,
        flag_laws=[FlagRateLaw(flag_rank(ALPHA, size), size)],
        tail_laws=tail_laws(size),
        groups=1,
        with_keys=False,
    )


def highest_rate(size: int, confidence: float) -> float:
    """p_U, the highest in-distribution flag rate at that confidence."""
    return upper_flag_rate(flag_rank(ALPHA, size), size, confidence)


def log_threshold(target: float) -> float:
    """Of an e-detector with the whole run length to itself."""
    return math.log(target)


def _law(event: TailEvent, size: int) -> FlagRateLaw:
    rank = flag_rank(event.edge, size)
    return FlagRateLaw(size + 1 - rank if event.upper else rank, size)
