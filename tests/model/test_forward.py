import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nap_stream.core.prior import nap
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.facts import FeatureSite, HeadSite
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import Forward, require_logits, run_forward
from tests.support.small_models import CLASSES, SIZE, by_name

POOL = FeatureSite("module_input", "pool", None, 0, (4, SIZE, SIZE))
HEAD = HeadSite("head", (3, 4))


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def forward(model: nn.Module, x: torch.Tensor, classes: int = CLASSES) -> Forward:
    seen = probe(model.eval(), x)
    return run_forward(model, choose_site(seen, None), seen.head, x, classes=classes)


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet"])
def test_one_pass_gives_logits_features_and_prior(network: str) -> None:
    model = by_name(network).eval()
    seen = forward(model, images())
    with torch.inference_mode():
        maps = model.features(images()).relu()
        assert torch.equal(seen.logits, model(images()))
    assert seen.features is not None
    assert torch.equal(seen.features, maps.mean((2, 3)))
    assert torch.equal(seen.nap, nap(maps))


def test_features_of_a_model_without_a_linear_head_are_the_means_of_its_map() -> None:
    model = by_name("ReluHeadNet").eval()
    seen = forward(model, images())
    with torch.inference_mode():
        maps = model.features(images())
    assert seen.features is not None
    torch.testing.assert_close(seen.features, maps.mean((2, 3)))
    assert torch.equal(seen.nap, nap(maps))


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet", "ClsNet"])
def test_the_model_runs_once_and_keeps_nothing(network: str) -> None:
    model = by_name(network).eval()
    seen = probe(model, images())
    site = choose_site(seen, None)
    passes = []
    handle = model.features[0].register_forward_hook(lambda *_: passes.append(1))
    run_forward(model, site, seen.head, images(), classes=CLASSES)
    handle.remove()
    assert passes == [1]
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_is_float32_whatever_the_weights(dtype: torch.dtype) -> None:
    model = by_name("SmallNet").to(dtype).eval()
    seen = forward(model, images().to(dtype))
    with torch.inference_mode():
        maps = model.features(images().to(dtype))
        assert torch.equal(seen.logits, model(images().to(dtype)).float())
    assert torch.equal(seen.nap, nap(maps))
    assert seen.features is not None
    assert {t.dtype for t in (seen.logits, seen.features, seen.nap)} == {torch.float32}


def test_attention_is_computed_in_float32_under_autocast() -> None:
    model = by_name("ClsNet").eval()
    outside = forward(model, images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = forward(model, images())
        tokens = model.get_submodule("features")(images())
    assert tokens.dtype == torch.bfloat16
    assert inside.nap.dtype == torch.float32
    # The tokens are rounded to 8 bits by the model; the attention itself is not.
    assert not torch.equal(inside.nap.bfloat16().float(), inside.nap)
    torch.testing.assert_close(inside.nap, outside.nap, rtol=2e-2, atol=0)


def train(model: nn.Module) -> None:
    model.train()


def train_a_part(model: nn.Module) -> None:
    model.get_submodule("features.1").train()


@pytest.mark.parametrize(
    ("change", "where"), [(train, "the model"), (train_a_part, r"module 'features\.1'")]
)
def test_a_model_in_training_mode_is_refused(
    change: Callable[[nn.Module], None], where: str
) -> None:
    model = by_name("SmallNet").eval()
    change(model)
    with pytest.raises(ModelError, match=rf"{where}.*training mode.*model\.eval\(\)"):
        run_forward(model, POOL, HEAD, images(), classes=CLASSES)


@pytest.mark.parametrize(
    ("network", "message"),
    [("TupleNet", "returned tuple for 3 images"), ("DictNet", "returned dict for 3 images")],
)
def test_an_output_that_is_not_a_tensor_is_refused(network: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run_forward(by_name(network).eval(), POOL, None, images(), classes=CLASSES)


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(3),
        torch.zeros(2, 4),
        torch.zeros(3, 5),
        torch.zeros(3, 4, 1),
        torch.zeros(3, 4, dtype=torch.int64),
        None,
    ],
)
def test_what_is_not_logits_is_refused(output: object) -> None:
    with pytest.raises(ModelError, match=r"expected floating-point logits of shape \(3, 4\)"):
        require_logits(output, images=3, classes=4)


def test_logits_of_no_class_are_refused() -> None:
    assert require_logits(torch.zeros(3, 9), images=3).shape == (3, 9)
    with pytest.raises(ModelError, match="classes"):
        require_logits(torch.zeros(3, 0), images=3)


def test_sites_that_the_pass_does_not_reach() -> None:
    model = by_name("SmallNet").eval()
    elsewhere = dataclasses.replace(POOL, call=1)
    with pytest.raises(FeatureMapError, match="did not reach the feature map"):
        run_forward(model, elsewhere, HEAD, images(), classes=CLASSES)
    again = dataclasses.replace(HEAD, call=1)
    with pytest.raises(ModelError, match="did not reach the linear head"):
        run_forward(model, POOL, again, images(), classes=CLASSES)


def test_no_gradients_are_kept() -> None:
    model = by_name("SmallNet").eval()
    seen = run_forward(model, POOL, HEAD, images(), classes=CLASSES)
    assert seen.features is not None
    assert not any(t.requires_grad for t in (seen.logits, seen.features, seen.nap))
