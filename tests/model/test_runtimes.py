"""One network, with the same weights, as five programs give it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from tests.support.small_calibration import scorer_of
from tests.support.small_settings import CPU, PLAIN

pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

JIT: Any = torch.jit
SIDE, CLASSES = 96, 7
PREPROCESSING = PreprocessingSettings(resize=SIDE, crop=SIDE)


def load(**changes: Any) -> LoadedModel:
    return load_model(ModelSettings(preprocessing=PREPROCESSING, **PLAIN, **changes), CPU)


def through_torchvision(_network: nn.Module, weights: Path) -> LoadedModel:
    kwargs = {"num_classes": CLASSES}
    return load(factory="torchvision.models:resnet18", kwargs=kwargs, weights=weights)


def through_timm(_network: nn.Module, weights: Path) -> LoadedModel:
    kwargs = {"model_name": "resnet18", "num_classes": CLASSES}
    return load(factory="timm:create_model", kwargs=kwargs, weights=weights)


def through_hugging_face(network: nn.Module, weights: Path) -> LoadedModel:
    import transformers  # noqa: PLC0415  seconds

    config_of: Any = transformers.ResNetConfig
    config = config_of(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        layer_type="basic",
        num_labels=CLASSES,
    )
    model = transformers.ResNetForImageClassification(config)
    model.load_state_dict({hugging_face_name(n): t for n, t in network.state_dict().items()})
    model.save_pretrained(weights.with_suffix(""))
    return load(weights=weights.with_suffix(""))


def hugging_face_name(name: str) -> str:
    part, _, kind = name.rpartition(".")
    if part == "fc":
        return f"classifier.1.{kind}"
    if part in {"conv1", "bn1"}:
        return f"resnet.embedder.embedder.{LAYERS[part[:-1]]}.{kind}"
    stage, block, *inner = part.split(".")
    place = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}"
    if inner[0] == "downsample":
        return f"{place}.shortcut.{('convolution', 'normalization')[int(inner[1])]}.{kind}"
    return f"{place}.layer.{int(inner[0][-1]) - 1}.{LAYERS[inner[0][:-1]]}.{kind}"


LAYERS = {"conv": "convolution", "bn": "normalization"}


def through_a_trace(network: nn.Module, weights: Path) -> LoadedModel:
    path = weights.with_name("traced.pt")
    JIT.trace(network, torch.zeros(1, 3, SIDE, SIDE)).save(str(path))
    return load(weights=path)


def through_a_script(network: nn.Module, weights: Path) -> LoadedModel:
    path = weights.with_name("scripted.pt")
    JIT.script(network).save(str(path))
    return load(weights=path)


def through_an_export(network: nn.Module, weights: Path) -> LoadedModel:
    path = weights.with_name("exported.pt2")
    images, batch = torch.zeros(2, 3, SIDE, SIDE), torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=({0: batch},)), path)
    return load(weights=path)


def through_onnx(network: nn.Module, weights: Path) -> LoadedModel:
    path = weights.with_suffix(".onnx")
    images, batch = torch.zeros(2, 3, SIDE, SIDE), torch.export.Dim("batch")
    exported = torch.onnx.export(network, (images,), dynamic_shapes=({0: batch},), dynamo=True)
    assert exported is not None
    exported.save(path)
    return load(weights=path)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(num_classes=CLASSES).eval()
    path = tmp_path_factory.mktemp("runtimes") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "through",
    [
        through_timm,
        through_hugging_face,
        through_a_trace,
        through_a_script,
        through_an_export,
        through_onnx,
    ],
)
def test_the_same_scores_and_p_values(
    network: tuple[nn.Module, Path], through: Callable[[nn.Module, Path], LoadedModel]
) -> None:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (30, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    images[15:] //= torch.arange(1, 16)[:, None, None, None].to(torch.uint8)
    expected, found = (load_it(*network) for load_it in (through_torchvision, through))
    assert found.feature_site.shape == expected.feature_site.shape == (512, 3, 3)
    assert found.head is not None
    one, other = (scorer_of(model)(images) for model in (expected, found))
    assert one.class_id.tolist() == other.class_id.tolist()
    for name, values in one.values.items():
        np.testing.assert_allclose(other.values[name], values, rtol=1e-4)
        assert p_values(other.values[name]) == p_values(values)


def p_values(values: Any) -> list[float]:
    """Of the last ten images against the first twenty."""
    scores, classes = values.astype(np.float64), np.zeros(len(values), np.int64)
    test = ConformalTest(Rule(alpha=0.1), scores[:20], classes[:20], CLASSES)
    found: list[float] = test.p_values(scores[20:], classes[20:]).tolist()
    return found
