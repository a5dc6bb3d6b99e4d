import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from nap_stream.core.methods import Values, method_scores, parse_method
from nap_stream.core.selection import NEAR_BEST, WEIGHTS, WeightSearch, search_weight

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def values(energy: ArrayLike, nap: ArrayLike) -> Values:
    return {"energy": np.asarray(energy, np.float64), "nap": np.asarray(nap, np.float64)}


def arithmetic_mean(found: Values, weight: float) -> NDArray[np.float64]:
    """A combination with which a best weight is easy to work out."""
    return np.asarray(weight * found["energy"] + (1 - weight) * found["nap"], dtype=np.float64)


def geometric_mean(found: Values, weight: float) -> NDArray[np.float64]:
    method = parse_method("nap-energy")
    return method_scores(method, found, weight=weight, location=0.0, reference={})


def search(
    inside: Values, *pseudo: Values, weights: tuple[float, ...] = GRID, seed: int = 0
) -> WeightSearch:
    by_name = {f"transform {number}": found for number, found in enumerate(pseudo)}
    return search_weight(arithmetic_mean, inside, by_name, weights=weights, seed=seed)


def drawn(seed: int, shift: tuple[float, float], size: int = 120) -> Values:
    rng = np.random.default_rng(seed)
    return values(np.exp(rng.normal(shift[0], 1, size)), np.exp(rng.normal(shift[1], 1, size)))


# One in-distribution image at (2, 2). An outside image at (e, n) lies below it at weight w
# exactly where w e + (1 - w) n < 2.
INSIDE = values([2], [2])


def test_only_nap_separates() -> None:
    found = search(INSIDE, values([9], [1]))
    assert found.chosen == 0.0
    # The scores outside are 1, 3, 5, 7, 9.
    assert found.auroc == ((1.0, 0.0, 0.0, 0.0, 0.0),)
    assert found.interval == (0.0, 0.0)
    assert found.near_best == (0.0, 0.0)


def test_only_the_base_separates() -> None:
    found = search(INSIDE, values([1], [9]))
    assert found.auroc == ((0.0, 0.0, 0.0, 0.0, 1.0),)
    assert found.chosen == 1.0
    assert found.interval == (1.0, 1.0)
    assert found.near_best == (1.0, 1.0)


def test_both_together_separate() -> None:
    # Scores at the weights of the grid: 2.5, 2.125, 1.75, 1.375, 1 and the reverse.
    found = search(INSIDE, values([1, 2.5], [2.5, 1]))
    assert found.auroc == ((0.5, 0.5, 1.0, 0.5, 0.5),)
    assert found.chosen == 0.5
    assert found.near_best == (0.5, 0.5)


def test_a_tie_of_scores_counts_half() -> None:
    # Outside 2, 3, 4, 5, 6 against 2 at weight 0 and above.
    assert search(INSIDE, values([6], [2])).auroc == ((0.5, 0.0, 0.0, 0.0, 0.0),)


def test_of_equally_good_weights_the_smallest_is_chosen() -> None:
    found = search(INSIDE, values([1], [2.5]))
    # 2.5, 2.125, 1.75, 1.375, 1.
    assert found.auroc == ((0.0, 0.0, 1.0, 1.0, 1.0),)
    assert found.chosen == 0.5
    assert found.near_best == (0.5, 1.0)


def test_a_weight_that_makes_no_difference_is_0() -> None:
    found = search(INSIDE, values([1], [1]))
    assert found.chosen == 0.0
    assert found.interval == (0.0, 0.0)
    assert found.near_best == (0.0, 1.0)


def test_the_mean_is_over_transforms_not_images() -> None:
    one_image = values([9], [1])
    many_images = values([1] * 10, [2.5] * 10)

    found = search(INSIDE, one_image, many_images)

    assert found.transforms == ("transform 0", "transform 1")
    assert found.weights == GRID
    assert np.mean(found.auroc, axis=0).tolist() == [0.5, 0.0, 0.5, 0.5, 0.5]
    assert found.chosen == 0.0
    assert found.inside_images == 1
    assert found.pseudo_images == 10


def test_auroc_is_that_of_scikit_learn() -> None:
    inside = drawn(1, (0.6, 0.9))
    pseudo = {"first": drawn(2, (0, 0), 40), "second": drawn(3, (0.5, -0.5), 70)}

    found = search_weight(geometric_mean, inside, pseudo)

    assert found.weights == WEIGHTS
    assert found.inside_images == 120
    assert found.pseudo_images == 70
    for curve, outside in zip(found.auroc, pseudo.values(), strict=True):
        labels = np.repeat([1, 0], [120, len(outside["nap"])])
        expected = [
            roc_auc_score(labels, np.append(geometric_mean(inside, w), geometric_mean(outside, w)))
            for w in WEIGHTS
        ]
        np.testing.assert_allclose(curve, expected, rtol=1e-12)


def test_auroc_of_tied_scores_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    inside, outside = (
        values(rng.integers(low, low + 4, 60), rng.integers(low, low + 4, 60)) for low in (1, 0)
    )
    labels = np.repeat([1, 0], 60)

    found = search(inside, outside)

    for weight, auroc in zip(GRID, found.auroc[0], strict=True):
        scores = np.append(arithmetic_mean(inside, weight), arithmetic_mean(outside, weight))
        assert auroc == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)


def test_near_best_holds_the_weights_that_are_as_good() -> None:
    found = search_weight(
        geometric_mean, drawn(1, (0.6, 0.9)), {"one": drawn(2, (0, 0)), "two": drawn(3, (0.2, 0))}
    )
    means = np.mean(found.auroc, axis=0)
    good = [
        weight
        for weight, mean in zip(found.weights, means, strict=True)
        if mean >= means.max() - NEAR_BEST
    ]
    assert found.near_best == (good[0], good[-1])
    assert good[0] < found.chosen < good[-1]


def test_the_interval_depends_on_the_seed_alone() -> None:
    """Three dissenters of ten win 4.7 % of resamples: now below, now above the tail of 5 %."""
    pseudo = [values([9], [1])] * 7 + [values([1], [9])] * 3

    def searches() -> list[WeightSearch]:
        return [search(INSIDE, *pseudo, weights=(0.0, 1.0), seed=seed) for seed in range(12)]

    first = searches()

    assert first == searches()
    assert {found.interval for found in first} == {(0.0, 0.0), (0.0, 1.0)}
    assert {found.chosen for found in first} == {0.0}


def test_the_interval_holds_the_chosen_weight() -> None:
    pseudo = {str(seed): drawn(seed, (seed / 10, 0.6 - seed / 10)) for seed in range(2, 6)}
    found = search_weight(geometric_mean, drawn(1, (0.6, 0.9)), pseudo)
    low, high = found.interval
    assert low <= found.chosen <= high
    assert low < high


def test_the_interval_is_wide_where_transforms_disagree() -> None:
    nap_finds, base_finds = values([9], [1]), values([1], [9])

    found = search(INSIDE, *[nap_finds] * 3, *[base_finds] * 2)

    assert found.chosen == 0.0
    assert found.interval == (0.0, 1.0)


def test_the_interval_is_narrow_where_transforms_agree() -> None:
    found = search(INSIDE, *[values([1, 2.5], [2.5, 1])] * 5)
    assert found.interval == (0.5, 0.5)


def test_rare_dissenters_are_outside_the_interval() -> None:
    """Two of eight win where they are drawn five times or more: 2.7 % of resamples."""
    found = search(INSIDE, *[values([9], [1])] * 6, *[values([1], [9])] * 2)
    assert found.interval == (0.0, 0.0)


def test_one_weight_is_no_choice() -> None:
    found = search(INSIDE, values([9], [1]), weights=(0.5,))
    assert found.chosen == 0.5
    assert found.interval == (0.5, 0.5)
    assert found.near_best == (0.5, 0.5)


@pytest.mark.parametrize(("transforms", "weights"), [(0, GRID), (1, ())])
def test_a_search_needs_something_to_search(transforms: int, weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least one transform and one weight"):
        search(INSIDE, *[values([1], [1])] * transforms, weights=weights)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (values([], []), values([1], [1])),
        (values([1], [1]), values([], [])),
        (values([1, np.nan], [1, 1]), values([1], [1])),
        (values([1, 1], [1, 1]), values([1, 1], [1, np.nan])),
    ],
    ids=["none inside", "none outside", "NaN inside", "NaN outside"],
)
def test_what_cannot_be_compared_is_refused(inside: Values, outside: Values) -> None:
    with pytest.raises(ValueError, match="without NaN, of at least one image each"):
        search(inside, values([1], [1]), outside)


def test_a_weight_out_of_range_is_refused_by_the_method() -> None:
    with pytest.raises(ValueError, match=r"weight in \[0, 1\]"):
        search_weight(geometric_mean, INSIDE, {"one": INSIDE}, weights=(0.5, 1.5))
