import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from nap_stream.core.conformal import (
    flag_rank,
    flag_rate_interval,
    p_values,
    required_size,
    threshold,
    upper_flag_rate,
)

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
    assert upper_flag_rate(0.05, m, 0.95) == pytest.approx(upper, abs=5e-5)


def test_flag_rate_interval_is_equal_tailed() -> None:
    low, high = flag_rate_interval(0.05, 2_000, 0.9)
    rate = beta(100, 1_901)
    assert rate.cdf(low) == pytest.approx(0.05)
    assert rate.sf(high) == pytest.approx(0.05)
    assert high == pytest.approx(upper_flag_rate(0.05, 2_000, 0.95))


def test_flag_rates_of_drawn_calibrations_follow_the_law() -> None:
    """The true rate of a threshold on uniform scores is the threshold itself."""
    rng = np.random.default_rng(7)
    rates = [threshold(np.sort(rng.random(199)), 0.05) for _ in range(4_000)]
    low, high = flag_rate_interval(0.05, 199, 0.9)
    inside = np.mean((np.array(rates) >= low) & (np.array(rates) <= high))
    assert inside == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("alpha", "m"), [(0.0, 10), (1.0, 10), (math.nan, 10), (0.05, 0)])
def test_flag_rank_refuses_nonsense(alpha: float, m: int) -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha < 1"):
        flag_rank(alpha, m)


def test_rates_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="m >= 19"):
        upper_flag_rate(0.05, 18, 0.95)
    with pytest.raises(ValueError, match="confidence"):
        upper_flag_rate(0.05, 100, 1.0)
    with pytest.raises(ValueError, match="alpha"):
        required_size(0.0)
