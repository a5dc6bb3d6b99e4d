import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy.stats import betabinom, binom

from nap_stream.core.bounds import (
    flag_limit,
    highest_flag_limit,
    scan_exceedance,
    scan_limit,
    scan_run_length,
    tail_probabilities,
)
from nap_stream.core.conformal import flag_rank
from nap_stream.core.tails import FlagRateLaw


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int]:
    m = draw(st.integers(1, 3_000))
    return draw(st.integers(1, 400)), draw(st.integers(1, m)), m


@given(problems())
def test_tail_is_that_of_the_beta_binomial(problem: tuple[int, int, int]) -> None:
    n, k, m = problem
    tail = tail_probabilities(n, k, m)
    assert tail[0] == 1.0
    assert tail[-1] == 0.0
    # Its sf is one minus the cdf, which is good to 1e-11 only; so its pmf is summed.
    pmf = betabinom.pmf(np.arange(n + 1), n, k, m + 1 - k)
    np.testing.assert_allclose(tail[:-1], np.cumsum(pmf[::-1])[::-1], rtol=1e-6, atol=1e-250)


def test_tail_by_hand() -> None:
    # k = m = 1: the rate is uniform on [0, 1], every count equally likely.
    np.testing.assert_allclose(tail_probabilities(3, 1, 1), [1, 0.75, 0.5, 0.25, 0])
    # n = 1: the mean k / (m + 1) of the rate.
    np.testing.assert_allclose(tail_probabilities(1, 5, 99), [1, 0.05, 0])


@pytest.mark.parametrize(("m", "limit"), [(500, 94), (2_000, 80), (5_000, 76), (20_000, 74)])
def test_limit_of_the_reference_table(m: int, limit: int) -> None:
    assert flag_limit(1_000, flag_rank(0.05, m), m, 1e-3) == limit


@given(problems(), st.floats(1e-9, 0.999))
def test_limit_is_the_smallest_that_keeps_the_probability(
    problem: tuple[int, int, int], probability: float
) -> None:
    n, k, m = problem
    tail = tail_probabilities(n, k, m)
    limit = flag_limit(n, k, m, probability)
    assert 1 <= limit <= n + 1
    assert tail[limit] <= probability < tail[limit - 1]


@given(problems(), st.floats(1e-6, 0.5), st.floats(1e-6, 0.5))
def test_a_smaller_probability_asks_for_more(
    problem: tuple[int, int, int], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    assert flag_limit(*problem, low) >= flag_limit(*problem, high)


def test_a_huge_calibration_gives_the_binomial_limit() -> None:
    m = 10_000_000
    expected = int(binom.isf(1e-3, 1_000, 0.05)) + 1
    assert flag_limit(1_000, flag_rank(0.05, m), m, 1e-3) == expected


def test_a_window_that_cannot_surprise_has_a_limit_out_of_reach() -> None:
    assert flag_limit(1, 1, 19, 0.01) == 2


def test_the_highest_limit_is_that_of_the_fatter_tail() -> None:
    """Of 38 images and 200: the rate of the second has the higher mean and 95 % quantile."""
    small, large = FlagRateLaw(1, 38), FlagRateLaw(10, 200)
    assert flag_limit(1_000, 10, 200, 1e-3) == 116
    assert tail_probabilities(1_000, 1, 38)[116] == pytest.approx(0.0101, abs=5e-5)
    assert highest_flag_limit(1_000, [small, large], 1e-3) == (170, small)
    # At a probability that is not small, the mean of the rate decides: 1/39 and 10/201.
    assert highest_flag_limit(1_000, [small, large], 0.4) == (53, large)


@given(problems(), st.lists(st.integers(1, 300), min_size=1, max_size=12), st.data())
def test_the_highest_limit_is_the_largest_of_all(
    problem: tuple[int, int, int], sizes: list[int], data: st.DataObject
) -> None:
    n, k, m = problem
    ranks = [data.draw(st.integers(1, size)) for size in sizes]
    laws = [FlagRateLaw(k, m), *map(FlagRateLaw, ranks, sizes)]
    limits = [flag_limit(n, law.flag_rank, law.size, 1e-3) for law in laws]
    limit, law = highest_flag_limit(n, laws, 1e-3)
    assert limit == max(limits)
    assert (limit, law) in zip(limits, laws, strict=True)
    assert law.flag_rank == min(
        law.flag_rank for law, own in zip(laws, limits, strict=True) if own == limit
    )
    assert highest_flag_limit(n, reversed(laws), 1e-3) == (limit, law)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("n", "probability"), [(200, 0.05), (1_000, 1e-3)])
def test_a_mix_of_two_classes_has_a_thinner_tail(n: int, probability: float, share: float) -> None:
    first = round(share * n)
    law = betabinom.pmf(np.arange(first + 1), first, 1, 38)
    other = betabinom.pmf(np.arange(n - first + 1), n - first, 10, 191)
    limit, _ = highest_flag_limit(n, [FlagRateLaw(1, 38), FlagRateLaw(10, 200)], probability)
    assert np.convolve(law, other)[limit:].sum() < probability


def test_near_the_median_a_mix_of_two_classes_can_be_a_little_heavier() -> None:
    """No flag in 2 records, uniform rates: E (1 - p)^2 = 1/3 of one class, 1/2 * 1/2 of two."""
    uniform = FlagRateLaw(1, 1)
    limit, _ = highest_flag_limit(2, [uniform], 0.7)
    assert limit == 1
    assert tail_probabilities(2, 1, 1)[1] == pytest.approx(2 / 3)
    assert 1 - betabinom.pmf(0, 1, 1, 1) ** 2 == pytest.approx(3 / 4)


def test_there_must_be_a_law() -> None:
    with pytest.raises(ValueError, match="empty"):
        highest_flag_limit(10, [], 1e-3)


@pytest.mark.parametrize(("k", "m"), [(0, 10), (11, 10)])
def test_refuses_a_law_without_a_rate(k: int, m: int) -> None:
    with pytest.raises(ValueError, match="1 <= flag_rank <= size"):
        FlagRateLaw(k, m)


def test_false_alarms_in_simulation() -> None:
    """Calibrations and windows drawn anew: the limit is reached as seldom as stated."""
    n, m, probability, draws = 200, 199, 0.02, 40_000
    k = flag_rank(0.05, m)
    rng = np.random.default_rng(11)
    threshold = np.partition(rng.random((draws, m)), k - 1, axis=1)[:, k - 1]
    flagged = rng.binomial(n, threshold)

    limit = flag_limit(n, k, m, probability)

    share = np.mean(flagged >= limit)
    expected = tail_probabilities(n, k, m)[limit]
    assert expected <= probability
    assert share == pytest.approx(expected, abs=4 * np.sqrt(probability / draws))
    # The limit of the point estimate is reached many times as often.
    plain = int(binom.isf(probability, n, 0.05)) + 1
    assert np.mean(flagged >= plain) > 2 * probability


def test_long_windows_are_quick_and_exact() -> None:
    n, k, m = 100_000, 100, 2_000
    started = time.process_time()
    limit = flag_limit(n, k, m, 1e-3)
    assert time.process_time() - started < 10
    law = betabinom(n, k, m + 1 - k)
    assert law.sf(limit - 1) <= 1e-3 < law.sf(limit - 2)


@pytest.mark.parametrize(("n", "k", "m"), [(0, 1, 10), (10, 0, 10), (10, 11, 10)])
def test_refuses_nonsense(n: int, k: int, m: int) -> None:
    with pytest.raises(ValueError, match="expected n >= 1"):
        tail_probabilities(n, k, m)


@pytest.mark.parametrize("probability", [0.0, 1.0, float("nan")])
def test_refuses_a_probability_out_of_range(probability: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        flag_limit(10, 1, 19, probability)


RATES = st.floats(1e-6, 1 - 1e-6)


def enumerated_exceedance(n: int, q: int, rates: ArrayLike) -> float:
    """The same over all 2^(2n) sequences of flags, each record with its own rate."""
    bits = np.arange(2 ** (2 * n))[:, np.newaxis] >> np.arange(2 * n) & 1
    probability = np.where(bits, rates, 1 - np.asarray(rates)).prod(axis=1)
    sums = np.cumsum(np.pad(bits, ((0, 0), (1, 0))), axis=1)
    highest = (sums[:, n:] - sums[:, :-n]).max(axis=1)
    return float(probability[highest >= q].sum())


def exact_run_length(n: int, q: int, p: float) -> float:
    """From the Markov chain of the last n flags: one equation a sequence, alarms absorb."""
    size = 2**n
    states = np.arange(size)
    flags = (states[:, np.newaxis] >> np.arange(n) & 1).sum(axis=1)
    moves = np.zeros((size, size))
    for flag, probability in ((0, 1 - p), (1, p)):
        moves[states, (states << 1 | flag) % size] += probability
    quiet = flags < q
    ahead = np.linalg.solve(np.eye(quiet.sum()) - moves[np.ix_(quiet, quiet)], np.ones(quiet.sum()))
    start = p**flags * (1 - p) ** (n - flags)
    return float(n + start[quiet] @ ahead)


@given(st.integers(1, 6), st.data(), RATES)
def test_exceedance_is_that_of_all_sequences(n: int, data: st.DataObject, p: float) -> None:
    q = data.draw(st.integers(1, n))
    assert scan_exceedance(n, q, p) == pytest.approx(
        enumerated_exceedance(n, q, p), rel=1e-9, abs=1e-12
    )


@given(n=st.integers(1, 100_000), p=st.floats(1e-4, 0.9), deviations=st.floats(-4, 12))
def test_exceedance_is_that_of_the_binomials(n: int, p: float, deviations: float) -> None:
    q = int(np.clip(n * p + deviations * np.sqrt(n * p * (1 - p)), 1, n))
    above = binom.sf(q - 1, n, p)
    shared = (q - 1) * binom.cdf(q - 2, n, p) - n * p * binom.cdf(q - 3, n - 1, p)
    expected = min(1.0, above * (2 - above) + binom.pmf(q, n, p) * shared)
    assert scan_exceedance(n, q, p) == pytest.approx(expected, rel=1e-9)


def test_exceedance_by_hand() -> None:
    # One flag in 2n records is enough; of windows of 1, one of 2.
    assert scan_exceedance(5, 1, 0.1) == pytest.approx(1 - 0.9**10, rel=1e-12)
    assert scan_exceedance(1, 1, 0.25) == pytest.approx(1 - 0.75**2, rel=1e-12)
    # Two neighbours of four records: 8 of the 16 sequences.
    assert scan_exceedance(2, 2, 0.5) == pytest.approx(0.5, rel=1e-12)
    # A run of n in 2n records starts at the first record, or after a miss at one of n.
    assert scan_exceedance(7, 7, 0.01) == pytest.approx(0.01**7 * (1 + 7 * 0.99), rel=1e-12)


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(st.integers(1, n), st.lists(RATES, min_size=2 * n, max_size=2 * n))
    )
)
def test_a_mix_of_rates_exceeds_no_more_often_than_the_highest(
    problem: tuple[int, list[float]],
) -> None:
    q, rates = problem
    n = len(rates) // 2
    assert enumerated_exceedance(n, q, rates) <= scan_exceedance(n, q, max(rates)) + 1e-12


@given(st.integers(2, 2_000), st.data(), RATES, RATES)
def test_exceedance_falls_with_the_limit_and_rises_with_the_rate(
    n: int, data: st.DataObject, first: float, second: float
) -> None:
    q = data.draw(st.integers(1, n - 1))
    low, high = sorted((first, second))
    for p in (low, high):
        assert 0 <= scan_exceedance(n, q + 1, p) <= scan_exceedance(n, q, p) * (1 + 1e-9) <= 1.1
    assert scan_exceedance(n, q, low) <= scan_exceedance(n, q, high) * (1 + 1e-9)


@pytest.mark.parametrize("p", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_bound_on_the_run_length_holds_in_the_smallest_windows(n: int, p: float) -> None:
    """It is loosest at a limit of 1: half as long, since a block is judged by 2n records."""
    for q in range(1, n + 1):
        bound = scan_run_length(n, q, p)
        assert bound <= exact_run_length(n, q, p) <= 2 * bound


def test_a_rolling_window_in_simulation() -> None:
    n, p, streams, length = 100, 0.05, 500, 20_000
    q = scan_limit(n, p, 2_000)
    bound = scan_run_length(n, q, p)
    assert 2_000 <= bound < 5_000
    flags = np.random.default_rng(7).random((streams, length), dtype=np.float32) < p
    sums = np.cumsum(flags, axis=1, dtype=np.int16)
    sums[:, n:] -= sums[:, :-n].copy()
    reached = sums[:, n - 1 :] >= q
    found = np.where(reached.any(axis=1), reached.argmax(axis=1) + n, length)

    error = 3 * found.std() / np.sqrt(streams)
    assert bound - error <= found.mean() <= 1.5 * bound
    for within in (500, 1_000, 2_000):
        share = within / bound
        assert np.mean(found < within) <= share + 3 * np.sqrt(share / streams)


@given(st.integers(1, 3_000), st.floats(1e-4, 0.9), st.floats(1, 1e15))
def test_the_scan_limit_is_the_smallest_that_keeps_the_run_length(
    n: int, p: float, run_length: float
) -> None:
    q = scan_limit(n, p, run_length)
    assert 1 <= q <= n + 1
    if q <= n:
        assert scan_run_length(n, q, p) >= run_length
    if q > 1:
        assert scan_run_length(n, q - 1, p) < run_length


def test_long_run_lengths_are_told_apart() -> None:
    lengths = [10.0**power for power in range(4, 16)]
    limits = [scan_limit(1_000, 0.06, length) for length in lengths]
    assert limits == sorted(set(limits))
    assert limits[-1] < 200
    for before, after in pairwise(scan_run_length(1_000, q, 0.06) for q in range(1, 250)):
        assert before <= after * (1 + 1e-12)
        assert np.isfinite(after)


def test_a_count_too_rare_for_a_float_has_an_endless_run_length() -> None:
    assert scan_run_length(1_000, 1_000, 1e-3) == float("inf")
    assert scan_limit(3, 0.5, 1e6) == 4


@pytest.mark.parametrize(
    ("n", "q", "p"), [(0, 1, 0.5), (3, 0, 0.5), (3, 4, 0.5), (3, 1, 0.0), (3, 1, 1.0)]
)
def test_refuses_a_window_that_is_none(n: int, q: int, p: float) -> None:
    with pytest.raises(ValueError, match="expected 1 <= q <= n"):
        scan_exceedance(n, q, p)


@pytest.mark.parametrize("run_length", [0.5, float("nan")])
def test_refuses_a_run_length_out_of_range(run_length: float) -> None:
    with pytest.raises(ValueError, match="run length of at least 1"):
        scan_limit(10, 0.5, run_length)
