import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta

from nap_stream.core.conformal import ConformalTest, Group, Rule, p_values, two_sided_p_values
from nap_stream.core.tails import Sides

SIDES = st.sampled_from(Sides)


def classes_of(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def zeros(count: int) -> NDArray[np.int64]:
    return np.zeros(count, dtype=np.int64)


def of_sizes(rule: Rule, *sizes: int) -> ConformalTest:
    """A test whose class c has ``sizes[c]`` images, with scores c * 1000 + 1, 2, …"""
    scores = np.concatenate([c * 1_000 + np.arange(1.0, n + 1) for c, n in enumerate(sizes)])
    return ConformalTest(rule, scores, np.repeat(np.arange(len(sizes)), sizes), len(sizes))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_a_rule_refuses_nonsense(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha < 1"):
        Rule(alpha)


def test_a_rule_is_one_sided_over_all_images_by_default() -> None:
    assert Rule(0.05) == Rule(0.05, Sides.ONE, per_class=False)


@pytest.mark.parametrize(
    ("sides", "required", "rank_of_39", "rank_of_100"),
    [(Sides.ONE, 19, 2, 5), (Sides.TWO, 39, 2, 4)],
)
def test_what_a_rule_needs(sides: Sides, required: int, rank_of_39: int, rank_of_100: int) -> None:
    rule = Rule(0.05, sides)
    assert rule.required_size == required
    assert rule.flag_rank(required) >= 1
    assert rule.flag_rank(required - 1) == 0
    assert (rule.flag_rank(39), rule.flag_rank(100)) == (rank_of_39, rank_of_100)


def test_one_sided_by_hand() -> None:
    test = of_sizes(Rule(0.1), 19)

    p = test.p_values(np.array([0.5, 1.5, 2.0, 2.5, 99.0]), zeros(5))

    assert p.dtype == np.float64
    np.testing.assert_allclose(p, [0.05, 0.1, 0.15, 0.15, 1.0])
    # 1.5 is flagged, 2.0 is not.
    assert test.groups == (Group(None, 19, 2, 2.0, None),)


def test_two_sided_by_hand() -> None:
    test = of_sizes(Rule(0.2, Sides.TWO), 19)

    p = test.p_values(np.array([0.5, 1.5, 2.0, 10.0, 18.0, 18.5, 19.5]), zeros(7))

    np.testing.assert_allclose(p, [0.1, 0.2, 0.3, 1.0, 0.3, 0.2, 0.1])
    assert test.groups == (Group(None, 19, 4, 2.0, 18.0),)


def test_per_class_by_hand() -> None:
    test = of_sizes(Rule(0.05, per_class=True), 19, 39)

    p = test.p_values(np.array([0.0, 1_000.0, 1_000.0, 5.0]), classes_of(0, 1, 0, 1))

    np.testing.assert_allclose(p, [1 / 20, 1 / 40, 20 / 20, 1 / 40])
    assert test.groups == (Group(0, 19, 1, 1.0, None), Group(1, 39, 2, 1_002.0, None))


def test_two_sided_per_class_by_hand() -> None:
    test = of_sizes(Rule(0.1, Sides.TWO, per_class=True), 19, 39)

    p = test.p_values(np.array([0.0, 1_000.0, 1_000.0]), classes_of(0, 1, 0))

    np.testing.assert_allclose(p, [2 / 20, 2 / 40, 2 / 20])
    assert test.groups == (Group(0, 19, 2, 1.0, 19.0), Group(1, 39, 4, 1_002.0, 1_038.0))


def test_calibration_scores_come_in_any_order() -> None:
    scores, class_id = np.arange(1.0, 61.0), np.arange(60) % 3
    order = np.random.default_rng(0).permutation(60)
    rule = Rule(0.1, Sides.TWO, per_class=True)

    ascending = ConformalTest(rule, scores, class_id, 3)
    shuffled = ConformalTest(rule, scores[order], class_id[order], 3)

    assert shuffled.groups == ascending.groups
    np.testing.assert_array_equal(
        shuffled.p_values(scores, class_id), ascending.p_values(scores, class_id)
    )


@given(SIDES, st.integers(1, 3), st.floats(0.02, 0.98), st.integers(0, 2**32 - 1))
def test_flagged_is_what_is_beyond_the_thresholds(
    sides: Sides, classes: int, alpha: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rule = Rule(alpha, sides, per_class=classes > 1)
    class_id = np.repeat(np.arange(classes), rule.required_size + rng.integers(0, 40, classes))
    # Few distinct values, so that ties are common.
    test = ConformalTest(rule, rng.integers(-4, 5, len(class_id)).astype(float), class_id, classes)
    scores, predicted = (
        np.asarray(rng.integers(-10, 11, 60) / 2, np.float64),
        rng.integers(0, classes, 60),
    )

    flagged = test.p_values(scores, predicted) <= alpha

    groups = [test.groups[number if rule.per_class else 0] for number in predicted]
    beyond = [
        score < group.lower or (group.upper is not None and score > group.upper)
        for score, group in zip(scores, groups, strict=True)
    ]
    np.testing.assert_array_equal(flagged, beyond)


@given(SIDES, st.integers(0, 2**32 - 1))
def test_per_class_p_values_are_those_of_the_class_alone(sides: Sides, seed: int) -> None:
    rng = np.random.default_rng(seed)
    class_id = rng.permutation(np.repeat(np.arange(3), [25, 30, 40]))
    calibration, scores = (
        rng.integers(0, 20, 95).astype(float),
        rng.integers(0, 20, 30).astype(float),
    )
    predicted = rng.integers(0, 3, 30)

    p = ConformalTest(Rule(0.1, sides, per_class=True), calibration, class_id, 3).p_values(
        scores, predicted
    )

    compare = p_values if sides is Sides.ONE else two_sided_p_values
    for number in range(3):
        of_class = np.sort(calibration[class_id == number])
        np.testing.assert_array_equal(
            p[predicted == number], compare(of_class, scores[predicted == number])
        )


def test_class_ids_do_not_matter_to_a_rule_over_all_images() -> None:
    scores, class_id = np.arange(40.0), np.arange(40) % 2
    test = ConformalTest(Rule(0.1), scores, class_id, 2)
    np.testing.assert_array_equal(
        test.p_values(scores, class_id), test.p_values(scores, 1 - class_id)
    )


@pytest.mark.parametrize("sides", Sides)
def test_alpha_holds_for_each_class_only_per_class(sides: Sides) -> None:
    """Leaving out one image after the other has each rank in its class once."""
    n, alpha = 40, 0.1
    rng = np.random.default_rng(1)
    class_id = np.repeat([0, 1], n)
    scores = np.concatenate([rng.normal(0, 1, n), rng.normal(5, 1, n)])

    def flags_by_class(rule: Rule) -> list[int]:
        flagged = [0, 0]
        for i in range(2 * n):
            test = ConformalTest(rule, np.delete(scores, i), np.delete(class_id, i), 2)
            p = test.p_values(scores[i : i + 1], class_id[i : i + 1])
            flagged[class_id[i]] += int(p[0] <= alpha)
        return flagged

    assert flags_by_class(Rule(alpha, sides, per_class=True)) == [4, 4]
    assert flags_by_class(Rule(alpha)) == [8, 0]


def test_nan_has_no_p_value() -> None:
    scores, class_id = np.array([math.nan, 5.0, math.nan]), classes_of(0, 1, 1)
    for sides in Sides:
        for per_class in (False, True):
            test = of_sizes(Rule(0.1, sides, per_class=per_class), 20, 20)
            p = test.p_values(scores, class_id)
            np.testing.assert_array_equal(np.isnan(p), [True, False, True])


@pytest.mark.parametrize("per_class", [False, True])
def test_no_images_have_no_p_values(per_class: bool) -> None:
    test = of_sizes(Rule(0.1, per_class=per_class), 20, 20)
    assert test.p_values(np.zeros(0), zeros(0)).shape == (0,)


@pytest.mark.parametrize("number", [-1, 2, 1_000])
def test_a_class_without_a_group_is_refused(number: int) -> None:
    test = of_sizes(Rule(0.1, per_class=True), 20, 20)
    with pytest.raises(ValueError, match=rf"classes in \[0, 2\), got {number}$"):
        test.p_values(np.array([1.0, math.nan]), classes_of(0, number))


@pytest.mark.parametrize("number", [-1, 2])
def test_a_calibration_image_of_no_class_is_refused(number: int) -> None:
    class_id = np.append(np.repeat([0, 1], 20), number)
    with pytest.raises(ValueError, match=rf"classes in \[0, 2\), got {number}$"):
        ConformalTest(Rule(0.1, per_class=True), np.arange(41.0), class_id, 2)


@pytest.mark.parametrize("per_class", [False, True])
def test_scores_and_classes_have_one_shape(per_class: bool) -> None:
    test = of_sizes(Rule(0.1, per_class=per_class), 20)
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(3,\) and \(2,\)"):
        test.p_values(np.zeros(3), zeros(2))


@pytest.mark.parametrize(
    ("scores", "class_id"),
    [
        (np.arange(20.0), zeros(19)),
        (np.arange(20.0).reshape(4, 5), zeros(20).reshape(4, 5)),
        (np.append(np.arange(20.0), math.nan), zeros(21)),
        (np.append(np.arange(20.0), -math.inf), zeros(21)),
    ],
    ids=["shapes differ", "matrix", "NaN", "infinity"],
)
def test_calibration_scores_are_checked(
    scores: NDArray[np.float64], class_id: NDArray[np.int64]
) -> None:
    with pytest.raises(ValueError, match="expected finite scores and classes of one shape"):
        ConformalTest(Rule(0.1), scores, class_id, 1)


@pytest.mark.parametrize(
    ("rule", "sizes", "message"),
    [
        (
            Rule(0.05),
            (18,),
            "18 calibration images can flag nothing at an alpha of 0.05: at least 19 are needed",
        ),
        (
            Rule(0.05, Sides.TWO),
            (38,),
            (
                "38 calibration images can flag nothing at a two-sided alpha of 0.05: "
                "at least 39 are needed"
            ),
        ),
        (
            Rule(0.05, per_class=True),
            (19, 18, 40, 0),
            (
                "an alpha of 0.05 per class needs at least 19 calibration images of each "
                "predicted class: class 1 has 18, class 3 has 0"
            ),
        ),
        (
            Rule(0.05, Sides.TWO, per_class=True),
            (39, 38, 1, 2, 3, 4, 5, 6),
            (
                "a two-sided alpha of 0.05 per class needs at least 39 calibration images of each "
                "predicted class: class 1 has 38, class 2 has 1, class 3 has 2, class 4 has 3, "
                "class 5 has 4 and 2 more"
            ),
        ),
    ],
)
def test_a_group_that_is_too_small_is_refused(
    rule: Rule, sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match="at least") as refused:
        of_sizes(rule, *sizes)
    assert str(refused.value) == message


def test_no_images_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 19 are needed"):
        ConformalTest(Rule(0.05), np.zeros(0), zeros(0), 10)


@pytest.mark.parametrize("sides", Sides)
def test_the_required_sizes_are_enough(sides: Sides) -> None:
    rule = Rule(0.05, sides, per_class=True)
    test = of_sizes(rule, rule.required_size, rule.required_size)
    assert all(group.flag_rank == (1 if sides is Sides.ONE else 2) for group in test.groups)


def test_a_group_knows_its_flag_rate_interval() -> None:
    group = of_sizes(Rule(0.05), 2_000).groups[0]
    low, high = group.flag_rate_interval(0.9)
    assert beta(100, 1_901).cdf(low) == pytest.approx(0.05)
    assert beta(100, 1_901).sf(high) == pytest.approx(0.05)


def test_the_weakest_of_equal_ranks_is_the_smallest() -> None:
    test = of_sizes(Rule(0.05, per_class=True), 25, 20, 30)
    assert test.weakest == test.groups[1]


def test_the_weakest_is_the_one_whose_flag_rate_may_be_highest() -> None:
    """38 images flag one rank of 39, at most 7.6 % of images; 39 two of 40, at most 11.6 %."""
    test = of_sizes(Rule(0.05, per_class=True), 38, 39, 500)
    assert test.weakest == test.groups[1]
    upper = [beta(group.flag_rank, group.size + 1 - group.flag_rank) for group in test.groups]
    assert [round(float(law.ppf(0.95)), 3) for law in upper] == [0.076, 0.116, 0.067]


def test_the_weakest_of_one_is_itself() -> None:
    test = of_sizes(Rule(0.05), 100, 100)
    assert test.weakest == test.groups[0]
    assert test.weakest.size == 200
