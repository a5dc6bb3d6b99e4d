from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nap_stream.calibration.checks import (
    decoding_warnings,
    labelled,
    mean_confidence,
    one_class_warnings,
    require_enough,
    require_fittable,
    require_head,
    require_images,
    require_neighbours,
    require_weight,
    skill_warnings,
)
from nap_stream.calibration.fit import FitPart
from nap_stream.calibration.read import ScoredImages, Warned
from nap_stream.core.conformal import Rule
from nap_stream.core.methods import every_method, parse_method
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.tails import Sides
from nap_stream.errors import CalibrationError, ConfigError
from tests.support.small_settings import load_small

KNN = (BaseScore.ENERGY, BaseScore.KNN)


def part(images: int, *, own: bool) -> FitPart:
    return FitPart(Path("some") / "images", own, np.ones(images, dtype=bool))


def test_a_weight_goes_with_methods_that_have_one() -> None:
    for method in every_method():
        require_weight(method, None)
        if method.has_weight:
            require_weight(method, 0.0)
            require_weight(method, 1.0)
            continue
        with pytest.raises(ConfigError, match=f"the method {method} has no weight, got 0.25"):
            require_weight(method, 0.25)
    with pytest.raises(ConfigError, match=r"the method auto has no weight, got 0\.5"):
        require_weight(None, 0.5)


@pytest.mark.parametrize("weight", [-0.01, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["nap-energy", "fisher-knn"])
def test_a_weight_is_a_share(weight: float, name: str) -> None:
    method = parse_method(name)
    with pytest.raises(ConfigError, match=r"--weight: expected a weight in \[0, 1\], got"):
        require_weight(method, weight)


def test_scores_of_the_head_need_a_linear_one() -> None:
    headed, headless = load_small("SmallNet"), load_small("ReluHeadNet")
    require_head(BaseScore, headed, "package:name")
    require_head((BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY), headless, "package:name")
    require_head((*KNN, BaseScore.MAHALANOBIS), headless, "package:name")
    one = (
        r"package:name: ash needs a model .* do not\. Choose auto, nap, or a method of msp, "
        "max_logit, energy, knn, mahalanobis, gen$"
    )
    with pytest.raises(CalibrationError, match=one):
        require_head((*KNN, BaseScore.ASH), headless, "package:name")
    with pytest.raises(CalibrationError, match="ash, fdbd need a model"):
        require_head((BaseScore.ASH, BaseScore.FDBD), headless, "package:name")


def test_a_fold_is_left_out_of_the_neighbours_of_its_images() -> None:
    require_neighbours(KNN, 13, part(13, own=True), 10)
    require_neighbours(KNN[:1], 1, part(1, own=True), 10)
    own = (
        r"images: knn with k = 10 needs 13 .* are 12 images to fit on\. Give at least 13 images to"
    )
    with pytest.raises(CalibrationError, match=own):
        require_neighbours(KNN, 12, part(12, own=True), 10)
    share = r"are 12, a third of the images\. Give at least 39 images in all"
    with pytest.raises(CalibrationError, match=share):
        require_neighbours(KNN, 12, part(12, own=False), 10)
    with pytest.raises(CalibrationError, match=r"k = 1 needs 2 .* Give at least 6 images in all"):
        require_neighbours(KNN, 1, part(1, own=False), 1)


def test_the_rule_needs_images_that_can_flag() -> None:
    source = Path("held-out")
    require_enough(19, Rule(0.05), source)
    require_enough(39, Rule(0.05, Sides.TWO), source)
    with pytest.raises(CalibrationError, match=r"are 0 beside 1 that are fitted on"):
        require_enough(0, Rule(0.05), source, fitted_on=1)
    with pytest.raises(CalibrationError, match=r"are 18, and alpha = 0\.05 needs at least 19"):
        require_enough(18, Rule(0.05), source)
    with pytest.raises(CalibrationError, match=r"are 38 beside 19 that are fitted on, .* 39"):
        require_enough(38, Rule(0.05, Sides.TWO), source, fitted_on=19)


def test_p_values_need_references() -> None:
    fisher, plain = parse_method("fisher-energy"), parse_method("nap-energy")
    require_fittable((), (fisher, plain), part(2, own=True), 10)
    require_fittable((BaseScore.ENERGY,), (plain,), part(1, own=True), 10)
    with pytest.raises(CalibrationError, match=r"fisher-energy needs 2 or more .* there are 1\."):
        require_fittable((), (plain, fisher), part(1, own=True), 10)


def test_of_one_image_none_is_left_where_it_is_left_out() -> None:
    method = parse_method("mahalanobis")
    require_fittable((BaseScore.MAHALANOBIS,), (method,), part(2, own=True), 10)
    one = r"mahalanobis needs 2 or more images to fit on, and there are 1\. Give more images, or"
    with pytest.raises(CalibrationError, match=one):
        require_fittable((BaseScore.MAHALANOBIS,), (method,), part(1, own=True), 10)


def test_a_limit_that_keeps_images_out_is_what_to_raise() -> None:
    cut = replace(part(12, own=False), limited=True)
    with pytest.raises(
        CalibrationError, match=r"are 12 by scoring\.fit_limit\. Raise that to 13 at"
    ):
        require_neighbours(KNN, 12, cut, 10)
    with pytest.raises(CalibrationError, match=r"there are 1\. Raise scoring\.fit_limit, or"):
        require_images(("fisher-energy",), 1, cut)


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
    found = labelled(images, NAMES)
    assert found is not None
    assert found.accuracy == 0.75
    assert labelled(images, NAMES[:3]) is None
    assert labelled(scored([0, 1]), NAMES) is None


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
    assert list(decoding_warnings("images", scored([0, 1], undecodable=1))) == [
        "1 of 3 images cannot be decoded; first a.txt: text"
    ]
    assert list(decoding_warnings("images", scored([0, 1]))) == []


def test_images_that_are_decoded_with_a_warning() -> None:
    found = replace(
        scored([0, 1, 2], undecodable=1), warned=Warned(2, ("a.jpg: cut", "b.jpg: cut"))
    )
    said = list(decoding_warnings("images", found))
    assert said[0] == "1 of 4 images cannot be decoded; first a.txt: text"
    assert said[1].startswith("of 2 of 4 images the decoder warns, so that pixels may not be what")
    assert said[1].endswith("set limits.damaged: refuse; first a.jpg: cut; b.jpg: cut")
