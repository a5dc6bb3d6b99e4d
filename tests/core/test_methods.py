import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.core.methods import (
    NAP,
    Combination,
    Method,
    every_method,
    log_p,
    log_two_sided_p,
    method_scores,
    parse_method,
)
from nap_stream.core.score_specs import BaseScore

NAMES = (
    "nap",
    *("msp", "max_logit", "energy", "react", "ash", "scale", "dice", "knn"),
    *("nap-msp", "nap-max_logit", "nap-energy", "nap-react"),
    *("nap-ash", "nap-scale", "nap-dice", "nap-knn"),
    *("fisher-msp", "fisher-max_logit", "fisher-energy", "fisher-react"),
    *("fisher-ash", "fisher-scale", "fisher-dice", "fisher-knn"),
)
LABELS = (
    "NAP",
    *("MSP", "MaxLogit", "Energy", "ReAct", "ASH", "SCALE", "DICE", "KNN"),
    *("NAP-M", "NAP-L", "NAP-E", "NAP-R", "NAP-A", "NAP-S", "NAP-D", "NAP-K"),
    *("Fisher-M", "Fisher-L", "Fisher-E", "Fisher-R"),
    *("Fisher-A", "Fisher-S", "Fisher-D", "Fisher-K"),
)
REFERENCE = {"energy": np.arange(1.0, 5.0), "nap": np.arange(1.0, 10.0)}

WEIGHTS = st.floats(0, 1)
SCORES = st.floats(-1, 12)


def scores(
    name: str,
    energy: object,
    nap: object,
    weight: float | None = None,
    reference: Mapping[str, NDArray[np.float64]] = REFERENCE,
    *,
    location: float = 0.0,
) -> NDArray[np.float64]:
    values = {"energy": np.array(energy, np.float64), "nap": np.array(nap, np.float64)}
    return method_scores(
        parse_method(name), values, weight=weight, location=location, reference=reference
    )


def one(name: str, energy: float, nap: float, weight: float) -> float:
    return float(scores(name, [energy], [nap], weight)[0])


def test_every_method_has_its_name_and_label() -> None:
    assert tuple(str(method) for method in every_method()) == NAMES
    assert tuple(method.label for method in every_method()) == LABELS


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_back(name: str) -> None:
    method = parse_method(name)
    assert str(method) == name
    assert method.has_weight is ("-" in name)
    assert method.needs_location is name.startswith("nap-")
    assert method.needs_reference is name.startswith("fisher-")
    assert method.base == (None if name == "nap" else name.rpartition("-")[2])


@pytest.mark.parametrize(
    "name", ["", "NAP", "nap-", "nap-nap", "alone-energy", "alone", "fisher", "nap-fisher", "knn "]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of") as refused:
        parse_method(name)
    assert str(refused.value) == f"expected one of {', '.join(NAMES)}, got {name!r}"


@pytest.mark.parametrize("combination", [Combination.GEOMETRIC, Combination.FISHER])
def test_a_combination_needs_a_base(combination: Combination) -> None:
    with pytest.raises(ValueError, match="needs a base"):
        Method(None, combination)


def test_nap_alone() -> None:
    found = scores("nap", [7, 8], [1, 2])
    assert found.dtype == np.float64
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize("base", BaseScore)
def test_each_method_takes_its_own_base(base: BaseScore) -> None:
    """Every other value is NaN, so that reading one would show."""
    values = {str(other): np.array([math.nan]) for other in BaseScore}
    values |= {str(base): np.array([4.0]), "nap": np.array([9.0])}
    reference = {str(base): np.arange(1.0, 8.0), "nap": np.arange(1.0, 16.0)}

    def score(method: Method, weight: float | None) -> float:
        found = method_scores(method, values, weight=weight, location=0.0, reference=reference)
        return float(found[0])

    assert score(Method(base, Combination.ALONE), None) == 4.0
    assert score(Method(base, Combination.GEOMETRIC), 0.5) == pytest.approx(6.0)
    # The 4th of 7 from below: 4/8; the 7th of 15 from above: 2 · 7/16.
    expected = 0.5 * math.log(4 / 8) + 0.5 * math.log(14 / 16)
    assert score(Method(base, Combination.FISHER), 0.5) == pytest.approx(expected)


def test_the_geometric_mean_by_hand() -> None:
    found = scores("nap-energy", [4, 8], [9, 27], 1 / 3, reference={})
    np.testing.assert_allclose(found, [4 ** (1 / 3) * 9 ** (2 / 3), 18.0], rtol=1e-14)


def test_the_geometric_mean_takes_the_location_off_its_base() -> None:
    found = scores("nap-energy", [-1, 11, math.nan], [9, 4, 4], 0.5, location=-5.0)
    np.testing.assert_allclose(found, [6.0, 8.0, math.nan], rtol=1e-14)


@given(SCORES, SCORES, st.floats(-50, 50))
def test_no_other_method_has_a_location(energy: float, nap: float, location: float) -> None:
    for name in ("nap", "energy", "fisher-energy"):
        weight = 0.5 if "-" in name else None
        moved = scores(name, [energy], [nap], weight, location=location)
        np.testing.assert_array_equal(moved, scores(name, [energy], [nap], weight))


def test_fishers_sum_by_hand() -> None:
    # Energy of 2.5 stands between the 2nd and 3rd of 4: p = 2.5/5. NAP of 1.5 between the 1st and
    # 2nd of 9: p = 2 · 1.5/10. Energy of 0 lies a mean excess below all: p = 1/5 · 1/2. NAP of
    # 9.5 lies half of one above all: p = 2 · 1/10 · 1/1.5. NAP of 5 is the middle one: p = 1.
    found = scores("fisher-energy", [2.5, 0, 4], [1.5, 9.5, 5], 0.25)
    expected = [
        0.25 * math.log(0.5) + 0.75 * math.log(0.3),
        0.25 * math.log(0.1) + 0.75 * math.log(0.2 / 1.5),
        0.25 * math.log(0.8),
    ]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@given(SCORES, SCORES)
def test_a_weight_at_an_end_is_one_score_alone(energy: float, nap: float) -> None:
    log_base_p = log_p(REFERENCE["energy"], np.array(energy))
    log_nap_p = log_two_sided_p(REFERENCE["nap"], np.array(nap))
    assert one("fisher-energy", energy, nap, 1) == pytest.approx(float(log_base_p))
    assert one("fisher-energy", energy, nap, 0) == pytest.approx(float(log_nap_p))
    assert one("nap-energy", abs(energy) + 1, abs(nap), 1) == abs(energy) + 1
    assert one("nap-energy", energy, abs(nap), 0) == abs(nap)


@given(SCORES, SCORES, WEIGHTS)
def test_fishers_sum_is_finite_and_not_positive(energy: float, nap: float, weight: float) -> None:
    assert math.isfinite(one("fisher-energy", energy, nap, weight))
    assert one("fisher-energy", energy, nap, weight) <= 0


def test_fishers_sum_has_no_floor() -> None:
    found = scores("fisher-energy", [1, 0, -1, -100], [1, 0, -1, -100], 0.5)
    assert (np.diff(found) < 0).all()


@given(SCORES, SCORES, SCORES, WEIGHTS)
def test_fishers_sum_never_falls_with_the_base(
    first: float, second: float, nap: float, weight: float
) -> None:
    low, high = sorted((first, second))
    assert one("fisher-energy", low, nap, weight) <= one("fisher-energy", high, nap, weight)


@given(SCORES, st.floats(0.01, 0.99))
def test_fishers_sum_rises_with_the_base(nap: float, weight: float) -> None:
    rising = scores("fisher-energy", [0.5, 1.5, 2.5, 3.5, 4.5], [nap] * 5, weight)
    assert (np.diff(rising) > 0).all()


@given(SCORES, st.floats(0, 0.99))
def test_nap_at_either_end_lowers_fishers_sum(energy: float, weight: float) -> None:
    nap = [0.5, 1.5, 2.5, 3.5, 5, 6.5, 7.5, 8.5, 9.5]
    found = scores("fisher-energy", [energy] * 9, nap, weight)
    assert (np.diff(found[:5]) > 0).all()
    assert (np.diff(found[4:]) < 0).all()
    np.testing.assert_allclose(found, found[::-1], atol=1e-12)


@given(st.floats(0.01, 12), st.floats(0.01, 0.99))
def test_the_geometric_mean_rises_with_nap_without_end(energy: float, weight: float) -> None:
    found = scores("nap-energy", [energy] * 4, [0.5, 5, 9.5, 1e6], weight, reference={})
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("name", ["nap-energy", "fisher-energy"])
@pytest.mark.parametrize("weight", [None, -0.01, 1.01, math.nan])
def test_a_weight_out_of_range_is_refused(name: str, weight: float | None) -> None:
    with pytest.raises(ValueError, match=rf"weight in \[0, 1\] for {name}, got {weight}$"):
        scores(name, [1], [1], weight)


@pytest.mark.parametrize("name", ["nap", "energy"])
def test_a_score_alone_has_no_weight(name: str) -> None:
    assert scores(name, [1], [1], None, reference={}).tolist() == [1]


@pytest.mark.parametrize(
    ("name", "lacking"), [("nap-energy", "energy"), ("nap-energy", NAP), ("nap", NAP)]
)
def test_a_missing_value_is_named(name: str, lacking: str) -> None:
    values = {key: np.ones(2) for key in ("energy", NAP) if key != lacking}
    with pytest.raises(KeyError, match=lacking):
        method_scores(parse_method(name), values, weight=0.5, location=0.0, reference=REFERENCE)


@pytest.mark.parametrize("lacking", ["energy", NAP])
def test_a_missing_reference_is_named(lacking: str) -> None:
    reference = {name: value for name, value in REFERENCE.items() if name != lacking}
    with pytest.raises(KeyError, match=lacking):
        scores("fisher-energy", [1], [1], 0.5, reference)


def test_a_reference_is_checked() -> None:
    with pytest.raises(ValueError, match="ascending"):
        scores("fisher-energy", [1], [1], 0.5, REFERENCE | {"nap": np.array([2.0, 1.0])})


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["nap-energy", "fisher-energy"])
def test_nan_in_either_gives_nan_at_any_weight(name: str, weight: float) -> None:
    found = scores(name, [math.nan, 2, math.nan, 2], [2, math.nan, math.nan, 2], weight)
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False])


@pytest.mark.parametrize(("name", "is_nan"), [("nap", [False, True]), ("energy", [True, False])])
def test_nan_counts_where_it_is_read(name: str, is_nan: list[bool]) -> None:
    found = scores(name, [math.nan, 2], [2, math.nan])
    np.testing.assert_array_equal(np.isnan(found), is_nan)


@pytest.mark.parametrize("name", NAMES)
def test_no_images_have_no_scores(name: str) -> None:
    method = parse_method(name)
    values = {key: np.zeros(0, np.float32) for key in (NAP, *BaseScore)}
    reference = {key: np.arange(3.0) for key in (NAP, *BaseScore)}
    weight = 0.5 if method.has_weight else None
    found = method_scores(method, values, weight=weight, location=0.0, reference=reference)
    assert found.shape == (0,)


def test_shapes_differ() -> None:
    for name in ("nap-energy", "fisher-energy"):
        with pytest.raises(ValueError, match=r"\(2,\)"):
            scores(name, [1, 2], [1, 2, 3], 0.5)
