"""How many records after a drift a detector fires: simulated, from a typical quiet state.

Flags are independent, with one rate before the drift and another after it. A delay counts from the
first record after the drift to the end of the pane at which the detector fires. The rolling window
is full of records from before; for e-detectors see `nap_stream.core.delays`.

How many records after a drift an e-detector fires: simulated, as in `nap_stream.core.delays`.

Its state at the drift is that after `WARM_UP_RECORDS` quiet records.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.detection import DetectionPlan, window_firing_limit
from nap_stream.core.sequential import (
    Bets,
    SequentialState,
    bets_for_drift,
    initial_state,
    log_mixture,
    update,
)
from nap_stream.core.tails import EDGES, tail_counts

RUNS = 200
LEAST_HORIZON = 50_000
_PANES_A_WINDOW = 100
_HORIZON_IN_WINDOWS = 20
_CHUNK_PANES = 1_000


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


BLIND = Delay(0, 0, 0, None, None, None, blind=True)


def window_delay(
    plan: DetectionPlan,
    before: float,
    after: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = RUNS,
) -> Delay:
    """Simulate the delay of the rolling window of ``plan.window_records``.

    Args:
        plan: The settings.
        before: The flag rate until the drift.
        after: The flag rate from then on.
        pane_records: Records of a pane, at least 1. Where a window is of more than
            some 100 panes, larger ones are simulated.
        generator: Where chance comes from.
        runs: Streams to simulate.
    """
    size = max(pane_records, plan.window_records // _PANES_A_WINDOW)
    panes = math.ceil(plan.window_records / size)
    horizon = max(LEAST_HORIZON, _HORIZON_IN_WINDOWS * plan.window_records)
    limit = window_firing_limit(plan, panes * size)
    if after <= plan.flag_rate or limit > panes * size:
        return BLIND
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
    return delay_of(alarms, last * size)


def delay_of(alarms: NDArray[np.int64], horizon: int) -> Delay:
    """Sum simulated streams up.

    Args:
        alarms: int64 (R,), records until each stream's alarm, -1 where it had none.
        horizon: Records that were simulated.
    """
    runs, seen = len(alarms), alarms[alarms >= 0]
    ordered = np.sort(np.where(alarms >= 0, alarms.astype(np.float64), np.inf))
    median = float(ordered[(runs - 1) // 2] / 2 + ordered[runs // 2] / 2)
    mean = float(seen.mean()) if len(seen) == runs else None
    error = float(seen.std(ddof=1)) / math.sqrt(runs) if mean is not None and runs > 1 else None
    return Delay(runs, horizon, len(seen), median if math.isfinite(median) else None, mean, error)


WARM_UP_RECORDS = 10_000
_WARM_UP_PANES = 200
_PANES_A_DELAY = 250
_HORIZON_IN_DELAYS = 5
_LONGEST_HORIZON = 10_000_000

Hits = NDArray[np.int64]
Draw = Callable[[int, int], Hits]
"""From the number R of streams and the records of a pane to hits of J events, int64 (R, J)."""


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


def flags_delay(
    plan: DetectionPlan,
    before: float,
    after: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = RUNS,
) -> Delay:
    """Simulate the delay of the e-detector of flags; see `nap_stream.core.delays.window_delay`."""

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
    runs: int = RUNS,
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
        return BLIND
    expected = log_threshold / growth
    size = max(pane_records, math.ceil(expected / _PANES_A_DELAY))
    horizon = min(max(_HORIZON_IN_DELAYS * expected, LEAST_HORIZON), _LONGEST_HORIZON)
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
            state = _taken(state, ~fired)
        if not len(waiting):
            break
    return delay_of(alarms, last * size)


def _taken(state: SequentialState, streams: NDArray[np.bool_]) -> SequentialState:
    return SequentialState(
        state.log_statistic[streams],
        state.log_cusum[streams],
        state.onset_ms[streams],
        state.records[streams],
        state.hits[streams],
    )
