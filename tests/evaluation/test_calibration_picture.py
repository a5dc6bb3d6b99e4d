from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.calibration.calibration import SCORE, Calibration
from nap_stream.core.conformal import Rule
from nap_stream.core.methods import WeightSearch
from nap_stream.core.tails import Sides
from nap_stream.evaluation import output
from nap_stream.evaluation.output import flagged_images, plot_calibration, search_curve
from tests.support.small_calibration import calibration_of

SEARCH = WeightSearch(
    transforms=("invert", "shrunk"),
    weights=(0.0, 0.5, 1.0),
    auroc=((0.1, 0.6, 0.9), (0.3, 0.8, 0.9)),
    inside_images=5,
    pseudo_images=4,
    chosen=0.5,
    interval=(0.5, 1.0),
    near_best=(1.0, 1.0),
)


def of_scores(count: int, rule: Rule, **changes: Any) -> Calibration:
    """A calibration whose scores are 1, 2, … count: energy at a weight of 1."""
    scores = [float(number) for number in range(1, count + 1)]
    return calibration_of(scores, scores, rule=rule, weight=1.0, **changes)


def thresholds(calibration: Calibration) -> list[tuple[float, float | None, int, int]]:
    """Of each group: lower, upper, its images, and how many of them are flagged."""
    return [
        (group.lower, group.upper, group.size, flagged_images(group, calibration))
        for group in calibration.document.groups
    ]


def test_the_threshold_of_all_images() -> None:
    # Of 19 images, alpha = 0.1 flags two ranks: what lies below the second score.
    assert thresholds(of_scores(19, Rule(0.1))) == [(2.0, None, 19, 1)]


def test_both_thresholds_of_a_two_sided_rule() -> None:
    assert thresholds(of_scores(39, Rule(0.1, Sides.TWO))) == [(2.0, 38.0, 39, 2)]


def test_every_class_is_compared_with_its_own_threshold() -> None:
    # Even scores are of class 0, odd ones of class 1.
    calibration = of_scores(30, Rule(0.2, per_class=True), class_id=[1, 0] * 15)
    # Of 15 images three ranks are flagged: below the third, which are two of each class.
    assert thresholds(calibration) == [(6.0, None, 15, 2), (5.0, None, 15, 2)]


def test_the_picture_is_of_what_the_calibration_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def draw(*arguments: Any) -> bytes:
        given.extend(arguments)
        return b"drawn"

    monkeypatch.setattr(output, "calibration_png", draw)
    calibration = calibration_of([1.0] * 5, [2.0] * 5, weight_search=SEARCH, weight=0.5)
    plot_calibration(calibration, tmp_path / "out.png")
    scores, groups, flagged, search = given
    np.testing.assert_array_equal(scores, calibration.arrays[SCORE])
    assert groups == calibration.document.groups
    assert flagged == [flagged_images(group, calibration) for group in groups]
    assert search == SEARCH
    assert (tmp_path / "out.png").read_bytes() == b"drawn"


def test_the_search_is_drawn_as_its_mean_and_standard_error() -> None:
    mean, error = search_curve(SEARCH)
    np.testing.assert_allclose(mean, [0.2, 0.7, 0.9])
    # Two values 0.2 apart: a standard deviation of 0.1 sqrt(2), over sqrt(2).
    np.testing.assert_allclose(error, [0.1, 0.1, 0], atol=1e-12)


@pytest.mark.parametrize(
    "rule", [Rule(0.2), Rule(0.4, Sides.TWO), Rule(0.4, Sides.TWO, per_class=True)]
)
def test_it_is_drawn_to_a_file(tmp_path: Path, rule: Rule) -> None:
    calibration = of_scores(30, rule, class_id=[1, 0] * 15)
    plot_calibration(calibration, tmp_path / "shown.png")
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")
