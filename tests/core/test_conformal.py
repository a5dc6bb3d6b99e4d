import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from nap_stream.core.bounds import flag_rate_interval, upper_flag_rate
from nap_stream.core.conformal import (
    Rule,
    flag_rank,
    p_values,
    required_size,
    threshold,
    two_sided_p_values,
)
from nap_stream.core.tails import Sides

# Few distinct values, so that ties are common.
TIED_SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=60)
ALPHAS = st.one_of(
    st.floats(0.001, 0.999),
    st.integers(1, 999).map(lambda thousandths: thousandths / 1000),
)


def test_p_values_by_hand() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    scores = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 9.0])

    p = p_values(calibration, scores)

    assert p.dtype == np.float64
    np.testing.assert_array_equal(p, np.array([1, 2, 2, 4, 4, 5, 5]) / 5)


def test_nan_has_no_p_value() -> None:
    assert np.isnan(p_values(np.array([1.0]), np.array([math.nan]))).all()


def test_p_values_keep_the_shape() -> None:
    calibration = np.array([1.0, 2.0])
    assert p_values(calibration, np.zeros((3, 2))).shape == (3, 2)
    assert p_values(calibration, np.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    "calibration", [[], [[1.0, 2.0]], [2.0, 1.0], [1.0, math.nan], [math.nan], [math.nan, 1.0]]
)
def test_calibration_scores_are_checked(calibration: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        p_values(np.array(calibration), np.array([1.0]))


@pytest.mark.parametrize(
    ("alpha", "m", "k"),
    [
        (0.05, 18, 0),
        (0.05, 19, 1),
        (0.05, 38, 1),
        (0.05, 39, 2),
        (0.05, 2_000, 100),
        (0.29, 99, 29),  # 0.29 * 100 is 28.999999999999996
        (0.07, 99, 7),  # 0.07 * 100 is 7.000000000000001
        (1 / 3, 2, 1),
        (0.999, 1, 1),
    ],
)
def test_flag_rank_by_hand(alpha: float, m: int, k: int) -> None:
    assert flag_rank(alpha, m) == k


@given(st.integers(1, 999_999), st.integers(1, 100_000))
def test_flag_rank_is_that_of_the_decimal(millionths: int, m: int) -> None:
    exact = math.floor(Fraction(millionths, 1_000_000) * (m + 1))
    assert flag_rank(millionths / 1_000_000, m) == exact


@given(st.integers(1, 999_999))
def test_required_size_is_the_smallest_that_flags(millionths: int) -> None:
    alpha = millionths / 1_000_000
    m = required_size(alpha)
    assert flag_rank(alpha, m) >= 1
    assert m == 1 or flag_rank(alpha, m - 1) == 0


def test_required_size_by_hand() -> None:
    assert [required_size(alpha) for alpha in (0.05, 0.01, 0.001, 0.5, 0.9)] == [19, 99, 999, 1, 1]


@given(TIED_SCORES, TIED_SCORES, ALPHAS)
def test_threshold_and_p_value_flag_the_same(
    calibration: list[float], scores: list[float], alpha: float
) -> None:
    ascending, values = np.sort(calibration), np.array(scores)
    by_p_value = p_values(ascending, values) <= alpha
    np.testing.assert_array_equal(values < threshold(ascending, alpha), by_p_value)


def test_a_calibration_that_is_too_small_flags_nothing() -> None:
    assert threshold(np.arange(18.0), 0.05) == -math.inf
    assert threshold(np.arange(19.0), 0.05) == 0.0


@given(st.integers(0, 2**32 - 1))
def test_in_distribution_p_values_are_valid(seed: int) -> None:
    """Over the draw of calibration and score together, P(p <= alpha) is at most alpha."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(np.arange(20.0))
    ranks = [p_values(np.sort(np.delete(scores, i)), scores[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(np.sort(ranks), np.arange(1, 21) / 20)


@pytest.mark.parametrize(
    ("m", "upper"), [(500, 0.0668), (2_000, 0.0582), (5_000, 0.0552), (20_000, 0.0526)]
)
def test_upper_flag_rate_by_hand(m: int, upper: float) -> None:
    assert upper_flag_rate(flag_rank(0.05, m), m, 0.95) == pytest.approx(upper, abs=5e-5)


def test_flag_rate_interval_is_equal_tailed() -> None:
    low, high = flag_rate_interval(flag_rank(0.05, 2_000), 2_000, 0.9)
    rate = beta(100, 1_901)
    assert rate.cdf(low) == pytest.approx(0.05)
    assert rate.sf(high) == pytest.approx(0.05)
    assert high == pytest.approx(upper_flag_rate(100, 2_000, 0.95))


def test_flag_rates_of_drawn_calibrations_follow_the_law() -> None:
    """The true rate of a threshold on uniform scores is the threshold itself."""
    rng = np.random.default_rng(7)
    rates = [threshold(np.sort(rng.random(199)), 0.05) for _ in range(4_000)]
    low, high = flag_rate_interval(flag_rank(0.05, 199), 199, 0.9)
    inside = np.mean((np.array(rates) >= low) & (np.array(rates) <= high))
    assert inside == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("alpha", "m"), [(0.0, 10), (1.0, 10), (math.nan, 10), (0.05, 0)])
def test_flag_rank_refuses_nonsense(alpha: float, m: int) -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha < 1"):
        flag_rank(alpha, m)


@pytest.mark.parametrize(("k", "m"), [(flag_rank(0.05, 18), 18), (-1, 18), (19, 18), (1, 0)])
def test_rates_refuse_a_rank_that_is_none(k: int, m: int) -> None:
    with pytest.raises(ValueError, match="too few calibration scores"):
        upper_flag_rate(k, m, 0.95)
    with pytest.raises(ValueError, match="too few calibration scores"):
        flag_rate_interval(k, m, 0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5, math.nan])
def test_rates_refuse_nonsense(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        upper_flag_rate(5, 100, confidence)


@pytest.mark.parametrize("confidence", [-0.5, 0.0, 1.0, 1.5, math.nan])
def test_intervals_refuse_nonsense(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        flag_rate_interval(5, 100, confidence)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_required_size_refuses_nonsense(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        required_size(alpha)


def test_two_sided_p_values_by_hand() -> None:
    calibration = np.arange(1.0, 10.0)
    scores = np.array([-math.inf, 0.5, 1.5, 2.5, 4.5, 5.5, 7.5, 8.5, 9.5, math.inf])

    p = two_sided_p_values(calibration, scores)

    assert p.dtype == np.float64
    np.testing.assert_allclose(p, np.array([2, 2, 4, 6, 10, 10, 6, 4, 2, 2]) / 10, rtol=1e-15)


def test_two_sided_p_values_count_ties_towards_either_side() -> None:
    """A tie is at least as extreme from wherever one looks, which can only raise p."""
    calibration = np.array([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    p = two_sided_p_values(calibration, np.array([1.0, 2.0, 5.0, 6.0]))

    np.testing.assert_array_equal(p, np.array([4, 8, 6, 4]) / 8)
    np.testing.assert_array_equal(two_sided_p_values(np.ones(4), np.array([0.0, 1.0])), [0.4, 1.0])


def test_two_sided_nan_has_no_p_value() -> None:
    p = two_sided_p_values(np.array([1.0, 2.0]), np.array([[math.nan, 1.0]]))
    assert p.shape == (1, 2)
    np.testing.assert_array_equal(np.isnan(p), [[True, False]])


def test_two_sided_calibration_scores_are_checked() -> None:
    with pytest.raises(ValueError, match="ascending"):
        two_sided_p_values(np.array([2.0, 1.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="m >= 1"):
        two_sided_p_values(np.zeros(0), np.array([1.0]))


@given(TIED_SCORES, TIED_SCORES)
def test_two_sided_p_values_are_those_of_the_negated_scores(
    calibration: list[float], scores: list[float]
) -> None:
    ascending, values = np.sort(calibration), np.array(scores)
    negated = two_sided_p_values(-ascending[::-1], -values)
    np.testing.assert_array_equal(two_sided_p_values(ascending, values), negated)


@given(TIED_SCORES, TIED_SCORES)
def test_two_sided_p_values_are_twice_the_smaller_one(
    calibration: list[float], scores: list[float]
) -> None:
    ascending, values = np.sort(calibration), np.array(scores)
    low = p_values(ascending, values)
    high = p_values(-ascending[::-1], -values)
    expected = np.minimum(1, 2 * np.minimum(low, high))
    np.testing.assert_array_equal(two_sided_p_values(ascending, values), expected)


@pytest.mark.parametrize("n", [20, 21])
@given(seed=st.integers(0, 2**32 - 1))
def test_in_distribution_two_sided_p_values_are_valid(n: int, seed: int) -> None:
    """Each of the n ranks of an exchangeable score is as likely; two have each p-value below 1."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(np.arange(float(n)))
    p = [two_sided_p_values(np.sort(np.delete(scores, i)), scores[i : i + 1])[0] for i in range(n)]
    expected = np.minimum(1, 2 * np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / n)
    np.testing.assert_allclose(np.sort(p), np.sort(expected))


@given(TIED_SCORES, st.floats(0.001, 0.999))
def test_tied_exchangeable_two_sided_p_values_are_conservative(
    scores: list[float], alpha: float
) -> None:
    pool = np.array([*scores, 0.0])
    p = [
        two_sided_p_values(np.sort(np.delete(pool, i)), pool[i : i + 1])[0]
        for i in range(len(pool))
    ]
    assert np.sum(np.array(p) <= alpha) <= Rule(alpha, Sides.TWO).flag_rank(len(scores))


@pytest.mark.parametrize(
    ("alpha", "m", "k"),
    [
        (0.05, 38, 0),
        (0.05, 39, 2),
        (0.05, 78, 2),
        (0.05, 79, 4),
        (0.05, 2_000, 100),
        (0.05, 1_999, 100),
        (0.58, 99, 58),  # 0.29 * 100 is 28.999999999999996
        (0.14, 99, 14),  # 0.07 * 100 is 7.000000000000001
        (0.999, 1, 0),
        (0.999, 2, 2),
    ],
)
def test_two_sided_flag_rank_by_hand(alpha: float, m: int, k: int) -> None:
    assert Rule(alpha, Sides.TWO).flag_rank(m) == k


@given(ALPHAS, st.integers(1, 2_000))
def test_two_sided_flag_rank_counts_the_flagged_ranks(alpha: float, m: int) -> None:
    """A score between every two neighbours of m others, and beyond both ends, has each rank."""
    flagged = two_sided_p_values(np.arange(float(m)), np.arange(m + 1) - 0.5) <= alpha
    k = Rule(alpha, Sides.TWO).flag_rank(m)
    assert flagged.sum() == k
    assert flagged[: k // 2].all()
    assert flagged[m + 1 - k // 2 :].all()


@given(st.integers(1, 999_999))
def test_required_size_of_half_alpha_is_the_two_sided_one(millionths: int) -> None:
    alpha = millionths / 1_000_000
    m = required_size(alpha / 2)
    assert Rule(alpha, Sides.TWO).flag_rank(m) >= 2
    assert m == 1 or Rule(alpha, Sides.TWO).flag_rank(m - 1) == 0


@pytest.mark.parametrize(("alpha", "m"), [(0.05, 199), (0.2, 20)])
def test_two_sided_flag_rates_of_drawn_calibrations_follow_the_law(alpha: float, m: int) -> None:
    """Uniform scores: the true rate is what lies below the one threshold and above the other."""
    rng = np.random.default_rng(7)
    calibrations = np.sort(rng.random((2_000, m)), axis=1)
    k = Rule(alpha, Sides.TWO).flag_rank(m)
    rates = calibrations[:, k // 2 - 1] + 1 - calibrations[:, m - k // 2]
    assert kstest(rates, beta(k, m + 1 - k).cdf).pvalue > 0.01

    grid = (np.arange(20_000) + 0.5) / 20_000
    for ascending, rate in zip(calibrations[:20], rates[:20], strict=True):
        simulated = np.mean(two_sided_p_values(ascending, grid) <= alpha)
        assert simulated == pytest.approx(rate, abs=2e-4)
