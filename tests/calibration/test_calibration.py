import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.calibration.calibration import Calibration, require_fingerprint
from nap_stream.errors import FingerprintMismatchError
from nap_stream.model.loading import LoadedModel
from nap_stream.settings import PreprocessingSettings
from tests.support.small_calibration import calibration_of
from tests.support.small_settings import load_small

SCORES = st.lists(st.floats(2**-7, 1e3, width=32), min_size=4, max_size=30)


def hand() -> Calibration:
    # Fused, at weight 1/2: sqrt(1*1), sqrt(4*4), sqrt(9*4), sqrt(16*4) = 1, 4, 6, 8.
    return calibration_of([16, 1, 9, 4], [4, 1, 4, 4], alpha=0.4)


def test_hand_computed_judgement() -> None:
    calibration = hand()
    assert calibration.size == 4
    assert calibration.sorted_scores.tolist() == [1, 4, 6, 8]
    # k = floor(0.4 * 5) = 2: below the second smallest score is flagged.
    assert (calibration.flag_rank, calibration.threshold) == (2, 4)
    found = calibration.judge(np.array([1, 4, 2, 100.0]), np.array([0, 4, 2, 100.0]))
    assert found.fused.tolist() == pytest.approx([0, 4, 2, 100])
    # (1 + number of calibration scores at most the score) / 5
    assert found.ood_p_value.tolist() == pytest.approx([1 / 5, 3 / 5, 2 / 5, 5 / 5])
    assert found.is_ood.tolist() == [True, False, True, False]


def test_a_row_of_nan_is_not_flagged() -> None:
    found = hand().judge(np.array([math.nan, 1.0], np.float32), np.array([1.0, 1.0], np.float32))
    assert np.isnan(found.fused).tolist() == [True, False]
    assert np.isnan(found.ood_p_value).tolist() == [True, False]
    assert found.is_ood.tolist() == [False, True]


@given(SCORES, SCORES, st.floats(0.21, 0.9))
def test_flagged_exactly_below_the_threshold(
    images: list[float], stream: list[float], alpha: float
) -> None:
    calibration = calibration_of(images, images, alpha)
    found = calibration.judge(np.array(stream), np.array(stream))
    assert found.is_ood.tolist() == (found.fused < calibration.threshold).tolist()
    assert found.fused.dtype == found.ood_p_value.dtype == np.float64


def test_arrays_cannot_be_changed() -> None:
    whole, energy = hand(), np.array([1, 2, 3, 4], np.float32)
    calibration = dataclasses.replace(whole, energy=energy)
    energy[0] = 9
    assert calibration.energy[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        calibration.sorted_scores[0] = 0


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 5.0},
        {"flag_rank": 1},
        {"sorted_scores": np.array([1, 4, 6, 8], np.float32)},
        {"sorted_scores": np.array([4, 1, 6, 8], np.float64)},
        {"nap": np.ones(3, np.float32)},
        {"energy": np.array([1, 2, math.inf, 3], np.float32)},
        {"alpha": 0.1},
    ],
)
def test_parts_that_do_not_belong_together(change: dict[str, Any]) -> None:
    whole = hand()
    fields = {
        field.name: getattr(whole, field.name) for field in dataclasses.fields(whole) if field.init
    }
    assert Calibration(**fields).fingerprint == whole.fingerprint
    with pytest.raises(ValueError, match=r".+"):
        Calibration(**(fields | change))


def test_the_fingerprint_is_of_everything() -> None:
    site = hand().feature_site
    changes: list[dict[str, Any]] = [
        {},
        {"alpha": 0.41},
        {"weight": 0.6},
        {"weight_choice": "searched"},
        {"model_fingerprint": "2" * 64},
        {"model_factory": "other:name"},
        {"feature_site": dataclasses.replace(site, call=1)},
        {"preprocessing": PreprocessingSettings(crop=200)},
        {"image_source": "other"},
        {"undecodable": 2},
        {"mean_confidence": 0.3},
        {"versions": {"torch": "3"}},
        {"created_ms": 1},
    ]
    energy, nap = [16.0, 1, 9, 4], [4.0, 1, 4, 4]
    made = [calibration_of(energy, nap, **({"alpha": 0.4} | change)) for change in changes]
    # Other scores of an image beneath the same sorted scores.
    made.append(dataclasses.replace(hand(), energy=np.array([16, 2, 9, 4], np.float32)))
    assert len({calibration.fingerprint for calibration in made}) == len(made)
    assert made[0].fingerprint == hand().fingerprint


def fitted(loaded: LoadedModel) -> Calibration:
    return calibration_of(
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        model_fingerprint=loaded.fingerprint,
        feature_site=loaded.feature_site,
    )


def test_the_calibration_of_this_model() -> None:
    loaded = load_small("SmallNet")
    require_fingerprint(fitted(loaded), loaded)


def test_the_calibration_of_another_model_names_both() -> None:
    loaded = load_small("SmallNet")
    other = load_small("SmallNet", class_names=("a", "b", "c"))
    require_fingerprint(fitted(loaded), other)
    other = load_small("DropoutNet")
    with pytest.raises(FingerprintMismatchError) as caught:
        require_fingerprint(fitted(loaded), other)
    assert loaded.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def test_a_map_read_elsewhere_is_refused() -> None:
    loaded, elsewhere = load_small("SmallNet"), load_small("SmallNet", feature_layer="features.0")
    assert loaded.fingerprint == elsewhere.fingerprint
    with pytest.raises(FingerprintMismatchError, match=r"input of pool.*output of features\.0"):
        require_fingerprint(fitted(loaded), elsewhere)
