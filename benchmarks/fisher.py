"""alibi-detect's Fisher detector on many streams of flags at once. Needs alibi-detect.

Thresholds come from `alibi_detect.cd.FETDriftOnline` itself. Its `predict` takes 0.1 ms and more a
record, so streams are simulated with the same statistic and thresholds in arrays; `disagreements`
compares the two. While it is configured, the hypergeometric distribution, of which it
asks the same few values millions of times, is looked up in a table: same thresholds, twenty times
as fast.
"""

from typing import Any

import alibi_detect.cd.fet_online as fet  # type: ignore[import-not-found,unused-ignore]  # peers.txt
import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

BOOTSTRAPS_PER_RUN_LENGTH = 10
"""What its documentation asks for at least."""


class _Table:
    """`scipy.stats.hypergeom` with each value computed once a call."""

    @staticmethod
    def cdf(k: Any, total: Any, hits: Any, draws: Any) -> Any:
        if np.ndim(k) or np.size(hits) < 1_000:
            return hypergeom.cdf(k, total, hits, draws)
        low = int(np.min(hits))
        every = np.arange(low, int(np.max(hits)) + 1)
        return np.asarray(hypergeom.cdf(k, total, every, draws))[hits - low]


def configured(flags: int, size: int, run_length: float, windows: list[int], seed: int) -> Any:
    """A `FETDriftOnline` for a calibration set of ``size`` images, ``flags`` of them flagged."""
    reference = np.zeros(size, dtype=np.int64)
    reference[:flags] = 1
    np.random.seed(seed)  # noqa: NPY002  its own generator is the global one
    fet.hypergeom = _Table
    try:
        return fet.FETDriftOnline(
            reference,
            ert=run_length,
            window_sizes=windows,
            n_bootstraps=round(BOOTSTRAPS_PER_RUN_LENGTH * run_length),
            alternative="greater",
            verbose=False,
        )
    finally:
        fet.hypergeom = hypergeom


class FisherStreams:
    """S copies of one configured detector. The statistic is 1 where it alarms, 0 elsewhere."""

    def __init__(self, detector: Any, streams: int, rng: np.random.Generator) -> None:
        self._thresholds = detector.thresholds[:, 0]
        self._permitted = detector.permit_probs[:, 0]
        self._smoothing, self._rng = detector.lam, rng
        self._windows = list(detector.window_sizes)
        flags, size = int(detector.sum_ref[0]), detector.n
        self._values = [
            1 - np.asarray(hypergeom.cdf(flags, size + w, flags + np.arange(w + 1), size))
            for w in self._windows
        ]
        self._last = np.zeros((max(self._windows), streams), dtype=np.int8)
        self._counts = np.zeros((len(self._windows), streams), dtype=np.int64)
        self._smooth = np.zeros((len(self._windows), streams), dtype=np.float32)
        self._time = 0
        self.statistic = np.full(streams, -np.inf)

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take the next flag, 0 or 1, of each stream."""
        length = len(self._last)
        for number, window in enumerate(self._windows):
            self._counts[number] += counts - self._last[(self._time - window) % length]
        self._last[self._time % length] = counts
        self._time += 1
        highest = np.full(len(counts), -np.inf)
        for number, window in enumerate(self._windows):
            if self._time < window:
                continue
            value = self._values[number][self._counts[number]]
            if self._time > window:
                before = self._smooth[number].astype(np.float64)
                value = (1 - self._smoothing) * before + self._smoothing * value
            # Kept in float32, as it does, since thresholds are met exactly.
            self._smooth[number] = value
            np.maximum(highest, self._smooth[number], out=highest)
        self.statistic = highest
        now = min(self._time - 1, len(self._thresholds) - 1)
        fired: NDArray[np.bool_] = highest > self._thresholds[now]
        ties = np.flatnonzero(highest == self._thresholds[now])
        fired[ties] = self._rng.random(len(ties)) > self._permitted[now]
        return fired.astype(np.float64)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """See `benchmarks.run_lengths.Detector`."""
        self._last = self._last[:, kept]
        self._counts = self._counts[:, kept]
        self._smooth = self._smooth[:, kept]


def disagreements(detector: Any, flags: NDArray[np.int64]) -> int:
    """At how many records its `predict` has another statistic or verdict than `FisherStreams`.

    Args:
        detector: From `configured`; reset at the end.
        flags: int64 (T,), 0 or 1, a stream. Where the statistic is just the threshold only the
            statistic is compared: the verdict is left to chance there.
    """
    streams = FisherStreams(detector, 1, np.random.default_rng(0))
    differ = 0
    for time, flag in enumerate(flags, start=1):
        real = detector.predict(np.array(int(flag)))["data"]
        fired = bool(streams.step(np.array([flag]))[0])
        if time >= min(detector.window_sizes):
            statistic, threshold = np.nanmax(real["test_stat"]), real["threshold"][0]
            by_chance = statistic == threshold
            differ += bool(
                statistic != streams.statistic[0]
                or (not by_chance and fired != bool(real["is_drift"]))
            )
    detector.reset_state()
    return differ
