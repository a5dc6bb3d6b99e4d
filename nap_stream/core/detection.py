"""What the detectors are set to, and how soon they then find a drift.

One promise about false alarms is shared out: while the stream is in-distribution, the probability
of any false alarm within T records is at most T / A, for every T, with A the run length that is
asked for; and that holds for a share of ``confidence`` of all calibrations that could have been
drawn.

Each of D detectors gets an equal share: a run length of D A. The probabilities of a false alarm
within T records are at most T / (D A) each (see `nap_stream.core.bounds` and
`nap_stream.core.sequential`), so that of any of them is at most T / A. Monitors of single keys
share one such D A, however many keys there are: a key with t_i records of its own raises a false
alarm with a probability of at most t_i / (D A), and the t_i sum up to T.

The confidence is shared in the same way (Bonferroni): half of what is left of 1 goes to the rate of
flags, which the rolling window, the e-detector and the keys have in common; the other half to the
tails of the p-values, equally; each share to the groups of calibration images (one, or one for each
class) equally. With every group's rate bounded, so is that of any mix of them.

Delays are simulated, from a typical quiet state: the rolling window is full of records from before
the drift, an e-detector has seen `WARM_UP_RECORDS` of them. Records are independent, with one rate
before the drift and another after it. A delay counts from the first record after the drift to the
end of the pane at which the detector fires.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.bounds import highest_flag_limit, scan_limit, upper_flag_rate
from nap_stream.core.sequential import (
    STATE_ARRAYS,
    Bets,
    SequentialState,
    bets_for_drift,
    initial_state,
    log_mixture,
    update,
)
from nap_stream.core.tails import EDGES, FlagRateLaw, TailEvent, tail_counts

WINDOW_STEP = 1.05
"""A window holds whole panes: its limit is that of the next larger size on this grid."""
_USUAL_SHARE = 0.45
"""Of the window's budget of false alarms, for each of the first two sizes of the grid."""


@dataclass(frozen=True, slots=True)
class DetectionPlan:
    """The settings of all detectors.

    ``run_length`` is A, ``detector_run_length`` D A, both in records. ``flag_rate`` is the highest
    in-distribution rate of flags, p_U, at its share of the confidence; ``tail_rates`` are those of
    the tail events. ``resolve_laws`` and ``resolve_probability`` are for
    `nap_stream.core.bounds.highest_flag_limit`. ``calibration_fingerprint`` names where all of it
    comes from.
    """

    run_length: float
    detector_run_length: float
    confidence: float
    flag_rate: float
    tail_rates: tuple[tuple[TailEvent, float], ...]
    window_records: int
    resolve_laws: tuple[FlagRateLaw, ...]
    resolve_probability: float
    calibration_fingerprint: str = ""

    @property
    def log_threshold(self) -> float:
        """The logarithm of the threshold of every e-detector: its run length."""
        return math.log(self.detector_run_length)


def plan_detection(
    *,
    run_length: float,
    confidence: float,
    window_records: int,
    resolve_probability: float,
    flag_laws: Sequence[FlagRateLaw],
    tail_laws: Sequence[tuple[TailEvent, Sequence[FlagRateLaw]]],
    groups: int,
    with_keys: bool,
    calibration_fingerprint: str = "",
) -> DetectionPlan:
    """Share the promise out among the detectors.

    ``flag_laws`` are those of the flag rates, over the groups of calibration images, ``tail_laws``
    the tail events that can be tested, with the laws of their rates. ``groups`` is how many groups
    there are, equal laws counted as often as they are there. ``with_keys`` says whether keys have
    monitors of their own. The rest is as in `DetectionPlan`.
    """
    left = (1 - confidence) / 2
    detectors = 2 + bool(tail_laws) + with_keys
    return DetectionPlan(
        run_length=run_length,
        detector_run_length=run_length * detectors,
        confidence=confidence,
        flag_rate=_highest_rate(flag_laws, 1 - left / groups),
        tail_rates=tuple(
            (event, _highest_rate(laws, 1 - left / (groups * len(tail_laws))))
            for event, laws in tail_laws
        ),
        window_records=window_records,
        resolve_laws=tuple(flag_laws),
        resolve_probability=resolve_probability,
        calibration_fingerprint=calibration_fingerprint,
    )


def _highest_rate(laws: Sequence[FlagRateLaw], confidence: float) -> float:
    return max(upper_flag_rate(law.flag_rank, law.size, confidence) for law in laws)


def window_firing_limit(plan: DetectionPlan, records: int) -> int:
    """Give the flags from which on a full window of so many records fires.

    The first of `step_limits` alone, in time and memory that hardly grow with records.
    """
    return _firing_limit(plan, window_step(plan, records))


def window_bound(plan: DetectionPlan) -> float:
    """Give the OOD fraction from which on a full window of the plan's own size fires."""
    return window_firing_limit(plan, plan.window_records) / plan.window_records


def window_step(plan: DetectionPlan, records: int) -> int:
    """Give the first step of the grid, from 0, whose size is at least ``records``."""
    step = 0
    while window_size(plan, step) < records:
        step += 1
    return step


def step_limits(plan: DetectionPlan, step: int) -> tuple[int, int]:
    """Give the flags from which on a full window fires, and below which it no longer does.

    Let n' be the next size on the grid from n on. The last n records lie within the last n'. So a
    window of n fires only if the last n' records hold at least as many flags. The sizes of the
    grid share the window's run length: the first two, which are the usual ones, have
    `_USUAL_SHARE` of the false alarms each, and each further one half of what is left. A window
    resolves by the limit of the size before.

    ``step`` is from `window_step`; the second limit is at most the first.
    """
    smaller = window_size(plan, max(0, step - 1))
    firing = _firing_limit(plan, step)
    resolving, _ = highest_flag_limit(smaller, plan.resolve_laws, plan.resolve_probability)
    return firing, min(firing, resolving)


def _firing_limit(plan: DetectionPlan, step: int) -> int:
    share = _USUAL_SHARE if step <= 1 else (1 - 2 * _USUAL_SHARE) / 2 ** (step - 1)
    run_length = plan.detector_run_length / share
    return scan_limit(window_size(plan, step), plan.flag_rate, run_length)


def window_size(plan: DetectionPlan, step: int) -> int:
    """Give the records at a step of the grid of window sizes; step 0 is the configured size."""
    return math.ceil(plan.window_records * WINDOW_STEP**step)


_RUNS = 200
_LEAST_HORIZON = 50_000
_PANES_A_WINDOW = 100
_HORIZON_IN_WINDOWS = 20
_CHUNK_PANES = 1_000
WARM_UP_RECORDS = 10_000
_WARM_UP_PANES = 200
_PANES_A_DELAY = 250
_HORIZON_IN_DELAYS = 5
_LONGEST_HORIZON = 10_000_000

Hits = NDArray[np.int64]
Draw = Callable[[int, int], Hits]
"""From the number R of streams and the records of a pane to hits of J events, int64 (R, J)."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Records from a drift to the alarm, over ``runs`` simulated streams.

    ``horizon`` records after the drift were simulated; ``detected`` streams had their alarm
    within them. ``median`` is null where less than half had. ``mean`` and its standard error are
    null unless all had. ``blind`` says that the detector is not made to see the drift: what it
    looks at stays below what the calibration allows for, or hardly above it, or the window is too
    small to fire at all. Nothing was simulated then.
    """

    runs: int
    horizon: int
    detected: int
    median: float | None
    mean: float | None
    standard_error: float | None
    blind: bool = False

    @property
    def typical(self) -> float | None:
        """The mean, or else the median; None where neither is known."""
        return self.mean if self.mean is not None else self.median


_BLIND = Delay(0, 0, 0, None, None, None, blind=True)


def records_to_alarm(
    plan: DetectionPlan,
    alpha: float,
    flag_rate: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = _RUNS,
) -> float | None:
    """Give the typical number of records until the monitor of the stream fires, None for never.

    The flag rate is ``alpha`` until the drift, ``flag_rate`` from then on. It is the delay of the
    detector that is typically the first: that of whichever is first each time is no longer in the
    mean. Nothing but the flag rate is known of the drift: for the tails of p-values, flagged ones
    are spread evenly up to alpha. See `window_delay` for the rest.
    """
    if flag_rate <= alpha:
        return None
    simulated = [window_delay, flags_delay, *([scores_delay] if plan.tail_rates else [])]
    delays = (
        simulate(plan, alpha, flag_rate, pane_records=pane_records, generator=generator, runs=runs)
        for simulate in simulated
    )
    return min((delay.typical for delay in delays if delay.typical is not None), default=None)


def window_delay(
    plan: DetectionPlan,
    before: float,
    after: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = _RUNS,
) -> Delay:
    """Simulate the delay of the rolling window of ``plan.window_records``, in ``runs`` streams.

    The flag rate is ``before`` until the drift, ``after`` from then on. A pane has ``pane_records``
    records, at least 1. Where a window is of more than some 100 panes, larger ones are simulated.
    """
    size = max(pane_records, plan.window_records // _PANES_A_WINDOW)
    panes = math.ceil(plan.window_records / size)
    horizon = max(_LEAST_HORIZON, _HORIZON_IN_WINDOWS * plan.window_records)
    limit = window_firing_limit(plan, panes * size)
    if after <= plan.flag_rate or limit > panes * size:
        return _BLIND
    alarms = np.full(runs, -1, dtype=np.int64)
    waiting = np.arange(runs)
    recent = generator.binomial(size, before, (runs, panes))
    done, last = 0, math.ceil(horizon / size)
    while done < last and len(waiting):
        new = generator.binomial(size, after, (len(waiting), min(_CHUNK_PANES, last - done)))
        counts = np.concatenate((recent, new), axis=1)
        total = np.cumsum(counts, axis=1)
        reached = total[:, panes:] - total[:, :-panes] >= limit
        fired = reached.any(axis=1)
        alarms[waiting[fired]] = (done + 1 + reached[fired].argmax(axis=1)) * size
        waiting, recent = waiting[~fired], counts[~fired, -panes:]
        done += new.shape[1]
    return _delay_of(alarms, last * size)


def flags_delay(
    plan: DetectionPlan,
    before: float,
    after: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = _RUNS,
) -> Delay:
    """Simulate the delay of the e-detector of flags; see `window_delay`."""

    def draw_at(rate: float) -> Draw:
        return lambda streams, size: generator.binomial(size, rate, (streams, 1))

    return _sequential_delay(
        bets_for_drift(np.array([plan.flag_rate])),
        plan.log_threshold,
        before=draw_at(before),
        after=draw_at(after),
        rates_after=np.array([after]),
        pane_records=pane_records,
        runs=runs,
    )


def scores_delay(
    plan: DetectionPlan,
    before: float,
    after: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = _RUNS,
) -> Delay:
    """Simulate the delay of the e-detector of tails of p-values; see `flags_delay`.

    The p-values are those of `p_value_shares`, with ``before`` as alpha. Of a shift that changes
    other p-values than flagged ones it knows more, and the delay is shorter.

    Raises:
        ValueError: The plan tests no tail.
    """
    events = tuple(event for event, _ in plan.tail_rates)
    shares = p_value_shares(before, before), p_value_shares(before, after)

    def draw_at(share: NDArray[np.float64]) -> Draw:
        return lambda streams, size: tail_counts(
            generator.multinomial(size, share, streams), events
        )

    bins = np.rint(shares[1] * _LONGEST_HORIZON).astype(np.int64)
    return _sequential_delay(
        bets_for_drift(np.array([rate for _, rate in plan.tail_rates])),
        plan.log_threshold,
        before=draw_at(shares[0]),
        after=draw_at(shares[1]),
        rates_after=tail_counts(bins, events) / _LONGEST_HORIZON,
        pane_records=pane_records,
        runs=runs,
    )


def unscored_delay(
    bound: float,
    share: float,
    run_length: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = _RUNS,
) -> Delay:
    """Simulate the delay, in images, of the e-detector of images without scores.

    All images have scores until ``share`` of them, in (0, 1], has none. ``bound`` is the highest
    share that is in order, ``run_length`` the detector's own, in images. See `flags_delay`.
    """

    def draw_at(rate: float) -> Draw:
        return lambda streams, size: generator.binomial(size, rate, (streams, 1))

    return _sequential_delay(
        bets_for_drift(np.array([bound])),
        math.log(run_length),
        before=draw_at(0.0),
        after=draw_at(share),
        rates_after=np.array([share]),
        pane_records=pane_records,
        runs=runs,
    )


def p_value_shares(alpha: float, flag_rate: float) -> NDArray[np.float64]:
    """Give the shares of the bins of p-values, float64 (BIN_COUNT,), at a flag rate.

    Uniform p-values, of which just so many are replaced by flagged ones, uniform up to alpha,
    that the flag rate is reached.

    Raises:
        ValueError: Not 0 < alpha <= flag_rate <= 1, alpha below 1.
    """
    if not 0 < alpha <= flag_rate <= 1 or alpha == 1:
        raise ValueError(f"expected 0 < alpha <= flag_rate <= 1, got {alpha = }, {flag_rate = }")
    replaced = (flag_rate - alpha) / (1 - alpha)
    edges = np.array([0.0, *EDGES, 1.0])
    return np.diff(replaced * np.minimum(edges / alpha, 1) + (1 - replaced) * edges)


def _sequential_delay(
    bets: Bets,
    log_threshold: float,
    *,
    before: Draw,
    after: Draw,
    rates_after: NDArray[np.float64],
    pane_records: int,
    runs: int,
) -> Delay:
    rates = rates_after[:, np.newaxis]
    growth = float((rates * bets.hit + (1 - rates) * bets.miss).max())
    if growth <= 0 or (rates_after <= bets.rates).all():
        return _BLIND
    expected = log_threshold / growth
    size = max(pane_records, math.ceil(expected / _PANES_A_DELAY))
    horizon = min(max(_HORIZON_IN_DELAYS * expected, _LEAST_HORIZON), _LONGEST_HORIZON)
    last = min(math.ceil(horizon / size), 2 * _HORIZON_IN_DELAYS * _PANES_A_DELAY)
    state = initial_state(bets, (runs,))
    warm_size = max(pane_records, WARM_UP_RECORDS // _WARM_UP_PANES)
    for _ in range(math.ceil(WARM_UP_RECORDS / warm_size)):
        sizes = np.full(runs, warm_size)
        state = update(state, bets, sizes, before(runs, warm_size), np.zeros(runs, np.int64))
    alarms = np.full(runs, -1, dtype=np.int64)
    waiting = np.arange(runs)
    for pane in range(1, last + 1):
        sizes = np.full(len(waiting), size)
        state = update(state, bets, sizes, after(len(waiting), size), np.zeros_like(sizes))
        fired = log_mixture(state) >= log_threshold
        if fired.any():
            alarms[waiting[fired]] = pane * size
            waiting = waiting[~fired]
            kept = (getattr(state, name)[~fired] for name in STATE_ARRAYS)
            state = SequentialState(*kept)
        if not len(waiting):
            break
    return _delay_of(alarms, last * size)


def _delay_of(alarms: NDArray[np.int64], horizon: int) -> Delay:
    """Sum streams up: int64 (R,), records until each one's alarm, -1 where it had none."""
    runs, seen = len(alarms), alarms[alarms >= 0]
    ordered = np.sort(np.where(alarms >= 0, alarms.astype(np.float64), np.inf))
    median = float(ordered[(runs - 1) // 2] / 2 + ordered[runs // 2] / 2)
    mean = float(seen.mean()) if len(seen) == runs else None
    error = float(seen.std(ddof=1)) / math.sqrt(runs) if mean is not None and runs > 1 else None
    return Delay(runs, horizon, len(seen), median if math.isfinite(median) else None, mean, error)
