import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nap_stream.core.prior import attention_prior, cls_attention, nap, nap_by_position


def feature_map(*channels: list[list[float]]) -> torch.Tensor:
    return torch.tensor([list(channels)])


def test_hand_computed_value() -> None:
    # Channel 1: max 3, mean 1: (3 / 2)^2 = 2.25. Channel 2: max 4, mean 4: (4 / 5)^2 = 0.64.
    given_map = feature_map([[0, 0], [1, 3.0]], [[4, 4], [4, 4]])
    assert nap(given_map).tolist() == pytest.approx([(2.25 + 0.64) / 2])


def test_mean_is_over_channels_of_the_squares() -> None:
    # (2 / 1.5)^2 and 0: the square of the mean ratio would be 4 / 9.
    given_map = feature_map([[2, 0], [0, 0.0]], [[0, 0], [0, 0]])
    assert nap(given_map).tolist() == pytest.approx([8 / 9])


def test_where_nap_comes_from_by_hand() -> None:
    """Channel by channel (3 / (1 + 1))² and (4 / (1 + 1))², halved, where the maxima stand."""
    found = torch.tensor([[[[0.0, 3.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 0.0]]]])
    parts = nap_by_position(found)
    assert parts.tolist() == [[[2.0, 1.125], [0.0, 0.0]]]
    many = torch.randn(5, 7, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nap_by_position(many).sum(dim=(1, 2)), nap(many))


def test_each_image_has_its_own_score() -> None:
    first, second = feature_map([[1, 0.0]]), feature_map([[0, 8.0]])
    both = nap(torch.cat([first, second]))
    assert both.tolist() == pytest.approx([(1 / 1.5) ** 2, (8 / 5) ** 2])


def test_negative_activations_raise_the_mean() -> None:
    # Channel 1: max 2, mean of |A| (5 + 2 + 1) / 4 = 2: (2 / 3)^2. Channel 2: max 0.
    given_map = feature_map([[-5, 2], [-1, 0.0]], [[-1, -1], [-1, -1]])
    assert nap(given_map).tolist() == pytest.approx([(4 / 9) / 2])


@pytest.mark.parametrize("mean", [-1.0, -0.999, -3.0])
def test_mean_at_minus_epsilon_is_harmless(mean: float) -> None:
    # Max 1, the mean given, mean of |A| (1 + (1 - 4 mean)) / 4.
    given_map = feature_map([[1, 4 * mean - 1], [0.0, 0]])
    assert nap(given_map).tolist() == pytest.approx([(1 / (0.5 - mean + 1)) ** 2])


def test_without_negative_activations_it_is_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    given_map = torch.randn(3, 16, 5, 7, generator=generator).relu()
    flat = given_map.flatten(start_dim=2)
    ratio = flat.amax(dim=2) / (flat.mean(dim=2) + 1)
    assert torch.equal(nap(given_map), ratio.square().mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reduces_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    # The sum, 64 * 64 * 60, exceeds float16's range, and bfloat16 cannot count so far.
    given_map = torch.full((1, 2, 64, 64), 60, dtype=dtype)
    score = nap(given_map)
    assert score.dtype == torch.float32
    assert score.tolist() == pytest.approx([(60 / 61) ** 2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38, -3e38])
def test_activations_without_a_finite_mean_give_nan(bad: float) -> None:
    spoilt = torch.full((1, 1, 2, 2), bad)
    assert nap(torch.cat([spoilt, torch.ones(1, 1, 2, 2)])).isfinite().tolist() == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 4),
        torch.zeros(1, 3, 0, 4),
        torch.zeros(1, 0, 4, 4),
        torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
    ],
)
def test_refuses_what_is_no_map(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        nap(wrong)


def test_memory_layout_does_not_matter() -> None:
    given_map = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))
    relaid = given_map.to(memory_format=torch.channels_last)
    assert nap(relaid).tolist() == pytest.approx(nap(given_map).tolist(), rel=1e-6)


maps = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
).map(lambda drawn: torch.randn(*drawn[:4], generator=torch.Generator().manual_seed(drawn[4])) * 10)


@given(maps)
def test_bounds(given_map: torch.Tensor) -> None:
    positions = given_map.shape[2] * given_map.shape[3]
    scores = nap(given_map)
    assert scores.shape == given_map.shape[:1]
    assert ((scores >= 0) & (scores <= positions**2)).all()


@given(maps)
def test_order_of_positions_and_channels_does_not_matter(given_map: torch.Tensor) -> None:
    turned = given_map.flip(1).transpose(2, 3)
    assert nap(turned).tolist() == pytest.approx(nap(given_map).tolist(), rel=1e-5, abs=1e-6)


@given(maps, st.floats(1, 100))
def test_grows_with_the_scale_of_activations(given_map: torch.Tensor, factor: float) -> None:
    assert (nap(given_map * factor) >= nap(given_map) * (1 - 1e-5)).all()


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hand_computed_weights() -> None:
    # One head, query and key are the tokens themselves: the logits of CLS (2, 0) over the tokens
    # are 4, 2 and 0, divided by the root of 2.
    tokens = torch.tensor([[[2.0, 0], [1, 5], [0, 7]]])
    weight = torch.cat([torch.eye(2), torch.eye(2), torch.zeros(2, 2)])
    powers = [math.exp(logit / math.sqrt(2)) for logit in (4, 2, 0)]
    expected = [power / sum(powers) for power in powers[1:]]
    attention = cls_attention(tokens, weight, None, 1)
    assert attention.tolist() == [pytest.approx(expected)]
    assert attention_prior(attention).tolist() == pytest.approx([expected[0]])


def test_heads_are_averaged_before_the_maximum() -> None:
    # Head 1 looks at the first patch token alone, head 2 at the second: each gets half.
    tokens = torch.tensor([[[1.0, 1], [400, 0], [0, 400]]])
    weight = torch.cat([torch.eye(2), torch.eye(2), torch.zeros(2, 2)])
    attention = cls_attention(tokens, weight, None, 2)
    assert attention.tolist() == [pytest.approx([0.5, 0.5])]
    assert attention_prior(attention).tolist() == pytest.approx([0.5])


@given(
    st.integers(1, 3),
    st.integers(2, 9),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_weights_are_those_of_torch(
    images: int, tokens: int, heads: int, bias: bool, seed: int
) -> None:
    width = 4 * heads
    module = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True).eval()
    with torch.no_grad():
        module.in_proj_weight.copy_(seeded(3 * width, width, seed=seed))
        if bias:
            module.in_proj_bias.copy_(seeded(3 * width, seed=seed + 1))
        x = seeded(images, tokens, width, seed=seed + 2)
        _, expected = module(x, x, x, need_weights=True)
        attention = cls_attention(x, module.in_proj_weight, module.in_proj_bias, heads)
    torch.testing.assert_close(attention, expected[:, 0, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computes_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    # The logits of the first patch token reach 3 * 300 * 300, beyond float16's range.
    tokens = torch.tensor([[[300.0] * 3, [300.0] * 3, [0.0] * 3]], dtype=dtype)
    weight = torch.cat([torch.eye(3)] * 3).to(dtype)
    attention = cls_attention(tokens, weight, None, 1)
    assert attention.dtype == torch.float32
    assert attention.tolist() == [[0.5, 0]]
    assert attention_prior(attention.to(dtype)).dtype == torch.float32


def test_a_spoilt_image_gives_nan_and_spoils_no_other() -> None:
    tokens = seeded(2, 4, 6)
    tokens[0, 2, 1] = torch.nan
    score = attention_prior(cls_attention(tokens, seeded(18, 6), None, 2))
    assert score.isfinite().tolist() == [False, True]


@pytest.mark.parametrize(
    ("tokens", "weight", "bias", "heads"),
    [
        (torch.zeros(3, 4), torch.zeros(12, 4), None, 2),
        (torch.zeros(2, 1, 4), torch.zeros(12, 4), None, 2),
        (torch.zeros(2, 3, 4), torch.zeros(12, 4), None, 3),
        (torch.zeros(2, 3, 4), torch.zeros(12, 4), None, 0),
        (torch.zeros(2, 3, 4), torch.zeros(8, 4), None, 2),
        (torch.zeros(2, 3, 4), torch.zeros(12, 4), torch.zeros(4), 2),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(12, 4), None, 2),
    ],
)
def test_refuses_what_does_not_fit(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, heads: int
) -> None:
    with pytest.raises(ValueError, match=r"tokens \(N, T, D\)"):
        cls_attention(tokens, weight, bias, heads)
