"""ResNet-20 whose pre-pooling map is not the output of a ReLU, fine-tuned from the ReLU one."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from tests.support.cifar_models import ResNet20

Activation = Callable[[torch.Tensor], torch.Tensor]
Images = torch.Tensor
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

CROP_PADDING = 4
BATCH = 128
PEAK_RATE = 0.05


class SignedResNet20(ResNet20):
    """ResNet-20 with another activation throughout, and another function before the pooling.

    Args:
        activation: Stands where the ReLU stood, except at the end.
        last: The function whose output is pooled, (N, C, H, W) to the same shape.
    """

    def __init__(self, activation: Activation, last: Activation) -> None:
        super().__init__(num_classes=10)
        self.activation = activation
        self.last = last

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map that is pooled, shape (N, 64, 8, 8), of input (N, 3, 32, 32)."""
        out = self.bn1(self.conv1(x))
        for block in (*self.layer1, *self.layer2, *self.layer3):
            out = self.activation(out)
            inner = self.activation(block.bn1(block.conv1(out)))
            shortcut = out[:, :, :: block.stride, :: block.stride]
            padding = (0, 0, 0, 0, block.padding, block.padding)
            out = block.bn2(block.conv2(inner)) + functional.pad(shortcut, padding)
        return self.last(out)


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    """Normalise each position over its channels, without affine parameters."""
    channels_last = x.permute(0, 2, 3, 1)
    return functional.layer_norm(channels_last, channels_last.shape[-1:]).permute(0, 3, 1, 2)


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Judge each class by itself, by a sigmoid; summed over the classes."""
    one_hot = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    of_classes = functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return of_classes.sum(dim=1).mean()


def variants() -> dict[str, SignedResNet20]:
    """Untrained networks, by name: the last step before the pooling."""
    relu, silu, gelu = functional.relu, functional.silu, functional.gelu
    return {
        "ReLU": SignedResNet20(relu, relu),
        "SiLU": SignedResNet20(silu, silu),
        "GELU": SignedResNet20(gelu, gelu),
        "none": SignedResNet20(relu, nn.Identity()),
        "LayerNorm": SignedResNet20(relu, layer_norm),
    }


def fine_tuned(
    name: str,
    *,
    start: Path,
    cache: Path,
    images: Images,
    labels: torch.Tensor,
    normalise: Activation,
    epochs: int,
    seed: int,
    loss: Loss = functional.cross_entropy,
) -> SignedResNet20:
    """Fine-tune a variant from the ReLU network's weights, or load what an earlier run made.

    SGD with Nesterov momentum under a one-cycle rate; random crop and flip; bf16 autocast; seeded.

    Args:
        name: Of `variants`.
        start: The ReLU network's checkpoint.
        cache: Folder of the fine-tuned weights.
        images: uint8, (N, 3, 32, 32).
        labels: int64, (N,).
        normalise: From uint8 images to the network's input.
        epochs: Passes over the images.
        seed: Of the order of the images and of their crops and flips.
        loss: Of logits (N, 10) and labels (N,).

    Returns:
        The network, in evaluation mode.
    """
    model = variants()[name]
    weights = cache / f"resnet20_{name}_{loss.__name__}_{epochs}_epochs_{seed}.safetensors"
    if weights.exists():
        model.load_state_dict(load_file(weights))
        return model.eval()
    model.load_state_dict(load_file(start))
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(
        model.parameters(), PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, epochs * math.ceil(len(images) / BATCH), pct_start=0.2
    )
    model.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            inputs = normalise(_crop_and_flip(images[batch], generator))
            with torch.autocast("cpu", torch.bfloat16):
                mean_loss = loss(model(inputs), labels[batch])
            optimiser.zero_grad()
            torch.autograd.backward(mean_loss)
            optimiser.step()
            schedule.step()
    cache.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), weights)
    return model.eval()


def _crop_and_flip(images: Images, generator: torch.Generator) -> Images:
    """Shift each image by up to the padding, zeros outside, and mirror every second one."""
    padded = functional.pad(images, (CROP_PADDING,) * 4)
    height, width = images.shape[2:]
    shifts = torch.randint(2 * CROP_PADDING + 1, (len(images), 2), generator=generator).tolist()
    crops = [
        transforms.crop(image, top, left, height, width)
        for image, (top, left) in zip(padded, shifts, strict=True)
    ]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    stacked = torch.stack(crops)
    return torch.where(mirrored[:, None, None, None], stacked.flip(3), stacked)
