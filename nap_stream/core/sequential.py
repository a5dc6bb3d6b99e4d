"""The mixture Shiryaev-Roberts e-detector of counts: finds small, lasting shifts soon.

Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change
detection", arXiv 2203.03532. Let x_1, x_2, ... be 0 or 1 (a flag, or a p-value in a tail) with
E[x_t | past] <= p0, whatever their dependence. For a bet lambda in (0, 1) the factor

    L_t = 1 + lambda (x_t / p0 - 1)

has E[L_t | past] <= 1, so that M_t = (M_{t-1} + 1) L_t has E[M_t | past] <= M_{t-1} + 1, and
M_t - t is a supermartingale. With the alarm at the first tau with M_tau >= A, optional stopping
gives E[tau] >= E[M_tau] >= A: the average run length is at least A. Also P(tau <= T) <= T / A
for every T, as E[M_min(tau, T)] <= T. A mixture of such M over bets, and over several events
that are each tested, is one too, and so both hold for it.

Records are counted in panes here, whose inner order is not known. For a pane of n records with x
hits

    M = (M + n) (1 + lambda (1 / p0 - 1))^x (1 - lambda)^(n - x),

as if all n had begun before the first: M_t - t stays a supermartingale at the ends of panes, as
long as the number of records in a pane does not depend on what they show.

The bets are a geometric grid. lambda = (p1 - p0) / (1 - p0) grows fastest at a true rate p1, and a
mixture over K bets falls behind the best of them by ln K at most.

Beside each M runs the logarithm of a CUSUM statistic, C = max(C, 0) + ln L. Where it last was at
0 is the maximum likelihood estimate of the change's onset for that bet (Page, "Continuous
inspection schemes", Biometrika 41, 1954).
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BET_COUNT = 8
SMALLEST_BET, LARGEST_BET = 0.01, 0.6
RESOLVE_RATIO = 1e-3
"""An alarm ends when the statistic has fallen to this share of its threshold. While a shift lasts
that is as rare as a fall of ln 1000 of a log-likelihood ratio with an upward drift."""
QUIET_CUSUM = float(np.log(10))
"""An alarm ends earlier where no bet has a larger C than this: where the records speak at most 10
to 1 for a change, whenever it began. M itself does not go back to 0 while the stream is quiet, and
so not below a share of a small threshold: up to one of about 10,000 this is what ends an alarm."""


@dataclass(frozen=True, slots=True, eq=False)
class Bets:
    """Bets that the rates of J events exceed ``rates``, K for each.

    ``rates`` is float64 (..., J), each in (0, 1): the highest in-distribution rate of each event.
    ``hit`` and ``miss`` are float64 (..., J, K): ln L of a record that is one and that is not.
    Leading axes are of detectors that have different rates.
    """

    rates: NDArray[np.float64]
    hit: NDArray[np.float64]
    miss: NDArray[np.float64]


def bets_for_drift(rates: NDArray[np.float64]) -> Bets:
    """Give `bets_against` rates for a whole stream, of which a part drifts as a rule.

    The largest is three times the rate, within 0.2 and `LARGEST_BET`: about the best one against
    four times the rate. A larger bet sees a drift of the whole stream one to five records sooner,
    and a small drift a twentieth of the delay later.
    """
    return bets_against(rates, np.clip(3 * rates, 0.2, LARGEST_BET))


def bets_against(
    rates: NDArray[np.float64],
    largest: NDArray[np.float64] | float = LARGEST_BET,
    *,
    smallest: float = SMALLEST_BET,
    count: int = BET_COUNT,
) -> Bets:
    """Give ``count`` bets against each of the rates, float64 (..., J).

    They go from ``smallest`` up to the largest of each, float64 (..., J).

    Raises:
        ValueError: There is no rate, or one is not in (0, 1).
    """
    if not rates.ndim or not rates.shape[-1] or not ((rates > 0) & (rates < 1)).all():
        raise ValueError(f"expected rates of shape (..., J) in (0, 1), got {rates}")
    bet = np.geomspace(smallest, np.broadcast_to(largest, rates.shape), count, axis=-1)
    return Bets(rates, np.log1p(bet * (1 / rates[..., np.newaxis] - 1)), np.log1p(-bet))


@dataclass(frozen=True, slots=True, eq=False)
class SequentialState:
    """What a detector knows after some panes. All arrays are (..., J, K).

    ``log_statistic`` is ln M, minus infinity before the first record. ``log_cusum`` is C.
    ``onset_ms`` is the start of the first pane since C was at 0, in milliseconds since the
    epoch; ``records`` and ``hits`` count those since then.
    """

    log_statistic: NDArray[np.float64]
    log_cusum: NDArray[np.float64]
    onset_ms: NDArray[np.int64]
    records: NDArray[np.int64]
    hits: NDArray[np.int64]


STATE_ARRAYS = tuple(field.name for field in fields(SequentialState))


def initial_state(bets: Bets, shape: tuple[int, ...] = ()) -> SequentialState:
    """Give the state before the first record, of as many detectors as ``shape`` says."""
    full = (*shape, *bets.hit.shape)
    counts = (np.zeros(full, dtype=np.int64) for _ in range(3))
    return SequentialState(np.full(full, -np.inf), np.zeros(full), *counts)


@dataclass(frozen=True, slots=True, eq=False)
class AlarmStep:
    """Detectors after a pane.

    ``log_value`` is float64 (...), their `log_mixture`, at most the threshold's, also where the
    alarm has ended with this pane; ``active`` is bool (...), ``ended`` too.
    """

    state: SequentialState
    log_value: NDArray[np.float64]
    active: NDArray[np.bool_]
    ended: NDArray[np.bool_]


def step_alarm(
    state: SequentialState,
    bets: Bets,
    *,
    log_threshold: NDArray[np.float64] | float,
    active: NDArray[np.bool_],
    records: NDArray[np.int64],
    hits: NDArray[np.int64],
    start_ms: NDArray[np.int64],
    cusum_limit: NDArray[np.float64] | None = None,
) -> AlarmStep:
    """Take one pane into account, as `update` does, and tell where the alarm is on.

    It begins at ``log_threshold``, the logarithm of the run length, of all or float64 (...) of
    each, goes on as `goes_on` tells, and then the detector is `renewed`. ``active`` is bool (...):
    where it was on before. ``cusum_limit`` float64 (K,) bounds C of each bet more tightly than the
    threshold does, so that an alarm ends sooner.
    """
    after = update(state, bets, records, hits, start_ms)
    value = log_mixture(after)
    after = capped(after, value, log_threshold)
    if cusum_limit is not None:
        after = replace(after, log_cusum=np.minimum(after.log_cusum, cusum_limit))
    log_value = np.minimum(value, log_threshold)
    on = np.where(active, goes_on(after, log_value, log_threshold), log_value >= log_threshold)
    ended = active & ~on
    if ended.any():
        after = _chosen(ended, renewed(after), after)
    return AlarmStep(after, log_value, on, ended)


def update(
    state: SequentialState,
    bets: Bets,
    records: NDArray[np.int64],
    hits: NDArray[np.int64],
    start_ms: NDArray[np.int64],
) -> SequentialState:
    """Take one pane into account.

    ``records`` is int64 (...), those of the pane, at least 1; ``hits`` int64 (..., J), how many of
    them each event holds for; ``start_ms`` int64 (...), in milliseconds since the epoch.
    """
    n, x = records[..., np.newaxis, np.newaxis], hits[..., np.newaxis]
    gain = x * bets.hit + (n - x) * bets.miss
    goes_on = state.log_cusum > 0
    return SequentialState(
        np.logaddexp(state.log_statistic, np.log(n)) + gain,
        np.where(goes_on, state.log_cusum, 0.0) + gain,
        np.where(goes_on, state.onset_ms, start_ms[..., np.newaxis, np.newaxis]),
        np.where(goes_on, state.records, 0) + n,
        np.where(goes_on, state.hits, 0) + x,
    )


def log_mixture(state: SequentialState) -> NDArray[np.float64]:
    """Give ln of the mixed statistic, float64 (...): the mean of M over events and bets."""
    values = state.log_statistic
    highest = values.max(axis=(-2, -1))
    offset = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        mean = np.exp(values - offset[..., np.newaxis, np.newaxis]).mean(axis=(-2, -1))
        mixed: NDArray[np.float64] = offset + np.log(mean)
    return mixed


def capped(
    state: SequentialState,
    log_value: NDArray[np.float64],
    log_threshold: NDArray[np.float64] | float,
) -> SequentialState:
    """Scale a statistic that exceeds its threshold down to it, and bound C.

    After the alarm the size of M says nothing new; bounded, it falls again when the shift ends.
    ``log_value`` is its `log_mixture`, float64 (...).
    """
    excess = np.maximum(log_value - log_threshold, 0.0)
    return replace(
        state,
        log_statistic=state.log_statistic - excess[..., np.newaxis, np.newaxis],
        log_cusum=np.minimum(
            state.log_cusum, np.asarray(log_threshold)[..., np.newaxis, np.newaxis]
        ),
    )


def goes_on(
    state: SequentialState,
    log_value: NDArray[np.float64],
    log_threshold: NDArray[np.float64] | float,
) -> NDArray[np.bool_]:
    """Tell whether an alarm that began at a threshold goes on after a pane, bool (...).

    See `RESOLVE_RATIO` and `QUIET_CUSUM`. ``log_value`` is the `log_mixture`, float64 (...).
    """
    is_high = log_value >= log_threshold + np.log(RESOLVE_RATIO)
    on: NDArray[np.bool_] = is_high & (state.log_cusum.max(axis=(-2, -1)) > QUIET_CUSUM)
    return on


def renewed(state: SequentialState) -> SequentialState:
    """Begin anew with M = 0 after an alarm has ended; when its change began stays to be told.

    With M = 0 no bet is the largest, so that each of them has the onset of the one that was.
    """
    best = _flat(state.log_statistic).argmax(axis=-1, keepdims=True)

    def of_best(values: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.take_along_axis(_flat(values), best, axis=-1)
        return np.broadcast_to(found[..., np.newaxis], values.shape).copy()

    return SequentialState(
        np.full_like(state.log_statistic, -np.inf),
        np.zeros_like(state.log_cusum),
        of_best(state.onset_ms),
        of_best(state.records),
        of_best(state.hits),
    )


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """Events and bets in one axis, the last."""
    return values.reshape(*values.shape[:-2], -1)


def _chosen(
    is_first: NDArray[np.bool_], first: SequentialState, second: SequentialState
) -> SequentialState:
    where = is_first[..., np.newaxis, np.newaxis]
    return SequentialState(
        *(np.where(where, getattr(first, n), getattr(second, n)) for n in STATE_ARRAYS)
    )


@dataclass(frozen=True, slots=True)
class Onset:
    """The most likely change: event ``event`` of the J since ``start_ms``.

    ``hits`` of the ``records`` since then. ``start_ms`` is in milliseconds since the epoch.
    """

    event: int
    start_ms: int
    records: int
    hits: int

    @property
    def share(self) -> float:
        """Hits a record; 0 without a record."""
        return self.hits / self.records if self.records else 0.0


def onset(state: SequentialState) -> Onset:
    """Estimate where the change began, of one detector: arrays of (J, K).

    That of its best bet, and where its C last was at 0.
    """
    best = best_bet(state)
    counts = (int(values[best]) for values in (state.onset_ms, state.records, state.hits))
    return Onset(best[0], *counts)


def best_bet(state: SequentialState) -> tuple[int, int]:
    """Give the event and the bet with the largest statistic, of one detector."""
    event, bet = np.unravel_index(np.argmax(state.log_statistic), state.log_statistic.shape)
    return int(event), int(bet)
