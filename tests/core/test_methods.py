import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.core.methods import (
    NAP,
    POOL,
    Combination,
    LogP,
    Method,
    TwoSidedLogP,
    every_method,
    fuse,
    method_scores,
    parse_method,
)
from nap_stream.core.score_specs import BaseScore

NAMES = (
    "auto",
    "nap",
    *("msp", "max_logit", "energy", "react", "ash", "scale", "dice", "knn"),
    *("fdbd", "mahalanobis", "gen", "nci"),
    *("nap-msp", "nap-max_logit", "nap-energy", "nap-react"),
    *("nap-ash", "nap-scale", "nap-dice", "nap-knn"),
    *("fisher-msp", "fisher-max_logit", "fisher-energy", "fisher-react"),
    *("fisher-ash", "fisher-scale", "fisher-dice", "fisher-knn"),
)
LABELS = (
    "Auto",
    "NAP",
    *("MSP", "MaxLogit", "Energy", "ReAct", "ASH", "SCALE", "DICE", "KNN"),
    *("fDBD", "Mahalanobis", "GEN", "NCI"),
    *("NAP-M", "NAP-L", "NAP-E", "NAP-R", "NAP-A", "NAP-S", "NAP-D", "NAP-K"),
    *("Fisher-M", "Fisher-L", "Fisher-E", "Fisher-R"),
    *("Fisher-A", "Fisher-S", "Fisher-D", "Fisher-K"),
)
REFERENCE = {"energy": np.arange(1.0, 5.0), "nap": np.arange(1.0, 10.0)}

SHARES = st.floats(0, 1)
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
    assert method.needs_reference is (name.startswith("fisher-") or name == "auto")
    assert method.selects is (name == "auto")
    assert method.base == (None if name in {"nap", "auto"} else name.rpartition("-")[2])
    assert method.candidates == (POOL if name == "auto" else (*filter(None, [method.base]),))


@pytest.mark.parametrize(
    "name", ["", "NAP", "nap-", "nap-nap", "alone-energy", "alone", "fisher", "nap-fisher", "knn "]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected one of") as refused:
        parse_method(name)
    assert str(refused.value) == f"expected one of {', '.join(NAMES)}, got {name!r}"


@pytest.mark.parametrize("combination", [Combination.GEOMETRIC, Combination.FISHER])
def test_a_combination_needs_a_base(combination: Combination) -> None:
    with pytest.raises(ValueError, match=f"{combination} does not go with the base score None"):
        Method(None, combination)


def test_a_sum_has_no_base() -> None:
    with pytest.raises(ValueError, match="auto does not go with the base score energy"):
        Method(BaseScore.ENERGY, Combination.SUM)


def test_the_sum_by_hand() -> None:
    values = {"energy": np.array([0.0, 2.5]), "nap": np.array([1.0, 9.0])}
    found = method_scores(
        parse_method("auto"),
        values,
        weight=None,
        location=0.0,
        reference=REFERENCE,
        weights={"energy": 0.25, "nap": 0.75},
    )
    # Energy 0 is a mean excess below the smallest of four references; 2.5 lies between two.
    expected = [
        0.25 * (math.log(1 / 5) - math.log(2)) + 0.75 * math.log(1 / 10),
        0.25 * math.log(2.5 / 5) + 0.75 * math.log(9 / 10),
    ]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weights", [None, {}, {"energy": 0.0, "nap": 1.0}])
def test_a_sum_without_weights_is_refused(weights: dict[str, float] | None) -> None:
    values = {"energy": np.zeros(1), "nap": np.zeros(1)}
    with pytest.raises(ValueError, match="expected weights above 0"):
        method_scores(
            parse_method("auto"),
            values,
            weight=None,
            location=0.0,
            reference=REFERENCE,
            weights=weights,
        )


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
    log_base_p = LogP(REFERENCE["energy"])(np.array(energy))
    log_nap_p = TwoSidedLogP(REFERENCE["nap"])(np.array(nap))
    assert one("fisher-energy", energy, nap, 1) == pytest.approx(float(log_base_p))
    assert one("fisher-energy", energy, nap, 0) == pytest.approx(float(log_nap_p))
    assert one("nap-energy", abs(energy) + 1, abs(nap), 1) == abs(energy) + 1
    assert one("nap-energy", energy, abs(nap), 0) == abs(nap)


@given(SCORES, SCORES, SHARES)
def test_fishers_sum_is_finite_and_not_positive(energy: float, nap: float, weight: float) -> None:
    assert math.isfinite(one("fisher-energy", energy, nap, weight))
    assert one("fisher-energy", energy, nap, weight) <= 0


def test_fishers_sum_has_no_floor() -> None:
    found = scores("fisher-energy", [1, 0, -1, -100], [1, 0, -1, -100], 0.5)
    assert (np.diff(found) < 0).all()


@given(SCORES, SCORES, SCORES, SHARES)
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
    weights = {NAP: 0.5, "energy": 0.5} if method.selects else None
    found = method_scores(
        method, values, weight=weight, location=0.0, reference=reference, weights=weights
    )
    assert found.shape == (0,)


def test_shapes_differ() -> None:
    for name in ("nap-energy", "fisher-energy"):
        with pytest.raises(ValueError, match=r"\(2,\)"):
            scores(name, [1, 2], [1, 2, 3], 0.5)


POSITIVE = st.floats(1e-6, 1e6)
ANY = st.floats(-1e6, 1e6)
# pow is accurate to a few units in the last place, not monotone to the last one.
ROUNDING = 1 + 1e-12


def fused(base: float, nap: float, weight: float) -> float:
    return float(fuse([base], [nap], weight)[0])


def test_a_mean_by_hand() -> None:
    means = fuse(np.array([4.0, 16.0], np.float32), np.array([9.0, 1.0], np.float32), 0.5)
    assert means.dtype == np.float64
    np.testing.assert_allclose(means, [6.0, 4.0], rtol=1e-15)
    assert fused(8.0, 27.0, 1 / 3) == pytest.approx(18.0)


@given(ANY, st.floats(0, 1e6))
def test_weight_0_is_nap(base: float, nap: float) -> None:
    assert fused(base, nap, 0.0) == nap


@given(POSITIVE, st.floats(0, 1e6))
def test_weight_1_is_the_base(base: float, nap: float) -> None:
    assert fused(base, nap, 1.0) == base


@given(ANY, ANY, ANY, SHARES)
def test_monotone_in_the_base(first: float, second: float, nap: float, weight: float) -> None:
    low, high = sorted((first, second))
    assert fused(low, nap, weight) <= fused(high, nap, weight) * ROUNDING


@given(ANY, ANY, ANY, SHARES)
def test_monotone_in_nap(base: float, first: float, second: float, weight: float) -> None:
    low, high = sorted((first, second))
    assert fused(base, low, weight) <= fused(base, high, weight) * ROUNDING


@given(POSITIVE, POSITIVE, SHARES)
def test_lies_between_the_two(base: float, nap: float, weight: float) -> None:
    low, high = sorted((base, nap))
    assert low <= fused(base, nap, weight) * ROUNDING
    assert fused(base, nap, weight) <= high * ROUNDING


@given(st.floats(-1e6, 0), st.floats(1e-3, 1e3), st.floats(0.01, 1))
def test_a_base_that_is_not_positive_is_the_most_out_of_distribution(
    base: float, nap: float, weight: float
) -> None:
    assert 0 < fused(base, nap, weight) < fused(1e-6, nap, weight)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("base", "nap"), [(math.nan, 1.0), (1.0, math.nan)])
def test_nan_stays_nan(base: float, nap: float, weight: float) -> None:
    assert math.isnan(fused(base, nap, weight))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        fuse([1.0, 2.0], [1.0], 0.5)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="weight"):
            fuse([1.0], [1.0], weight)


FOUR = np.arange(1.0, 5.0)
REFERENCES = st.lists(
    st.integers(-1_000, 1_000).map(float), min_size=2, max_size=60, unique=True
).map(np.sort)
ROWS = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20).map(np.sort)


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
def test_log_p_by_hand(score: float, p: float) -> None:
    assert float(LogP(FOUR)(np.array(score))) == pytest.approx(math.log(p), rel=1e-14)


def test_the_scale_is_the_mean_excess_of_the_outer_tenth() -> None:
    reference = np.concatenate(([-8.0, -1.0, 0.0], np.linspace(1, 2, 27)))
    # Of thirty the lower three count: excesses 8 and 1 below 0.
    found = LogP(reference)(np.array([-8 - 4.5]))
    np.testing.assert_allclose(found, -math.log(31) - math.log(2))


@pytest.mark.parametrize(("score", "p"), [(2.5, 1), (1, 2 / 5), (4, 2 / 5), (0, 1 / 5), (5, 1 / 5)])
def test_two_sided_by_hand(score: float, p: float) -> None:
    found = float(TwoSidedLogP(FOUR)(np.array(score)))
    assert found == pytest.approx(math.log(p), abs=1e-14)


@given(REFERENCES, ROWS)
def test_it_increases_with_the_score_and_has_no_end(
    reference: np.ndarray, scores: np.ndarray
) -> None:
    found = LogP(reference)(scores)
    assert np.isfinite(found).all()
    assert (found <= 0).all()
    assert (np.diff(found) >= 0).all()
    apart = np.diff(scores) > 1e-3
    below = scores[1:] <= reference[0]
    assert (np.diff(found)[apart & below] > 0).all()


@given(REFERENCES, ROWS)
def test_two_sided_is_the_same_seen_from_the_other_side(
    reference: np.ndarray, scores: np.ndarray
) -> None:
    mirrored = TwoSidedLogP(-reference[::-1])(-scores)
    np.testing.assert_allclose(TwoSidedLogP(reference)(scores), mirrored, rtol=1e-12, atol=1e-12)


@given(REFERENCES)
def test_both_ends_together_are_one(reference: np.ndarray) -> None:
    scores = np.linspace(reference[0], reference[-1], 7)
    low, high = LogP(reference)(scores), LogP(-reference[::-1])(-scores)
    np.testing.assert_allclose(np.exp(low) + np.exp(high), 1, rtol=1e-9)


def test_references_that_are_all_the_same() -> None:
    found = LogP(np.ones(5))(np.array([0.0, -1.0]))
    np.testing.assert_allclose(found, [-math.log(12), -math.log(18)])


def test_nan_stays_nan_and_float32_is_widened() -> None:
    found = TwoSidedLogP(FOUR)(np.array([math.nan, 2.5], np.float32))
    assert found.dtype == np.float64
    assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize("reference", [[], [1.0], [2.0, 1.0], [1.0, math.nan], [math.nan, 1.0]])
def test_references_are_checked(reference: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending without NaN"):
        LogP(np.array(reference))
