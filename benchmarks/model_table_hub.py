"""What torchvision, timm and transformers say themselves of their maps and attentions."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Truth = Callable[[torch.Tensor], Iterator[tuple[str, torch.Tensor]]]


_LAST_MAPS = frozenset(
    {"features", "layer4", "trunk_output", "conv5", "layers", "norm"}
    | {"inception5b", "Mixed_7c", "blocks.3", "classifier.2"}
)
"""Modules of torchvision whose output is the last map, or that before an activation."""


def torchvision_truth(module: nn.Module) -> Truth:
    """The output of `features` and the like, and the weights that an attention module returns."""

    def truth(pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        maps: list[tuple[str, torch.Tensor]] = []
        tokens: list[tuple[nn.MultiheadAttention, torch.Tensor]] = []
        with ExitStack() as hooks:
            for name, part in module.named_modules():

                def after(_part: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, torch.Tensor) and output.ndim == 4:
                        maps.append((f"output of {name}", output.clone()))

                if name in _LAST_MAPS:
                    hooks.enter_context(part.register_forward_hook(after))
                if isinstance(part, nn.MultiheadAttention):
                    keep = lambda one, args: tokens.append((one, args[0].clone()))  # noqa: E731
                    hooks.enter_context(part.register_forward_pre_hook(keep))
            module(pixels)
        for attention, given in reversed(tokens):
            weights = attention(given, given, given, average_attn_weights=False)[1]
            yield "attention weights", weights
        for name, value in reversed(maps):
            yield name, value
            yield f"ReLU of {name}", value.relu()

    return truth


def timm_truth(module: nn.Module) -> Truth:
    """`forward_features`, `forward_head(pre_logits=True)`, and the attention with plain softmax."""

    def truth(pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        model: Any = module
        features = model.forward_features(pixels)
        for part in features if isinstance(features, tuple | list) else (features,):
            if isinstance(part, torch.Tensor):
                yield "forward_features", part
        try:
            pooled = model.forward_head(features, pre_logits=True)
        except Exception:  # noqa: BLE001  not all have one
            pooled = None
        if isinstance(pooled, torch.Tensor):
            yield "forward_head", pooled
        yield from _attentions(module, pixels)
        yield from _pooled(module, pixels)

    return truth


class _Softmaxes(TorchFunctionMode):
    """Keeps the results of all softmaxes over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and keep what it gives."""
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and result.ndim in {3, 4}:
            self.seen.append(result if result.ndim == 4 else result.unsqueeze(2))
        return result


def _attentions(module: nn.Module, pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The attention weights that the model computes with fused attention off, last first."""
    fused: list[Any] = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    softmaxes = _Softmaxes()
    for attention in fused:
        attention.fused_attn = False
    try:
        with softmaxes:
            module(pixels)
    finally:
        for attention in fused:
            attention.fused_attn = True
    for weights in reversed(softmaxes.seen):
        yield "attention weights", weights


def _pooled(module: nn.Module, pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What leaves the modules that the model itself calls its global pooling."""
    seen: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if name.endswith(("global_pool", "avg_pool", "avgpool")):
                hook = part.register_forward_hook(lambda _m, _a, out: seen.append(out))
                hooks.enter_context(hook)
        module(pixels)
    for value in seen:
        if isinstance(value, torch.Tensor):
            yield "output of global_pool", value.flatten(1)


class Logits(nn.Module):
    """A model of transformers, its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the model on pixels (N, 3, H, W)."""
        output = self.model(pixel_values=pixels)
        logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
        return logits


def transformers_truth(module: nn.Module) -> Truth:
    """`attentions`, `hidden_states` and `last_hidden_state`, normed or not."""

    def truth(pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        model: Any = module.get_submodule("model")
        try:
            before = model.config._attn_implementation  # noqa: SLF001  no public name
            model.set_attn_implementation("eager")
            output = model(pixel_values=pixels, output_attentions=True)
            # At once: who has found what was looked for asks no more.
            model.set_attn_implementation(before)
            for weights in reversed(output.attentions or ()):
                if isinstance(weights, torch.Tensor) and weights.ndim == 4:
                    yield "attentions", weights
        except Exception:  # noqa: BLE001, S110  not all have any
            pass
        body = next(
            (part for name, part in model.named_children() if hasattr(part, "config")), None
        )
        if body is None:
            return
        output = body(pixel_values=pixels)
        yield "last_hidden_state", output[0]
        norms = [part for name, part in model.named_children() if "norm" in name]
        for norm in norms:
            yield "last_hidden_state, normed", norm(output[0])
        yield from _pooled(module, pixels)

    return truth


_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}


def tiny_transformers(classes: int) -> Iterator[tuple[str, int, nn.Module]]:
    """Classifiers of transformers with small random weights: name, side, module."""
    import transformers as hf  # noqa: PLC0415  heavy

    tiny: Any = _TINY
    stages: Any = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    swin: Any = {**stages, "image_size": 64, "patch_size": 4}
    text: Any = {name: tiny[name] for name in list(tiny)[:4]} | {"vocab_size": 100}
    towers: Any = {"vision_config": tiny, "text_config": text}
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("ViTForImageClassification", "ViTConfig", tiny),
        ("ViTMSNForImageClassification", "ViTMSNConfig", tiny),
        ("DeiTForImageClassification", "DeiTConfig", tiny),
        ("DeiTForImageClassificationWithTeacher", "DeiTConfig", tiny),
        ("BeitForImageClassification", "BeitConfig", {**tiny, "out_indices": [1]}),
        (
            "BeitForImageClassification",
            "BeitConfig",
            {**tiny, "use_mean_pooling": False, "use_relative_position_bias": True},
        ),
        ("Data2VecVisionForImageClassification", "Data2VecVisionConfig", tiny),
        ("Dinov2ForImageClassification", "Dinov2Config", tiny),
        ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", tiny),
        ("IJepaForImageClassification", "IJepaConfig", tiny),
        ("SiglipForImageClassification", "SiglipConfig", towers),
        ("CLIPForImageClassification", "CLIPConfig", towers),
        ("MetaClip2ForImageClassification", "MetaClip2Config", towers),
        ("SwinForImageClassification", "SwinConfig", swin),
        ("Swinv2ForImageClassification", "Swinv2Config", swin),
        ("DonutSwinForImageClassification", "DonutSwinConfig", swin),
        (
            "HieraForImageClassification",
            "HieraConfig",
            {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1]},
        ),
        (
            "ConvNextForImageClassification",
            "ConvNextConfig",
            {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        ),
        (
            "ConvNextV2ForImageClassification",
            "ConvNextV2Config",
            {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        ),
        (
            "ResNetForImageClassification",
            "ResNetConfig",
            {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        ),
        (
            "RegNetForImageClassification",
            "RegNetConfig",
            {
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 24, 32],
                "depths": [1, 1, 1, 1],
                "groups_width": 8,
            },
        ),
        (
            "BitForImageClassification",
            "BitConfig",
            {"embedding_size": 32, "hidden_sizes": [128, 256, 256, 256], "depths": [1, 1, 1, 1]},
        ),
        (
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            {"width_coefficient": 0.5, "hidden_dim": 640},
        ),
        ("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25}),
        ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.25}),
        ("MobileViTForImageClassification", "MobileViTConfig", {}),
        ("MobileViTV2ForImageClassification", "MobileViTV2Config", {"width_multiplier": 0.5}),
        (
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        ),
        ("PvtForImageClassification", "PvtConfig", {"image_size": 64, "depths": [1, 1, 1, 1]}),
        ("PvtV2ForImageClassification", "PvtV2Config", {"depths": [1, 1, 1, 1]}),
        ("LevitForImageClassification", "LevitConfig", {}),
        ("LevitForImageClassificationWithTeacher", "LevitConfig", {}),
        ("SegformerForImageClassification", "SegformerConfig", {"depths": [1, 1, 1, 1]}),
        ("SwiftFormerForImageClassification", "SwiftFormerConfig", {}),
        ("FocalNetForImageClassification", "FocalNetConfig", {"image_size": 64, "embed_dim": 16}),
        ("HGNetV2ForImageClassification", "HGNetV2Config", {}),
        ("PPLCNetForImageClassification", "PPLCNetConfig", {}),
        ("TextNetForImageClassification", "TextNetConfig", {}),
    ]
    fixed = {"LevitConfig": 224, "MobileViTConfig": 128, "MobileViTV2Config": 128}
    for number, (name, config, options) in enumerate(cases):
        torch.manual_seed(number)
        try:
            settings = getattr(hf, config)(**options, num_labels=classes)
            model = getattr(hf, name)(settings).eval()
        except Exception as error:  # noqa: BLE001  the list outlives a release
            print(f"skipped {name}: {error!r}", file=sys.stderr)
            continue
        variant = " (CLS)" if options.get("use_mean_pooling") is False else ""
        side = fixed.get(config, 64)
        yield f"{name}{variant}", side, Logits(model)
