"""The networks and images on which the method's figures rest."""

from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from nap_stream.core.prior import nap
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.image_files import ImageFile, iter_images
from nap_stream.model.forward import BatchScores
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.model.preprocessing import preprocess
from nap_stream.settings.schema import LimitSettings, ModelSettings, PreprocessingSettings
from tests.support.cifar_models import DenseNetBC, ResNet20
from tests.support.shared_data import shared_data
from tests.support.small_calibration import scorer_of
from tests.support.small_settings import CPU

pytestmark = pytest.mark.data

NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
DENSENET = PreprocessingSettings(
    resize=32,
    crop=32,
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
    std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
)
RESNET = PreprocessingSettings(resize=32, crop=32)


@dataclass(frozen=True)
class Case:
    factory: str
    weights: str
    preprocessing: PreprocessingSettings
    site: str
    accuracy: float
    textures_auroc: float

    def load(self) -> LoadedModel:
        settings = ModelSettings(
            factory=f"tests.support.cifar_models:{self.factory}",
            weights=shared_data(f"checkpoints/{self.weights}_cifar10.safetensors"),
            preprocessing=self.preprocessing,
            class_names=NAMES,
        )
        return load_model(settings, CPU)


CASES = [
    Case(
        "densenet_bc100",
        "densenet_bc100_12",
        DENSENET,
        "input of avg_pool2d(), call 2, 342x8x8",
        0.81,
        0.96,
    ),
    Case("resnet20", "resnet20", RESNET, "input of mean(), call 0, 64x8x8", 0.79, 0.945),
]


@cache
def files(path: Path, count: int) -> tuple[ImageFile, ...]:
    return tuple(islice(iter_images(path), count))


def pixels(found: tuple[ImageFile, ...], settings: PreprocessingSettings) -> torch.Tensor:
    rows = []
    for file in found:
        picture = decode_image(file.data, LimitSettings())
        assert isinstance(picture, Picture)
        rows.append(preprocess(picture.pixels, settings))
    return torch.stack(rows)


def score(loaded: LoadedModel, images: torch.Tensor) -> BatchScores:
    scorer = scorer_of(loaded)
    parts = [scorer(images[start : start + 50]) for start in range(0, len(images), 50)]

    class_id = np.concatenate([part.class_id for part in parts])
    names = parts[0].values
    return BatchScores(
        class_id, {name: np.concatenate([part.values[name] for part in parts]) for name in names}
    )


@pytest.mark.parametrize(
    "case",
    [pytest.param(CASES[0], marks=pytest.mark.slow), CASES[1]],
    ids=lambda case: case.factory,
)
def test_the_checkpoint_scores_as_measured(case: Case) -> None:
    loaded = case.load()
    assert str(loaded.feature_site) == case.site
    found = files(shared_data("cifar10_test.parquet"), 1000)
    scores = score(loaded, pixels(found, case.preprocessing))
    labels = [NAMES.index(str(file.label)) for file in found]
    assert np.mean(scores.class_id == labels) == pytest.approx(case.accuracy, abs=0.03)

    textures = files(shared_data("textures_dtd5.parquet"), 200)
    outside = score(loaded, pixels(textures, case.preprocessing))
    truth = np.repeat([1, 0], [500, 200])
    auroc = roc_auc_score(
        truth, np.concatenate([scores.values["nap"][:500], outside.values["nap"]])
    )
    assert auroc >= 0.93
    assert auroc == pytest.approx(case.textures_auroc, abs=0.01)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.factory)
def test_nap_is_that_of_the_map_read_by_hand(case: Case) -> None:
    loaded = case.load()
    assert isinstance(loaded.module, DenseNetBC | ResNet20)
    found = files(shared_data("cifar10_test.parquet"), 1000)[:5]
    batch = pixels(found, case.preprocessing)
    scores = scorer_of(loaded)(batch)
    with torch.inference_mode():
        expected = nap(loaded.module.feature_map(loaded.normalise(batch)))
        logits = loaded.module(loaded.normalise(batch))
    np.testing.assert_array_equal(scores.values["nap"], expected.numpy())
    np.testing.assert_array_equal(scores.values["energy"], torch.logsumexp(logits, 1).numpy())
