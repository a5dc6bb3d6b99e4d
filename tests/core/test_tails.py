import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.methods import log_p, log_two_sided_p

FOUR = np.arange(1.0, 5.0)
REFERENCES = st.lists(
    st.integers(-1_000, 1_000).map(float), min_size=2, max_size=60, unique=True
).map(np.sort)
SCORES = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20).map(np.sort)


@pytest.mark.parametrize(
    ("score", "p"),
    [
        (1, 1 / 5),
        (2, 2 / 5),
        (2.25, 2.25 / 5),
        (4, 4 / 5),
        # The outer two of four are one apart: that is the mean excess on either side.
        (0, 1 / 5 / 2),
        (-2, 1 / 5 / 4),
        (5, 1 - 1 / 5 / 2),
        (7, 1 - 1 / 5 / 4),
    ],
)
def test_by_hand(score: float, p: float) -> None:
    assert float(log_p(FOUR, np.array(score))) == pytest.approx(math.log(p), rel=1e-14)


def test_the_scale_is_the_mean_excess_of_the_outer_tenth() -> None:
    reference = np.concatenate(([-8.0, -1.0, 0.0], np.linspace(1, 2, 27)))
    # Of thirty the lower three count: excesses 8 and 1 below 0.
    found = log_p(reference, np.array([-8 - 4.5]))
    np.testing.assert_allclose(found, -math.log(31) - math.log(2))


@pytest.mark.parametrize(("score", "p"), [(2.5, 1), (1, 2 / 5), (4, 2 / 5), (0, 1 / 5), (5, 1 / 5)])
def test_two_sided_by_hand(score: float, p: float) -> None:
    found = float(log_two_sided_p(FOUR, np.array(score)))
    assert found == pytest.approx(math.log(p), abs=1e-14)


@given(REFERENCES, SCORES)
def test_it_increases_with_the_score_and_has_no_end(
    reference: np.ndarray, scores: np.ndarray
) -> None:
    found = log_p(reference, scores)
    assert np.isfinite(found).all()
    assert (found <= 0).all()
    assert (np.diff(found) >= 0).all()
    apart = np.diff(scores) > 1e-3
    below = scores[1:] <= reference[0]
    assert (np.diff(found)[apart & below] > 0).all()


@given(REFERENCES, SCORES)
def test_two_sided_is_the_same_seen_from_the_other_side(
    reference: np.ndarray, scores: np.ndarray
) -> None:
    mirrored = log_two_sided_p(-reference[::-1], -scores)
    np.testing.assert_allclose(log_two_sided_p(reference, scores), mirrored, rtol=1e-12, atol=1e-12)


@given(REFERENCES)
def test_both_ends_together_are_one(reference: np.ndarray) -> None:
    scores = np.linspace(reference[0], reference[-1], 7)
    low, high = log_p(reference, scores), log_p(-reference[::-1], -scores)
    np.testing.assert_allclose(np.exp(low) + np.exp(high), 1, rtol=1e-9)


def test_references_that_are_all_the_same() -> None:
    found = log_p(np.ones(5), np.array([0.0, -1.0]))
    np.testing.assert_allclose(found, [-math.log(12), -math.log(18)])


def test_nan_stays_nan_and_float32_is_widened() -> None:
    found = log_two_sided_p(FOUR, np.array([math.nan, 2.5], np.float32))
    assert found.dtype == np.float64
    assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize("reference", [[], [1.0], [2.0, 1.0], [1.0, math.nan], [math.nan, 1.0]])
def test_references_are_checked(reference: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending without NaN"):
        log_p(np.array(reference), np.array([1.0]))
