"""A classifier of colours that minds its preprocessing, and images of its classes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from nap_stream.settings.schema import PreprocessingSettings
from tests.support.image_bytes import encoded

SIDE = 16
COLOURS = {
    "bright": (0.9, 0.9, 0.9),
    "cyan": (0.1, 0.95, 0.95),
    "dark": (0.1, 0.1, 0.1),
    "red": (0.95, 0.1, 0.1),
}
"""RGB in [0, 1], by class."""


class ColourNet(nn.Module):
    """Nearest colour of what its input was before it was normalised, as in training."""

    def __init__(self, mean: list[float], std: list[float], *, bgr: bool) -> None:
        super().__init__()
        self.denormalise = nn.Conv2d(3, 3, 1)
        self.clip = nn.Hardtanh(0.0, 1.0)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, len(COLOURS))
        turn = torch.eye(3).flip(0) if bgr else torch.eye(3)
        colours = torch.tensor(list(COLOURS.values()))
        with torch.no_grad():
            self.denormalise.weight.copy_((turn * torch.tensor(std))[:, :, None, None])
            self.denormalise.bias = nn.Parameter(turn @ torch.tensor(mean))
            self.head.weight.copy_(20 * colours)
            self.head.bias.copy_(-10 * (colours**2).sum(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.clip(self.denormalise(x))).flatten(1)
        logits: torch.Tensor = self.head(pooled)
        return logits


class SizedNet(ColourNet):
    """It takes images of another size than its own for red."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits if x.shape[-1] == SIDE else logits / 100 + logits.new_tensor([0, 0, 0, 9])


def build_sized() -> SizedNet:
    """Build one of which only the size matters."""
    return SizedNet([*PreprocessingSettings().mean], [*PreprocessingSettings().std], bgr=False)


def build(
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
    bgr: bool = False,
) -> ColourNet:
    """Build one that was trained with this mean and std, in this order of channels."""
    return ColourNet(list(mean), list(std), bgr=bgr)


def write_colours(folder: Path, images: int) -> Path:
    """Write so many noisy images of each class to a sub-folder of its name."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            noise = generator.normal(0, 0.04, (SIDE, SIDE, 3))
            pixels = (255 * np.clip(np.array(colour) + noise, 0, 1)).astype(np.uint8)
            data = encoded(Image.fromarray(pixels), "PNG")
            (folder / name / f"{number:04}.png").write_bytes(data)
    return folder
