"""What docs/outputs.md shows is run as it stands there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from nap_stream.calibration.elsewhere import calibrate_outputs
from nap_stream.clock import ManualClock
from nap_stream.core.conformal import Rule
from nap_stream.decode.outputs import read_outputs
from nap_stream.decode.picture import Refusal
from nap_stream.pipeline.outputs import known_outputs
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import LimitSettings, ScoringSettings, Settings
from tests.support.small_calibration import calibration_request
from tests.test_readme import snippets

PAGE = "docs/outputs.md"


class ResNet(nn.Module):
    """Named as torchvision's, and in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.avgpool(self.relu(self.conv1(images))).flatten(1)
        logits: torch.Tensor = self.fc(pooled)
        return logits


def settings_of(folder: Path, example: str) -> Settings:
    rest = {"kafka": {"topic": "t"}, "log": {"root": "log"}, "calibration": str(folder)}
    path = folder / "monitor.yaml"
    path.write_text(yaml.safe_dump(rest) + example)
    return load_settings(path, {})


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    resnet, sent = ResNet().eval(), dict[str, bytes]()
    images = torch.randn(6, 3, 12, 12)
    scope: dict[str, Any] = {
        "torch": torch, "pa": pa, "pq": pq, "images": images,
        "held_out": torch.randn(60, 3, 12, 12), "labels": ["a"] * 60,
        "producer": SimpleNamespace(send=sent.__setitem__),
    }  # fmt: skip
    served, produce, write = snippets(PAGE, "python")
    exec(served, scope)
    model = scope["Served"](resnet)

    def infer(given: torch.Tensor) -> list[Any]:
        with torch.inference_mode():
            return [output.numpy() for output in model(given)]

    scope["infer"] = infer
    exec(produce, scope)
    found = read_outputs(sent["outputs"], LimitSettings(), None)
    assert not isinstance(found, Refusal)
    assert {item.key for item in found} == {b"camera-1"}
    with torch.inference_mode():
        expected = resnet(images).numpy()
    logits = [item.output.logits for item in found if item.output]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)

    exec(write, scope)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    save_file({"weight": resnet.fc.weight.data, "bias": resnet.fc.bias.data}, "head.safetensors")
    save_file(resnet.state_dict(), "resnet18-parts.safetensors")
    first, second = snippets(PAGE, "yaml")
    settings = settings_of(tmp_path, first)
    made = calibrate_outputs(
        calibration_request(
            tmp_path / "outputs.parquet",
            model=settings.model,
            scoring=ScoringSettings(),
            rule=Rule(0.1),
        ),
        clock=ManualClock(0),
    )
    assert made.document.accuracy is not None
    assert known_outputs(made, settings.model).model.class_names == ("a", "b", "c", "d", "e")
    elsewhere = settings_of(tmp_path, second).model.elsewhere
    assert elsewhere is not None
    assert elsewhere.calibrated_on_images
