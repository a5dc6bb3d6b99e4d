"""The CIFAR-10 networks whose checkpoints lie in the shared test data."""

import torch
from torch import nn
from torch.nn import functional


class _Bottleneck(nn.Module):
    """Pre-activation bottleneck whose output is concatenated to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(functional.relu(self.bn1(x)))
        out = self.conv2(functional.relu(self.bn2(out)))
        return torch.cat([x, out], dim=1)


class _DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(_Bottleneck(channels + index * growth, growth) for index in range(layers))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(self.conv1(functional.relu(self.bn1(x))), 2)


class DenseNetBC(nn.Module):
    """DenseNet-BC, depth 100, growth 12, reduction 0.5, for 32x32 images."""

    def __init__(self, num_classes: int, growth: int = 12, layers: int = 16) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.block1 = _DenseBlock(channels, growth, layers)
        channels += layers * growth
        self.trans1 = _Transition(channels)
        channels //= 2
        self.block2 = _DenseBlock(channels, growth, layers)
        channels += layers * growth
        self.trans2 = _Transition(channels)
        channels //= 2
        self.block3 = _DenseBlock(channels, growth, layers)
        channels += layers * growth
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        out = self.trans1(self.block1(self.conv1(x)))
        out = self.block3(self.trans2(self.block2(out)))
        return functional.relu(self.bn1(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.avg_pool2d(self.feature_map(x), 8)
        logits: torch.Tensor = self.fc(pooled.flatten(start_dim=1))
        return logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions; the option-A shortcut subsamples and zero-pads channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + shortcut)


class ResNet20(nn.Module):
    """CIFAR ResNet-20."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(
            _BasicBlock(16, 32, 2), _BasicBlock(32, 32, 1), _BasicBlock(32, 32, 1)
        )
        self.layer3 = nn.Sequential(
            _BasicBlock(32, 64, 2), _BasicBlock(64, 64, 1), _BasicBlock(64, 64, 1)
        )
        self.linear = nn.Linear(64, num_classes)

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        features: torch.Tensor = self.layer3(self.layer2(self.layer1(out)))
        return features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.feature_map(x).mean(dim=(2, 3)))
        return logits


def densenet_bc100(num_classes: int = 10) -> DenseNetBC:
    """DenseNet-BC-100-12, the network of the paper's CIFAR results."""
    return DenseNetBC(num_classes)


def resnet20(num_classes: int = 10) -> ResNet20:
    """CIFAR ResNet-20."""
    return ResNet20(num_classes)
