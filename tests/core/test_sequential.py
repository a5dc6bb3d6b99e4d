import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from nap_stream.core.sequential import (
    BET_COUNT,
    LARGEST_BET,
    RESOLVE_RATIO,
    SMALLEST_BET,
    Bets,
    Onset,
    SequentialState,
    bets_against,
    bets_for_drift,
    capped,
    goes_on,
    initial_state,
    log_mixture,
    onset,
    renewed,
    step_alarm,
    update,
)

RATES = np.array([0.05, 0.2])
BETS = bets_against(RATES)
LAMBDAS = np.geomspace(SMALLEST_BET, LARGEST_BET, BET_COUNT)


def bounded(state: SequentialState, log_threshold: float) -> SequentialState:
    return capped(state, log_mixture(state), log_threshold)


FIELDS = ("log_statistic", "log_cusum", "onset_ms", "records", "hits")
PANES = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1), st.floats(0, 1)), max_size=12)


def pushed(
    state: SequentialState, records: int, *hits: int, start_ms: int = 0, bets: Bets = BETS
) -> SequentialState:
    return update(state, bets, np.array(records), np.array(hits), np.array(start_ms))


def factors(rate: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """L of a hit and of a miss, as the paper writes it."""
    return 1 + LAMBDAS * (1 / rate - 1), 1 + LAMBDAS * (0 / rate - 1)


def test_bets_by_hand() -> None:
    assert LAMBDAS[0] == pytest.approx(0.01)
    assert LAMBDAS[-1] == pytest.approx(0.6)
    assert BETS.hit.shape == BETS.miss.shape == (2, BET_COUNT)
    # lambda 0.6 against 0.05: 1 + 0.6 * 19 of a hit, 0.4 of a miss.
    np.testing.assert_allclose(np.exp([BETS.hit[0, -1], BETS.miss[0, -1]]), [12.4, 0.4])
    for event, rate in enumerate(RATES):
        np.testing.assert_allclose(np.exp(BETS.hit[event]), factors(rate)[0])
        np.testing.assert_allclose(np.exp(BETS.miss[event]), factors(rate)[1])


def test_a_bet_is_the_likelihood_ratio_of_the_rate_that_it_grows_at() -> None:
    p0 = RATES[:, np.newaxis]
    p1 = p0 + LAMBDAS * (1 - p0)
    np.testing.assert_allclose(BETS.hit, np.log(p1 / p0))
    np.testing.assert_allclose(BETS.miss, np.log((1 - p1) / (1 - p0)))


def test_two_panes_by_hand() -> None:
    first = pushed(initial_state(BETS), 3, 1, 0, start_ms=100)
    # lambda 0.6: 3 * 12.4 * 0.4^2 of the first event, 3 * 0.4^3 of the second.
    np.testing.assert_allclose(np.exp(first.log_statistic[:, -1]), [5.952, 0.192])
    np.testing.assert_allclose(np.exp(first.log_cusum[:, -1]), [1.984, 0.064])
    second = pushed(first, 2, 1, 2, start_ms=200)
    # (5.952 + 2) * 12.4 * 0.4, and (0.192 + 2) * 3.4^2.
    np.testing.assert_allclose(np.exp(second.log_statistic[:, -1]), [39.44192, 25.33952])
    # The first goes on at 1.984, the second begins again: it was below 1.
    np.testing.assert_allclose(np.exp(second.log_cusum[:, -1]), [9.84064, 11.56])
    assert second.onset_ms[:, -1].tolist() == [100, 200]
    assert second.records[:, -1].tolist() == [5, 2]
    assert second.hits[:, -1].tolist() == [2, 2]


def test_arrays_keep_their_types_and_shapes() -> None:
    for shape in ((), (3,), (2, 3)):
        state = initial_state(BETS, shape)
        records = np.full(shape, 4)
        hits = np.ones((*shape, 2), dtype=np.int64)
        for one in (state, update(state, BETS, records, hits, records * 10)):
            for name in FIELDS:
                array = getattr(one, name)
                assert array.shape == (*shape, 2, BET_COUNT)
                assert array.dtype == (np.float64 if name.startswith("log") else np.int64)
            assert log_mixture(one).shape == shape


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_panes_of_one_record_are_the_recursion_of_the_paper(hits: list[tuple[bool, bool]]) -> None:
    """In the direct domain, a record at a time: M = (M + 1) L, C = max(C, 1) L."""
    state = initial_state(BETS)
    statistic, cusum = np.zeros((2, BET_COUNT)), np.ones((2, BET_COUNT))
    for pair in hits:
        state = pushed(state, 1, *pair)
        for event, (rate, is_hit) in enumerate(zip(RATES, pair, strict=True)):
            factor = factors(rate)[0 if is_hit else 1]
            statistic[event] = (statistic[event] + 1) * factor
            cusum[event] = np.maximum(cusum[event], 1) * factor
    np.testing.assert_allclose(np.exp(state.log_statistic), statistic, rtol=1e-9)
    np.testing.assert_allclose(np.exp(state.log_cusum), cusum, rtol=1e-9)
    assert np.exp(log_mixture(state)) == pytest.approx(statistic.mean(), rel=1e-9)


@given(PANES)
def test_the_log_domain_is_the_direct_one(panes: list[tuple[int, float, float]]) -> None:
    state, statistic = initial_state(BETS), np.zeros((2, BET_COUNT))
    for records, *shares in panes:
        hits = [round(share * records) for share in shares]
        state = pushed(state, records, *hits)
        for event, (rate, count) in enumerate(zip(RATES, hits, strict=True)):
            hit, miss = factors(rate)
            statistic[event] = (statistic[event] + records) * hit**count * miss ** (records - count)
        np.testing.assert_allclose(np.exp(state.log_statistic), statistic, rtol=1e-8)


@given(
    st.floats(-20, 40),
    st.floats(0.001, 0.999),
    st.integers(1, 40),
    st.just(0.0) | st.floats(1e-6, 1.0),  # below, scipy's probabilities overflow
)
def test_the_statistic_grows_by_the_records_at_most_on_average(
    log_statistic: float, rate: float, n: int, share: float
) -> None:
    """Exactly, over all numbers of hits: E[M after] <= M + n at rates up to the highest one."""
    bets = bets_against(np.array([rate]))
    empty = initial_state(bets, (n + 1,))
    state = SequentialState(
        np.full_like(empty.log_statistic, log_statistic), *(getattr(empty, f) for f in FIELDS[1:])
    )
    hits = np.arange(n + 1)
    after = update(state, bets, np.full(n + 1, n), hits[:, np.newaxis], np.zeros(n + 1, np.int64))
    expected = binom.pmf(hits, n, rate * share) @ np.exp(log_mixture(after))
    bound = math.exp(log_statistic) + n
    assert expected <= bound * (1 + 1e-9)
    if share == 1.0:
        assert expected == pytest.approx(bound, rel=1e-9)


@given(PANES, PANES)
def test_detectors_side_by_side_are_those_alone(
    first: list[tuple[int, float, float]], second: list[tuple[int, float, float]]
) -> None:
    both, alone = initial_state(BETS, (2,)), [initial_state(BETS)] * 2
    for number, panes in enumerate(zip(first, second, strict=False)):
        records = np.array([pane[0] for pane in panes])
        hits = np.array([[round(share * n) for share in shares] for n, *shares in panes])
        starts = np.array([number, 10 * number])
        both = bounded(update(both, BETS, records, hits, starts), 5.0)
        for i in range(2):
            alone[i] = update(alone[i], BETS, records[i], hits[i], starts[i])
            alone[i] = bounded(alone[i], 5.0)
    for name in FIELDS:
        one_by_one = np.stack([getattr(state, name) for state in alone])
        np.testing.assert_array_equal(getattr(both, name), one_by_one)
    assert log_mixture(both).tolist() == [float(log_mixture(state)) for state in alone]


def test_the_mixture_is_the_mean() -> None:
    values = np.log(np.arange(1.0, 2 * BET_COUNT + 1)).reshape(2, BET_COUNT)
    empty = initial_state(BETS)
    state = SequentialState(values, *(getattr(empty, name) for name in FIELDS[1:]))
    assert np.exp(log_mixture(state)) == pytest.approx(8.5)
    huge = SequentialState(values + 5_000, *(getattr(empty, name) for name in FIELDS[1:]))
    assert log_mixture(huge) == pytest.approx(math.log(8.5) + 5_000)
    assert log_mixture(empty) == -math.inf


def test_a_capped_statistic_stands_at_its_threshold() -> None:
    state = pushed(initial_state(BETS), 20, 20, 0)
    before = state.log_statistic
    low = bounded(state, 3.0)
    assert log_mixture(low) == pytest.approx(3.0)
    np.testing.assert_allclose(np.ptp(before - low.log_statistic), 0, atol=1e-9)
    assert low.log_cusum.max() == 3.0
    assert low.records[0, 0] == 20
    high = bounded(state, 1_000.0)
    np.testing.assert_array_equal(high.log_statistic, before)
    empty = bounded(initial_state(BETS), 3.0)
    assert (empty.log_statistic == -np.inf).all()


@pytest.mark.parametrize("hits", [0, 1_000_000])
def test_a_million_records_of_one_kind_stay_finite(hits: int) -> None:
    state = initial_state(BETS)
    for start in range(3):
        state = pushed(state, 1_000_000, hits, hits, start_ms=start)
        assert np.isfinite(state.log_statistic).all()
        assert np.isfinite(log_mixture(state))
        state = bounded(state, 20.0)
        assert log_mixture(state) <= 20.0 + 1e-9
    for _ in range(1_000):
        state = bounded(pushed(state, 1_000, *(hits // 1_000,) * 2), 20.0)
    assert np.isfinite(state.log_statistic).all()
    assert (log_mixture(state) > 19.9) == (hits > 0)


def test_after_an_alarm_the_statistic_falls_again() -> None:
    threshold = math.log(1e6)
    state = initial_state(BETS)
    for _ in range(200):
        state = bounded(pushed(state, 10, 9, 0), threshold)
    value = log_mixture(state)
    assert value == pytest.approx(threshold)
    assert goes_on(state, value, threshold)
    quiet = 0
    while goes_on(state, log_mixture(state), threshold):
        state = bounded(pushed(state, 10, 0, 0), threshold)
        quiet += 1
    # The bet that won, 0.6, loses ln 0.4 a record: ln 1000 is lost in one pane.
    assert 1 <= quiet <= 3


@pytest.mark.parametrize("run_length", [150, 3_000, 1e5, 1e9])
@pytest.mark.parametrize("lasting", [200, 5_000])
def test_an_alarm_ends_at_any_run_length(run_length: float, lasting: int) -> None:
    """M itself stays at some hundreds in a quiet stream: it would not fall below a thousandth."""
    bets, threshold = bets_for_drift(np.array([0.06])), math.log(run_length)
    rng = np.random.default_rng(7)
    state = initial_state(bets, (40,))
    records, start = np.full(40, 20), np.zeros(40, dtype=np.int64)

    def step(rate: float) -> NDArray[np.bool_]:
        nonlocal state
        hits = rng.binomial(20, rate, (40, 1))
        state = bounded(update(state, bets, records, hits, start), threshold)
        return goes_on(state, log_mixture(state), threshold)

    for _ in range(lasting // 20):
        fires = step(0.3)
    assert fires.all()
    ended = np.zeros(40, dtype=np.bool_)
    for _ in range(10_000 // 20):
        ended |= ~step(0.05)
    assert ended.all()


def test_a_stream_begins_anew_after_an_alarm() -> None:
    state = renewed(pushed(initial_state(BETS), 10, 9, 9, start_ms=1))
    assert log_mixture(state) == -math.inf
    assert onset(state) == Onset(event=0, start_ms=1, records=10, hits=9)
    again, first = (pushed(s, 5, 4, 4, start_ms=2) for s in (state, initial_state(BETS)))
    for name in ("log_statistic", "log_cusum", "onset_ms", "records", "hits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_the_onset_of_an_alarm_that_has_ended_stays_to_be_told() -> None:
    state = pushed(initial_state(BETS), 100, 5, 5, start_ms=1_000)
    for second in range(2, 6):
        state = pushed(state, 10, 0, 8, start_ms=1_000 * second)
    before = onset(state)
    assert (before.event, before.start_ms, before.records) == (1, 2_000, 40)
    after = onset(renewed(state))
    assert (after.start_ms, after.records, after.hits) == (2_000, 40, 32)


def test_bets_for_a_drifting_stream_follow_the_rate() -> None:
    bets = bets_for_drift(np.array([0.02, 0.1, 0.5]))
    used = -np.expm1(bets.miss)
    assert used.max(axis=1) == pytest.approx([0.2, 0.3, 0.6])
    assert used.min(axis=1) == pytest.approx([SMALLEST_BET] * 3)


def test_while_a_shift_lasts_a_fall_by_the_ratio_is_as_rare() -> None:
    """Under the rate that a bet grows at, 1 / L is a martingale: Ville's inequality."""
    assert RESOLVE_RATIO == 1e-3
    rng = np.random.default_rng(5)
    bet = 3
    rate = RATES[0] + LAMBDAS[bet] * (1 - RATES[0])
    gains = np.where(rng.random((4_000, 1_000)) < rate, BETS.hit[0, bet], BETS.miss[0, bet])
    lowest = np.cumsum(gains, axis=1).min(axis=1)
    assert np.mean(lowest <= math.log(RESOLVE_RATIO)) <= 0.003
    assert np.mean(lowest <= math.log(0.1)) <= 0.1 + 0.015


def test_the_onset_of_a_change_is_found_to_the_pane() -> None:
    state = initial_state(BETS)
    for number in range(100):
        state = pushed(state, 10, 0, 2 * (number % 2), start_ms=1_000 * number)
    for number in range(100, 120):
        state = pushed(state, 10, 5, 2 * (number % 2), start_ms=1_000 * number)
    assert onset(state) == Onset(event=0, start_ms=100_000, records=200, hits=100)


def test_the_event_that_has_changed_is_named() -> None:
    state = initial_state(BETS)
    for number in range(50):
        state = pushed(state, 20, 1, 4 if number < 30 else 12, start_ms=number)
    assert onset(state) == Onset(event=1, start_ms=30, records=400, hits=240)


def test_the_largest_statistic_names_the_onset_and_not_the_largest_cusum() -> None:
    numbers = np.arange(2 * BET_COUNT).reshape(2, BET_COUNT)
    cusum = numbers.astype(np.float64)
    state = SequentialState(-cusum, cusum, numbers + 100, numbers + 10, numbers)
    assert onset(state) == Onset(event=0, start_ms=100, records=10, hits=0)


Rate = Callable[[NDArray[np.bool_], NDArray[np.float64]], Any]
P0 = 0.05


def alarm_times(rate: Rate, run_length: float, steps: int, width: int) -> NDArray[np.int64]:
    """Records until the alarm of 500 streams, ``steps * width`` where there was none.

    ``rate`` gives the rate of each stream's next records from their last flags and statistics.
    """
    rng = np.random.default_rng(23)
    bets = bets_against(np.array([P0]))
    state = initial_state(bets, (500,))
    last, statistic = np.zeros(500, np.bool_), np.full(500, -np.inf)
    found = np.full(500, steps * width)
    for number in range(steps):
        hits = rng.binomial(width, rate(last, statistic), 500)
        last = hits > 0
        state = update(state, bets, np.full(500, width), hits[:, np.newaxis], np.full(500, number))
        statistic = log_mixture(state)
        fires = (statistic >= math.log(run_length)) & (found == steps * width)
        found[fires] = (number + 1) * width
    return found


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize(
    "rate",
    [
        lambda _last, _statistic: P0,
        lambda last, _statistic: np.where(last, P0, 0.5 * P0),
        lambda last, _statistic: np.where(last, 0, P0),
        lambda _last, statistic: np.where(statistic > 2, P0, 0.2 * P0),
    ],
    ids=["independent", "after a flag", "never twice", "against the detector"],
)
def test_false_alarms_are_as_rare_as_promised(rate: Rate, width: int) -> None:
    run_length = 100
    found = alarm_times(rate, run_length, 750 // width, width)
    # What was cut off at 750 records only lowers the mean.
    assert found.mean() >= run_length
    for within in (10, 25, 50):
        share = within / run_length
        assert np.mean(found <= within) <= share + 3 * math.sqrt(share * (1 - share) / 500)


def test_a_rate_above_the_highest_is_found() -> None:
    found = alarm_times(lambda _last, _statistic: 4 * P0, 200, 300, 1)
    assert found.max() < 300
    assert found.mean() < 60


def test_bets_of_many_detectors_are_those_of_each() -> None:
    rates = np.array([[0.1, 0.2], [0.3, 0.4]])
    together = bets_against(rates, 0.9, smallest=0.1, count=3)
    assert together.hit.shape == together.miss.shape == (2, 2, 3)
    np.testing.assert_allclose(together.hit[0, 1], np.log1p(np.array([0.1, 0.3, 0.9]) * 4))
    np.testing.assert_array_equal(
        together.hit[1], bets_against(rates[1], 0.9, smallest=0.1, count=3).hit
    )


def test_detectors_with_thresholds_of_their_own_are_those_alone() -> None:
    bets = bets_against(np.array([0.1]))
    limit = np.full(8, 4.0)
    state, on = initial_state(bets, (2,)), np.zeros(2, dtype=np.bool_)
    for pane in range(4):
        after = step_alarm(
            state,
            bets,
            log_threshold=np.log([20.0, 1e6]),
            active=on,
            records=np.array([2, 2]),
            hits=np.array([[2], [2]]),
            start_ms=np.array([pane, pane]),
            cusum_limit=limit,
        )
        state, on = after.state, after.active
    assert on.tolist() == [True, False]
    assert after.log_value[0] == pytest.approx(np.log(20))
    # The lower threshold bounds C of the first, the limit that of the second.
    assert state.log_cusum.max(axis=(1, 2)).tolist() == pytest.approx([np.log(20), 4.0])


@pytest.mark.parametrize("rates", [[], [0.0], [1.0], [0.5, float("nan")], [[0.5, 1.0]], 0.5])
def test_refuses_rates_out_of_range(rates: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"rates of shape \(..., J\) in \(0, 1\)"):
        bets_against(np.array(rates, dtype=np.float64))
