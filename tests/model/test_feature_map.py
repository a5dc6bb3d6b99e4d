from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from nap_stream.model.feature_map import capture
from nap_stream.model.feature_search import choose_site, probe
from nap_stream.model.feature_site import FeatureSite
from tests.support.small_models import SIZE, SharedPoolNet, by_name

SIDE = 64


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def resnet_map(model: models.ResNet, x: torch.Tensor) -> torch.Tensor:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))  # type: ignore[no-any-return] # torchvision has no types


def densenet_map(model: models.DenseNet, x: torch.Tensor) -> torch.Tensor:
    return functional.relu(model.features(x))


def shufflenet_map(model: models.ShuffleNetV2, x: torch.Tensor) -> torch.Tensor:
    x = model.maxpool(model.conv1(x))
    return model.conv5(model.stage4(model.stage3(model.stage2(x))))  # type: ignore[no-any-return] # torchvision has no types


def features_map(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.get_submodule("features")(x)  # type: ignore[no-any-return] # a module's call


def layers_map(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.get_submodule("layers")(x)  # type: ignore[no-any-return] # a module's call


@pytest.mark.parametrize(
    ("build", "read", "site"),
    [
        (
            models.resnet18,
            resnet_map,
            FeatureSite("module_input", "avgpool", None, 0, (512, 2, 2)),
        ),
        (
            models.efficientnet_b0,
            features_map,
            FeatureSite("module_input", "avgpool", None, 0, (1280, 2, 2)),
        ),
        (
            models.densenet121,
            densenet_map,
            FeatureSite("function_input", "", "adaptive_avg_pool2d", 0, (1024, 2, 2)),
        ),
        (
            models.mobilenet_v2,
            features_map,
            FeatureSite("function_input", "", "adaptive_avg_pool2d", 0, (1280, 2, 2)),
        ),
        (
            models.shufflenet_v2_x0_5,
            shufflenet_map,
            FeatureSite("function_input", "", "mean", 0, (1024, 2, 2)),
        ),
        (
            models.mnasnet0_5,
            layers_map,
            FeatureSite("function_input", "", "mean", 0, (1280, 2, 2)),
        ),
    ],
)
def test_finds_and_captures_the_map_of_torchvision_models(
    build: Callable[[], nn.Module],
    read: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    site: FeatureSite,
) -> None:
    model = build().eval()
    x = images(SIDE)
    found = choose_site(probe(model, x), None)
    assert found == site
    with torch.inference_mode():
        plain = model(x)
        with capture(model, found, torch.clone) as captured:
            logits = model(x)
        expected = read(model, x)
    assert captured.value is not None
    assert torch.equal(captured.value, expected)
    assert torch.equal(logits, plain)


def test_the_map_is_the_one_after_an_in_place_relu() -> None:
    model = by_name("InPlaceNet").eval()
    x = images(SIZE)
    site = choose_site(probe(model, x), None)
    with torch.inference_mode(), capture(model, site, torch.clone) as captured:
        model(x)
    assert captured.value is not None
    assert (model.features(x) < 0).any()
    assert torch.equal(captured.value, model.features(x).relu())


def test_a_shared_pooling_module_is_told_by_its_call() -> None:
    model = by_name("SharedPoolNet").eval()
    assert isinstance(model, SharedPoolNet)
    x = images(SIZE)
    site = choose_site(probe(model, x), None)
    assert site == FeatureSite("module_input", "pool", None, 1, (4, SIZE, SIZE))
    with torch.inference_mode(), capture(model, site, torch.clone) as captured:
        model(x)
        maps = model.features(x)
        assert captured.value is not None
        assert torch.equal(captured.value, maps * model.pool(maps))


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet"])
def test_nothing_is_left_on_the_model(network: str) -> None:
    model = by_name(network).eval()
    x = images(SIZE)
    site = choose_site(probe(model, x), None)
    with pytest.raises(ZeroDivisionError), capture(model, site, lambda _: 1 / 0):
        model(x)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_site_that_the_pass_does_not_reach_captures_nothing() -> None:
    model = by_name("SmallNet").eval()
    for site in (
        FeatureSite("module_input", "pool", None, 1, (4, SIZE, SIZE)),
        FeatureSite("function_input", "", "mean", 0, (4, SIZE, SIZE)),
    ):
        with capture(model, site, torch.clone) as captured:
            model(images(SIZE))
        assert captured.value is None


def test_a_pooling_function_called_with_keywords_is_captured() -> None:
    class Keywords(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mean(input=x, dim=(-1, -2))

    site = choose_site(probe(Keywords(), images(SIZE)), None)
    assert (site.function, site.shape) == ("mean", (3, SIZE, SIZE))
    with capture(Keywords(), site, torch.clone) as captured:
        Keywords()(images(SIZE))
    assert captured.value is not None
    assert torch.equal(captured.value, images(SIZE))
