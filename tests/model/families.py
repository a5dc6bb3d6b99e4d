"""A small member of each family of torchvision's classifiers, and its map read by hand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

CLASSES = 5
Reading = Callable[[nn.Module, torch.Tensor], torch.Tensor]

_GOOGLENET = (
    "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a "
    "inception4b inception4c inception4d inception4e maxpool4 inception5a inception5b"
)
_INCEPTION = (
    "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2 "
    "Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b "
    "Mixed_7c"
)


@dataclass(frozen=True, slots=True)
class Family:
    """How to build a member, the side of its input, its map, and where that must be found."""

    build: Callable[[], nn.Module]
    side: int
    read: Reading
    kind: str
    place: str
    head: str | None


def through(names: str) -> Reading:
    """Read the output of one module after another."""

    def read(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for name in names.split():
            x = model.get_submodule(name)(x)
        return x

    return read


def after_relu(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.relu(model.get_submodule("features")(x))


def last_attention(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """CLS's attention over the patch tokens as torch gives it, shape (N, T - 1)."""
    assert isinstance(model, models.VisionTransformer)
    patches = model.conv_proj(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(x), -1, -1), patches], dim=1)
    *blocks, last = model.encoder.layers
    tokens = nn.Sequential(*blocks)(tokens + model.encoder.pos_embedding)
    normed = last.ln_1(tokens)
    weights: torch.Tensor = last.self_attention(normed, normed, normed, need_weights=True)[1]
    return weights[:, 0, 1:]


def small_vit() -> nn.Module:
    model: nn.Module = models.VisionTransformer(32, 8, 3, 4, 16, 32, num_classes=CLASSES)
    head = model.get_submodule("heads.head")
    assert isinstance(head, nn.Linear)
    # torchvision starts the head with zeros.
    nn.init.normal_(head.weight)
    return model


def narrow(name: str) -> Callable[[], nn.Module]:
    """A member whose classifier has hidden layers of 32, not of 4,096 with 100 million weights."""

    def build() -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = models.get_model(name, num_classes=CLASSES)
            classifier = model.get_submodule("classifier")
            assert isinstance(classifier, nn.Sequential)
            first, *_, last = [part for part in classifier if isinstance(part, nn.Linear)]
            for index, part in enumerate(classifier):
                if isinstance(part, nn.Linear):
                    inputs = part.in_features if part is first else 32
                    outputs = part.out_features if part is last else 32
                    classifier[index] = nn.Linear(inputs, outputs)
        model.to_empty(device="cpu")
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
                assert part.bias is not None
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Linear):
                part.reset_parameters()
        return model

    return build


def small_resnet() -> nn.Module:
    model: nn.Module = models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    return model


def small_mobilenet_v2() -> nn.Module:
    model: nn.Module = models.MobileNetV2(num_classes=CLASSES, width_mult=0.35)
    return model


def small_densenet() -> nn.Module:
    model: nn.Module = models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)
    return model


def small_convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)]
    model: nn.Module = models.ConvNeXt(blocks, num_classes=CLASSES)
    return model


def small_swin() -> nn.Module:
    model: nn.Module = models.SwinTransformer(
        [4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=CLASSES
    )
    return model


def small_maxvit() -> nn.Module:
    model: nn.Module = models.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 8, 0.1, num_classes=CLASSES)
    return model


def member(name: str) -> Callable[[], nn.Module]:
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return lambda: models.get_model(name, num_classes=CLASSES, **options)


_RESNET = through("conv1 bn1 relu maxpool layer1 layer2 layer3 layer4")
_FEATURES = through("features")
_IN_POOL = ("module_input", "avgpool")

FAMILIES = {
    "alexnet": Family(narrow("alexnet"), 96, _FEATURES, *_IN_POOL, "classifier.6"),
    "vgg": Family(narrow("vgg11"), 64, _FEATURES, *_IN_POOL, "classifier.6"),
    "resnet": Family(small_resnet, 64, _RESNET, *_IN_POOL, "fc"),
    "densenet": Family(
        small_densenet, 64, after_relu, "function_input", "adaptive_avg_pool2d", "classifier"
    ),
    "mobilenet_v2": Family(
        small_mobilenet_v2,
        64,
        _FEATURES,
        "function_input",
        "adaptive_avg_pool2d",
        "classifier.1",
    ),
    "mobilenet_v3": Family(member("mobilenet_v3_small"), 64, _FEATURES, *_IN_POOL, "classifier.3"),
    "shufflenet": Family(
        member("shufflenet_v2_x0_5"),
        64,
        through("conv1 maxpool stage2 stage3 stage4 conv5"),
        "function_input",
        "mean",
        "fc",
    ),
    "mnasnet": Family(
        member("mnasnet0_5"), 64, through("layers"), "function_input", "mean", "classifier.1"
    ),
    "squeezenet": Family(
        member("squeezenet1_1"),
        64,
        through("features classifier.0 classifier.1 classifier.2"),
        "module_input",
        "classifier.3",
        None,
    ),
    "googlenet": Family(member("googlenet"), 64, through(_GOOGLENET), *_IN_POOL, "fc"),
    "inception": Family(member("inception_v3"), 128, through(_INCEPTION), *_IN_POOL, "fc"),
    "regnet": Family(member("regnet_y_400mf"), 64, through("stem trunk_output"), *_IN_POOL, "fc"),
    "efficientnet": Family(member("efficientnet_b0"), 64, _FEATURES, *_IN_POOL, "classifier.1"),
    "convnext": Family(small_convnext, 32, _FEATURES, *_IN_POOL, "classifier.2"),
    "swin": Family(small_swin, 32, through("features norm permute"), *_IN_POOL, "head"),
    "maxvit": Family(
        small_maxvit,
        64,
        through("stem blocks.0 blocks.1"),
        "module_input",
        "classifier.0",
        "classifier.5",
    ),
    "vit": Family(
        small_vit,
        32,
        last_attention,
        "cls_attention",
        "encoder.layers.encoder_layer_2.self_attention",
        "heads.head",
    ),
}


def images(side: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
