import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core import feature_scores
from nap_stream.core.base_scores import (
    LARGEST_EXPONENT,
    ash,
    dice,
    dice_weight,
    energy,
    react,
    react_clip,
    scale,
)
from nap_stream.core.feature_scores import knn, unit_rows

# One class, so that logsumexp is the logit itself.
ONE_CLASS = torch.ones(1, 4)
NO_BIAS = torch.zeros(1)

SCORES = {
    "react": lambda features, weight, bias: react(features, 1.0, weight, bias),
    "ash": lambda features, weight, bias: ash(features, 0.5, weight, bias),
    "scale": lambda features, weight, bias: scale(features, 0.5, weight, bias),
    "dice": dice,
}
every_score = pytest.mark.parametrize("name", SCORES)

seeds = st.integers(0, 2**32 - 1)


def example(
    seed: int, rows: int = 5, width: int = 12, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of both signs, a weight and a bias."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, width, generator=random),
        torch.randn(classes, width, generator=random),
        torch.randn(classes, generator=random),
    )


def test_react_by_hand() -> None:
    features = torch.tensor([[0.5, 3.0, 1.0, 0.0], [-2.0, 0.0, 5.0, 5.0]])
    # Clipped at 1: 0.5 + 1 + 1 + 0 and -2 + 0 + 1 + 1.
    assert react(features, 1.0, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([2.5, 0])


def test_react_of_two_classes_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    bias = torch.tensor([0.0, math.log(2)])
    # Logits 1 and 0 + ln 2.
    assert react(torch.tensor([[7.0, 0.0]]), 1.0, weight, bias).tolist() == pytest.approx(
        [math.log(math.e + 2)]
    )


def test_ash_by_hand() -> None:
    # Half of four: 3 and 4 stay, s1 = 10, s2 = 7.
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert ash(features, 0.5, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([7 * math.exp(10 / 7)])


def test_scale_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert scale(features, 0.5, ONE_CLASS, NO_BIAS).tolist() == pytest.approx(
        [10 * math.exp(10 / 7)]
    )


def test_negative_activations_do_not_enter_the_sums_of_ash_and_scale() -> None:
    # s1 = 7. At 0.5 the kept are 5 and 2, s2 = 7; at 0.75 the 5 alone, s2 = 5.
    features = torch.tensor([[-4.0, 2.0, 5.0, -1.0]])
    assert ash(features, 0.5, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([7 * math.e])
    assert ash(features, 0.75, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([5 * math.exp(7 / 5)])
    assert scale(features, 0.75, ONE_CLASS, NO_BIAS).tolist() == pytest.approx(
        [2 * math.exp(7 / 5)]
    )


def test_sums_that_would_cancel_stay_finite() -> None:
    # Plain sums: s1 = 1, s2 = 2 - 2 = 0 where three of four are kept.
    features = torch.tensor([[2.0, -1.0, -1.0, -9.0]])
    assert ash(features, 0.25, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([0], abs=1e-6)
    assert scale(features, 0.25, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([-9 * math.e])


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_no_positive_activation_gives_the_factor_e(value: float) -> None:
    features = torch.full((1, 4), value)
    assert scale(features, 0.5, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([4 * value * math.e])
    assert ash(features, 0.5, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([2 * value * math.e])


def test_at_least_one_activation_is_kept() -> None:
    features = torch.tensor([[1.0, 1.0, 1.0, 3.0]])
    assert ash(features, 0.999, ONE_CLASS, NO_BIAS).tolist() == pytest.approx([3 * math.exp(2)])


def test_the_exponent_stops_before_float32_ends() -> None:
    features = torch.ones(1, 200)
    weight = torch.ones(1, 200)
    # Without a limit the factor were exp(200).
    expected = math.exp(LARGEST_EXPONENT)
    assert ash(features, 0.999, weight, NO_BIAS).tolist() == pytest.approx([expected], rel=1e-4)
    assert scale(features, 0.999, weight, NO_BIAS).tolist() == pytest.approx(
        [200 * expected], rel=1e-4
    )


def test_dice_by_hand() -> None:
    weight = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    mean = torch.tensor([1.0, 0.5])
    # Contributions 1, -0.5, 2, 1.5; their median is 1.25.
    masked = dice_weight(weight, mean, 0.5)
    assert masked.tolist() == [[0, 0], [2, 3]]
    score = dice(torch.tensor([[1.0, 1.0]]), masked, torch.tensor([0.0, 0.0]))
    assert score.tolist() == pytest.approx([math.log(1 + math.exp(5))])


def test_dice_masks_a_contribution_that_is_the_percentile_itself() -> None:
    masked = dice_weight(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), torch.ones(5), 0.5)
    assert masked.tolist() == [[0, 0, 0, 4, 5]]


def test_dice_keeps_a_large_negative_mean_times_a_negative_weight() -> None:
    masked = dice_weight(torch.tensor([[-1.0, 1.0]]), torch.tensor([-2.0, 1.0]), 0.5)
    assert masked.tolist() == [[-1, 0]]


def test_dice_weight_of_more_elements_than_torch_takes_a_quantile_of() -> None:
    weight = torch.ones(2, 2**23 + 1)
    weight[0] = 2
    masked = dice_weight(weight, torch.ones(weight.shape[1]), 0.5)
    assert masked.amin(dim=1).tolist() == [2, 0]
    assert masked.amax(dim=1).tolist() == [2, 0]


def test_react_clip_by_hand() -> None:
    # Five activations: the 75 % percentile is the fourth, 90 % lies 0.6 of the way to the fifth.
    features = np.array([[0, 4, 1, 3, 2]], np.float32)
    assert react_clip(features, 0.75) == 3
    assert react_clip(features, 0.9) == pytest.approx(3.6)


@given(seeds)
def test_react_with_an_infinite_clip_is_the_energy(seed: int) -> None:
    features, weight, bias = example(seed)
    plain = energy(features @ weight.T + bias)
    assert torch.allclose(react(features, math.inf, weight, bias), plain, atol=1e-4)


@given(seeds)
def test_dice_without_a_mask_is_the_energy(seed: int) -> None:
    features, weight, bias = example(seed)
    plain = energy(features @ weight.T + bias)
    assert torch.allclose(dice(features, weight, bias), plain, atol=1e-4)


@given(seeds, st.floats(0.01, 0.99))
def test_dice_masks_the_stated_share(seed: int, sparsity: float) -> None:
    features, weight, _ = example(seed, width=40)
    masked = dice_weight(weight, features.mean(dim=0), sparsity)
    assert abs((masked == 0).sum().item() - sparsity * 120) <= 1
    assert torch.equal(masked[masked != 0], weight[masked != 0])


@given(seeds)
def test_scale_is_the_head_on_features_times_one_factor(seed: int) -> None:
    features, weight, bias = example(seed)
    positive = features.clamp(min=0)
    top = positive.sort(dim=1, descending=True).values[:, :6]
    factor = (positive.sum(dim=1) / top.sum(dim=1)).nan_to_num(1).exp()
    expected = energy((features * factor[:, None]) @ weight.T + bias)
    assert torch.allclose(scale(features, 0.5, weight, bias), expected, rtol=1e-4, atol=1e-4)


@every_score
@given(seed=seeds, order=st.permutations(range(5)))
def test_rows_do_not_depend_on_each_other(name: str, seed: int, order: list[int]) -> None:
    features, weight, bias = example(seed)
    together = SCORES[name](features, weight, bias)
    assert together.shape == (5,)
    assert torch.allclose(
        SCORES[name](features[order], weight, bias), together[order], rtol=1e-5, atol=1e-4
    )
    alone = torch.cat([SCORES[name](row[None], weight, bias) for row in features])
    assert torch.allclose(alone, together, rtol=1e-5, atol=1e-4)


@every_score
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(name: str, bad: float) -> None:
    features, weight, bias = example(0)
    clean = SCORES[name](features, weight, bias)
    features[1, 3] = bad
    score = SCORES[name](features, weight, bias)
    assert score[1].isnan()
    others = [0, 2, 3, 4]
    assert torch.equal(score[others], clean[others])


@every_score
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    features, weight, bias = example(0)
    low = features.to(dtype)
    score = SCORES[name](low, weight, bias)
    assert score.dtype == torch.float32
    assert torch.equal(score, SCORES[name](low.float(), weight, bias))


@every_score
def test_autocast_changes_nothing(name: str) -> None:
    features, weight, bias = example(0)
    plain = SCORES[name](features, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SCORES[name](features, weight, bias), plain)


@every_score
def test_the_input_is_left_as_it_was(name: str) -> None:
    features, weight, bias = example(0)
    before = features.clone()
    SCORES[name](features, weight, bias)
    assert torch.equal(features, before)


def example_bank(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(6, 7, generator=random)
    return features, unit_rows(torch.randn(9, 7, generator=random))


def test_distances_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # (3, 0) points at the first row: distances 0, sqrt 2 and 2.
    features = torch.tensor([[3.0, 0.0]])
    assert knn(features, bank, 1).tolist() == [2]
    assert knn(features, bank, 2).tolist() == pytest.approx([2 - math.sqrt(2)])
    assert knn(features, bank, 3).tolist() == [0]


def test_a_zero_vector_is_at_distance_one_from_all() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert knn(torch.zeros(1, 2), bank, 2).tolist() == [1]


def test_unit_rows_by_hand() -> None:
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert unit_rows(rows).flatten().tolist() == pytest.approx([0.6, -0.8, 0, 0])


@given(seeds, st.integers(-44, 37))
def test_unit_rows_of_any_size_have_norm_one(seed: int, power: int) -> None:
    rows = example_bank(seed)[0] * 10.0**power
    # Subnormal numbers have few digits, so that a row of them can be all zeros.
    norms = unit_rows(rows[rows.any(dim=1)]).norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6)


def test_small_distances_keep_their_digits() -> None:
    bank = torch.tensor([[1.0, 0.0]])
    # The angle is 1e-4; from the product of the vectors the distance would be 0.
    features = torch.tensor([[1.0, 1e-4]])
    assert (2 - knn(features, bank, 1)).item() == pytest.approx(1e-4, rel=2e-3)


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="3 rows of the bank"):
        knn(torch.ones(1, 2), torch.eye(3)[:, :2], k)


@given(seeds, st.integers(1, 9))
def test_against_sorting_all_distances(seed: int, k: int) -> None:
    features, bank = example_bank(seed)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    distances = (unit[:, None] - bank.double()[None]).norm(dim=2).sort(dim=1).values[:, k - 1]
    score = knn(features, bank, k)
    assert torch.allclose(score.double(), 2 - distances, atol=1e-5)
    assert ((score >= 0) & (score <= 2)).all()


@given(seeds, st.floats(1e-3, 1e3))
def test_the_length_of_the_features_does_not_matter(seed: int, factor: float) -> None:
    features, bank = example_bank(seed)
    assert torch.allclose(knn(features * factor, bank, 3), knn(features, bank, 3), atol=1e-5)


@given(seeds, st.permutations(range(9)))
def test_the_order_of_the_bank_does_not_matter(seed: int, order: list[int]) -> None:
    features, bank = example_bank(seed)
    assert torch.allclose(knn(features, bank[order], 4), knn(features, bank, 4), atol=1e-6)


@given(seeds, st.permutations(range(6)))
def test_knn_of_a_row_does_not_depend_on_the_others(seed: int, order: list[int]) -> None:
    features, bank = example_bank(seed)
    together = knn(features, bank, 2)
    assert torch.allclose(knn(features[order], bank, 2), together[order], atol=1e-6)
    alone = torch.cat([knn(row[None], bank, 2) for row in features])
    assert torch.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 9, 20, 54])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    features, bank = example_bank(0)
    whole = knn(features, bank, 2)
    monkeypatch.setattr(feature_scores, "_SIMILARITIES_AT_ONCE", at_once)
    assert torch.allclose(knn(features, bank, 2), whole, atol=1e-6)


def test_an_empty_batch() -> None:
    assert knn(torch.zeros(0, 7), example_bank(0)[1], 2).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_knn_of_a_row_that_is_not_finite_is_nan_and_spoils_no_other(bad: float) -> None:
    features, bank = example_bank(0)
    clean = knn(features, bank, 2)
    features[1, 3] = bad
    score = knn(features, bank, 2)
    assert score.isnan().tolist() == [False, True, False, False, False, False]
    assert torch.equal(score[2:], clean[2:])


def test_computed_in_float32_whatever_the_dtype_and_autocast() -> None:
    features, bank = example_bank(0)
    low = features.half()
    plain = knn(low.float(), bank, 2)
    assert plain.dtype == torch.float32
    assert torch.equal(knn(low, bank, 2), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn(low, bank, 2), plain)
