"""The circular block bootstrap of a series, and how long its blocks have to be.

Politis and Romano, "A circular block-resampling procedure for stationary data", in Exploring the
limits of bootstrap, 1992. The block length is that of Politis and White, "Automatic block-length
selection for the dependent bootstrap", Econometric Reviews 23 (2004), with the correction by
Patton, Politis and White, Econometric Reviews 28 (2009):

    b = (2 G^2 / D)^(1/3) P^(1/3),  G = sum of lambda(k / M) |k| R(k),  D = 4/3 g(0)^2,

with R the autocovariances, g(0) the sum of lambda(k / M) R(k), which is the long-run variance,
lambda the flat-top window, and M twice the lag from which on no autocorrelation stands out.

First alarms of the real detectors on many streams of panes at once.

The real false-alarm rates of the detectors on a recorded stretch, and without its dependence.

Resampled blocks hold nothing that the stretch does not: of alarms that come less than once in as
many records as it has, they tell little, and the less so the fewer panes an alarm takes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from nap_stream.clock import Progress
from nap_stream.core.detection import WINDOW_STEP, DetectionPlan, window_firing_limit
from nap_stream.core.sequential import (
    Bets,
    bets_against,
    bets_for_drift,
    initial_state,
    log_mixture,
    update,
)
from nap_stream.core.tails import BIN_COUNT, tail_counts
from nap_stream.planning.question import with_run_length
from nap_stream.planning.recorded import PaneSeries, Stretch

RESAMPLES = 2_000
_MOST_BLOCKS = 2_000
_STANDS_OUT = 2.0


@dataclass(frozen=True, slots=True)
class Dependence:
    """How the members of a series of P depend on those before them.

    ``lag`` is the first lag from which on no autocorrelation stands out, less 1: 0 for a series
    of independent members. ``block`` is the block length, ``variance`` the mean square and
    ``long_run_variance`` P times the variance of the mean. ``error`` is the relative standard
    error of the latter.
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
    """Resample the shares of J events among records.

    Args:
        records: int64 (P,), of each pane.
        hits: int64 (P, J), how many of them each event holds for.
        block: Panes of a block. Of a series of more than some 2,000 blocks longer ones are
            taken, which costs nothing.
        generator: Where chance comes from.
        resamples: How many.

    Returns:
        float64 (resamples, J).
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


CONFIDENCE = 0.95

Panes = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""A pane of each of R streams: records (R,), flagged (R,), bins (R, BIN_COUNT), all int64."""
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class AlarmCount:
    """How often streams had their first alarm, and the records that were watched for it."""

    alarms: int
    records: int

    @property
    def rate(self) -> float:
        """Alarms a record."""
        return self.alarms / self.records

    @property
    def interval(self) -> tuple[float, float]:
        """The exact Poisson interval of the rate at `CONFIDENCE`; from 0 where none was seen.

        Without an alarm it is one-sided: at most 3.0 divided by the records.
        """
        if not self.alarms:
            return 0.0, -math.log(1 - CONFIDENCE) / self.records
        tail = (1 - CONFIDENCE) / 2
        low = float(chi2.ppf(tail, 2 * self.alarms)) / 2
        high = float(chi2.ppf(1 - tail, 2 * self.alarms + 2)) / 2
        return low / self.records, high / self.records


@dataclass(frozen=True, slots=True, eq=False)
class FirstAlarms:
    """The records at which streams had their first alarm, float64 (A, R), infinity for none.

    A goes over the run lengths that were asked for, R over the streams. ``watched`` int64 (R,)
    are all records of a stream.
    """

    at: NDArray[np.float64]
    watched: NDArray[np.int64]

    def counts(self) -> tuple[AlarmCount, ...]:
        """Count the alarms at each run length."""
        seen = np.isfinite(self.at)
        records = np.minimum(self.at, self.watched).sum(axis=1)
        return tuple(
            AlarmCount(int(alarms), int(total))
            for alarms, total in zip(seen.sum(axis=1), records, strict=True)
        )


def first_of_any(alarms: list[FirstAlarms]) -> FirstAlarms:
    """The first alarm of any of several detectors that saw the same streams."""
    return FirstAlarms(np.min([each.at for each in alarms], axis=0), alarms[0].watched)


@dataclass(frozen=True, slots=True, eq=False)
class StreamAlarms:
    """First alarms of the detectors of the stream; ``scores`` is null where no tail is tested."""

    window: FirstAlarms
    flags: FirstAlarms
    scores: FirstAlarms | None

    @property
    def any(self) -> FirstAlarms:
        """Of any of them."""
        all_of_them = [self.window, self.flags, *([self.scores] if self.scores else [])]
        return first_of_any(all_of_them)


def stream_alarms(plans: list[DetectionPlan], panes: Iterator[Panes], tick: Tick) -> StreamAlarms:
    """Run the stream's detectors over R streams.

    Args:
        plans: The same detectors at A run lengths.
        panes: Of the streams, one after the other.
        tick: Called after each.
    """
    plan = plans[0]
    thresholds = np.array([each.log_threshold for each in plans])
    events = tuple(event for event, _ in plan.tail_rates)
    flags = _Sequential(bets_for_drift(np.array([plan.flag_rate])), thresholds)
    tails = None
    if events:
        tails = _Sequential(bets_for_drift(np.array([r for _, r in plan.tail_rates])), thresholds)
    all_records, all_flagged = [], []
    for records, flagged, bins in panes:
        flags.push(records, flagged[:, np.newaxis])
        if tails is not None:
            tails.push(records, tail_counts(bins, events))
        all_records.append(records)
        all_flagged.append(flagged)
        tick()
    window = window_alarms(plans, np.array(all_records).T, np.array(all_flagged).T)
    return StreamAlarms(window, flags.result(), tails.result() if tails else None)


def key_alarms(plans: list[DetectionPlan], panes: Iterator[Panes], tick: Tick) -> FirstAlarms:
    """Run the monitor of a single key over R streams; see `stream_alarms`."""
    thresholds = np.array([each.log_threshold for each in plans])
    flags = _Sequential(bets_against(np.array([plans[0].flag_rate])), thresholds)
    for records, flagged, _ in panes:
        flags.push(records, flagged[:, np.newaxis])
        tick()
    return flags.result()


def window_alarms(
    plans: list[DetectionPlan], records: NDArray[np.int64], flagged: NDArray[np.int64]
) -> FirstAlarms:
    """Roll the window over R streams of S panes.

    Args:
        plans: See `stream_alarms`.
        records: int64 (R, S), records of each pane, at least 1.
        flagged: int64 (R, S), how many of them are flagged.
    """
    size = plans[0].window_records
    sizes = _grid(size, int(size + records.max()))
    limits = np.array([[window_firing_limit(plan, n) for n in sizes] for plan in plans])
    at = np.full((len(plans), len(records)), np.inf)
    for stream, (n, x) in enumerate(zip(records, flagged, strict=True)):
        ends, hits = np.cumsum(n), np.append(0, np.cumsum(x))
        begins = np.append(0, ends)
        full = np.flatnonzero(ends >= size)
        # The newest panes that together hold so many: the last place that leaves enough.
        first = np.searchsorted(begins, ends[full] - size, side="right") - 1
        held = ends[full] - begins[first]
        limit = limits[:, np.searchsorted(sizes, held)]
        fires = hits[full + 1] - hits[first] >= limit
        for number in np.flatnonzero(fires.any(axis=1)):
            at[number, stream] = ends[full[fires[number].argmax()]]
    return FirstAlarms(at, records.sum(axis=1))


class _Sequential:
    """One e-detector on R streams, which are the same at every threshold until its alarm."""

    def __init__(self, bets: Bets, log_thresholds: NDArray[np.float64]) -> None:
        self._bets, self._thresholds = bets, log_thresholds
        self._state = initial_state(bets, (1,))
        self._watched = np.zeros(1, dtype=np.int64)
        self._at = np.full((len(log_thresholds), 1), np.inf)

    def push(self, records: NDArray[np.int64], hits: NDArray[np.int64]) -> None:
        """Take a pane of each stream: records (R,), hits (R, J)."""
        self._state = update(self._state, self._bets, records, hits, np.zeros_like(records))
        self._watched = self._watched + records
        fires = log_mixture(self._state) >= self._thresholds[:, np.newaxis]
        self._at = np.where(fires, np.minimum(self._at, self._watched), self._at)

    def result(self) -> FirstAlarms:
        return FirstAlarms(self._at, self._watched)


def _grid(size: int, largest: int) -> list[int]:
    """The sizes at whose ends the window's limit changes, up to one that holds the largest."""
    sizes = [size]
    while sizes[-1] < largest:
        sizes.append(math.ceil(sizes[-1] * WINDOW_STEP))
    return sizes


PANES = 2_000
SHORT_RUN_LENGTHS = (1e3, 1e4, 1e5)
ANY = "any"
KEYS = "keys"


@dataclass(frozen=True, slots=True)
class RealRate:
    """How often a detector's first alarm came, set to a run length of ``run_length`` records.

    ``detector`` is the name of one, `KEYS` for those of single keys, or `ANY` of the stream's.
    ``promised`` is the highest rate, in alarms a record, that was promised. ``resampled`` is of
    blocks of the stretch, ``independent`` of records with the same p-values in any order.
    """

    detector: str
    run_length: float
    promised: float
    resampled: AlarmCount
    independent: AlarmCount

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """The resampled rate over the independent one, and its 95 % interval.

        Null where either saw no alarm. The interval is that of the logarithm of a ratio of two
        Poisson rates.
        """
        seen, other = self.resampled.alarms, self.independent.alarms
        if not (seen and other):
            return None
        ratio = self.resampled.rate / self.independent.rate
        factor = float(np.exp(1.96 * np.sqrt(1 / seen + 1 / other)))
        return ratio, ratio / factor, ratio * factor


def real_rates(
    stretch: Stretch,
    plan: DetectionPlan,
    *,
    block: int,
    streams: int,
    seed: int,
    advance: Progress,
    panes: int = PANES,
) -> tuple[RealRate, ...]:
    """Estimate the rates by running the detectors over resampled streams.

    Args:
        stretch: What was recorded.
        plan: The detectors.
        block: Panes of a block.
        streams: To put together.
        seed: Of the resampling.
        advance: Told of the progress.
        panes: Of each stream.

    Returns:
        Ordered by run length: `SHORT_RUN_LENGTHS` and that of the plan.
    """
    generator = np.random.default_rng(seed)
    run_lengths = sorted({*SHORT_RUN_LENGTHS, plan.run_length})
    plans = [with_run_length(plan, run_length) for run_length in run_lengths]
    counter = _Counter(panes * (4 if stretch.keys else 2), advance)
    series = stretch.panes
    places = block_places(len(series), block, (streams, panes), generator)
    shares = cell_shares(series)
    found = stream_alarms(plans, _taken(series, places), counter.tick)
    shuffled = _independent(series.records, places, shares, generator)
    reference = stream_alarms(plans, shuffled, counter.tick)
    pairs = [
        (ANY, found.any, reference.any),
        ("ood-window", found.window, reference.window),
        ("ood-sequential", found.flags, reference.flags),
    ]
    if found.scores is not None and reference.scores is not None:
        pairs.append(("score-shift", found.scores, reference.scores))
    if stretch.keys:
        places = _key_places(stretch, block, (streams, panes), generator)
        keyed = key_alarms(plans, _taken(stretch.by_key, places), counter.tick)
        shuffled = _independent(stretch.by_key.records, places, shares, generator)
        pairs.append((KEYS, keyed, key_alarms(plans, shuffled, counter.tick)))
    return tuple(
        RealRate(name, each.run_length, _promised(name, each), resampled, independent)
        for name, seen, other in pairs
        for each, resampled, independent in zip(plans, seen.counts(), other.counts(), strict=True)
    )


def _promised(name: str, plan: DetectionPlan) -> float:
    return 1 / (plan.run_length if name == ANY else plan.detector_run_length)


def _taken(series: PaneSeries, places: NDArray[np.int64]) -> Iterator[Panes]:
    for column in places.T:
        yield series.records[column], series.flagged[column], series.bins[column]


def _independent(
    pane_records: NDArray[np.int64],
    places: NDArray[np.int64],
    shares: NDArray[np.float64],
    generator: np.random.Generator,
) -> Iterator[Panes]:
    """Panes of the same sizes, of records drawn one by one from all of the stretch."""
    for column in places.T:
        records = pane_records[column]
        cells = generator.multinomial(records, shares).reshape(-1, 2, BIN_COUNT)
        yield records, cells[:, 1].sum(axis=1), cells.sum(axis=1)


def cell_shares(series: PaneSeries) -> NDArray[np.float64]:
    """Shares of records by flag and bin, float64 (2 * BIN_COUNT,), the unflagged bins first.

    Those with the lowest p-values are flagged, as many as there are flags: exact but for the one
    bin that alpha lies in. Where flags contradict p-values, the number of either stands.
    """
    bins = series.bins.sum(axis=0)
    flagged = np.diff(np.minimum(np.cumsum(bins), series.flagged.sum()), prepend=0)
    cells = np.concatenate((bins - flagged, flagged))
    shares: NDArray[np.float64] = cells / cells.sum()
    return shares


def _key_places(
    stretch: Stretch, block: int, shape: tuple[int, int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Blocks of panes of single keys, each key drawn in proportion to its records.

    Of a new key for each block: a single key's own panes are too few to stand for its rate.
    """
    records, _ = stretch.key_counts()
    streams, panes = shape
    blocks = -(-panes // block)
    drawn = generator.choice(len(records), size=(streams, blocks), p=records / records.sum())
    starts, lengths = stretch.key_start[drawn], np.diff(stretch.key_start)[drawn]
    first = generator.integers(lengths)
    within = (first[..., np.newaxis] + np.arange(block)) % lengths[..., np.newaxis]
    return (starts[..., np.newaxis] + within).reshape(streams, -1)[:, :panes]


@dataclass(slots=True)
class _Counter:
    total: int
    advance: Progress
    done: int = 0

    def tick(self) -> None:
        self.done += 1
        if self.done % 20 == 0 or self.done == self.total:
            self.advance(self.done, self.total)
