"""What a recorded in-distribution stretch says: its rates, their dependence, real false alarms."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from nap_stream.core.conformal import flag_rate_interval
from nap_stream.core.tail_events import TailEvent, tail_counts
from nap_stream.planning.bootstrap import Dependence, dependence_of, resampled_shares
from nap_stream.planning.progress import Advance
from nap_stream.planning.question import Question
from nap_stream.planning.rates import RealRate, real_rates
from nap_stream.planning.reading import Recorded
from nap_stream.planning.series import Stretch

CONFIDENCE = 0.95
WORST_KEYS = 10
LOW_DESIGN_EFFECT = 0.5
_KEY_LEVEL = 0.01
_EVEN_LEVEL = 0.001


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the records, its bootstrap interval, and the rate that the calibration allows."""

    value: float
    low: float
    high: float
    allowed: float

    @property
    def is_above(self) -> bool:
        """Whether the interval lies above what is allowed."""
        return self.low > self.allowed


@dataclass(frozen=True, slots=True)
class KeyRate:
    """A key whose flag rate is above what the calibration allows."""

    key: str
    records: int
    flagged: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What the stretch says.

    ``flag_rate`` and ``tails`` have intervals at `CONFIDENCE`, those of the tails together.
    ``lowest_rate`` is the lower end of the calibrated flag rate. ``block_panes`` were resampled
    together; ``automatic`` says whether the autocorrelation chose them. ``design_effect`` is the
    variance of the flags in many records over that of independent ones, ``effect_error`` its
    relative standard error. ``panes_to_forget`` is the distance in panes at which records no
    longer depend on each other. ``high_keys`` are the worst `WORST_KEYS` of ``high_key_count``.
    """

    recorded: Recorded
    flag_rate: Share
    lowest_rate: float
    tails: tuple[tuple[TailEvent, Share], ...]
    block_panes: int
    automatic: bool
    design_effect: float
    effect_error: float
    panes_to_forget: int
    high_keys: tuple[KeyRate, ...]
    high_key_count: int
    rates: tuple[RealRate, ...]

    @property
    def stretch(self) -> Stretch:
        """What was recorded."""
        return self.recorded.stretch

    @property
    def block_records(self) -> float:
        """Records of a block, on average."""
        return self.block_panes * self.stretch.records / len(self.stretch.panes)

    @property
    def pane_distance_ms(self) -> float:
        """From one pane that holds records to the next, the median, in milliseconds."""
        return float(np.median(np.diff(self.stretch.panes.start_ms)))

    @property
    def is_too_even(self) -> bool:
        """Whether flags vary much less than independent ones do, and not by chance.

        As they do where the same images come again and again. An estimate with the relative
        standard error e varies about as chi-squared with 2 / e^2 degrees of freedom.
        """
        if self.design_effect >= LOW_DESIGN_EFFECT:
            return False
        if not self.effect_error:
            return True
        freedom = 2 / self.effect_error**2
        return float(chi2.cdf(self.design_effect * freedom, freedom)) < _EVEN_LEVEL


def find(
    question: Question,
    recorded: Recorded,
    *,
    block_records: int | None,
    streams: int,
    seed: int,
    advance: Advance,
) -> Findings:
    """Analyse a stretch.

    Args:
        question: Settings and calibration.
        recorded: The stretch.
        block_records: Records that are resampled together, about; None to let the
            autocorrelation choose.
        streams: To put together of the stretch; 0 to leave the real rates of false alarms out.
        seed: Of the resampling.
        advance: Told of the progress.
    """
    stretch, plan = recorded.stretch, question.plan
    panes, rate = stretch.panes, stretch.flagged / stretch.records
    mean_records = stretch.records / len(panes)
    dependence = dependence_of(_surplus(stretch))
    block = dependence.block
    if block_records is not None:
        block = min(len(panes), math.ceil(block_records / mean_records))
    events = tuple(event for event, _ in plan.tail_rates)
    hits = np.column_stack((panes.flagged, tail_counts(panes.bins, events)))
    shares = resampled_shares(panes.records, hits, block, np.random.default_rng([seed, 0]))
    allowed = [plan.flag_rate, *(highest for _, highest in plan.tail_rates)]
    values = hits.sum(axis=0) / stretch.records
    levels = [CONFIDENCE, *([1 - (1 - CONFIDENCE) / max(1, len(events))] * len(events))]
    found = [
        _share(float(value), shares[:, column], level, limit)
        for column, (value, level, limit) in enumerate(zip(values, levels, allowed, strict=True))
    ]
    effect = _design_effect(dependence, mean_records, rate)
    high_keys = _high_keys(stretch, plan.flag_rate, max(1.0, effect))
    rates: tuple[RealRate, ...] = ()
    if streams:
        options = {"block": block, "streams": streams, "seed": seed}
        rates = real_rates(stretch, plan, **options, advance=advance)
    return Findings(
        recorded=recorded,
        flag_rate=found[0],
        lowest_rate=min(
            flag_rate_interval(law.flag_rank, law.size, question.drift.confidence)[0]
            for law in question.facts.flag_rate_laws
        ),
        tails=tuple(zip(events, found[1:], strict=True)),
        block_panes=block,
        automatic=block_records is None,
        design_effect=effect,
        effect_error=dependence.error,
        panes_to_forget=dependence.lag + 1,
        high_keys=high_keys[:WORST_KEYS],
        high_key_count=len(high_keys),
        rates=rates,
    )


def _surplus(stretch: Stretch) -> NDArray[np.float64]:
    """Flags of each pane beyond its due, float64 (P,): exactly 0 where all have the same share."""
    due = stretch.flagged * stretch.panes.records
    return (stretch.panes.flagged * stretch.records - due) / stretch.records


def _share(value: float, resampled: NDArray[np.float64], level: float, allowed: float) -> Share:
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Share(value, float(low), float(high), allowed)


def _design_effect(dependence: Dependence, mean_records: float, rate: float) -> float:
    binomial = mean_records * rate * (1 - rate)
    return dependence.long_run_variance / binomial if binomial > 0 else 1.0


def _high_keys(stretch: Stretch, highest: float, effect: float) -> tuple[KeyRate, ...]:
    """Keys with more flags than chance explains, the highest rate first.

    By the binomial test of as many records as theirs are worth, at a level shared by all keys.
    """
    records, flagged = stretch.key_counts()
    if not len(records):
        return ()
    worth, hits = np.floor(records / effect), np.floor(flagged / effect)
    chance = binom.sf(hits - 1, worth, highest)
    found = np.flatnonzero(chance <= _KEY_LEVEL / len(records))
    rates = [
        KeyRate(stretch.keys[number], int(records[number]), int(flagged[number]))
        for number in found.tolist()
    ]
    return tuple(sorted(rates, key=lambda each: (-each.flagged / each.records, each.key)))
