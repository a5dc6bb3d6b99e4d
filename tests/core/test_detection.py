import dataclasses
import math
import tracemalloc
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta

from nap_stream.core.bounds import flag_limit, scan_limit, scan_run_length
from nap_stream.core.conformal import flag_rank, p_values
from nap_stream.core.detection import (
    WARM_UP_RECORDS,
    WINDOW_STEP,
    Delay,
    DetectionPlan,
    flags_delay,
    p_value_shares,
    plan_detection,
    records_to_alarm,
    scores_delay,
    window_delay,
    window_firing_limit,
)
from nap_stream.core.panes import RollingWindow
from nap_stream.core.sequential import (
    BET_COUNT,
    SequentialState,
    bets_for_drift,
    initial_state,
    log_mixture,
    update,
)
from nap_stream.core.tails import (
    BIN_COUNT,
    TAIL_EVENTS,
    FlagRateLaw,
    TailEvent,
    bins_of,
    tail_counts,
)
from tests.support.limits import window_limits

ALPHA = 0.05


def law_of(event: TailEvent, size: int) -> FlagRateLaw:
    below = flag_rank(event.edge, size)
    return FlagRateLaw(size + 1 - below if event.upper else below, size)


def plan_of(
    *sizes: int,
    run_length: float = 1e5,
    confidence: float = 0.95,
    window_records: int = 100,
    groups: int | None = None,
    with_tails: bool = True,
    with_keys: bool = False,
) -> DetectionPlan:
    """For groups of so many calibration images; for one of 199 where none is given."""
    sizes = sizes or (199,)
    events = TAIL_EVENTS if with_tails else ()
    return plan_detection(
        run_length=run_length,
        confidence=confidence,
        window_records=window_records,
        resolve_probability=0.05,
        flag_laws=[FlagRateLaw(flag_rank(ALPHA, size), size) for size in sizes],
        tail_laws=[(event, [law_of(event, size) for size in sizes]) for event in events],
        groups=groups or len(sizes),
        with_keys=with_keys,
        calibration_fingerprint="c",
    )


@pytest.mark.parametrize(
    ("with_tails", "with_keys", "detectors"),
    [(False, False, 2), (True, False, 3), (False, True, 3), (True, True, 4)],
)
def test_detectors_share_the_false_alarms(
    with_tails: bool, with_keys: bool, detectors: int
) -> None:
    plan = plan_of(run_length=5_000, with_tails=with_tails, with_keys=with_keys)
    assert plan.detector_run_length == detectors * 5_000
    assert detectors / plan.detector_run_length == pytest.approx(1 / plan.run_length)
    assert plan.log_threshold == pytest.approx(math.log(detectors * 5_000))
    assert len(plan.tail_rates) == (len(TAIL_EVENTS) if with_tails else 0)
    assert plan.calibration_fingerprint == "c"


@given(
    st.lists(st.integers(100, 5_000), min_size=1, max_size=5),
    st.floats(0.5, 0.9999),
    st.booleans(),
)
def test_the_doubts_of_all_rates_sum_up_to_what_confidence_leaves(
    sizes: list[int], confidence: float, with_tails: bool
) -> None:
    """P(a group's rate exceeds the highest one), summed over all that must hold together."""
    plan = plan_of(*sizes, confidence=confidence, with_tails=with_tails)

    def doubt(laws: list[FlagRateLaw], rate: float) -> float:
        return sum(
            float(beta.sf(rate, law.flag_rank, law.size + 1 - law.flag_rank)) for law in laws
        )

    flags = doubt([FlagRateLaw(flag_rank(ALPHA, size), size) for size in sizes], plan.flag_rate)
    tails = [
        doubt([law_of(event, size) for size in sizes], rate) for event, rate in plan.tail_rates
    ]
    assert flags + sum(tails) <= (1 - confidence) * (1 + 1e-6)
    if len(set(sizes)) == 1:
        assert flags == pytest.approx((1 - confidence) / 2, rel=1e-6)
        assert sum(tails) == pytest.approx((1 - confidence) / 2 * with_tails, rel=1e-6)


@given(st.floats(0.5, 0.999), st.floats(0.5, 0.999), st.integers(1, 100), st.integers(1, 100))
def test_rates_rise_with_the_confidence_and_the_groups(
    first: float, second: float, some: int, others: int
) -> None:
    low = plan_of(confidence=min(first, second), groups=min(some, others))
    high = plan_of(confidence=max(first, second), groups=max(some, others))
    assert low.flag_rate <= high.flag_rate < 1
    for (event, rate), (same, higher) in zip(low.tail_rates, high.tail_rates, strict=True):
        assert event == same
        assert rate <= higher < 1


def test_the_rate_of_one_group_by_hand() -> None:
    """2.5 % for the flags and as much for the tails, of which there are ten."""
    plan = plan_of()
    assert plan.flag_rate == pytest.approx(float(beta.ppf(0.975, 10, 190)), rel=1e-9)
    assert plan.tail_rates[0][1] == pytest.approx(float(beta.ppf(0.9975, 4, 196)), rel=1e-9)
    small_and_large = plan_of(38, 5_000, with_tails=False)
    assert small_and_large.flag_rate == pytest.approx(float(beta.ppf(0.9875, 1, 38)), rel=1e-9)


def grid(window_records: int, steps: int) -> list[int]:
    """The different sizes of the first steps."""
    sizes = (math.ceil(window_records * WINDOW_STEP**step) for step in range(steps + 1))
    return list(dict.fromkeys(sizes))


@pytest.mark.parametrize("window_records", [1, 40, 1_000])
@pytest.mark.parametrize("run_length", [200.0, 1e8])
def test_windows_of_all_sizes_together_keep_the_promise(
    window_records: int, run_length: float
) -> None:
    plan = plan_of(window_records=window_records, run_length=run_length)
    rate = 0.0
    for size in grid(window_records, 50):
        firing, _ = window_limits(plan, size)
        assert window_firing_limit(plan, size) == firing
        if firing <= size:
            rate += 1 / scan_run_length(size, firing, plan.flag_rate)
    assert rate <= 1 / plan.detector_run_length


def test_the_usual_windows_cost_little() -> None:
    plan = plan_of(2_000, window_records=1_000, run_length=1.296e8)
    firing, resolving = window_limits(plan, 1_000)
    assert plan.flag_rate == pytest.approx(0.0599, abs=1e-4)
    # With all of the budget for one size it would be two flags less.
    assert scan_limit(1_000, plan.flag_rate, plan.detector_run_length) == 103
    assert (firing, resolving) == (105, flag_limit(1_000, 100, 2_000, 0.05)) == (105, 65)


@given(st.integers(1, 500), st.integers(0, 400), st.integers(0, 400), st.floats(100, 1e12))
def test_limits_rise_with_the_records(
    window_records: int, some: int, others: int, run_length: float
) -> None:
    plan = plan_of(window_records=window_records, run_length=run_length)
    fewer, more = sorted((window_records + some, window_records + others))
    firing, resolving = window_limits(plan, fewer)
    assert 1 <= resolving <= firing
    assert firing <= window_limits(plan, more)[0]
    assert resolving <= window_limits(plan, more)[1]


@given(st.integers(40, 100), st.floats(100, 1e12), st.floats(100, 1e12))
def test_limits_rise_with_the_run_length(records: int, first: float, second: float) -> None:
    shorter, longer = (
        window_limits(plan_of(window_records=40, run_length=run_length), records)
        for run_length in sorted((first, second))
    )
    assert shorter[0] <= longer[0]
    assert shorter[1] <= longer[1]


def test_a_window_never_ends_to_fire_where_it_begins_to() -> None:
    plan = replace(plan_of(window_records=40, run_length=100), resolve_probability=1e-12)
    firing, resolving = window_limits(plan, 40)
    assert flag_limit(40, 10, 199, 1e-12) > firing
    assert resolving == firing


def test_a_window_fires_at_the_limit_of_the_next_size_on_the_grid() -> None:
    plan = plan_of(window_records=100)
    for below, size in pairwise(grid(100, 8)):
        limits = {window_limits(plan, records)[0] for records in range(below + 1, size + 1)}
        assert limits == {window_limits(plan, size)[0]}


def first_alarms(
    plan: DetectionPlan, bins: NDArray[np.int64], flagged: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Records until any of the stream's detectors fires, for each of S streams of T panes.

    ``bins`` is (T, S, BIN_COUNT), ``flagged`` (T, S). A stream without an alarm has all of its
    records and one more.
    """
    events = tuple(event for event, _ in plan.tail_rates)
    streams = flagged.shape[1]
    limits = lru_cache(lambda records: window_limits(plan, records))
    windows = [RollingWindow(plan.window_records, 1) for _ in range(streams)]
    bets = [bets_for_drift(np.array([plan.flag_rate]))]
    if events:
        bets.append(bets_for_drift(np.array([rate for _, rate in plan.tail_rates])))
    states: list[SequentialState] = [initial_state(one, (streams,)) for one in bets]
    seen = np.zeros(streams, np.int64)
    found: NDArray[np.int64] = bins.sum(axis=(0, 2)) + 1
    for number, (pane, flags) in enumerate(zip(bins, flagged, strict=True)):
        records = pane.sum(axis=1)
        seen += records
        hits = [flags[:, np.newaxis], tail_counts(pane, events)]
        starts = np.full(streams, number)
        states = [
            update(state, one, records, x, starts)
            for state, one, x in zip(states, bets, hits, strict=False)
        ]
        fires = np.any([log_mixture(s) >= plan.log_threshold for s in states], axis=0)
        for i, window in enumerate(windows):
            state = window.push(number, int(records[i]), int(flags[i]))
            fires[i] |= window.is_full and state.flagged >= limits(state.records)[0]
        found = np.where(fires, np.minimum(found, seen), found)
    return found


def drawn(
    rng: np.random.Generator, panes: int, calibrations: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In-distribution panes of 1 to 9 records; each stream has a row of calibration scores."""
    streams = len(calibrations)
    bins = np.zeros((panes, streams, BIN_COUNT), np.int64)
    flagged = np.zeros((panes, streams), np.int64)
    pane = np.repeat(np.arange(panes), rng.integers(1, 10, panes))
    for stream, scores in enumerate(calibrations):
        p = p_values(scores, rng.random(len(pane)))
        cell = pane * BIN_COUNT + bins_of(p)
        bins[:, stream] = np.bincount(cell, minlength=panes * BIN_COUNT).reshape(panes, BIN_COUNT)
        flagged[:, stream] = np.bincount(pane, weights=p <= ALPHA, minlength=panes)
    return bins, flagged


def test_at_the_highest_rate_false_alarms_are_as_rare_as_promised() -> None:
    run_length, streams, panes = 300, 200, 300
    plan = plan_of(run_length=run_length, window_records=40, with_tails=False)
    rng = np.random.default_rng(17)
    records = rng.integers(1, 10, (panes, streams))
    bins = np.zeros((panes, streams, BIN_COUNT), np.int64)
    bins[:, :, 4] = records

    found = first_alarms(plan, bins, rng.binomial(records, plan.flag_rate))

    assert found.mean() >= run_length
    for within in (75, 150):
        share = within / run_length
        assert np.mean(found <= within) <= share + 3 * math.sqrt(share * (1 - share) / streams)


def test_over_draws_of_the_calibration_false_alarms_are_as_rare_as_promised() -> None:
    """Each stream has a calibration set of its own, against which all detectors are tested."""
    run_length, streams = 1_000, 150
    plan = plan_of(run_length=run_length, window_records=40)
    rng = np.random.default_rng(29)
    calibrations = np.sort(rng.random((streams, 199)), axis=1)

    found = first_alarms(plan, *drawn(rng, 60, calibrations))

    within = 250
    share = within / run_length + 1 - plan.confidence
    assert np.mean(found <= within) <= share + 3 * math.sqrt(share * (1 - share) / streams)


def test_without_the_uncertainty_of_the_calibration_the_promise_is_broken() -> None:
    """Flags of 39 images are expected at 5 %, and are so in no calibration: alpha is no bound."""
    streams, panes, size = 400, 200, 39
    honest = plan_of(size, run_length=20_000, window_records=40, with_tails=False)
    plugged_in = dataclasses.replace(honest, flag_rate=ALPHA)
    rng = np.random.default_rng(41)
    records = np.full((panes, streams), 5)
    k = flag_rank(ALPHA, size)
    flagged = rng.binomial(records, rng.beta(k, size + 1 - k, streams))
    bins = np.zeros((panes, streams, BIN_COUNT), np.int64)
    bins[:, :, 4] = records

    def share(plan: DetectionPlan) -> float:
        return float(np.mean(first_alarms(plan, bins, flagged) <= panes * 5))

    promised = panes * 5 / honest.run_length + 1 - honest.confidence
    assert share(honest) <= promised
    assert share(plugged_in) > promised


@pytest.mark.parametrize(("low", "high"), [(-0.3, 1.0), (0.4, 1.0), (0.0, 0.6)])
def test_a_shift_of_any_kind_is_found(low: float, high: float) -> None:
    """More flags, p-values that are too large, p-values that are too small."""
    plan = plan_of(999, run_length=1e6)
    rng = np.random.default_rng(31)
    p = p_values(np.sort(rng.random(999)), rng.uniform(low, high, 400))
    bins = np.zeros((400, 1, BIN_COUNT), np.int64)
    bins[np.arange(400), 0, bins_of(p)] = 1
    found = first_alarms(plan, bins, (p <= ALPHA).astype(np.int64)[:, np.newaxis])
    assert found[0] < 300


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


def delays(plan: DetectionPlan, rate: float) -> list[Delay]:
    return [
        simulate(plan, 0.05, rate, pane_records=10, generator=generator())
        for simulate in (window_delay, flags_delay, scores_delay)
    ]


def until_alarm(plan: DetectionPlan, rate: float) -> float | None:
    return records_to_alarm(plan, 0.05, rate, pane_records=10, generator=generator())


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_the_monitor_fires_with_the_detector_that_is_first(rate: float) -> None:
    found = until_alarm(PLAN, rate)
    first = min(delay.typical for delay in delays(PLAN, rate) if delay.typical is not None)
    # Another draw of the same streams.
    assert found == pytest.approx(first, rel=0.1)
    assert until_alarm(PLAN, rate) == found


@pytest.mark.parametrize("rate", [0.0, 0.04, 0.05])
def test_no_more_flags_than_before_are_never_seen(rate: float) -> None:
    assert until_alarm(PLAN, rate) is None


def test_what_no_detector_sees_is_never_seen() -> None:
    rate = 0.055
    assert all(delay.blind for delay in delays(PLAN, rate))
    assert until_alarm(PLAN, rate) is None


def test_a_plan_without_tails_has_an_alarm_too() -> None:
    found = until_alarm(dataclasses.replace(PLAN, tail_rates=()), 0.5)
    assert found is not None
    assert 10 <= found < 100
