"""The demo's classifier: a small convolutional network, trained on the spot.

What was chosen, and why: ReLU and global average pooling, because NAP reads the map before them;
no batch normalisation and no biases, and inputs whose black is exactly zero, so that an empty
background stays silent in every layer and an image that fills its frame does not. The last map
has 128 channels of 4 x 4 positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

FACTORY = f"{__name__}:DigitsNet"
MEAN = (0.0, 0.0, 0.0)
STD = (0.5, 0.5, 0.5)
CLASSES = 10
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 6e-3
WEIGHT_DECAY = 1e-3
MAX_SHIFT = 2
"""Pixels by which training images are moved about at random; they have a black margin."""


class DigitsNet(nn.Module):
    """Logits of the ten digits, float (N, 10), for images float (N, 3, H, W), H and W >= 16."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 16, stride=2),
            *_convolution(16, 32, stride=2),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 128, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(128, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify a batch."""
        logits: torch.Tensor = self.classify(self.pool(self.features(images)).flatten(1))
        return logits


def train(pixels: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> DigitsNet:
    """Train a network; the same arguments give the same one on the same machine.

    Args:
        pixels: uint8 (N, H, W, 3).
        labels: int64 (N,), the digits.
        seed: Of the weights and of the order of the images.

    Returns:
        The network in eval mode, on the CPU.
    """
    images, targets = as_input(pixels), torch.from_numpy(labels)
    with one_torch_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNet().train()
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for chosen in torch.split(torch.randperm(len(images)), BATCH):
                logits = network(_shifted(images[chosen]))
                loss = nn.functional.cross_entropy(logits, targets[chosen])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimiser.step()
                schedule.step()
    return network.eval()


def accuracy(network: DigitsNet, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Give the share of images, uint8 (N, H, W, 3), whose digit the network tells."""
    with torch.inference_mode():
        predicted = network(as_input(pixels)).argmax(dim=1).numpy()
    return float((predicted == labels).mean())


def as_input(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Give images, uint8 (N, H, W, 3), as float32 (N, 3, H, W), normalised as the monitor does."""
    scaled = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Have torch use one thread while the block runs.

    For so small a network several gain little, and wait for each other, ten times as long and
    more, where other processes want the cores too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _convolution(channels: int, filters: int, *, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution, nn.ReLU()


def _shifted(images: torch.Tensor) -> torch.Tensor:
    down, right = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,)).tolist()
    return torch.roll(images, (down, right), dims=(2, 3))
