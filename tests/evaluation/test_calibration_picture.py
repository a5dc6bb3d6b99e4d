from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_stream.calibration.calibration import SCORE, Calibration
from nap_stream.core.conformal import Rule
from nap_stream.core.methods import WeightSearch
from nap_stream.core.tails import Sides
from nap_stream.evaluation import pictures
from nap_stream.evaluation.pictures import Thresholds, draw_calibration
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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(pictures, "plot_calibration", lambda *given: found.extend(given))
    return found


def test_the_threshold_of_all_images(drawn: list[Any]) -> None:
    # Of 19 images, alpha = 0.1 flags two ranks: what lies below the second score.
    calibration = of_scores(19, Rule(0.1))
    draw_calibration(calibration, Path("out.png"))
    scores, groups, curve, out = drawn
    np.testing.assert_array_equal(scores, calibration.arrays[SCORE])
    assert (groups, curve, out) == ([Thresholds(2.0, None, 19, 1)], None, Path("out.png"))


def test_both_thresholds_of_a_two_sided_rule(drawn: list[Any]) -> None:
    draw_calibration(of_scores(39, Rule(0.1, Sides.TWO)), Path("out.png"))
    assert drawn[1] == [Thresholds(2.0, 38.0, 39, 2)]


def test_every_class_is_compared_with_its_own_threshold(drawn: list[Any]) -> None:
    # Even scores are of class 0, odd ones of class 1.
    calibration = of_scores(30, Rule(0.2, per_class=True), class_id=[1, 0] * 15)
    draw_calibration(calibration, Path("out.png"))
    # Of 15 images three ranks are flagged: below the third, which are two of each class.
    assert drawn[1] == [Thresholds(6.0, None, 15, 2), Thresholds(5.0, None, 15, 2)]


def test_the_search_is_drawn_as_its_mean_and_standard_error(drawn: list[Any]) -> None:
    calibration = calibration_of([1.0] * 5, [2.0] * 5, weight_search=SEARCH, weight=0.5)
    draw_calibration(calibration, Path("out.png"))
    curve = drawn[2]
    assert (curve.weights.tolist(), curve.chosen) == ([0.0, 0.5, 1.0], 0.5)
    np.testing.assert_allclose(curve.auroc, [0.2, 0.7, 0.9])
    # Two values 0.2 apart: a standard deviation of 0.1 sqrt(2), over sqrt(2).
    np.testing.assert_allclose(curve.high - curve.auroc, [0.1, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(curve.auroc - curve.low, [0.1, 0.1, 0], atol=1e-12)


@pytest.mark.parametrize(
    "rule", [Rule(0.2), Rule(0.4, Sides.TWO), Rule(0.4, Sides.TWO, per_class=True)]
)
def test_it_is_drawn_to_a_file(tmp_path: Path, rule: Rule) -> None:
    calibration = of_scores(30, rule, class_id=[1, 0] * 15)
    draw_calibration(calibration, tmp_path / "shown.png")
    assert (tmp_path / "shown.png").read_bytes().startswith(b"\x89PNG")
