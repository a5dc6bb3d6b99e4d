"""Small classifiers, good and bad, for tests to name as factories."""

from typing import Any

import torch
from torch import nn

SIZE = 8
CLASSES = 3
NOT_CALLABLE = 7


class SmallNet(nn.Module):
    """One convolution, ReLU, module pooling, three classes; input 8x8."""

    def __init__(self, classes: int = CLASSES, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.pool(self.features(x)).flatten(1))


class FlattenNet(SmallNet):
    """No pooling: the map before the classifier is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * SIZE * SIZE, CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x).flatten(1))


class GateNet(FlattenNet):
    """A squeeze-and-excitation gate pools globally, but the map goes on after it."""

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.features(x)
        return self.head((maps * maps.mean((2, 3), keepdim=True)).flatten(1))


class AdaptedNet(FlattenNet):
    """An adaptive pooling repeats or shrinks the map to a fixed size before it is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(SIZE)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(nn.functional.dropout(self.pool(self.features(x)).flatten(1), 0.5, False))


class ChannelsLastFlattenNet(FlattenNet):
    """Flattens its map with the channels last."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x).permute(0, 2, 3, 1).contiguous().flatten(1))


class ChannelsLastNet(SmallNet):
    """Its map has the channels last, and is turned to and fro."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.norm(self.features(x).permute(0, 2, 3, 1))
        turned = (maps.transpose(1, 2) + 1).relu()
        return self.head(turned.transpose(1, 2).mean((1, 2)))


class PixelNet(SmallNet):
    """A perceptron on pixels: it has no feature map at all."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features((x - x.mean()) * 2))


class ClsNet(SmallNet):
    """A small Vision Transformer: 2 x 2 patches of 4 x 4 pixels, one block, and CLS."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(2))
        self.cls = nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.read(self.attend(self.tokens(x))))

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Patch tokens after CLS, shape (N, 5, 4)."""
        return torch.cat([self.cls.expand(len(x), -1, -1), self.features(x).transpose(1, 2)], 1)

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add self-attention to the tokens."""
        attended: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens + attended

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the head sees."""
        return tokens[:, 0]


class TokensFirstClsNet(ClsNet):
    """The tokens are in dimension 0."""

    def __init__(self) -> None:
        super().__init__(batch_first=False)

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().attend(tokens.transpose(0, 1)).transpose(0, 1)


class MeanTokenNet(ClsNet):
    """Averages its tokens in place of CLS."""

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(1)


class TwoTokenNet(ClsNet):
    """Reads a second token beside CLS, as distilled transformers do."""

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0] + tokens[:, 1]


class MaskedNet(ClsNet):
    """Masks a token."""

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(5, 5, dtype=torch.bool)
        mask[:, 3] = True
        attended: torch.Tensor = self.attention(tokens, tokens, tokens, attn_mask=mask)[0]
        return tokens + attended


class LayerNet(ClsNet):
    """Its block is torch's own, whose fast path a hook would switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.block(tokens)
        return attended


class ReluHeadNet(SmallNet):
    """Changes the linear module's output in place: its logits are not linear in the features."""

    def __init__(self) -> None:
        super().__init__()
        # A head whose outputs are all positive would be what it makes of them.
        with torch.no_grad():
            self.head.bias[0] = -10.0

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).relu_()


class TanhClsNet(ClsNet):
    """A Vision Transformer whose logits are not linear in its features: it gives none."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).tanh()


class ConstantFeaturesNet(SmallNet):
    """What enters the head is always the same; its map is not."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.pool(self.features(x)).flatten(1) * 0 + 1)


class NoisyFeaturesNet(SmallNet):
    """Its map is bright where the image is; what enters the head is noise, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        brightness = nn.Conv2d(3, 4, 1, bias=False)
        nn.init.constant_(brightness.weight, 1 / 3)
        self.features = nn.Sequential(brightness, nn.ReLU())

    def forward(self, x: torch.Tensor) -> Any:
        last_digits = torch.tensor([12345.6, 23456.7, 34567.8, 45678.9])
        return self.head((self.pool(self.features(x)).flatten(1) * last_digits).frac())


class CosineLinear(nn.Linear):
    """A linear module in name alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.normalize(x), self.weight)


class CosineNet(SmallNet):
    """Its head normalises the features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = CosineLinear(4, CLASSES)


class BiaslessNet(SmallNet):
    """Its head has no bias, and stands in nested modules before dropout."""

    def __init__(self) -> None:
        super().__init__()
        linear = nn.Linear(4, CLASSES, bias=False)
        self.head = nn.Sequential(nn.Sequential(linear, nn.Dropout()), nn.Identity())  # type: ignore[assignment] # another kind of head


class InPlaceNet(SmallNet):
    """Functional pooling after an in-place ReLU on a module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> Any:
        maps = nn.functional.relu(self.features(x), inplace=True)
        return self.head(nn.functional.adaptive_avg_pool2d(maps, (1, 1)).flatten(1))


class SharedPoolNet(SmallNet):
    """One pooling module, called for a gate and then for the head."""

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.features(x)
        maps = maps * self.pool(maps)
        return self.head(self.pool(maps).flatten(1))


class GemNet(SmallNet):
    """A generalised mean: powers between the activations and the pooling."""

    def forward(self, x: torch.Tensor) -> Any:
        powers = self.features(x).clamp(min=1e-6).pow(3)
        return self.head(powers.mean((2, 3)).pow(1 / 3))


class ClampedGemNet(GemNet):
    """The same behind a clamp that is the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.features[1] = nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        powers = self.features(x).clamp(0, 6).clamp(min=1e-6).pow(3)
        return self.head(powers.mean((2, 3)).pow(1 / 3))


class TwoScalesNet(SmallNet):
    """The map and a smaller one of half the image, both averaged for the head."""

    def maps(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the image, and of its half."""
        return self.features(x), self.features(nn.functional.avg_pool2d(x, 2))

    def forward(self, x: torch.Tensor) -> Any:
        whole, half = self.maps(x)
        return self.head(whole.mean((2, 3)) + half.mean((2, 3)))


class TwoViewsNet(SmallNet):
    """The map has a row for the left and one for the right half of an image."""

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """The map, (2 N, 4, 8, 4)."""
        maps: torch.Tensor = self.features(torch.stack(x.chunk(2, dim=3), dim=1).flatten(0, 1))
        return maps

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.rows(x).mean((2, 3)).reshape(len(x), 2, 4).mean(1))


class TinyMapNet(SmallNet):
    """The map before the pooling has one position."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, SIZE), nn.ReLU())


class TupleNet(SmallNet):
    """Returns a tuple."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


class DictNet(SmallNet):
    """Returns a dictionary."""

    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": super().forward(x)}


class SoftmaxNet(SmallNet):
    """Returns probabilities."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).softmax(1)


class SigmoidNet(SmallNet):
    """Returns a sigmoid for each class."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).sigmoid()


class VotesNet(SmallNet):
    """Returns how many of five members voted for each class."""

    def forward(self, x: torch.Tensor) -> Any:
        pixels = x.flatten(1)[:, :5].abs().mul(1e3).long() % CLASSES
        return nn.functional.one_hot(pixels, CLASSES).sum(1) + 0 * super().forward(x)


class ZeroNet(SmallNet):
    """Its head has never been trained."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class SqueezeNet(SmallNet):
    """Drops the batch dimension of a batch of one."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).squeeze(0)


class OverflowNet(SmallNet):
    """NaN logits for an image whose first pixel is white."""

    def forward(self, x: torch.Tensor) -> Any:
        white = (x[:, 0, 0, 0] == 1).float()[:, None]
        return super().forward(x) + torch.where(white > 0, torch.nan, 0.0)


class DropoutNet(SmallNet):
    """Random while it trains."""

    def forward(self, x: torch.Tensor) -> Any:
        return nn.functional.dropout(super().forward(x), training=self.training)


class Fixed:
    """Holds a factory below a class."""

    @staticmethod
    def build() -> SmallNet:
        """Build `SmallNet` with the same weights each time."""
        return seeded(SmallNet)


def seeded(build: type[SmallNet] = SmallNet, seed: int = 0) -> SmallNet:
    """Build a network with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def by_name(name: str, seed: int = 0) -> SmallNet:
    """Build one of the networks above."""
    found: type[SmallNet] = globals()[name]
    return seeded(found, seed)


def sized(classes: int, width: int = 4) -> SmallNet:
    """Build `SmallNet` with so many classes and features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallNet(classes, width)


def half() -> nn.Module:
    """Build a network whose weights are bfloat16."""
    return seeded().to(torch.bfloat16)


def compiled() -> nn.Module:
    """Build `SmallNet` under torch.compile."""
    module: nn.Module = torch.compile(seeded(), backend="eager")  # type: ignore[assignment] # a module stays one
    return module


def raising(**kwargs: object) -> nn.Module:
    """Raise."""
    raise RuntimeError(f"no such variant\nof {sorted(kwargs)}")


def not_a_module() -> object:
    """Return a function."""
    return seeded
