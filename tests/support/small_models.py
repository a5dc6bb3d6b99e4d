"""Small classifiers, good and bad, for tests to name as factories."""

from typing import Any

import torch
from torch import nn

SIZE = 8
CLASSES = 3
NOT_CALLABLE = 7


class SmallNet(nn.Module):
    """One convolution, ReLU, module pooling, three classes; input 8x8."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, classes)

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


def half() -> nn.Module:
    """Build a network whose weights are bfloat16."""
    return seeded().to(torch.bfloat16)


def raising(**kwargs: object) -> nn.Module:
    """Raise."""
    raise RuntimeError(f"no such variant\nof {sorted(kwargs)}")


def not_a_module() -> object:
    """Return a function."""
    return seeded
