import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nap_stream.core.prior import attention_prior, cls_attention


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
