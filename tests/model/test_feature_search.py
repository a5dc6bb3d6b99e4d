import pytest
import torch
from torch import nn
from torchvision import models

from nap_stream.core.nap import nap
from nap_stream.errors import FeatureMapError
from nap_stream.model.feature_map import capture
from nap_stream.model.feature_search import choose_site, probe
from nap_stream.model.feature_site import FeatureSite
from tests.support.small_models import SIZE, by_name


def find(model: nn.Module, layer: str | None = None, side: int = SIZE) -> FeatureSite:
    return choose_site(probe(model.eval(), torch.rand(2, 3, side, side)), layer)


def test_a_model_without_pooling_is_refused_with_the_candidates() -> None:
    with pytest.raises(FeatureMapError) as caught:
        find(by_name("FlattenNet"))
    text = str(caught.value)
    assert "no global average or maximum pooling" in text
    assert "features.1 (4x8x8)" in text
    assert "model.feature_layer" in text


def test_vgg_is_refused_and_takes_a_named_layer() -> None:
    model = models.vgg11(num_classes=3)
    with pytest.raises(FeatureMapError, match=r"features\.20 \(512x2x2\)"):
        find(model, side=64)
    assert find(model, "features", side=64).shape == (512, 2, 2)
    # Its pooling leaves 7 x 7 positions, so its output is a map too.
    assert find(model, "avgpool", side=64).kind == "module_output"


def test_a_gate_is_not_taken_for_the_end() -> None:
    with pytest.raises(FeatureMapError, match="not the end of the feature maps"):
        find(by_name("GateNet"))


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


def test_the_layer_before_an_in_place_relu_scores_as_the_one_after_it() -> None:
    model = by_name("InPlaceNet").eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    scores = []
    for layer in (None, "features"):
        with torch.inference_mode(), capture(model, find(model, layer), nap) as captured:
            model(x)
        scores.append(captured.value)
    first, second = scores
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


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
