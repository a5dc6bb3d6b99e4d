"""The same under torch.compile, where hooks are not called once a module has run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.facts import FeatureSite, HeadSite
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import Forward, capture, run_forward
from nap_stream.model.load import load_model
from nap_stream.model.sites import head_parameters, is_compiled
from tests.support.small_models import CLASSES, SIZE, ClsNet, SharedPoolNet, by_name
from tests.support.small_settings import CPU, load_small, small_settings


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_the_map_is_the_one_after_an_in_place_relu() -> None:
    model = by_name("InPlaceNet").eval()
    x = images(SIZE)
    site = choose_site(probe(model, x), None)
    with torch.inference_mode(), capture(model, site, torch.clone) as captured:
        model(x)
    assert captured.parts.get(0) is not None
    assert (model.features(x) < 0).any()
    assert torch.equal(captured.parts[0], model.features(x).relu())


def test_a_shared_pooling_module_is_told_by_its_call() -> None:
    model = by_name("SharedPoolNet").eval()
    assert isinstance(model, SharedPoolNet)
    x = images(SIZE)
    site = choose_site(probe(model, x), None)
    assert site == FeatureSite("module_input", "pool", None, 1, (4, SIZE, SIZE))
    with torch.inference_mode(), capture(model, site, torch.clone) as captured:
        model(x)
        maps = model.features(x)
        assert captured.parts.get(0) is not None
        assert torch.equal(captured.parts[0], maps * model.pool(maps))


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
        assert captured.parts.get(0) is None


def test_a_pooling_function_called_with_keywords_is_captured() -> None:
    class Keywords(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mean(input=x, dim=(-1, -2))

    site = choose_site(probe(Keywords(), images(SIZE)), None)
    assert (site.function, site.shape) == ("mean", (3, SIZE, SIZE))
    with capture(Keywords(), site, torch.clone) as captured:
        Keywords()(images(SIZE))
    assert captured.parts.get(0) is not None
    assert torch.equal(captured.parts[0], images(SIZE))


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
    assert captured.parts.get(0) is not None
    torch.testing.assert_close(captured.parts[0], weights[:, 0, 1:])


@pytest.fixture(autouse=True)
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def wrapped(model: nn.Module, backend: str) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[return-value] # a module stays one


def in_place(model: nn.Module, backend: str) -> nn.Module:
    model.compile(backend=backend)
    return model


def by_parts(model: nn.Module, backend: str) -> nn.Module:
    for name, part in list(model.named_children()):
        setattr(model, name, torch.compile(part, backend=backend))
    return model


def by_forward(model: nn.Module, backend: str) -> nn.Module:
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def forward(model: nn.Module, x: torch.Tensor) -> Forward:
    seen = probe(model, x)
    return run_forward(model, choose_site(seen, None), seen.head, x, classes=CLASSES)


def check(compiled: nn.Module, eager: nn.Module, x: torch.Tensor) -> None:
    """Compare three passes, the first of them cold for the captures, with the plain ones."""
    expected = forward(eager, x)
    with torch.inference_mode():
        plain = compiled(x)
    for _ in range(3):
        seen = forward(compiled, x)
        assert torch.equal(seen.logits, plain)
        torch.testing.assert_close(seen.logits, expected.logits)
        torch.testing.assert_close(seen.nap, expected.nap)
        assert seen.features is not None
        torch.testing.assert_close(seen.features, expected.features)


@pytest.mark.parametrize("compile_", [wrapped, in_place, by_parts, by_forward])
@pytest.mark.parametrize(
    "network", ["SmallNet", "InPlaceNet", "SharedPoolNet", "FlattenNet", "ClsNet"]
)
def test_a_compiled_model_scores_as_without(
    network: str, compile_: Callable[[nn.Module, str], nn.Module]
) -> None:
    eager = by_name(network).eval()
    compiled = compile_(by_name(network).eval(), "eager")
    assert is_compiled(compiled)
    assert not is_compiled(eager)
    site = choose_site(probe(eager, images(SIZE, 3)), None)
    assert choose_site(probe(compiled, images(SIZE, 3)), None) == site
    assert probe(compiled, images(SIZE, 3)).head == probe(eager, images(SIZE, 3)).head
    check(compiled, eager, images(SIZE, 3))


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet"])
def test_a_model_that_ran_before_scores_as_without(network: str) -> None:
    compiled = wrapped(by_name(network).eval(), "aot_eager")
    for _ in range(2):
        compiled(images(SIZE, 3))
    check(compiled, by_name(network).eval(), images(SIZE, 3))


@pytest.mark.slow
def test_the_default_compiler() -> None:
    eager = by_name("InPlaceNet").eval()
    compiled = torch.compile(by_name("InPlaceNet").eval())
    assert isinstance(compiled, nn.Module)
    expected, seen = forward(eager, images(SIZE, 3)), forward(compiled, images(SIZE, 3))
    torch.testing.assert_close(seen.logits, expected.logits)
    torch.testing.assert_close(seen.nap, expected.nap)
    torch.testing.assert_close(seen.features, expected.features)


def test_batches_of_other_sizes_and_many_calls_are_not_compiled_anew() -> None:
    graphs = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    model = by_name("SmallNet").eval()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    assert isinstance(compiled, nn.Module)
    seen = probe(model, images(SIZE, 3))
    site = choose_site(seen, None)
    for count in (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14):
        run = run_forward(compiled, site, seen.head, images(SIZE, count), classes=CLASSES)
        assert run.nap.shape == (count,)
    assert len(graphs) <= 2


def test_a_named_layer_is_read_at_the_function_that_takes_its_output() -> None:
    eager = by_name("InPlaceNet").eval()
    compiled = wrapped(by_name("InPlaceNet").eval(), "eager")
    compiled(images(SIZE, 3))
    for layer in ("features", "features.0"):
        site = choose_site(probe(compiled, images(SIZE, 3)), layer)
        assert (site.kind, site.module) == ("module_output", layer)
        head = probe(eager, images(SIZE, 3)).head
        seen = run_forward(compiled, site, head, images(SIZE, 3), classes=CLASSES)
        expected = run_forward(eager, site, head, images(SIZE, 3), classes=CLASSES)
        torch.testing.assert_close(seen.nap, expected.nap)


def test_a_layer_whose_output_no_function_takes_first_is_refused() -> None:
    class Second(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.add(x, self.convolution(x)).mean((2, 3))

    model = Second().eval()
    site = choose_site(probe(model, images(SIZE, 3)), "convolution")
    with pytest.raises(FeatureMapError, match=r"hook alone.*torch\.compile"):
        run_forward(wrapped(model, "eager"), site, None, images(SIZE, 3), classes=3)


def test_the_mode_that_counts_is_that_of_the_module_inside() -> None:
    model = by_name("SmallNet")
    compiled = wrapped(model, "eager")
    seen = probe(model.eval(), images(SIZE, 3))
    site = choose_site(seen, None)
    assert run_forward(compiled, site, seen.head, images(SIZE, 3), classes=CLASSES).nap.shape == (
        3,
    )
    model.train()
    with pytest.raises(ModelError, match="training mode"):
        run_forward(compiled, site, seen.head, images(SIZE, 3), classes=CLASSES)


def test_a_factory_may_compile() -> None:
    plain = load_small("SmallNet")
    compiled = load_model(small_settings("compiled"), CPU)
    assert is_compiled(compiled.module)
    assert not any(module.training for module in compiled.module.modules())
    assert (compiled.feature_site, compiled.head) == (plain.feature_site, plain.head)
    assert compiled.head is not None
    weight, _ = head_parameters(compiled.module, compiled.head)
    assert torch.equal(weight, plain.module.get_submodule("head").weight)  # type: ignore[arg-type] # a parameter


def test_weights_are_loaded_into_a_compiled_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(by_name("SmallNet", seed=5).state_dict(), path)
    loaded = load_model(small_settings("compiled", weights=path), CPU)
    expected = load_small("SmallNet", weights=path)
    assert torch.equal(
        head_parameters(loaded.module, HeadSite("head", (3, 4)))[0],
        head_parameters(expected.module, HeadSite("head", (3, 4)))[0],
    )
