import dataclasses

import numpy as np
import pytest
import torch

from nap_stream.core.base_scores import energy, max_logit, msp
from nap_stream.core.prior import nap
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.load import BatchScores
from tests.support.small_calibration import scorer_of
from tests.support.small_models import SIZE
from tests.support.small_settings import load_small


def batch(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    size = (count, 3, SIZE, SIZE)
    return torch.randint(0, 255, size, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet"])
def test_all_scores_of_one_pass(network: str) -> None:
    loaded = load_small(network)
    scores = scorer_of(loaded)(batch(5))
    with torch.inference_mode():
        x = loaded.normalise(batch(5))
        logits = loaded.module(x)
        maps = loaded.module.get_submodule("features")(x).relu()
    assert scores.class_id.tolist() == logits.argmax(1).tolist()
    expected = {
        "nap": nap(maps),
        "msp": msp(logits),
        "max_logit": max_logit(logits),
        "energy": energy(logits),
    }
    assert scores.values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(scores.values[name], value.numpy())
    assert scores.class_id.dtype == np.int64
    assert {column.dtype for column in scores.values.values()} == {np.dtype(np.float32)}


def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other() -> None:
    images = batch(3)
    scorer = scorer_of(load_small("OverflowNet"))
    clean = scorer(images)
    images[1, 0, 0, 0] = 255
    # White is exactly 1 only without normalisation.
    plain = load_small("OverflowNet").preprocessing.model_copy(
        update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    )
    spoilt = scorer_of(load_small("OverflowNet", preprocessing=plain))(images)
    assert clean.is_finite().all()
    assert spoilt.is_finite().tolist() == [True, False, True]
    assert np.isnan(spoilt.values["energy"][1])


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, SIZE, SIZE),
        torch.zeros(2, 3, SIZE, SIZE + 1, dtype=torch.uint8),
        torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
    ],
)
def test_refuses_a_wrong_batch(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected a uint8 batch"):
        scorer_of(load_small("SmallNet"))(wrong)


def test_a_model_that_drops_the_batch_dimension() -> None:
    scorer = scorer_of(load_small("SqueezeNet"))
    assert scorer(batch(2)).class_id.shape == (2,)
    with pytest.raises(ModelError, match="one row of logits an image"):
        scorer(batch(1))


def test_a_map_that_is_not_reached() -> None:
    loaded = load_small("SmallNet")
    elsewhere = dataclasses.replace(loaded.feature_site, call=7)
    with pytest.raises(FeatureMapError, match="did not reach"):
        scorer_of(dataclasses.replace(loaded, feature_site=elsewhere))(batch(1))


def test_scores_have_one_shape() -> None:
    three, two = np.zeros(3, np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="one shape"):
        BatchScores(np.zeros(3, np.int64), {"nap": three, "energy": two})
