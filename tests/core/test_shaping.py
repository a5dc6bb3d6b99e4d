import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
