"""A small classifier with a pooling module, for tests of the whole line."""

import torch
from torch import nn

CLASS_NAMES = ("circle", "square", "cross")


class TinyNet(nn.Module):
    """Two convolutions, ReLU, global average pooling, three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, len(CLASS_NAMES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.features(x)).flatten(1)
        logits: torch.Tensor = self.head(pooled)
        return logits


def build(seed: int = 0) -> TinyNet:
    """The network with weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    net = TinyNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.4)
    return net
