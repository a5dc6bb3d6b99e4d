from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from nap_stream.core.selection import (
    LARGEST_WEIGHT,
    STEPS,
    LogP,
    NoScoreError,
    Selection,
    select,
)

Scores = dict[str, NDArray[np.float64]]

seeds = st.integers(0, 2**32 - 1)


def scores(**values: ArrayLike) -> LogP:
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


def drawn(
    seed: int, names: Sequence[str] = "abcd", *, images: int = 200, transforms: int = 3
) -> tuple[Scores, dict[str, Scores]]:
    """Normal scores that are lower, each by another amount, on the images of each transform."""
    random = np.random.default_rng(seed)
    inside = {name: random.normal(0, 1, images) for name in names}
    pseudo = {
        f"transform {number}": {
            name: random.normal(-random.uniform(0, 2), 1, images) for name in names
        }
        for number in range(transforms)
    }
    return inside, pseudo


def weighted(weights: Mapping[str, float], values: LogP) -> NDArray[np.float64]:
    terms = [weight * values[name] for name, weight in weights.items()]
    return np.asarray(np.sum(terms, axis=0), np.float64)


def sklearn_area(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(labels, np.concatenate([inside, outside])))


def above(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """The area where there are no ties: the share of pairs in order."""
    return float(np.mean(inside[:, None] > outside))


def reference(inside: LogP, pseudo: Mapping[str, LogP]) -> dict[str, float]:
    """The same selection in few lines, of many images."""
    means = {n: np.mean([above(inside[n], of[n]) for of in pseudo.values()]) for n in inside}
    count, fewest = (len(next(iter(of.values()))) for of in (inside, next(iter(pseudo.values()))))
    able = [
        name
        for name, mean in means.items()
        if mean > 0.5 + 2 * np.sqrt((count + fewest + 1) / 12 / count / fewest)
    ]
    best, _ = greedy(able, inside, pseudo, 1)
    names = [
        name
        for name in inside
        if name in able or greedy([*able, name], inside, pseudo, 1)[0] > best + 0.01
    ]
    return greedy(names, inside, pseudo, 0.6 if len(names) > 1 else 1)[1]


def greedy(
    names: Sequence[str], inside: LogP, pseudo: Mapping[str, LogP], largest: float
) -> tuple[float, dict[str, float]]:
    summed = np.zeros_like(next(iter(inside.values())))
    outside = {name: np.zeros_like(next(iter(of.values()))) for name, of in pseudo.items()}
    counts = dict.fromkeys(names, 0)
    best, best_counts = -1.0, counts
    for step in range(1, 21):
        areas = {
            name: float(
                np.mean(
                    [above(summed + inside[name], outside[t] + pseudo[t][name]) for t in pseudo]
                )
            )
            for name in names
            if counts[name] < 20 * largest
        }
        added = max(areas, key=lambda name: areas[name])
        summed = summed + inside[added]
        outside = {t: outside[t] + pseudo[t][added] for t in pseudo}
        counts = {**counts, added: counts[added] + 1}
        if max(counts.values()) <= largest * step + 1e-9 and areas[added] > best + 1e-12:
            best, best_counts = areas[added], counts
    total = sum(best_counts.values())
    return best, {name: count / total for name, count in best_counts.items() if count}


def test_two_scores_that_help_each_other_share_the_weight() -> None:
    # Alone each has 3 of 4 pairs in order; of the sums, 5 and 5 stand above 3 and 3.
    found = select(scores(a=[4, 1], b=[1, 4]), {"blur": scores(a=[3, 0], b=[0, 3])})
    assert found == Selection(
        weights={"a": 0.5, "b": 0.5},
        transforms=("blur",),
        auroc={"a": (0.75,), "b": (0.75,)},
        sum_auroc=(1.0,),
        left_out={},
        inside_images=2,
        pseudo_images=2,
    )


def test_a_score_that_helps_only_with_a_small_share_comes_in_at_the_largest_weight() -> None:
    # An image at (0, 0) is above (-1, 1.2) where the weight of a is more than 1.2 times that of b,
    # and above (1, -1.8) where it is less than 1.8 times. Up to the 12th step a is added, as b
    # changes nothing yet; from then on b, and 12 : 8 is the first pair that may be taken.
    found = select(scores(a=[0, 9], b=[0, 9]), {"blur": scores(a=[-1, 1], b=[1.2, -1.8])})
    assert found.weights == pytest.approx({"a": 0.6, "b": 0.4})
    assert found.auroc == {"a": (0.75,), "b": (0.75,)}
    assert found.sum_auroc == (1.0,)


def test_the_best_of_all_steps_is_taken_not_the_last() -> None:
    # a and b together put every pair in order after two steps; no later step is better.
    inside, pseudo = scores(a=[4, 1], b=[1, 4], c=[0, 1]), scores(a=[3, 0], b=[0, 3], c=[9, 9])
    assert select(inside, {"blur": pseudo}).weights == {"a": 0.5, "b": 0.5}


def test_a_score_that_helps_no_sum_is_not_chosen_but_its_area_is_told() -> None:
    inside, pseudo = scores(a=[4, 1], b=[1, 4], c=[0, 1]), scores(a=[3, 0], b=[0, 3], c=[9, 9])
    found = select(inside, {"blur": pseudo})
    assert "c" not in found.weights
    assert found.auroc["c"] == (0.0,)
    assert found.left_out == {}


def test_a_perfect_score_gets_no_more_than_the_largest_weight() -> None:
    found = select(scores(a=[1, 2], b=[1, 2]), {"blur": scores(a=[-9, -8], b=[0.5, 1.5])})
    assert found.auroc == {"a": (1.0,), "b": (0.75,)}
    assert found.weights["a"] <= LARGEST_WEIGHT
    assert found.weights["b"] > 0


def test_a_score_below_chance_is_not_taken_for_what_the_best_may_not_have() -> None:
    found = select(scores(a=[1, 2], b=[1, 2]), {"blur": scores(a=[-9, -8], b=[1.5, 2.5])})
    assert found.auroc == {"a": (1.0,), "b": (0.25,)}
    assert found.weights == {"a": 1.0}


def test_a_score_at_chance_that_adds_to_the_others_is_taken() -> None:
    # Alone b has half of the pairs in order. Of the sums, 10 and 10 stand above 9 and 5.
    found = select(scores(a=[10, 0], b=[0, 10]), {"blur": scores(a=[9, -5], b=[0, 10])})
    assert found.auroc == {"a": (0.75,), "b": (0.5,)}
    assert found.sum_auroc == (1.0,)
    assert found.weights == {"a": 0.5, "b": 0.5}


def test_where_no_score_is_above_chance_all_are_to_choose_from() -> None:
    found = select(scores(a=[1, 2], b=[1, 2]), {"blur": scores(a=[3], b=[4])})
    assert found.means == {"a": 0.0, "b": 0.0}
    assert max(found.weights.values()) <= LARGEST_WEIGHT


def test_the_mean_over_the_transforms_decides() -> None:
    # On blur alone a is best, on noise alone b; c is second on both and best on average.
    inside = scores(a=[0, 1], b=[0, 1], c=[0, 1], d=[0, 1])
    blur = scores(a=[-9], b=[9], c=[0.5], d=[9])
    noise = scores(a=[9], b=[-9], c=[-9], d=[9])
    found = select(inside, {"blur": blur, "noise": noise})
    assert found.means == {"a": 0.5, "b": 0.5, "c": 0.75, "d": 0.0}
    assert found.transforms == ("blur", "noise")
    assert max(found.weights, key=lambda name: found.weights[name]) == "c"


def test_a_tie_of_scores_counts_half() -> None:
    found = select(scores(a=[1, 2]), {"blur": scores(a=[2, 0])})
    # 1 above 0, 2 above 0, 2 level with 2, 1 below 2.
    assert found.auroc == {"a": (0.625,)}


def test_the_fewest_images_of_a_transform_are_counted() -> None:
    found = select(scores(a=[1, 2, 3]), {"blur": scores(a=[0, 1, 2, 3]), "noise": scores(a=[0])})
    assert (found.inside_images, found.pseudo_images) == (3, 1)


@given(seeds, st.integers(2, 5))
def test_weights_sum_to_one_and_none_is_above_the_largest(seed: int, count: int) -> None:
    inside, pseudo = drawn(seed, "abcde"[:count], images=30, transforms=2)
    found = select(inside, pseudo)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert min(found.weights.values()) >= 1 / STEPS
    others = [mean for name, mean in found.means.items() if name not in found.weights]
    is_alone = len(found.weights) == 1 and all(mean <= 0.6 for mean in others)
    assert is_alone or max(found.weights.values()) <= LARGEST_WEIGHT + 1e-12


@given(seeds)
def test_weights_of_scores_with_many_ties_hold_the_same_bounds(seed: int) -> None:
    inside, pseudo = drawn(seed, images=30, transforms=2)
    coarse = {t: {name: values.round() for name, values in of.items()} for t, of in pseudo.items()}
    found = select({name: values.round(1) for name, values in inside.items()}, coarse)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert max(found.weights.values()) <= LARGEST_WEIGHT + 1e-12


def test_a_score_that_is_the_same_for_most_images_is_left_out() -> None:
    inside = scores(a=[1, 2, 3, 4, 5], constant=[0, 0, 0, 1, 2])
    found = select(inside, {"blur": scores(a=[0] * 5, constant=[-1] * 5)})
    assert found.left_out == {"constant": "the same for most images"}
    assert found.weights == {"a": 1.0}
    assert set(found.auroc) == {"a"}


def test_a_score_that_is_the_same_for_half_of_the_images_stays() -> None:
    inside = scores(a=[1, 2, 3, 4], half=[0, 0, 1, 2])
    found = select(inside, {"blur": scores(a=[0] * 4, half=[-1] * 4)})
    assert found.left_out == {}
    assert set(found.auroc) == {"a", "half"}


def test_a_score_that_is_constant_on_pseudo_ood_images_alone_stays() -> None:
    found = select(scores(a=[1, 2, 3]), {"blur": scores(a=[2, 2, 2])})
    assert found.weights == {"a": 1.0}


@pytest.mark.parametrize("shifts", [(1, 1, 1), (1.5,), (1.5, 0.4), (2.5, 0.5), (0.6, 0.6)])
@pytest.mark.parametrize("images", [100, 500])
@pytest.mark.parametrize("seed", range(2))
def test_pure_noise_beside_useful_scores_gets_little(
    seed: int, images: int, shifts: tuple[float, ...]
) -> None:
    random = np.random.default_rng(seed)
    means = {"noise": 0.0} | {f"useful {number}": -shift for number, shift in enumerate(shifts)}
    inside = {name: random.normal(0, 1, images) for name in means}
    pseudo = {
        f"transform {number}": {
            name: random.normal(mean, 1, images) for name, mean in means.items()
        }
        for number in range(4)
    }
    assert select(inside, pseudo).weights.get("noise", 0) <= 0.1


@pytest.mark.parametrize("names", ["ab", "abcde"])
@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_those_of_the_reference(seed: int, names: str) -> None:
    inside, pseudo = drawn(seed, names)
    assert select(inside, pseudo).weights == pytest.approx(reference(inside, pseudo))


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_transforms_does_not_matter(seed: int) -> None:
    inside, pseudo = drawn(seed)
    found, turned = select(inside, pseudo), select(inside, dict(reversed(pseudo.items())))
    assert turned.weights == found.weights
    assert turned.transforms == found.transforms[::-1]
    assert turned.sum_auroc == found.sum_auroc[::-1]
    assert turned.mean == pytest.approx(found.mean)
    assert turned.means == pytest.approx(found.means)


@pytest.mark.parametrize("seed", range(6))
def test_areas_are_those_of_scikit_learn(seed: int) -> None:
    inside, pseudo = drawn(seed)
    found = select(inside, pseudo)
    summed = weighted(found.weights, inside)
    sums = [sklearn_area(summed, weighted(found.weights, of)) for of in pseudo.values()]
    assert found.sum_auroc == pytest.approx(sums)
    assert found.mean == pytest.approx(np.mean(sums))
    for name, values in inside.items():
        areas = [sklearn_area(values, of[name]) for of in pseudo.values()]
        assert found.auroc[name] == pytest.approx(areas)
        assert found.means[name] == pytest.approx(np.mean(areas))


@given(seeds)
def test_one_score_alone_gets_all_the_weight(seed: int) -> None:
    inside, pseudo = drawn(seed, "a", images=20)
    found = select(inside, pseudo)
    assert found.weights == {"a": 1.0}
    assert found.sum_auroc == found.auroc["a"]


def test_scores_that_are_all_constant_are_refused_by_name() -> None:
    inside = scores(a=[1, 1, 1], b=[2, 2, 3])
    with pytest.raises(NoScoreError, match="same for most images: a, b"):
        select(inside, {"blur": scores(a=[0], b=[0])})


def test_no_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one transform"):
        select(scores(a=[1, 2]), {})


def test_a_transform_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image each"):
        select(scores(a=[1, 2]), {"blur": scores(a=[])})


@pytest.mark.parametrize("name", ["a", "d"])
def test_nan_of_an_in_distribution_image_is_refused(name: str) -> None:
    inside, pseudo = drawn(0)
    inside[name][7] = np.nan
    with pytest.raises(ValueError, match="without NaN"):
        select(inside, pseudo)


@pytest.mark.parametrize("name", ["a", "d"])
def test_nan_of_a_pseudo_ood_image_is_refused(name: str) -> None:
    inside, pseudo = drawn(0)
    pseudo["transform 2"][name][7] = np.nan
    with pytest.raises(ValueError, match="without NaN"):
        select(inside, pseudo)
