"""Whatever the way from the maps to the logits: what is read is what is known of it."""

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch.nn import functional

from nap_stream.core.prior import attention_prior, nap
from nap_stream.errors import FeatureMapError
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import run_forward
from nap_stream.model.sites import module_output
from tests.support.ways import CLASSES, IMAGES, KINDS, SIDE, Body, Case, Way, attend, body

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


def ambiguous(name: str) -> Way:
    """Ways to the logits of which none is the only one, or that cannot be read."""

    def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        maps = net.late(net.early(x))
        flat = maps.flatten(2)
        found = attend(net, net.tokens(x, 1), "fused")[0]
        found = net.tokens_out(found)
        ends: dict[str, Callable[[], torch.Tensor]] = {
            "covariance": lambda: (flat @ flat.mT).flatten(1)[:, :6],
            "one place": lambda: maps[:, :, 3, 3],
            "gather": lambda: flat.gather(2, flat.argmax(2, keepdim=True)).squeeze(2),
            "last token": lambda: found[:, -1],
            "two tokens": lambda: found[:, 0] + found[:, 5],
            "a map and CLS": lambda: maps.mean((2, 3)) + found[:, 0],
            "a map and a place": lambda: maps.mean((2, 3)) + net.other(x)[:, :, 1, 2],
            "channels mixed away": lambda: net.mix(maps.mean(1)[:, ::2, ::2].flatten(1))[:, :6],
            "clusters": lambda: torch.einsum("nct,nkt->nck", flat, flat.softmax(1)).mean(2),
            "pyramid": lambda: torch.cat(
                [functional.adaptive_max_pool2d(maps, n).flatten(1) for n in (1, 2)], dim=1
            )[:, :6],
            "recurrent": lambda: torch.cumsum(flat, 2)[..., -1],
            "tokens by weight": lambda: net.mix(found[:, 1:].transpose(1, 2))[..., 0],
        }
        return net.head(ends[name]()), ()

    return way


AMBIGUOUS = [
    "covariance",
    "one_place",
    "gather",
    "last_token",
    "two_tokens",
    "a_map_and_CLS",
    "a_map_and_a_place",
    "channels_mixed_away",
    "clusters",
    "pyramid",
    "recurrent",
    "tokens_by_weight",
]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_each_candidate_of_a_refusal_works(name: str) -> None:
    net = body(ambiguous(name.replace("_", " ")))
    x = images()
    seen = probe(net, x)
    with pytest.raises(FeatureMapError, match="the last maps are the outputs of") as caught:
        choose_site(seen, None)
    candidates = re.findall(r"(?:outputs of: |, )([\w.]+) \((\d+)x", str(caught.value))
    assert candidates
    for layer, channels in candidates:
        outputs: list[torch.Tensor] = []
        with module_output(net.get_submodule(layer), 0, outputs.append):
            net(x)
        site = choose_site(seen, layer)
        forward = run_forward(net, site, seen.head, x, classes=CLASSES)
        output = outputs[-1]
        assert site.shape[0] == int(channels)
        flat = output.movedim(site.layout.channels, 1).flatten(2)[..., site.layout.skip :]
        torch.testing.assert_close(forward.nap, nap(flat.unsqueeze(-1)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.0.attn.q_norm", "no one axis of channels, as heads x tokens x width"),
        ("blocks.0.attn.attn_drop", "weights of an attention"),
        ("patch_embed", "a patch embedding"),
        ("patch_embed.proj", "a patch embedding"),
        ("fc_norm", "neither the output nor the input|no one axis"),
    ],
)
def test_what_a_named_layer_of_a_transformer_is_not(layer: str, message: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=3,
            qk_norm=True,
        ).eval()  # fmt: skip
        for part in net.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False
    seen = probe(net, torch.randn(2, 3, 32, 32))
    with pytest.raises(FeatureMapError, match=message):
        choose_site(seen, layer)
    named = choose_site(seen, "blocks.1")
    assert (named.shape, named.layout.skip) == ((12, 1, 16), 1)


def pairs(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    both = net.maps(torch.maximum(x[0::2], x[1::2]))
    return net.head(both.mean((2, 3)).repeat_interleave(2, dim=0)), ()


def turned_round(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    return net.head(net.maps(x.flip(0)).mean((2, 3)).flip(0)), ()


def overlapping(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    rows = torch.cat([x, x.roll(1, 0), (x + x.roll(1, 0)) / 2])
    return net.head(net.maps(rows).mean((2, 3))).reshape(3, len(x), -1).mean(0), ()


@pytest.mark.parametrize("way", [pairs, turned_round, overlapping])
def test_rows_that_are_no_images_are_refused_where_they_are_found(way: Way) -> None:
    net = body(way)
    with pytest.raises(FeatureMapError, match=r"the map has \d+ rows for 4 images"):
        choose_site(probe(net, images(4)), None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("two poolings", "logs early, channels last"),
        ("multi-scale", "mean and amax"),
        ("ensembles", "mean of mean"),
        ("transformed", "GeM"),
        ("transformed", "softplus"),
        ("channels last", "mlp, mean"),
        ("class tokens", "plain, 1 learned, index"),
        ("class tokens", "fused, 3 learned, slice"),
        ("tokens", "mixer, mean"),
        ("rows", "images, features, mean"),
    ],
)
def test_a_compiled_model_reads_the_same(kind: str, name: str) -> None:
    case = KINDS[kind]()[name]
    net, x = body(case.way, case.width), images()
    seen = probe(net, x)
    site = choose_site(seen, None)
    expected = run_forward(net, site, seen.head, x, classes=CLASSES)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    assert isinstance(compiled, torch.nn.Module)
    found = run_forward(compiled, site, seen.head, x, classes=CLASSES)
    torch.testing.assert_close(found.nap, expected.nap)
    torch.compiler.reset()


def weighted_scales(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    maps, other = net.maps(x), net.other(x)
    weights = net.norm.weight[:2].softmax(-1)
    return net.head(maps.mean((2, 3)) * weights[0] + other.mean((2, 3)) * weights[1]), ()


def masked_mean(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    maps = net.maps(x)
    mask = (maps.sum(1, keepdim=True) > 0).float()
    return net.head((maps * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)), ()


def out_argument(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    pooled = torch.empty(len(x), 6)
    torch.mean(net.maps(x), (2, 3), out=pooled)
    return net.head(pooled), ()


def filled_buffer(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    pooled = x.new_zeros(len(x), 6)
    pooled[:] = net.maps(x).mean((2, 3))
    return net.head(pooled), ()


def beside_pixels(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    return net.head(torch.cat([net.maps(x).mean((2, 3))[:, :3], x.mean((2, 3))], dim=1)), ()


@pytest.mark.parametrize(
    ("way", "shapes"),
    [
        (weighted_scales, [(6, 4, 4), (6, 8, 8)]),
        (masked_mean, [(6, 8, 8)]),
        (out_argument, [(6, 8, 8)]),
        (filled_buffer, [(6, 8, 8)]),
        (beside_pixels, [(6, 8, 8)]),
    ],
)
def test_odd_ways(way: Way, shapes: list[tuple[int, int, int]]) -> None:
    net = body(way)
    with torch.inference_mode():
        site = choose_site(probe(net, images()), None)
    assert [part.shape for part in site.parts] == shapes


def fused_query(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """The query, with one head, that a weighted mean of the values is of, if it is spelled out."""
    tokens = net.maps(x).flatten(2).mT
    query = net.cls.expand(len(x), -1, -1)
    found = functional.scaled_dot_product_attention(
        query.unsqueeze(1), net.proj(tokens).unsqueeze(1), net.tokens_out(tokens).unsqueeze(1)
    )
    return net.head(found.flatten(1)), [net.maps(x)]


def test_a_weighted_mean_that_cannot_be_read_is_refused_with_its_map() -> None:
    net, x = body(fused_query), images()
    seen = probe(net, x)
    with pytest.raises(FeatureMapError, match=r"tokens_out \(6x1x64\)"):
        choose_site(seen, None)
    named = run_forward(net, choose_site(seen, "tokens_out"), seen.head, x, classes=CLASSES)
    torch.testing.assert_close(named.nap, nap(net.maps(x)))


def through_numpy(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    maps = net.map_out(net.maps(x))
    net.tokens_out(net.other(x)).mean((2, 3))
    return net.head(torch.from_numpy(maps.numpy().mean((2, 3)))), [maps]


def mapped(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    maps = net.map_out(net.maps(x))
    net.tokens_out(net.other(x)).mean((2, 3))
    return net.head(torch.vmap(lambda one: one.mean((1, 2)))(maps)), [maps]


@pytest.mark.parametrize("way", [through_numpy, mapped])
def test_a_way_out_of_sight_is_refused_with_maps_that_are_measured(way: Way) -> None:
    net = body(way)
    seen = probe(net, images())
    with pytest.raises(FeatureMapError, match=r"map_out \(6x8x8\)") as caught:
        choose_site(seen, None)
    assert "tokens_out" not in str(caught.value)
    with pytest.raises(FeatureMapError, match="does not reach the logits"):
        choose_site(seen, "tokens_out")
    site = choose_site(seen, "map_out")
    with torch.inference_mode():
        maps = way(net, images())[1][0]
    forward = run_forward(net, site, seen.head, images(), classes=CLASSES)
    torch.testing.assert_close(forward.nap, nap(maps))
