"""What recorded in-distribution records say: rates, dependence, real false alarms; and warnings.

A warning says where they contradict the calibration or the promise, and what to do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from nap_stream.clock import Progress
from nap_stream.core.bounds import flag_rate_interval
from nap_stream.core.hidden_keys import told_apart
from nap_stream.core.tails import TailEvent, tail_counts
from nap_stream.planning.rates import ANY, KEYS, PANES, RealRate, real_rates
from nap_stream.planning.recorded import Recorded, RecordedSeries
from nap_stream.planning.request import PlanRequest, count, factor
from nap_stream.planning.resampling import Dependence, dependence_of, resampled_shares
from nap_stream.text import percent

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

    The interval of ``flag_rate`` is at `CONFIDENCE`; all those of ``tails`` hold together at it.
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
    def series(self) -> RecordedSeries:
        """What was recorded."""
        return self.recorded.series

    @property
    def block_records(self) -> float:
        """Records of a block, on average."""
        return self.block_panes * self.series.records / len(self.series.panes)

    @property
    def pane_distance_ms(self) -> float:
        """From one pane that holds records to the next, the median, in milliseconds."""
        return float(np.median(np.diff(self.series.panes.start_ms)))

    @property
    def is_too_even(self) -> bool:
        """Whether flags vary much less than independent ones do, and not by chance.

        That is so where the same images come again and again. An estimate with the relative
        standard error e varies about as chi-squared with 2 / e^2 degrees of freedom.
        """
        if self.design_effect >= LOW_DESIGN_EFFECT:
            return False
        if not self.effect_error:
            return True
        freedom = 2 / self.effect_error**2
        return float(chi2.cdf(self.design_effect * freedom, freedom)) < _EVEN_LEVEL


def find(
    request: PlanRequest,
    recorded: Recorded,
    *,
    block_records: int | None,
    streams: int,
    seed: int,
    advance: Progress,
) -> Findings:
    """Analyse a stretch.

    About ``block_records`` records are resampled together; None lets the autocorrelation choose.
    ``streams`` are put together from the stretch to estimate the real rates of false alarms; 0
    leaves these out.
    """
    series, plan = recorded.series, request.plan
    panes, rate = series.panes, series.flagged / series.records
    mean_records = series.records / len(panes)
    dependence = dependence_of(_surplus(series))
    block = dependence.block
    if block_records is not None:
        block = min(len(panes), math.ceil(block_records / mean_records))
    events = tuple(event for event, _ in plan.tail_rates)
    hits = np.column_stack((panes.flagged, tail_counts(panes.bins, events)))
    shares = resampled_shares(panes.records, hits, block, np.random.default_rng([seed, 0]))
    allowed = [plan.flag_rate, *(highest for _, highest in plan.tail_rates)]
    values = hits.sum(axis=0) / series.records
    levels = [CONFIDENCE, *([1 - (1 - CONFIDENCE) / max(1, len(events))] * len(events))]
    found = [
        _share(float(value), shares[:, column], level, limit)
        for column, (value, level, limit) in enumerate(zip(values, levels, allowed, strict=True))
    ]
    effect = _design_effect(dependence, mean_records, rate)
    high_keys = _high_keys(series, plan.flag_rate, max(1.0, effect))
    rates: tuple[RealRate, ...] = ()
    if streams:
        rates = real_rates(series, plan, block=block, streams=streams, seed=seed, advance=advance)
    return Findings(
        recorded=recorded,
        flag_rate=found[0],
        lowest_rate=min(
            flag_rate_interval(law.flag_rank, law.size, request.drift.confidence)[0]
            for law in request.facts.flag_rate_laws
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


def _surplus(series: RecordedSeries) -> NDArray[np.float64]:
    """Flags of each pane beyond its due, float64 (P,): exactly 0 where all have the same share."""
    due = series.flagged * series.panes.records
    return (series.panes.flagged * series.records - due) / series.records


def _share(value: float, resampled: NDArray[np.float64], level: float, allowed: float) -> Share:
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Share(value, float(low), float(high), allowed)


def _design_effect(dependence: Dependence, mean_records: float, rate: float) -> float:
    binomial = mean_records * rate * (1 - rate)
    return dependence.long_run_variance / binomial if binomial > 0 else 1.0


def _high_keys(series: RecordedSeries, highest: float, effect: float) -> tuple[KeyRate, ...]:
    """Keys with more flags than chance explains, the highest rate first.

    By the binomial test of as many records as theirs are worth, at a level shared by all keys.
    """
    records, flagged = series.key_counts()
    if not len(records):
        return ()
    worth, hits = np.floor(records / effect), np.floor(flagged / effect)
    chance = binom.sf(hits - 1, worth, highest)
    found = np.flatnonzero(chance <= _KEY_LEVEL / len(records))
    rates = [
        KeyRate(series.keys[number], int(records[number]), int(flagged[number]))
        for number in found.tolist()
    ]
    return tuple(sorted(rates, key=lambda each: (-each.flagged / each.records, each.key)))


HIGH_DESIGN_EFFECT = 1.5
_CERTAIN = 3.0
_WHOLE_SECOND_MS = 1_000


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning: ``kind`` for programs, ``text`` for people."""

    kind: str
    text: str


def warnings_of(request: PlanRequest, findings: Findings) -> tuple[Warned, ...]:
    """Give all warnings, the most serious first."""
    return (
        *_of_contradictions(request, findings),
        *_of_evenness(findings),
        *_of_unscored(request, findings),
        *_of_flag_rate(findings),
        *_of_keys(findings),
        *_of_tails(findings),
        *_of_dependence(request, findings),
        *_of_false_alarms(findings),
        *_of_the_window(request, findings),
        *_of_other_calibrations(findings),
    )


def _of_contradictions(request: PlanRequest, findings: Findings) -> Iterator[Warned]:
    recorded = findings.recorded
    if recorded.contradicting:
        yield Warned(
            "flags-contradict-p-values",
            f"{recorded.contradicting:,} scored records are flagged against their p-value and the "
            f"calibration's alpha of {request.facts.alpha:g}, the first at "
            f"{recorded.first_contradicting}: what wrote them did not judge by this calibration. "
            "They count here as they are flagged, as they do in the monitor",
        )


def _of_unscored(request: PlanRequest, findings: Findings) -> Iterator[Warned]:
    watched, recorded = request.drift.unscored, findings.recorded
    if watched is None:
        return
    share = recorded.unscored_share(request.drift)
    if share > watched.bound:
        named = ", ".join(f"{status} {n:,}" for status, n in recorded.failures(request.drift))
        yield Warned(
            "unscored-share-high",
            f"{percent(share)} of the images have no scores ({named}), and drift.unscored.bound is "
            f"{percent(watched.bound)}: the alert unscored-images will fire; mend the cause, or "
            "raise the bound above what is in order here",
        )


def _of_evenness(findings: Findings) -> Iterator[Warned]:
    if findings.is_too_even:
        yield Warned(
            "too-even",
            "flags come more evenly than those of independent images: their number varies "
            f"{factor(findings.design_effect)} times as much, as it does where the same images "
            "are sent again and again. Intervals and rates of false alarms say little then: "
            "record a stretch of images that differ",
        )


def _of_flag_rate(findings: Findings) -> Iterator[Warned]:
    found = findings.flag_rate
    interval = f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"
    if found.is_above:
        yield Warned(
            "flag-rate-high",
            f"images of this stream are flagged at {interval}, the calibration allows "
            f"{percent(found.allowed)}: recalibrate with images of this stream, or expect alarms "
            "without a drift",
        )
    if found.high < findings.lowest_rate:
        yield Warned(
            "flag-rate-low",
            f"images of this stream are flagged at {interval}, those of the calibration at "
            f"{percent(findings.lowest_rate)} or more: false alarms are rarer than asked for and "
            "drifts are seen later; recalibrate with images of this stream",
        )


def _of_keys(findings: Findings) -> Iterator[Warned]:
    if words := told_apart(key.encode() for key in findings.series.keys):
        yield Warned("keys-stored-both-ways", f"{words}. --config with the secret joins them")
    if not findings.high_keys:
        return
    named = ", ".join(
        f"{key.key} {percent(key.flagged / key.records)} of {count(key.records)}"
        for key in findings.high_keys
    )
    more = findings.high_key_count - len(findings.high_keys)
    allowed = percent(findings.flag_rate.allowed)
    yield Warned(
        "key-rate-high",
        f"keys that are flagged more often than the calibration allows ({allowed}): {named}"
        f"{f' and {more:,} more' if more else ''}: look at their images, or calibrate with them",
    )


def _of_tails(findings: Findings) -> Iterator[Warned]:
    high = [(event, found) for event, found in findings.tails if found.is_above]
    if high:
        told = "; ".join(
            f"{event}: {percent(found.value)} of the records, the calibration allows "
            f"{percent(found.allowed)}"
            for event, found in high
        )
        yield Warned(
            "p-values-not-uniform",
            f"p-values of this stream are not spread as those of the calibration ({told}): the "
            "score-shift detector will fire; recalibrate with images of this stream",
        )


def _of_dependence(request: PlanRequest, findings: Findings) -> Iterator[Warned]:
    effect = findings.design_effect
    if effect <= HIGH_DESIGN_EFFECT or effect <= 1 + _CERTAIN * findings.effect_error:
        return
    window = request.plan.window_records
    yield Warned(
        "dependent",
        f"flags depend on each other: their number varies {factor(effect)} times as much as that "
        f"of independent records, so that a window of {count(window)} is worth "
        f"{count(window / effect)}: {_thinning(request, findings)}",
    )


def _thinning(request: PlanRequest, findings: Findings) -> str:
    keys, pane_ms = request.drift.keys, request.drift.pane_ms
    apart_ms = findings.panes_to_forget * max(findings.pane_distance_ms, pane_ms)
    unit = _WHOLE_SECOND_MS if apart_ms > _WHOLE_SECOND_MS else 1
    pane = f"drift.pane_ms: {math.ceil(apart_ms / unit) * unit}"
    thinned = f"drift.keys.one_per_pane: true, {pane}"
    if keys is None:
        return f"name cameras with drift.keys, count one record of each in a pane ({thinned})"
    if not keys.one_per_pane:
        return f"count one record of a key in a pane ({thinned})"
    return f"make panes longer, of which one record of a key counts ({pane})"


def _of_false_alarms(findings: Findings) -> Iterator[Warned]:
    """For the stream and for keys, the run length at which the promise is broken most clearly."""
    for detector, name in ((ANY, "the detectors have"), (KEYS, "a key's monitor has")):
        broken = [
            each
            for each in findings.rates
            if each.detector == detector and each.resampled.interval[0] > each.promised
        ]
        if not broken:
            continue
        worst = max(broken, key=lambda each: each.resampled.interval[0] / each.promised)
        yield Warned(
            "false-alarms-high",
            f"promised one false alarm in {count(1 / worst.promised)} records at most, {name} one "
            f"in {count(1 / worst.resampled.rate)} on this stretch, "
            f"{factor(worst.resampled.rate / worst.promised)} times as many",
        )


def _of_the_window(request: PlanRequest, findings: Findings) -> Iterator[Warned]:
    window = request.plan.window_records
    watched = PANES * findings.series.records / len(findings.series.panes)
    if findings.rates and window > watched:
        yield Warned(
            "window-not-full",
            f"the rolling window of {count(window)} records does not fill within the "
            f"{count(watched)} of a resampled stream: that it raises no false alarm there says "
            "nothing",
        )


def _of_other_calibrations(findings: Findings) -> Iterator[Warned]:
    if others := findings.recorded.other_calibrations:
        yield Warned(
            "other-calibration",
            f"{count(others)} scored records of the stretch were judged by another calibration "
            "and are left out",
        )
