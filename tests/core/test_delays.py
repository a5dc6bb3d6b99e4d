import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from nap_stream.core.detection import (
    WARM_UP_RECORDS,
    Delay,
    DetectionPlan,
    flags_delay,
    p_value_shares,
    scores_delay,
    window_delay,
    window_limits,
)
from nap_stream.core.sequential import BET_COUNT, bets_for_drift
from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw

ALMOST_NEVER = 1e-12
PLAN = DetectionPlan(
    run_length=1e4,
    detector_run_length=3e4,
    confidence=0.95,
    flag_rate=0.06,
    tail_rates=tuple((e, 1 - e.edge + 0.01 if e.upper else e.edge + 0.01) for e in TAIL_EVENTS),
    window_records=100,
    resolve_laws=(FlagRateLaw(100, 2_000),),
    resolve_probability=0.05,
)


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def test_the_p_values_of_a_higher_flag_rate_are_a_mixture() -> None:
    # 1/19 of the p-values are flagged ones: (0.1 - 0.05) / (1 - 0.05).
    shares = p_value_shares(0.05, 0.1)

    np.testing.assert_allclose(shares[0], 1 / 19 * 0.02 / 0.05 + 18 / 19 * 0.02)
    np.testing.assert_allclose(shares[:2].sum(), 0.1)
    np.testing.assert_allclose(shares[4], 18 / 19 * 0.3)
    np.testing.assert_allclose(shares.sum(), 1)
    np.testing.assert_allclose(p_value_shares(0.05, 0.05)[[0, -1]], 0.02)


@pytest.mark.parametrize(("alpha", "rate"), [(0.0, 0.1), (0.05, 0.04), (0.05, 1.1), (1.0, 1.0)])
def test_shares_of_impossible_rates_are_refused(alpha: float, rate: float) -> None:
    with pytest.raises(ValueError, match="flag_rate"):
        p_value_shares(alpha, rate)


@pytest.mark.parametrize("pane_records", [1, 7, 10, 250])
def test_a_window_that_fills_with_flags_fires_at_its_limit(pane_records: int) -> None:
    records = math.ceil(100 / pane_records) * pane_records
    limit, _ = window_limits(PLAN, records)

    delay = window_delay(
        PLAN, ALMOST_NEVER, 1.0, pane_records=pane_records, generator=generator(), runs=5
    )

    exact = math.ceil(limit / pane_records) * pane_records
    assert (delay.mean, delay.median, delay.standard_error) == (exact, exact, 0)
    assert (delay.runs, delay.detected, delay.blind) == (5, 5, False)


def test_the_e_detector_fires_where_its_recursion_reaches_the_threshold() -> None:
    pane = 5
    bets = -np.expm1(bets_for_drift(np.array([PLAN.flag_rate])).miss[0])
    statistic = np.zeros(BET_COUNT)
    warm = WARM_UP_RECORDS // 200
    for _ in range(200):
        statistic = (statistic + warm) * (1 - bets) ** warm
    panes = 0
    while statistic.mean() < PLAN.detector_run_length:
        statistic = (statistic + pane) * (1 + bets * (1 / PLAN.flag_rate - 1)) ** pane
        panes += 1

    delay = flags_delay(PLAN, ALMOST_NEVER, 1.0, pane_records=pane, generator=generator(), runs=3)

    assert (delay.mean, delay.standard_error) == (panes * pane, 0)


@pytest.mark.parametrize("rate", [0.05, 0.06])
def test_what_the_calibration_allows_is_never_seen(rate: float) -> None:
    options = {"pane_records": 10, "generator": generator()}

    assert window_delay(PLAN, 0.05, rate, **options).blind  # type: ignore[arg-type]  # one dict
    assert flags_delay(PLAN, 0.05, rate, **options).blind  # type: ignore[arg-type]  # one dict
    assert scores_delay(PLAN, 0.05, 0.055, **options).blind  # type: ignore[arg-type]  # one dict


def test_a_window_that_is_too_small_to_fire_is_blind() -> None:
    small = dataclasses.replace(PLAN, window_records=3, detector_run_length=1e9)

    assert window_delay(small, 0.05, 0.5, pane_records=1, generator=generator()).blind


def test_a_large_window_takes_little_memory() -> None:
    large = dataclasses.replace(PLAN, window_records=10_000_000)

    tracemalloc.start()
    delay = window_delay(large, 0.05, 0.1, pane_records=1, generator=generator(), runs=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert delay.detected == 3
    assert delay.horizon == 200_000_000
    assert peak < large.window_records


def test_a_window_that_seldom_sees_a_drift_says_how_often() -> None:
    strict = dataclasses.replace(PLAN, detector_run_length=1e9)

    delay = window_delay(strict, 0.05, 0.1, pane_records=10, generator=generator(), runs=50)

    assert 0 < delay.detected < 25
    assert (delay.mean, delay.median, delay.typical) == (None, None, None)
    assert delay.horizon == 50_000


def test_larger_drifts_are_seen_sooner_and_the_same_seed_says_the_same() -> None:
    def mean(rate: float) -> float:
        delay = flags_delay(PLAN, 0.05, rate, pane_records=10, generator=generator())
        assert delay.mean is not None
        return delay.mean

    assert mean(0.1) > mean(0.15) > mean(0.3)
    assert mean(0.15) == mean(0.15)


def test_scores_see_a_drift_of_flags_a_little_later_than_flags_do() -> None:
    flags = flags_delay(PLAN, 0.05, 0.2, pane_records=10, generator=generator())
    scores = scores_delay(PLAN, 0.05, 0.2, pane_records=10, generator=generator())

    assert flags.mean is not None
    assert scores.mean is not None
    assert flags.mean < scores.mean < 2 * flags.mean


def test_what_is_typical_is_the_mean_or_else_the_median() -> None:
    assert Delay(4, 100, 4, 10.0, 12.0, 1.0).typical == 12
    assert Delay(4, 100, 3, 10.0, None, None).typical == 10
