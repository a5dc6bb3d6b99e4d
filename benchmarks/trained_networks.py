"""Two small CIFAR-10 networks, trained on the spot: a convolutional one with SiLU, and a ViT.

    python -m benchmarks.trained_networks silu|vit WEIGHTS

They stand for what no checkpoint at hand has: feature maps with negative values, and attention
in place of a map. Minutes on two cores, and weights that differ a little from machine to machine.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.transforms.v2 import functional as transforms

from benchmarks.cifar_sets import CLASSES, SIDE, Images, load, resnet_input
from nap_stream.cli.options import progress_bar

SEED = 0
BATCH = 125
RATE = 0.003
EPOCHS = {"silu": 8, "vit": 12}
PADDING = 4


def silu() -> nn.Module:
    """Five 3x3 convolutions with SiLU, whose map of 128 channels is averaged; untrained."""
    layers: list[nn.Module] = []
    before = 3
    for channels, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [
            nn.Conv2d(before, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
        ]
        before = channels
    pooling = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, len(CLASSES)))
    return nn.Sequential(*layers, *pooling)


def vit() -> nn.Module:
    """Three layers of 64 values for 64 patches of 4x4 pixels and a CLS token; untrained."""
    network: nn.Module = VisionTransformer(
        image_size=SIDE,
        patch_size=4,
        num_layers=3,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=len(CLASSES),
    )
    return network


FACTORIES: dict[str, Callable[[], nn.Module]] = {"silu": silu, "vit": vit}


def trained(name: str, weights: Path) -> Path:
    """Train a network on the training images, unless its weights are there; give their path."""
    if weights.exists():
        return weights
    torch.manual_seed(SEED)
    images, labels = load("cifar10_train.parquet")
    network = FACTORIES[name]().train()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
    steps = EPOCHS[name] * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    with progress_bar(name, unit="batches") as progress:
        for done, (batch, wanted) in enumerate(_batches(images, labels, EPOCHS[name]), 1):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(network(batch), wanted, label_smoothing=0.05)
            torch.autograd.backward([loss])
            optimizer.step()
            schedule.step()
            progress(done, steps)
    print(f"{name}: accuracy {accuracy(network.eval()):.3f} on the test images")
    save_file(network.state_dict(), weights)
    return weights


def _batches(
    images: Images, labels: torch.Tensor, epochs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches, each shifted by up to `PADDING` pixels, and half of them mirrored."""
    prepare = resnet_input()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), BATCH):
            batch = nn.functional.pad(prepare(images[rows]), [PADDING] * 4, mode="reflect")
            top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
            batch = transforms.crop(batch, top, left, SIDE, SIDE)
            yield (batch.flip(3) if torch.rand(()) < 1 / 2 else batch), labels[rows]


@torch.inference_mode()
def accuracy(network: nn.Module) -> float:
    """The share of right predictions among the test images."""
    images, labels = load("cifar10_test.parquet")
    prepare = resnet_input()
    found = torch.cat([network(prepare(batch)).argmax(1) for batch in torch.split(images, 500)])
    return float((found == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(FACTORIES))
    parser.add_argument("weights", type=Path)
    arguments = parser.parse_args()
    trained(arguments.name, arguments.weights)


if __name__ == "__main__":
    main()
