from typing import Any

import pytest
import torch
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.preprocessing import Normaliser
from nap_stream.model.trial import logits_of, trial_batch
from nap_stream.settings.schema import PreprocessingSettings
from tests.support.small_models import FlattenNet, SmallNet
from tests.support.small_settings import CPU, PREPROCESSING


class BrokenNet(SmallNet):
    def forward(self, x: torch.Tensor) -> Any:
        raise KeyError("no such token")


class MissingFileNet(SmallNet):
    def forward(self, x: torch.Tensor) -> Any:
        with open("/no/such/table.json") as file:  # noqa: PTH123
            return file.read()


class OneImageNet(SmallNet):
    def forward(self, x: torch.Tensor) -> Any:
        if len(x) != 1:
            raise ValueError("one image, please")
        return super().forward(x)


class LargeNet(SmallNet):
    def forward(self, x: torch.Tensor) -> Any:
        if x.shape[-1] != 224:
            raise ValueError("this is not what I was made for")
        return super().forward(x)


class GreyNet(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())


class TwoInputsNet(SmallNet):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:  # type: ignore[override] # wrong
        return super().forward(x * mask)


class DevicesNet(SmallNet):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + torch.zeros(3, device="meta")


class NamedNet(SmallNet):
    def forward(self, *, pixel_values: torch.Tensor) -> Any:  # type: ignore[override] # wrong
        return super().forward(pixel_values)


class DoubleNet(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.head = self.head.double()


class RecursiveNet(SmallNet):
    def forward(self, x: torch.Tensor) -> Any:
        return self(x)


@pytest.mark.parametrize(
    ("network", "crop", "problem", "advice"),
    [
        (FlattenNet, 9, "mat1 and mat2", "Check that model.preprocessing.crop"),
        (LargeNet, 8, "not what I was made for", "It takes 224 x 224: set model.preprocessing"),
        (BrokenNet, 8, "KeyError: 'no such token'", "it is the model itself that fails"),
        (MissingFileNet, 8, "FileNotFoundError", "it is the model itself that fails"),
        (OneImageNet, 8, "one image, please", "It takes one image at a time"),
        (GreyNet, 8, "1 channels|1, 3, 3", "model.preprocessing.crop|model itself"),
        (TwoInputsNet, 8, "missing 1 required positional argument: 'mask'", "model itself"),
        (DevicesNet, 8, "meta", "it is the model itself that fails"),
        (NamedNet, 8, "positional argument", "it is the model itself that fails"),
        (DoubleNet, 8, "dtype|Double", "it is the model itself that fails"),
        (RecursiveNet, 8, "RecursionError", "it is the model itself that fails"),
    ],
)
def test_what_failed_is_told(
    network: type[nn.Module], crop: int, problem: str, advice: str
) -> None:
    preprocessing = PREPROCESSING.model_copy(update={"crop": crop})
    with pytest.raises(ModelError, match=problem) as caught:
        first_pass(network().eval(), preprocessing)
    assert caught.value.problem.startswith(
        f"the model fails on an input of shape (2, 3, {crop}, {crop}) and float32"
    )
    assert any(part in caught.value.action for part in advice.split("|"))


def first_pass(module: nn.Module, preprocessing: PreprocessingSettings) -> None:
    normalise = Normaliser(preprocessing, CPU, torch.float32)
    batch = trial_batch(normalise, preprocessing)
    logits_of(module, batch, None, None, normalise=normalise, where="model")
