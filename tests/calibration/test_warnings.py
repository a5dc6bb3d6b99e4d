from collections.abc import Sequence

import numpy as np
import pytest

from nap_stream.calibration.checks import (
    accuracy,
    mean_confidence,
    one_class_warnings,
    skill_warnings,
    undecodable_warnings,
)
from nap_stream.calibration.read import ScoredImages

NAMES = ("cat", "dog", "owl", "fox")


def scored(
    predicted: Sequence[int],
    labels: Sequence[str | None] | None = None,
    *,
    confidence: float = 0.75,
    undecodable: int = 0,
) -> ScoredImages:
    count = len(predicted)
    return ScoredImages(
        tuple(map(str, range(count))),
        tuple(labels or (None,) * count),
        np.array(predicted, np.int64),
        {"msp": np.full(count, confidence, np.float32)},
        undecodable,
        "a.txt: text" if undecodable else "",
    )


def test_confidence_and_accuracy() -> None:
    images = scored([0, 1, 2, 2], ["cat", "dog", "owl", "fox"])
    assert mean_confidence(images) == 0.75
    assert accuracy(images, NAMES) == 0.75
    assert accuracy(images, NAMES[:3]) is None
    assert accuracy(scored([0, 1]), NAMES) is None


@pytest.mark.parametrize(("confidence", "doubted"), [(0.25, True), (0.39, True), (0.41, False)])
def test_confidence_is_doubted_below_a_fifth_of_the_way_from_guessing(
    confidence: float, doubted: bool
) -> None:
    # 0.25 + 0.2 * 0.75 = 0.4
    found = list(skill_warnings(scored([0, 1], confidence=confidence), NAMES))
    assert len(found) == doubted
    if doubted:
        assert found[0].startswith(
            f"mean confidence {confidence:.3f} is near that of guessing (0.2"
        )


def test_accuracy_is_doubted_with_its_figure() -> None:
    (found,) = skill_warnings(scored([0, 1, 2], ["cat", "cat", "cat"]), NAMES)
    assert found.startswith("accuracy 0.333 is near that of guessing (0.250): are these images")


def test_images_of_one_class() -> None:
    assert list(one_class_warnings(scored([2, 2]), NAMES)) == [
        "all images are predicted as one class, number 2"
    ]
    assert list(one_class_warnings(scored([2, 1]), NAMES)) == []
    assert list(one_class_warnings(scored([0, 0]), ("cat",))) == []


def test_images_that_cannot_be_decoded() -> None:
    assert list(undecodable_warnings("images", scored([0, 1], undecodable=1))) == [
        "1 of 3 images cannot be decoded; first a.txt: text"
    ]
    assert list(undecodable_warnings("images", scored([0, 1]))) == []
