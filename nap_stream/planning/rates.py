"""The real false-alarm rates of the detectors on a recorded series, and without its dependence.

The detectors run on many streams of panes at once. Resampled blocks hold nothing that the series
does not. So they tell little of alarms that are rarer than one in as many records as it has, and
the less the fewer panes an alarm takes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from nap_stream.clock import Progress
from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import (
    DetectionPlan,
    window_firing_limit,
    window_size,
    window_step,
)
from nap_stream.core.sequential import (
    Bets,
    bets_against,
    bets_for_drift,
    initial_state,
    log_mixture,
    update,
)
from nap_stream.core.tails import BIN_COUNT, tail_counts
from nap_stream.planning.recorded import PaneSeries, RecordedSeries
from nap_stream.planning.request import with_run_length
from nap_stream.planning.resampling import block_places

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
        """The first alarm of any of them."""
        return first_of_any([self.window, self.flags, *([self.scores] if self.scores else [])])


def stream_alarms(plans: list[DetectionPlan], panes: Iterator[Panes], tick: Tick) -> StreamAlarms:
    """Run the stream's detectors over R streams, pane by pane, and call ``tick`` after each.

    ``plans`` are the same detectors at A run lengths.
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

    ``records`` of each pane, at least 1, and how many are ``flagged`` are int64 (R, S); ``plans``
    are those of `stream_alarms`.
    """
    size = plans[0].window_records
    last_step = window_step(plans[0], int(size + records.max()))
    sizes = [window_size(plans[0], step) for step in range(last_step + 1)]
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


PANES = 2_000
SHORT_RUN_LENGTHS = (1e3, 1e4, 1e5)
ANY = "any"
KEYS = "keys"


@dataclass(frozen=True, slots=True)
class RealRate:
    """How often a detector's first alarm came, set to a run length of ``run_length`` records.

    ``detector`` is a detector's name, `KEYS` for the monitors of single keys, or `ANY` for any
    detector of the stream. ``promised`` is the highest rate, in alarms a record, that was promised.
    ``resampled`` counts alarms on blocks of the stretch, ``independent`` those on records with the
    same p-values in any order.
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
    recorded: RecordedSeries,
    plan: DetectionPlan,
    *,
    block: int,
    streams: int,
    seed: int,
    advance: Progress,
    panes: int = PANES,
) -> tuple[RealRate, ...]:
    """Estimate the rates by running the detectors over resampled streams.

    The ``streams`` have ``panes`` panes each, put together from blocks of ``block`` panes. The
    rates of a detector are in order of run length: `SHORT_RUN_LENGTHS` and that of the plan.
    """
    generator = np.random.default_rng(seed)
    run_lengths = sorted({*SHORT_RUN_LENGTHS, plan.run_length})
    plans = [with_run_length(plan, run_length) for run_length in run_lengths]
    counter = _Counter(panes * (4 if recorded.keys else 2), advance)
    series = recorded.panes
    places = block_places(len(series), block, (streams, panes), generator)
    shares = cell_shares(series)
    found = stream_alarms(plans, _taken(series, places), counter.tick)
    shuffled = _independent(series.records, places, shares, generator)
    reference = stream_alarms(plans, shuffled, counter.tick)
    pairs = [
        (ANY, found.any, reference.any),
        (Detector.OOD_WINDOW.value, found.window, reference.window),
        (Detector.OOD_SEQUENTIAL.value, found.flags, reference.flags),
    ]
    if found.scores is not None and reference.scores is not None:
        pairs.append((Detector.SCORE_SHIFT.value, found.scores, reference.scores))
    if recorded.keys:
        places = _key_places(recorded, block, (streams, panes), generator)
        keyed = key_alarms(plans, _taken(recorded.by_key, places), counter.tick)
        shuffled = _independent(recorded.by_key.records, places, shares, generator)
        pairs.append((KEYS, keyed, key_alarms(plans, shuffled, counter.tick)))
    return tuple(
        RealRate(
            name,
            each.run_length,
            1 / (each.run_length if name == ANY else each.detector_run_length),
            resampled,
            independent,
        )
        for name, seen, other in pairs
        for each, resampled, independent in zip(plans, seen.counts(), other.counts(), strict=True)
    )


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
    recorded: RecordedSeries, block: int, shape: tuple[int, int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Blocks of panes of single keys, each key drawn in proportion to its records.

    Of a new key for each block: a single key's own panes are too few to stand for its rate.
    """
    records, _ = recorded.key_counts()
    streams, panes = shape
    blocks = -(-panes // block)
    drawn = generator.choice(len(records), size=(streams, blocks), p=records / records.sum())
    starts, lengths = recorded.key_start[drawn], np.diff(recorded.key_start)[drawn]
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
