import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.methods import fuse

POSITIVE = st.floats(1e-6, 1e6)
ANY = st.floats(-1e6, 1e6)
WEIGHTS = st.floats(0, 1)
# pow is accurate to a few units in the last place, not monotone to the last one.
ROUNDING = 1 + 1e-12


def one(base: float, nap: float, weight: float) -> float:
    return float(fuse([base], [nap], weight)[0])


def test_by_hand() -> None:
    fused = fuse(np.array([4.0, 16.0], np.float32), np.array([9.0, 1.0], np.float32), 0.5)
    assert fused.dtype == np.float64
    np.testing.assert_allclose(fused, [6.0, 4.0], rtol=1e-15)
    assert one(8.0, 27.0, 1 / 3) == pytest.approx(18.0)


@given(ANY, st.floats(0, 1e6))
def test_weight_0_is_nap(base: float, nap: float) -> None:
    assert one(base, nap, 0.0) == nap


@given(POSITIVE, st.floats(0, 1e6))
def test_weight_1_is_the_base(base: float, nap: float) -> None:
    assert one(base, nap, 1.0) == base


@given(ANY, ANY, ANY, WEIGHTS)
def test_monotone_in_the_base(first: float, second: float, nap: float, weight: float) -> None:
    low, high = sorted((first, second))
    assert one(low, nap, weight) <= one(high, nap, weight) * ROUNDING


@given(ANY, ANY, ANY, WEIGHTS)
def test_monotone_in_nap(base: float, first: float, second: float, weight: float) -> None:
    low, high = sorted((first, second))
    assert one(base, low, weight) <= one(base, high, weight) * ROUNDING


@given(POSITIVE, POSITIVE, WEIGHTS)
def test_lies_between_the_two(base: float, nap: float, weight: float) -> None:
    low, high = sorted((base, nap))
    assert low <= one(base, nap, weight) * ROUNDING
    assert one(base, nap, weight) <= high * ROUNDING


@given(st.floats(-1e6, 0), st.floats(1e-3, 1e3), st.floats(0.01, 1))
def test_a_base_that_is_not_positive_is_the_most_out_of_distribution(
    base: float, nap: float, weight: float
) -> None:
    assert 0 < one(base, nap, weight) < one(1e-6, nap, weight)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("base", "nap"), [(math.nan, 1.0), (1.0, math.nan)])
def test_nan_stays_nan(base: float, nap: float, weight: float) -> None:
    assert math.isnan(one(base, nap, weight))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        fuse([1.0, 2.0], [1.0], 0.5)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="weight"):
            fuse([1.0], [1.0], weight)
