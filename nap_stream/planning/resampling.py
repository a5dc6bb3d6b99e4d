"""The circular block bootstrap of a series, and how long its blocks have to be.

Politis and Romano, "A circular block-resampling procedure for stationary data", in Exploring the
limits of bootstrap, 1992. The block length is that of Politis and White, "Automatic block-length
selection for the dependent bootstrap", Econometric Reviews 23 (2004), with the correction by
Patton, Politis and White, Econometric Reviews 28 (2009):

    b = (2 G^2 / D)^(1/3) P^(1/3),  G = sum of lambda(k / M) |k| R(k),  D = 4/3 g(0)^2,

with R the autocovariances, g(0) the sum of lambda(k / M) R(k), which is the long-run variance,
lambda the flat-top window, and M twice the lag from which on no autocorrelation stands out.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
_MOST_BLOCKS = 2_000
_STANDS_OUT = 2.0


@dataclass(frozen=True, slots=True)
class Dependence:
    """How the members of a series of P depend on those before them.

    ``lag`` is the last lag at which an autocorrelation stands out, before a run of lags at which
    none does: 0 for a series of independent members. ``block`` is the block length, ``variance``
    the mean square and ``long_run_variance`` P times the variance of the mean. ``error`` is the
    relative standard error of the latter.
    """

    lag: int
    block: int
    variance: float
    long_run_variance: float
    error: float


def dependence_of(series: NDArray[np.float64]) -> Dependence:
    """Estimate the dependence in a series, float64 (P,), P >= 10."""
    size = len(series)
    r = autocovariances(series)
    if r[0] <= 0:
        return Dependence(0, 1, 0.0, 0.0, 0.0)
    lag = _last_lag(r / r[0], size)
    width = min(max(2 * lag, 2), size - 1)
    k = np.arange(width + 1)
    weighted = np.clip(2 - 2 * k / width, 0, 1) * r[: width + 1]
    long_run = float(weighted[0] + 2 * weighted[1:].sum())
    slope = float(2 * (k * weighted).sum())
    # The estimate of a flat-top window can be negative; a variance is not.
    long_run = max(long_run, float(r[0]) / size)
    best = (2 * slope**2 / (4 / 3 * long_run**2)) ** (1 / 3) * size ** (1 / 3)
    longest = math.ceil(min(3 * math.sqrt(size), size / 3))
    error = math.sqrt((4 * max(lag, 1) + 2) / size)
    return Dependence(lag, min(max(1, math.ceil(best)), longest), float(r[0]), long_run, error)


def autocovariances(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the autocovariances of a series, float64 (P,), at lags 0 … P - 1, each divided by P."""
    size = len(series)
    width = 1 << (2 * size - 1).bit_length()
    spectrum = np.fft.rfft(series - series.mean(), width)
    covariances: NDArray[np.float64] = np.fft.irfft(np.abs(spectrum) ** 2, width)[:size] / size
    return covariances


def resampled_shares(
    records: NDArray[np.int64],
    hits: NDArray[np.int64],
    block: int,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Resample the shares of J events among records, float64 (resamples, J).

    ``records`` is int64 (P,), of each pane; ``hits`` int64 (P, J), how many of them each event
    holds for. A block has ``block`` panes, more where the series would have more than some 2,000
    blocks, which costs nothing.
    """
    size = len(records)
    block = max(block, math.ceil(size / _MOST_BLOCKS))
    columns = np.column_stack((records, hits))
    columns = np.concatenate((columns, columns[: block - 1]))
    ends = np.concatenate((np.zeros((1, columns.shape[1]), np.int64), np.cumsum(columns, axis=0)))
    sums = ends[block : block + size] - ends[:size]
    blocks = math.ceil(size / block)
    totals = np.array(
        [sums[generator.integers(size, size=blocks)].sum(axis=0) for _ in range(resamples)]
    )
    shares: NDArray[np.float64] = totals[:, 1:] / totals[:, :1]
    return shares


def block_places(
    size: int, block: int, shape: tuple[int, int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Give places in a series of ``size`` members, int64 of ``shape``: rows of circular blocks."""
    rows, length = shape
    starts = generator.integers(size, size=(rows, math.ceil(length / block)))
    places = (starts[:, :, np.newaxis] + np.arange(block)) % size
    return places.reshape(rows, -1)[:, :length]


def _last_lag(correlations: NDArray[np.float64], size: int) -> int:
    """The lag after which a run of autocorrelations does not stand out from chance."""
    quiet_run = max(5, math.ceil(math.sqrt(math.log10(size))))
    longest = min(size - 1, math.ceil(math.sqrt(size)) + quiet_run)
    limit = _STANDS_OUT * math.sqrt(math.log10(size) / size)
    loud = np.abs(correlations[1 : longest + 1]) >= limit
    for lag in range(longest + 1 - quiet_run):
        if not loud[lag : lag + quiet_run].any():
            return lag
    return int(np.flatnonzero(loud)[-1]) + 1
