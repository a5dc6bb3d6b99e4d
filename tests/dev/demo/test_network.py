from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nap_stream.demo.folder import CLASS_NAMES
from nap_stream.demo.images import SIDE, Splits
from nap_stream.demo.network import FACTORY, MEAN, STD, DigitsNet, accuracy, as_input, train
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings


@pytest.fixture(scope="module")
def network(splits: Splits) -> DigitsNet:
    return train(splits.training.pixels, splits.training.label, seed=3)


@pytest.fixture
def loaded(network: DigitsNet, tmp_path: Path) -> LoadedModel:
    weights = tmp_path / "model.safetensors"
    save_file(network.state_dict(), weights)
    settings = ModelSettings(
        factory=FACTORY,
        weights=weights,
        class_names=CLASS_NAMES,
        preprocessing=PreprocessingSettings(resize=None, crop=SIDE, mean=MEAN, std=STD),
    )
    return load_model(settings, torch.device("cpu"))


def test_tells_most_digits_that_it_has_not_seen(network: DigitsNet, splits: Splits) -> None:
    assert not network.training
    assert accuracy(network, splits.stream.pixels, splits.stream.label) > 0.93


def test_accuracy_is_the_share_of_right_answers(network: DigitsNet, splits: Splits) -> None:
    pixels = splits.stream.pixels[:40]
    with torch.inference_mode():
        told = network(as_input(pixels)).argmax(dim=1).numpy()
    half_wrong = np.where(np.arange(40) < 20, told, (told + 1) % 10)

    assert accuracy(network, pixels, half_wrong) == 0.5


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
def test_training_leaves_torch_as_it_was(splits: Splits) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)

    train(splits.training.pixels[:64], splits.training.label[:64], seed=3)

    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == 2


def test_the_monitor_finds_its_last_feature_map(loaded: LoadedModel) -> None:
    assert loaded.feature_site.shape == (128, 4, 4)
    assert loaded.class_names == CLASS_NAMES


def test_the_monitor_computes_the_same_logits(
    loaded: LoadedModel, network: DigitsNet, splits: Splits
) -> None:
    pixels = splits.stream.pixels[:8]
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)

    with torch.inference_mode():
        logits = loaded.module(loaded.normalise(batch))
        expected = network(as_input(pixels))

    torch.testing.assert_close(logits, expected)
