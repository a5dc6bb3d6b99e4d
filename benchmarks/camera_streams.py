"""Simulated cameras whose images are dependent, counted in stretches of time.

Flags follow a two-state Markov chain, or scores a Gaussian AR(1). All is exact: no stretch is taken
for independent of the next one.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtri

from nap_stream.core.tails import BIN_COUNT, EDGES

ALPHA = 0.05
_LOW, _LOW_SHARES = (0, 1), (0.4,)
_HIGH, _HIGH_SHARES = (4, 6, 9), (0.47, 0.9)
"""Bins of flagged images and of others, and the share of each among it and the bins after it; the
last has what is left."""
_MANY = 50
DAY_S, DAWN_S, DUSK_S = 86_400, 6 * 3_600, 18 * 3_600


class Camera(Protocol):
    """A process that can be counted between times, in seconds since a midnight."""

    def bins(self, edges_s: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Give a new run's images by bin of the p-value, int64 (len - 1, BIN_COUNT).

        ``edges_s`` int64, ascending, multiples of the image interval.
        """
        ...


def fleet_shares(keys: int, spread: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """OOD fractions of cameras: Beta with mean `ALPHA`, all alike without a spread."""
    if not spread:
        return np.full(keys, ALPHA)
    return np.clip(rng.beta(ALPHA / spread, (1 - ALPHA) / spread, keys), 0.005, 0.3)


@dataclass(frozen=True, slots=True)
class Markov:
    """An image a second; flagged ones come in runs of ``dwell`` on average, 1 for independent.

    ``share`` of them are flagged, from 18:00 to 06:00 ``night`` times as many.
    """

    share: float
    dwell: float
    night: float = 1.0

    def bins(self, edges_s: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Camera`."""
        if self.night == 1:
            flagged = self._flagged(edges_s, self.share, rng)
        else:
            light = _daylight_s(edges_s)
            flagged = self._flagged(light, self.share, rng)
            flagged += self._flagged(edges_s - light, self.share * self.night, rng)
        return _spread_out(np.diff(edges_s), flagged, rng)

    def _flagged(
        self, edges: NDArray[np.int64], share: float, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        if self.dwell <= 1:
            return rng.binomial(np.diff(edges), share)
        first, last = int(edges[0]), int(edges[-1])
        pause = self.dwell * (1 - share) / share
        count = int(1.3 * (last - first) / (self.dwell + pause)) + 60
        lengths = np.empty(2 * count, dtype=np.int64)
        begins_flagged = int(rng.random() < share)
        lengths[1 - begins_flagged :: 2] = rng.geometric(1 / self.dwell, count)
        lengths[begins_flagged::2] = rng.geometric(1 / pause, count)
        ends = np.concatenate(([0], np.cumsum(lengths))) + first
        if ends[-1] < last:
            raise RuntimeError("too few runs were drawn")
        is_flagged = np.zeros(2 * count, dtype=np.int64)
        is_flagged[1 - begins_flagged :: 2] = 1
        total = np.concatenate(([0], np.cumsum(lengths * is_flagged)))
        counts: NDArray[np.int64] = np.rint(np.interp(edges, ends, total)).astype(np.int64)
        return counts[1:] - counts[:-1]


@dataclass(frozen=True, slots=True)
class Autoregressive:
    """An image every ten seconds, with scores of a Gaussian AR(1).

    ``images`` is its integrated autocorrelation time; ``share`` and ``night`` as in `Markov`.
    """

    share: float
    images: float
    night: float = 1.0
    interval_s: int = 10

    def bins(self, edges_s: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """See `Camera`."""
        phi = (self.images - 1) / (self.images + 1)
        times = np.arange(edges_s[0], edges_s[-1], self.interval_s)
        noise = rng.standard_normal(len(times)) * np.sqrt(1 - phi**2)
        noise[0] /= np.sqrt(1 - phi**2)
        scores = lfilter([1.0], [1.0, -phi], noise)
        # Edges of the p-values, moved so that the wanted share is flagged.
        by_day = ndtri(EDGES) - ndtri(ALPHA) + ndtri(self.share)
        if self.night != 1:
            by_night = by_day + ndtri(self.share * self.night) - ndtri(self.share)
            is_day = (times % DAY_S >= DAWN_S) & (times % DAY_S < DUSK_S)
            scores += np.where(is_day, 0.0, by_day[0] - by_night[0])
        size = len(edges_s) - 1
        stretch = np.repeat(np.arange(size) * BIN_COUNT, np.diff(edges_s) // self.interval_s)
        stretch += np.searchsorted(by_day, scores)
        counts = np.bincount(stretch, minlength=size * BIN_COUNT)
        return counts.reshape(size, BIN_COUNT).astype(np.int64)


def _daylight_s(time_s: NDArray[np.int64]) -> NDArray[np.int64]:
    today = np.clip(time_s % DAY_S - DAWN_S, 0, DUSK_S - DAWN_S)
    return time_s // DAY_S * (DUSK_S - DAWN_S) + today


def _spread_out(
    images: NDArray[np.int64], flagged: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    # Five p-values stand for all: the draws take most of the time.
    counts = np.zeros((len(images), BIN_COUNT), dtype=np.int64)
    for bins, shares, count in (
        (_LOW, _LOW_SHARES, flagged),
        (_HIGH, _HIGH_SHARES, images - flagged),
    ):
        left = count.copy()
        for place, share in zip(bins[:-1], shares, strict=True):
            counts[:, place] = _binomial(left, share, rng)
            left -= counts[:, place]
        counts[:, bins[-1]] = left
    return counts


def _binomial(
    count: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw binomial numbers; of a Gaussian, rounded, where the count is large."""
    found = np.zeros_like(count)
    few = (count > 0) & (count < _MANY)
    found[few] = rng.binomial(count[few], share)
    many = count >= _MANY
    size = count[many]
    drawn = size * share + np.sqrt(size * share * (1 - share)) * rng.standard_normal(len(size))
    found[many] = np.clip(np.rint(drawn), 0, size).astype(np.int64)
    return found
