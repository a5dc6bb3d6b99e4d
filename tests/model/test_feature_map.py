import pytest
import torch
from torch import nn

from nap_stream.model.find import choose_site, probe
from nap_stream.model.sites import FeatureSite, capture
from tests.support.small_models import SIZE, ClsNet, SharedPoolNet, by_name


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet", "FlattenNet", "ClsNet"])
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
        FeatureSite("module_input", "pool", None, 0, (5, SIZE, SIZE)),
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


@pytest.mark.parametrize("network", ["ClsNet", "TokensFirstClsNet"])
def test_the_cls_attention_is_torch_s_own(network: str) -> None:
    model = by_name(network).eval()
    assert isinstance(model, ClsNet)
    x = images(SIZE)
    site = choose_site(probe(model, x), None)
    assert site == FeatureSite("cls_attention", "attention", None, 0, (2, 1, 4))
    with torch.inference_mode():
        plain = model(x)
        with capture(model, site, torch.clone) as captured:
            logits = model(x)
        tokens = model.tokens(x)
        if not model.attention.batch_first:
            tokens = tokens.transpose(0, 1)
        _, weights = model.attention(tokens, tokens, tokens, need_weights=True)
    assert torch.equal(logits, plain)
    assert captured.value is not None
    torch.testing.assert_close(captured.value, weights[:, 0, 1:])
