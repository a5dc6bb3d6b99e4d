"""How many records after a drift an e-detector fires: simulated, as in `nap_stream.core.delays`.

Its state at the drift is that after `WARM_UP_RECORDS` quiet records.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.delays import BLIND, LEAST_HORIZON, RUNS, Delay, delay_of
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.sequential import (
    Bets,
    SequentialState,
    bets_for_drift,
    initial_state,
    log_mixture,
    update,
)
from nap_stream.core.tail_events import EDGES, tail_counts

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
