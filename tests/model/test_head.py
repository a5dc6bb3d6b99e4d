import pytest
import torch
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.find import head_bias, head_weight, probe
from nap_stream.model.sites import HeadSite
from tests.support.small_models import SIZE, by_name


def find(model: nn.Module) -> HeadSite | None:
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return probe(model.eval(), x).head


@pytest.mark.parametrize(
    ("network", "head"),
    [
        ("SmallNet", HeadSite("head", (3, 4))),
        ("DropoutNet", HeadSite("head", (3, 4))),
        ("FlattenNet", HeadSite("head", (3, 4 * SIZE * SIZE))),
        ("PixelNet", HeadSite("head", (3, 4), traced_call=1)),
        ("BiaslessNet", HeadSite("head.0.0", (3, 4))),
        ("ReluHeadNet", None),
        ("CosineNet", None),
        ("OverflowNet", None),
        ("TupleNet", None),
    ],
)
def test_the_linear_module_whose_output_is_the_model_s(network: str, head: HeadSite | None) -> None:
    assert find(by_name(network)) == head


def test_a_head_that_is_called_twice_is_told_by_its_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.linear(x.mean((2, 3)))
            return self.linear(first)  # type: ignore[no-any-return] # a module's call

    assert find(Twice()) == HeadSite("linear", (3, 3), call=1, traced_call=1)


def test_the_model_itself_is_a_head() -> None:
    class Pooled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mean((2, 3)))

    assert find(Pooled(3, 5)) == HeadSite("", (5, 3))


def test_a_head_over_tokens_has_no_features() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(SIZE, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)  # type: ignore[no-any-return] # a module's call

    assert find(Tokens()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weight_and_bias_are_float32_copies(dtype: torch.dtype) -> None:
    model = by_name("SmallNet").to(dtype)
    head = HeadSite("head", (3, 4))
    weight, bias = head_weight(model, head), head_bias(model, head)
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)
    assert torch.equal(weight, model.head.weight.float())
    assert torch.equal(bias, model.head.bias.float())
    weight.zero_()
    bias.zero_()
    assert model.head.weight.any()
    assert model.head.bias.any()


def test_a_missing_bias_is_zeros() -> None:
    bias = head_bias(by_name("BiaslessNet"), HeadSite("head.0.0", (3, 4)))
    assert bias.tolist() == [0, 0, 0]
    assert bias.dtype == torch.float32


@pytest.mark.parametrize(("module", "shape"), [("head", (3, 5)), ("pool", (3, 4)), ("no", (3, 4))])
def test_the_head_of_another_model_is_refused(module: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="no linear module of shape"):
        head_weight(by_name("SmallNet"), HeadSite(module, shape))
