"""The real false-alarm rates of the detectors on a recorded stretch, and without its dependence.

Resampled blocks hold nothing that the stretch does not: of alarms that come less than once in as
many records as it has, they tell little, and the less so the fewer panes an alarm takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.detection import DetectionPlan
from nap_stream.core.tail_events import BIN_COUNT
from nap_stream.planning.bootstrap import block_places
from nap_stream.planning.progress import Advance
from nap_stream.planning.question import with_run_length
from nap_stream.planning.run_lengths import AlarmCount, Panes, key_alarms, stream_alarms
from nap_stream.planning.series import PaneSeries, Stretch

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
    advance: Advance,
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
    advance: Advance
    done: int = 0

    def tick(self) -> None:
        self.done += 1
        if self.done % 20 == 0 or self.done == self.total:
            self.advance(self.done, self.total)
