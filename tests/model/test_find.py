import pytest
import torch
from torch import nn

from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.facts import FeatureSite, HeadSite, MapLayout
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import capture
from nap_stream.model.sites import head_parameters
from tests.model.families import narrow
from tests.support.small_models import SIZE, by_name


def find(model: nn.Module, layer: str | None = None, side: int = SIZE) -> FeatureSite:
    return choose_site(probe(model.eval(), torch.rand(2, 3, side, side)), layer)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("PixelNet", "no global average or maximum pooling.*no module was seen"),
        ("TwoTokenNet", "more than the first token of the last self-attention.*no CLS token"),
        ("MaskedNet", "no self-attention that can be read"),
        ("LayerNet", "no self-attention that can be read"),
    ],
)
def test_a_model_without_a_map_is_refused_with_the_candidates(network: str, message: str) -> None:
    with pytest.raises(FeatureMapError, match=message) as caught:
        find(by_name(network))
    assert "model.feature_layer" in str(caught.value)


def test_the_map_that_is_flattened_into_the_classifier() -> None:
    assert find(by_name("FlattenNet")) == FeatureSite(
        "function_input", "", "flatten", 0, (4, SIZE, SIZE)
    )


def test_a_map_that_is_flattened_with_its_channels_last() -> None:
    site = find(by_name("ChannelsLastFlattenNet"))
    assert site.layout == MapLayout(channels=3)
    assert site.shape == (4, SIZE, SIZE)


def test_tokens_that_are_averaged() -> None:
    site = find(by_name("MeanTokenNet"))
    assert (site.function, site.layout) == ("mean", MapLayout(dimensions=3, channels=2))


def test_an_adaptive_pooling_to_a_fixed_size_is_looked_through() -> None:
    assert find(by_name("AdaptedNet")) == FeatureSite(
        "module_input", "pool", None, 0, (4, SIZE, SIZE)
    )
    with pytest.raises(FeatureMapError, match=r"one position only \(input of pool.*larger input"):
        find(by_name("AdaptedNet"), side=1)


def test_vgg_takes_a_named_layer() -> None:
    model = narrow("vgg11")()
    assert find(model, side=64).module == "avgpool"
    assert find(model, "features", side=64).shape == (512, 2, 2)
    # Its pooling leaves 7 x 7 positions, so its output is a map too.
    assert find(model, "avgpool", side=64).kind == "module_output"


def test_a_gate_is_not_taken_for_the_end() -> None:
    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean((2, 3), keepdim=True)

    with pytest.raises(FeatureMapError, match="not the end of the feature maps"):
        find(Gate())


def test_the_map_behind_a_gate_is_flattened() -> None:
    model = by_name("GateNet").eval()
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode(), capture(model, find(model), torch.clone) as captured:
        model(x)
        maps = model.features(x)
    assert captured.parts.get(0) is not None
    assert torch.equal(captured.parts[0], maps * maps.mean((2, 3), keepdim=True))


def test_a_pooled_vector_with_its_channels_last_is_no_later_map() -> None:
    class Norm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = nn.functional.adaptive_avg_pool2d(x, 1).permute(0, 2, 3, 1)
            return nn.functional.layer_norm(pooled, (3,)).flatten(1)

    assert find(Norm()).function == "adaptive_avg_pool2d"


def test_an_attention_is_named() -> None:
    assert find(by_name("MeanTokenNet"), "attention").kind == "cls_attention"


def test_a_head_of_zeros_does_not_hide_the_cls_token() -> None:
    model = by_name("ClsNet")
    nn.init.zeros_(model.head.weight)
    assert find(model).kind == "cls_attention"


def test_a_map_of_one_position_is_refused() -> None:
    with pytest.raises(FeatureMapError, match=r"one position only.*Use a larger input"):
        find(by_name("TinyMapNet"))


def test_a_reduction_over_other_dimensions_is_no_pooling() -> None:
    class ChannelsLast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            cube = x.mean(1, keepdim=True).expand(-1, SIZE, -1, -1)
            return cube.mean(dim=(1, 2))

    with pytest.raises(FeatureMapError, match="no global"):
        find(ChannelsLast())


def test_a_second_pooling_of_the_pooled_vector_does_not_hide_the_map() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.adaptive_avg_pool2d(x, 1).mean((2, 3))

    assert find(Twice()).function == "adaptive_avg_pool2d"


@pytest.mark.parametrize(
    ("layer", "kind"),
    [("pool", "module_input"), ("features", "module_output"), ("features.0", "module_output")],
)
def test_a_named_layer_gives_its_output_or_its_input_where_it_pools(layer: str, kind: str) -> None:
    site = find(by_name("SmallNet"), layer)
    assert (site.kind, site.module, site.shape) == (kind, layer, (4, SIZE, SIZE))


def test_a_named_layer_is_read_before_a_later_in_place_relu() -> None:
    model = by_name("InPlaceNet").eval()
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        with capture(model, find(model, "features"), torch.clone) as captured:
            model(x)
        expected = model.features(x)
    assert (expected < 0).any()
    assert captured.parts.get(0) is not None
    assert torch.equal(captured.parts[0], expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("feature", "no module of this name; did you mean features"),
        ("zzz", "no module of this name"),
        ("", "no module of this name"),
        ("head", "neither the output nor the input.*features"),
    ],
)
def test_a_layer_that_has_no_map_is_refused(layer: str, message: str) -> None:
    with pytest.raises(FeatureMapError, match=message):
        find(by_name("SmallNet"), layer)


def find_head_of(model: nn.Module) -> HeadSite | None:
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
    assert find_head_of(by_name(network)) == head


def test_a_head_that_is_called_twice_is_told_by_its_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.linear(x.mean((2, 3)))
            return self.linear(first)  # type: ignore[no-any-return] # a module's call

    assert find_head_of(Twice()) == HeadSite("linear", (3, 3), call=1, traced_call=1)


def test_the_model_itself_is_a_head() -> None:
    class Pooled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mean((2, 3)))

    assert find_head_of(Pooled(3, 5)) == HeadSite("", (5, 3))


def test_a_head_over_tokens_has_no_features() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(SIZE, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)  # type: ignore[no-any-return] # a module's call

    assert find_head_of(Tokens()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weight_and_bias_are_float32_copies(dtype: torch.dtype) -> None:
    model = by_name("SmallNet").to(dtype)
    head = HeadSite("head", (3, 4))
    weight, bias = head_parameters(model, head)
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)
    assert torch.equal(weight, model.head.weight.float())
    assert torch.equal(bias, model.head.bias.float())
    weight.zero_()
    bias.zero_()
    assert model.head.weight.any()
    assert model.head.bias.any()


def test_a_missing_bias_is_zeros() -> None:
    _, bias = head_parameters(by_name("BiaslessNet"), HeadSite("head.0.0", (3, 4)))
    assert bias.tolist() == [0, 0, 0]
    assert bias.dtype == torch.float32


@pytest.mark.parametrize(("module", "shape"), [("head", (3, 5)), ("pool", (3, 4)), ("no", (3, 4))])
def test_the_head_of_another_model_is_refused(module: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="no linear module of shape"):
        head_parameters(by_name("SmallNet"), HeadSite(module, shape))
