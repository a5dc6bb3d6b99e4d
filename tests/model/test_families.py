"""The captured map of each family of classifiers, against the map read by hand.

Every classifier of torchvision, against the table of the documentation.
"""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.torchvision_models import classifiers, find
from nap_stream.core.prior import attention_prior, nap
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import capture, run_forward
from nap_stream.model.sites import head_parameters
from tests.model.families import CLASSES, FAMILIES, Family, images


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Family, nn.Module]:
    return FAMILIES[request.param], build(request.param)


def build(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FAMILIES[name].build().eval().requires_grad_(requires_grad=False)


def check(
    family: Family,
    model: nn.Module,
    x: torch.Tensor,
    inside: AbstractContextManager[object],
    tolerance: float,
) -> None:
    """Compare capture and forward pass with the plain model and the map read by hand."""
    with inside, torch.inference_mode():
        seen = probe(model, x)
        site = choose_site(seen, None)
        expected = family.read(model, x)
        plain = model(x)
        with capture(model, site, torch.clone) as captured:
            logits = model(x)
        forward = run_forward(model, site, seen.head, x, classes=CLASSES)
    assert (site.kind, site.function or site.module) == (family.kind, family.place)
    assert torch.equal(logits, plain)
    assert torch.equal(forward.logits, plain.float())
    assert captured.parts.get(0) is not None
    assert forward.nap.dtype == torch.float32
    if family.kind == "cls_attention":
        assert site.shape[2] == expected.shape[1]
        torch.testing.assert_close(
            captured.parts[0], expected.float(), rtol=tolerance, atol=tolerance
        )
        prior = attention_prior(captured.parts[0])
    else:
        assert site.shape == expected.shape[1:]
        assert torch.equal(captured.parts[0], expected)
        prior = nap(expected)
    assert torch.equal(forward.nap, prior)
    assert len(set(forward.nap.tolist())) == len(x)
    assert (seen.head.module if seen.head else None) == family.head
    if seen.head is not None:
        assert forward.features is not None
        assert forward.features.dtype == torch.float32
        weight, bias = head_parameters(model, seen.head)
        again = forward.features @ weight.T + bias
        torch.testing.assert_close(again, plain.float(), rtol=tolerance, atol=tolerance)


def test_the_map_of_each_family(family: tuple[Family, nn.Module]) -> None:
    which, model = family
    check(which, model, images(which.side), nullcontext(), 1e-4)


CHOSEN = ("resnet", "densenet", "mobilenet_v2", "convnext", "vit")


@pytest.mark.parametrize("name", CHOSEN)
def test_the_map_with_channels_last(name: str) -> None:
    family = FAMILIES[name]
    model = build(name).to(memory_format=torch.channels_last)
    x = images(family.side).to(memory_format=torch.channels_last)
    check(family, model, x, nullcontext(), 1e-4)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_map_under_autocast(name: str) -> None:
    family = FAMILIES[name]
    inside = torch.autocast("cpu", dtype=torch.bfloat16)
    check(family, build(name), images(family.side), inside, 3e-2)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_map_with_bfloat16_weights(name: str) -> None:
    family = FAMILIES[name]
    x = images(family.side).to(torch.bfloat16)
    check(family, build(name).to(torch.bfloat16), x, nullcontext(), 3e-2)


def test_the_in_place_relu_of_densenet_is_seen() -> None:
    model = build("densenet")
    x = images(64)
    with torch.inference_mode(), capture(model, choose_site(probe(model, x), None), nap) as taken:
        model(x)
        before = model.get_submodule("features")(x)
    assert (before < 0).any()
    assert taken.parts.get(0) is not None
    assert torch.equal(taken.parts[0], nap(before.relu()))


DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture
def freed_memory() -> Iterator[None]:
    """The largest models do not fit into memory together."""
    yield
    gc.collect()


def documented() -> dict[str, str]:
    _, _, section = DOCUMENT.read_text().partition("## torchvision, model by model")
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return {row.split()[1]: row for row in rows if row.split()[1] != "Model"}


def test_the_table_has_all_classifiers() -> None:
    assert sorted(documented()) == sorted(classifiers())


AT_THEIR_SIZE = {
    *("convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5"),
    *("swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "wide_resnet50_2"),
}
"""One of each kind whose map has a 32nd of the side of its input; the others are run on less."""


@pytest.mark.slow
@pytest.mark.usefixtures("freed_memory")
@pytest.mark.parametrize("name", classifiers())
def test_prior_and_head_are_found_where_the_table_says(name: str) -> None:
    row, side = documented()[name], None
    if "x7x7 |" in row and name not in AT_THEIR_SIZE:
        row, side = row.replace("| 224 |", "| 96 |").replace("x7x7 |", "x3x3 |"), 96
    elif name in {"vit_h_14", "vit_l_16"}:  # patches of 14 and 16
        row, side = row.replace("| 224 |", "| 112 |").replace("x256 |", "x64 |"), 112
        row = row.replace("x196 |", "x49 |")
    assert find(name, side).row() == row
