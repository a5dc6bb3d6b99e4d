"""Small classifiers whose maps are known, by the way from their maps to the logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

SIDE = 16
CLASSES = 3
IMAGES = 3
Way = Callable[["Body", torch.Tensor], tuple[torch.Tensor, Sequence[torch.Tensor]]]
Pool = Callable[[torch.Tensor], torch.Tensor]
Sum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A way, and the layers that it may name, in ``width`` channels of features."""

    way: Way
    width: int = 6
    layers: Sequence[str] = ()


class Body(nn.Module):
    """Two stages of convolutions, a patch embedding with tokens, and a head; input 16 x 16."""

    def __init__(self, way: Way, width: int = 6) -> None:
        super().__init__()
        self.way = way
        self.early = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(5, 6, 3, 2, padding=1), nn.ReLU())
        self.other = nn.Sequential(nn.Conv2d(3, 6, 3, 4, padding=1), nn.SiLU())
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 6))
        self.registers = nn.Parameter(torch.randn(1, 2, 6))
        self.qkv = nn.Linear(6, 18)
        self.proj = nn.Linear(6, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.mix = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(6)
        self.batch_norm = nn.BatchNorm2d(6)

        self.gate = nn.Linear(6, 6)
        self.tokens_out = nn.Identity()
        self.map_out = nn.Identity()
        self.head = nn.Linear(width, CLASSES)
        self.side_head = nn.Linear(5, CLASSES)
        self.second_head = nn.Linear(6, CLASSES)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """The last map of the convolutions, (N, 6, 8, 8)."""
        found: torch.Tensor = self.late(self.early(x))
        return found

    def tokens(self, x: torch.Tensor, learned: int = 0) -> torch.Tensor:
        """Patch tokens (N, learned + 16, 6), learned ones first."""
        found: torch.Tensor = self.patches(x).flatten(2).transpose(1, 2)
        parts = [self.cls.expand(len(x), -1, -1)] * min(learned, 1)
        parts += [self.registers.expand(len(x), -1, -1)[:, : learned - 1]] * (learned > 1)
        return torch.cat([*parts, found], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of the way."""
        return self.way(self, x)[0]


def body(way: Way, width: int = 6) -> Body:
    """Build one with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Body(way, width).eval().requires_grad_(requires_grad=False)


POOLS: dict[str, Pool] = {
    "mean": lambda x: x.mean((2, 3)),
    "mean, negative": lambda x: torch.mean(x, dim=[-1, -2]),
    "mean, kept": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    "mean by axes": lambda x: x.mean(3).mean(2),
    "mean of flat": lambda x: x.flatten(2).mean(-1),
    "mean of tokens": lambda x: x.flatten(2).transpose(1, 2).mean(1),
    "sum": lambda x: x.sum((2, 3)) / 64,
    "amax": lambda x: x.amax((2, 3)),
    "max of flat": lambda x: x.flatten(2).max(-1)[0],
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "adaptive max": lambda x: functional.adaptive_max_pool2d(x, (1, 1))[:, :, 0, 0],
    "avg_pool2d": lambda x: functional.avg_pool2d(x, x.shape[2:]).squeeze(-1).squeeze(-1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "1d": lambda x: functional.adaptive_avg_pool1d(x.flatten(2), 1)[..., 0],
    "largest by topk": lambda x: x.flatten(2).topk(3, dim=2)[0].mean(2),
    "largest by sort": lambda x: x.flatten(2).sort(2)[0][..., -3:].mean(2),
    "logsumexp": lambda x: x.logsumexp((2, 3)),
}


def two_poolings() -> dict[str, Case]:
    """A second pooling call that does not reach the logits, before or after."""

    def after_pixels(pool: Pool) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            maps = net.maps(x)
            logits = net.head(maps.mean((2, 3)))
            pool(x)
            return logits, [maps]

        return way

    def after_early(pool: Pool) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            early = net.early(x)
            maps = net.late(early)
            logits = net.head(pool(maps))
            early.mean((2, 3)), x.mean((2, 3)), logits.softmax(1).mean()
            return logits, [maps]

        return way

    def against_reference(
        net: Body, x: torch.Tensor
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        maps, fixed = net.maps(x), net.maps(torch.zeros_like(x))
        return net.head(maps.mean((2, 3)) - fixed.mean((2, 3))), [maps]

    cases = {f"logs pixels by {name}": Case(after_pixels(pool)) for name, pool in POOLS.items()}
    cases["less a fixed reference"] = Case(against_reference)
    return cases | {f"logs early, {name}": Case(after_early(pool)) for name, pool in POOLS.items()}


def side_heads() -> dict[str, Case]:
    """A head on an early stage, beside the logits or with no weight in them."""

    def beside(pool: Pool) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            early = net.early(x)
            maps = net.late(early)
            logits = net.head(pool(maps))
            net.side_head(pool(early))
            return logits, [maps]

        return way

    def unweighted(pool: Pool) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            early = net.early(x)
            maps = net.late(early)
            return net.head(pool(maps)) + 0 * net.side_head(pool(early)), [maps]

        return way

    cases = {f"beside, {name}": Case(beside(pool)) for name, pool in POOLS.items()}
    return cases | {f"no weight, {name}": Case(unweighted(pool)) for name, pool in POOLS.items()}


def multi_scale() -> dict[str, Case]:
    """Several stages that are pooled and concatenated."""

    def joined(pool: Pool, other: Pool) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            early = net.early(x)
            maps = net.late(early)
            return net.head(torch.cat([pool(early), other(maps)], dim=1)), [early, maps]

        return way

    stripes: dict[str, Pool] = {
        "adaptive": lambda x: functional.adaptive_avg_pool2d(x, (2, 1)),
        "windows": lambda x: functional.avg_pool2d(x, (4, 8)),
        "axes": lambda x: x.reshape(len(x), -1, 2, 4, 8).mean((3, 4)),
        "largest": lambda x: x.reshape(len(x), -1, 2, 4, 8).amax(dim=(3, 4)),
        "largest by windows": lambda x: functional.max_pool2d(x, (4, 8)),
        "with indices": lambda x: functional.max_pool2d(x, (4, 8), return_indices=True)[0],
        "curved": lambda x: functional.max_pool2d(x, (4, 8)).sqrt(),
        "GeM": lambda x: functional.avg_pool2d(x.clamp(1e-6) ** 3, (4, 8)) ** (1 / 3),
        "turned": lambda x: functional.adaptive_avg_pool2d(x, (2, 1)).relu().transpose(1, 2),
    }

    def striped(pool: Pool) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            maps = net.maps(x)
            return net.head(pool(maps).flatten(1)), [maps]

        return way

    def cut_out(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        parts = net.maps(x).chunk(2, dim=2)
        return net.head(torch.cat([part.mean((2, 3)) for part in parts], dim=1)), parts

    mean = POOLS["mean"]
    cases = {f"stripes, {name}": Case(striped(pool), 12) for name, pool in stripes.items()}
    cases["stripes, cut out"] = Case(cut_out, 12)
    both: dict[str, Pool] = {
        "axes, curved": lambda x: x.mean(3).relu().mean(2),
        "windows, largest": lambda x: functional.max_pool2d(x, (1, 8)).mean((2, 3)),
        "windows, turned": lambda x: functional.avg_pool2d(x, (8, 1)).squeeze(2).mT.mean(1),
    }
    cases |= {f"stripes, mean of {name}": Case(striped(pool)) for name, pool in both.items()}
    cases |= {f"{name} and mean": Case(joined(pool, mean), 11) for name, pool in POOLS.items()}
    return cases | {
        f"mean and {name}": Case(joined(mean, pool), 11) for name, pool in POOLS.items()
    }


def ensembles() -> dict[str, Case]:
    """Two networks, whose logits or features are put together."""

    def mixed(pool: Pool, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            first, second = net.maps(x), net.other(x)
            return join(net.head(pool(first)), net.second_head(pool(second))), [first, second]

        return way

    joins: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "mean": lambda a, b: (a + b) / 2,
        "stack": lambda a, b: torch.stack([a, b]).mean(0),
        "stack, second": lambda a, b: torch.stack([a, b], dim=1).mean(1),
        "maximum": torch.maximum,
        "probabilities": lambda a, b: (a.softmax(1) + b.softmax(1)).log(),
    }
    chosen = ("mean", "mean by axes", "adaptive", "channels last", "mean of tokens")
    return {
        f"{how} of {name}": Case(mixed(POOLS[name], join))
        for how, join in joins.items()
        for name in chosen
    }


def transformed() -> dict[str, Case]:
    """Element-wise transforms between the activations and the pooling."""
    transforms: dict[str, Pool] = {
        "GeM": lambda a: a.clamp(min=1e-6).pow(torch.tensor([3.0])),
        "GeM, constant": lambda a: a.clamp(1e-6) ** 3,
        "cube": lambda a: a**3,
        "cube by pow": lambda a: torch.pow(a, 3),
        "square": torch.square,
        "times itself": lambda a: a * a,
        "from one": lambda a: 1 - a.sqrt(),
        "power of two": lambda a: 2 ** (3 * a),
        "clamp": lambda a: a.clamp(0, 1),
        "clamp_min": lambda a: torch.clamp_min(a, 0.1),
        "clip": lambda a: a.clip(max=2),
        "sqrt": torch.sqrt,
        "signed sqrt": lambda a: (a + 1e-6).sqrt(),
        "softplus": functional.softplus,
        "log1p": torch.log1p,
        "exp": torch.exp,
        "expm1": torch.expm1,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "scaled": lambda a: a * 5,
        "halved and squared": lambda a: (a / 2).square(),
        "abs": torch.abs,
        "in place": lambda a: a.clone().pow_(3),
        "twice": lambda a: a.sqrt().sqrt(),
        "elu": functional.elu,
        "float_power": lambda a: a.float_power(3).float(),
        "multiplied and cubed": lambda a: torch.multiply(a, 2) ** 3,
        "one over": lambda a: 1 / (a + 1),
        "two over": lambda a: 2 / (1 + a),
        "softplus, spelled out": lambda a: torch.log1p(torch.exp(a)),
    }

    def after(transform: Pool, layer: str) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            maps = net.maps(x) if layer == "relu" else net.other(x).abs()
            maps = maps if layer == "relu" else net.batch_norm(maps)
            return net.head(transform(maps).mean((2, 3))), [maps.clone()]

        return way

    spelled: dict[str, Pool] = {
        "log1p of exp": lambda a: torch.log1p(a.exp()),
        "log of exp": lambda a: torch.log(1 + torch.exp(a)),
        "scaled": lambda a: torch.log1p(torch.exp(2 * a)) / 2,
        "sigmoid": lambda a: 1 / (1 + torch.exp(-a)),
        "one over, sigmoid": lambda a: (1 + a.neg().exp()).reciprocal(),
        "SiLU": lambda a: a * torch.sigmoid(a),
        "softplus of a sigmoid": lambda a: -functional.logsigmoid(-a),
        "softplus of a sigmoid, by functions": lambda a: -torch.log(torch.sigmoid(-a)),
        "sigmoid, from one": lambda a: 1 - torch.sigmoid(a),
        "division, sigmoid": lambda a: torch.ones(1) / (1 + torch.exp(-a)),
        "turned": lambda a: functional.relu(-a),
        "turned, from one": lambda a: functional.relu(1 - a),
    }

    def activated(how: str, power: int) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            maps = spelled[how](net.patches(x))
            # What stands behind a function is a transform, as it is behind torch's own softplus.
            shown = {"scaled": maps * 2, "sigmoid, from one": 1 - maps}.get(how, maps)
            return net.head((maps**power if power > 1 else maps).mean((2, 3))), [shown]

        return way

    cases = {name: Case(after(transform, "relu")) for name, transform in transforms.items()}
    cases |= {
        f"activation of {how}, power {power}": Case(activated(how, power))
        for how in spelled
        for power in (1, 3)
    }
    # Behind a layer without an activation, one function alone may be the activation.
    doubtful = {"clamp", "clamp_min", "clip", "softplus", "tanh", "sigmoid", "elu", "scaled"}
    doubtful |= {"signed sqrt", "halved and squared", "sqrt", "log1p", "twice"}
    doubtful |= {"multiplied and cubed", "one over", "softplus, spelled out"}
    doubtful |= {"from one", "two over", "power of two"}
    return cases | {
        f"{name}, no activation": Case(after(transform, "norm"))
        for name, transform in transforms.items()
        if name not in doubtful
    }


def channels_last() -> dict[str, Case]:
    """Maps (N, H, W, C)."""
    pools: dict[str, Pool] = {
        "mean": lambda x: x.mean((1, 2)),
        "mean, negative": lambda x: x.mean(dim=(-3, -2)),
        "mean by axes": lambda x: x.mean(1).mean(1),
        "flat": lambda x: x.flatten(1, 2).mean(1),
        "viewed": lambda x: x.reshape(len(x), -1, x.shape[-1]).mean(1),
        "amax": lambda x: x.amax((1, 2)),
        "max": lambda x: x.flatten(1, 2).max(1).values,
        "sum": lambda x: x.sum((1, 2)),
        "permuted back": lambda x: functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(
            1
        ),
        "turned": lambda x: x.flatten(1, 2).transpose(1, 2).mean(2),
        "1d": lambda x: functional.adaptive_avg_pool1d(x.flatten(1, 2).mT, 1).flatten(1),
    }

    def pooled(pool: Pool, block: str) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            maps = net.maps(x).permute(0, 2, 3, 1)
            if block == "mlp":
                maps = net.norm(maps + net.mlp(maps))
            if block == "windows":
                rows, side = len(maps), maps.shape[1]
                parts = maps.reshape(rows, 2, side // 2, 2, side // 2, 6).permute(0, 1, 3, 2, 4, 5)
                parts = net.mlp(parts.reshape(-1, side // 2, side // 2, 6))
                parts = parts.reshape(rows, 2, 2, side // 2, side // 2, 6).permute(0, 1, 3, 2, 4, 5)
                maps = maps + parts.reshape(rows, side, side, 6)
            return net.head(pool(maps)), [maps.permute(0, 3, 1, 2)]

        return way

    return {
        f"{block}, {name}": Case(pooled(pool, block))
        for block in ("plain", "mlp", "windows")
        for name, pool in pools.items()
    }


def attend(net: Body, tokens: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A block of self-attention with two heads, and its weights (N, 2, T, T)."""
    images, count, width = tokens.shape
    qkv = net.qkv(tokens).reshape(images, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    logits = query @ key.transpose(-2, -1) * (width // 2) ** -0.5
    weights = logits.softmax(-1)
    bias = torch.linspace(-1, 1, count)
    if how == "fused":
        out = functional.scaled_dot_product_attention(query, key, value)
    elif how == "fused, scaled":
        out = functional.scaled_dot_product_attention(query, key, value, scale=0.3)
        weights = (query @ key.transpose(-2, -1) * 0.3).softmax(-1)
    elif how == "fused, biased":
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias[None, None, None]
        )
        weights = (logits + bias).softmax(-1)
    elif how == "fused, masked":
        mask = torch.ones(count, count, dtype=torch.bool)
        mask[:, -2] = False
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    elif how == "einsum":
        weights = torch.einsum("nhqd,nhkd->nhqk", query, key).softmax(dim=-1)
        out = torch.einsum("nhqk,nhkd->nhqd", weights, value)
    elif how == "folded":
        folded = [part.reshape(-1, count, width // 2) for part in (query, key, value)]
        inner = torch.softmax(torch.bmm(folded[0], folded[1].mT), dim=2)
        weights = inner.reshape(images, 2, count, count)
        out = torch.bmm(inner, folded[2]).reshape(images, 2, count, -1)
    else:
        weights = functional.softmax(logits, dim=-1)
        out = functional.dropout(weights, 0.1, training=False) @ value
    mixed = net.proj(out.transpose(1, 2).reshape(images, count, width))
    tokens = tokens + mixed
    return tokens + net.mlp(net.norm(tokens)), weights


ATTENTIONS = (
    "plain",
    "einsum",
    "folded",
    "fused",
    "fused, scaled",
    "fused, biased",
    "fused, masked",
)


def class_tokens() -> dict[str, Case]:
    """Transformers with class tokens, and registers; the maps are their attention weights."""

    def picked(how: str, learned: int, pick: str) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            tokens, _ = attend(net, net.tokens(x, learned), how)
            tokens, weights = attend(net, tokens, how)
            picks: dict[str, Callable[[], torch.Tensor]] = {
                "index": lambda: net.norm(tokens)[:, 0],
                "slice": lambda: tokens[:, :1].squeeze(1),
                "select": lambda: tokens.select(1, 0),
                "split": lambda: torch.split(tokens, [1, tokens.shape[1] - 1], dim=1)[0].flatten(1),
            }
            return net.head(picks[pick]()), [weights[:, :, 0, learned:].mean(1)]

        return way

    def averaged(how: str, picked_ones: slice) -> Way:
        """The mean of learned tokens alone."""

        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            tokens, _ = attend(net, net.tokens(x, 3), how)
            tokens, weights = attend(net, tokens, how)
            found = weights[:, :, picked_ones, 3:].mean((1, 2))
            return net.head(tokens[:, picked_ones].mean(1)), [found]

        return way

    means = {
        f"{how}, mean of {len(range(*part.indices(3)))}": Case(averaged(how, part))
        for how in ("plain", "fused")
        for part in (slice(3), slice(1, 3))
    }
    return means | {
        f"{how}, {learned} learned, {pick}": Case(picked(how, learned, pick))
        for how in ATTENTIONS
        for learned, pick in ((1, "index"), (3, "slice"), (1, "select"), (2, "split"))
    }


def _gated(how: str) -> Way:
    def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        maps, other = net.maps(x), net.other(x)
        late, early = maps.mean((2, 3)), other.mean((2, 3))
        gate = net.gate(early)
        both = torch.stack([net.head(late), net.second_head(late)], dim=1)
        found: dict[str, Callable[[], torch.Tensor]] = {
            "sigmoid": lambda: net.head(late * gate.sigmoid()),
            "gate first": lambda: net.head(torch.sigmoid(gate) * net.norm(late)),
            "doubled": lambda: net.head(late * (2 * functional.hardsigmoid(gate))),
            "of logits": lambda: net.head(late) * gate[:, :1].sigmoid(),
            "experts": lambda: (gate[:, :2].softmax(1)[..., None] * both).sum(1),
            "experts, einsum": lambda: torch.einsum("ne,nek->nk", gate[:, :2].softmax(1), both),
            "of itself": lambda: net.head(late * net.gate(late).sigmoid()),
        }
        return found[how](), [maps]

    return way


def _not_gated(how: str) -> Way:
    def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        maps, other = net.maps(x), net.other(x)
        late, early = maps.mean((2, 3)), net.gate(other.mean((2, 3)))
        found = {"product": late * early, "added": late + early.sigmoid()}
        return net.head(found.get(how, late.sigmoid() * early.sigmoid())), [maps, other]

    return way


def weighed() -> dict[str, Case]:
    """Positions that are summed by weights, and gates: the map is what they weigh."""
    # Of values (N, C, T) and weights (N, T).
    sums: dict[str, Sum] = {
        "product": lambda v, w: (v * w[:, None]).sum(2),
        "weights first": lambda v, w: (w.unsqueeze(1) * v).sum(-1),
        "product of maps": lambda v, w: (
            v.reshape(len(v), -1, 8, 8) * w.reshape(len(w), 1, 8, 8)
        ).sum((2, 3)),
        "by axes": lambda v, w: (
            (w.reshape(len(w), 1, 8, 8) * v.reshape(len(v), -1, 8, 8)).sum(3).sum(2)
        ),
        "tokens": lambda v, w: (v.mT * w[..., None]).sum(1),
        "matmul": lambda v, w: (w[:, None] @ v.mT).squeeze(1),
        "matmul, right": lambda v, w: torch.matmul(v, w.unsqueeze(2))[..., 0],
        "bmm": lambda v, w: torch.bmm(w[:, None], v.transpose(1, 2)).flatten(1),
        "bmm, right": lambda v, w: v.bmm(w.unsqueeze(2)).squeeze(-1),
        "einsum": lambda v, w: torch.einsum("nt,nct->nc", w, v),
        "einsum of tokens": lambda v, w: torch.einsum("ntc,nt->nc", v.mT, w),
    }

    def summed(how: Sum, values: str) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            flat = net.maps(x).flatten(2)
            weights = net.gate(flat.mT).mean(2).softmax(1)
            found = flat if values == "maps" else net.proj(flat.mT).mT
            return net.head(how(found, weights)), [found]

        return way

    # Of values and weights (N, C, T).
    softmaxes: dict[str, Sum] = {
        "product": lambda v, w: (v * w).sum(2),
        "weights first": lambda v, w: (w * v).sum(-1),
        "einsum": lambda v, w: torch.einsum("nct,nct->nc", v, w),
    }

    def of_channels(how: Sum) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            flat = net.maps(x).flatten(2)
            return net.head(how(flat, flat.softmax(2))), [flat]

        return way

    def masked(how: Sum) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            flat = net.maps(x).flatten(2)
            mask = (flat.sum(1) > 1).float()
            return net.head(how(flat, mask) / mask.sum(1, keepdim=True).clamp(min=1)), [flat]

        return way

    heads: dict[str, Sum] = {
        "matmul": lambda v, w: (w.unsqueeze(2) @ v).squeeze(2),
        "product": lambda v, w: (v * w[..., None]).sum(2),
        "einsum": lambda v, w: torch.einsum("nht,nhtd->nhd", w, v),
    }

    def of_heads(how: Sum) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            flat = net.maps(x).flatten(2)
            values = net.proj(flat.mT).unflatten(2, (2, 3)).transpose(1, 2)
            weights = net.gate(flat.mT)[..., :2].mT.softmax(-1)
            return net.head(how(values, weights).flatten(1)), [weights.mean(1)]

        return way

    gates = ("sigmoid", "gate first", "doubled", "of logits", "experts", "experts, einsum")
    return {
        **{
            f"{values}, {name}": Case(summed(how, values))
            for values in ("maps", "values")
            for name, how in sums.items()
        },
        **{f"channels, {name}": Case(of_channels(how)) for name, how in softmaxes.items()},
        **{f"masked, {name}": Case(masked(sums[name])) for name in ("product", "bmm", "einsum")},
        **{f"two heads, {name}": Case(of_heads(how)) for name, how in heads.items()},
        **{f"gate, {how}": Case(_gated(how)) for how in (*gates, "of itself")},
        **{f"no gate, {how}": Case(_not_gated(how)) for how in ("product", "added", "both")},
    }


def tokens() -> dict[str, Case]:
    """Transformers and mixers whose tokens are averaged."""
    pools: dict[str, Pool] = {
        "mean": lambda t: t.mean(1),
        "mean, negative": lambda t: t.mean(dim=-2),
        "turned": lambda t: t.transpose(1, 2).mean(-1),
        "amax": lambda t: t.amax(1),
        "1d": lambda t: functional.adaptive_avg_pool1d(t.transpose(1, 2), 1).flatten(1),
        "sum": lambda t: t.sum(1),
    }

    def pooled(pool: Pool, block: str) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            learned = 3 if block == "learned" else 0
            found = net.tokens(x, learned)
            if block == "mixer":
                found = found + net.mix(found.transpose(1, 2)).transpose(1, 2)
                found = net.norm(found + net.mlp(found))
            else:
                found = attend(net, found, "plain" if learned else "fused")[0]
            found = found[:, learned:]
            return net.head(pool(found)), [found.transpose(1, 2)]

        return way

    return {
        f"{block}, {name}": Case(pooled(pool, block))
        for block in ("attention", "mixer", "learned")
        for name, pool in pools.items()
    }


def rows() -> dict[str, Case]:
    """Maps whose rows are tiles of images; the map is that of all tiles."""

    def tiled(pool: Pool, order: str, join: str) -> Way:
        def way(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            n, half = len(x), SIDE // 2
            views = [x[..., :half], x[..., half:]]
            if order == "flips":
                views = [x, x.flip(3)]
            k = len(views)
            if order == "images":
                maps = net.maps(torch.stack(views, dim=1).flatten(0, 1))
                maps = maps.reshape(n, k, *maps.shape[1:])
            else:
                maps = net.maps(torch.cat(views))
                maps = maps.reshape(k, n, *maps.shape[1:]).transpose(0, 1)
            flat = maps.transpose(0, 1).flatten(0, 1) if order != "images" else maps.flatten(0, 1)
            return flat, [maps.transpose(1, 2).flatten(2)]

        def logits(net: Body, x: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            n, half = len(x), SIDE // 2
            views = [x, x.flip(3)] if order == "flips" else [x[..., :half], x[..., half:]]
            if order == "images":
                pooled = pool(net.maps(torch.stack(views, dim=1).flatten(0, 1)))
                pooled = pooled.reshape(n, 2, -1).transpose(0, 1)
            else:
                pooled = pool(net.maps(torch.cat(views))).reshape(2, n, -1)
            if join == "features":
                found = net.head(pooled.mean(0))
            else:
                found = net.head(pooled.flatten(0, 1)).reshape(2, n, -1).mean(0)
            return found, way(net, x)[1]

        return logits

    chosen = ("mean", "mean by axes", "adaptive", "channels last", "mean of tokens", "amax")
    return {
        f"{order}, {join}, {name}": Case(tiled(POOLS[name], order, join))
        for order in ("images", "tiles", "flips")
        for join in ("features", "logits")
        for name in chosen
    }


KINDS: dict[str, Callable[[], dict[str, Case]]] = {
    "two poolings": two_poolings,
    "side heads": side_heads,
    "multi-scale": multi_scale,
    "ensembles": ensembles,
    "transformed": transformed,
    "channels last": channels_last,
    "class tokens": class_tokens,
    "weighed": weighed,
    "tokens": tokens,
    "rows": rows,
}
