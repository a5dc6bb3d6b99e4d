"""Whatever the way from the maps to the logits: what is read is what is known of it."""

import pytest
import torch

from nap_stream.core.prior import attention_prior, nap
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import run_forward
from tests.support.ways import CLASSES, IMAGES, KINDS, SIDE, Case, body

CASES = [
    pytest.param(case, id=f"{kind}: {name}")
    for kind, make in KINDS.items()
    for name, case in make().items()
]


def images(count: int = IMAGES) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_there_are_twenty_of_each_kind_or_more() -> None:
    assert all(len(make()) >= 18 for make in KINDS.values())


@pytest.mark.parametrize("case", CASES)
def test_the_prior_is_that_of_the_known_maps(case: Case) -> None:
    net = body(case.way, case.width)
    x = images()
    seen = probe(net, x)
    site = choose_site(seen, None)
    forward = run_forward(net, site, seen.head, x, classes=CLASSES)
    with torch.inference_mode():
        logits, maps = case.way(net, x)
    if site.kind == "cls_attention":
        expected = attention_prior(maps[0])
    else:
        # The union of channels: max and mean of each map, side by side.
        flat = [part.flatten(2) for part in maps]
        channels = torch.tensor([part.shape[1] for part in flat])
        each = torch.stack([nap(part.unsqueeze(-1)) for part in flat])
        expected = (each * channels[:, None]).sum(0) / channels.sum()
    torch.testing.assert_close(forward.logits, logits, rtol=0, atol=0)
    torch.testing.assert_close(forward.nap, expected, rtol=1e-4, atol=1e-6)
