import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

from nap_stream.calibration.calibration import SCORE, Calibration
from nap_stream.calibration.document import FaultSeen
from nap_stream.core.conformal import Group, Rule
from nap_stream.core.selection import WeightSearch
from nap_stream.core.tails import Sides
from nap_stream.evaluation import output
from nap_stream.evaluation.output import (
    calibration_png,
    flagged_images,
    plot_calibration,
    search_curve,
    table_png,
    threshold_label,
)
from nap_stream.evaluation.tables import EvaluationTable
from tests.support.small_calibration import calibration_of

SCORES = np.random.default_rng(0).normal(3, 1, 500)


def search(chosen: float = 0.3) -> WeightSearch:
    weights = np.linspace(0, 1, 11)
    auroc = 0.9 - (weights - 0.3) ** 2
    curves = tuple(tuple(map(float, auroc + shift)) for shift in (-0.02, 0.01))
    names, chosen_only = ("solarize", "shapes"), (chosen, chosen)
    return WeightSearch(
        names, tuple(map(float, weights)), curves, 500, 500, chosen, chosen_only, chosen_only
    )


def group(lower: float, upper: float | None = None, size: int = len(SCORES)) -> Group:
    return Group(None, size, 25, lower, upper)


def draw(groups: list[Group], found: WeightSearch | None, path: Path) -> None:
    path.write_bytes(calibration_png(SCORES, groups, [25] * len(groups), found))


def colours(image: Image.Image) -> int:
    return len(image.convert("RGB").getcolors(10_000_000) or ())


def test_the_heat_map_grows_with_its_columns_and_rows(table: EvaluationTable) -> None:
    content = table_png(table)

    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (round((3.2 + 0.95 * 4) * 120), round((1.6 + 0.42 * 3) * 120))
        assert colours(image) > 50


def test_the_heat_map_is_the_same_every_time(table: EvaluationTable) -> None:
    assert table_png(table) == table_png(table)


def test_draws_the_scores_and_the_search(tmp_path: Path) -> None:
    with_curve, without = tmp_path / "curve.png", tmp_path / "fixed.png"

    draw([group(1.4)], search(), with_curve)
    draw([group(1.4)], None, without)

    for path in (with_curve, without):
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", (1_440, 540))
    with Image.open(with_curve) as drawn, Image.open(without) as noted:
        left, right = (0, 60, 700, 540), (760, 60, 1_440, 540)
        assert _share_of_white(noted.crop(right)) > 0.97 > _share_of_white(drawn.crop(right))
        assert _share_of_white(noted.crop(left)) < 0.9


def test_the_threshold_and_the_chosen_weight_are_drawn_where_they_are(tmp_path: Path) -> None:
    places = []
    for number, (threshold, chosen) in enumerate([(1.0, 0.1), (4.0, 0.9)]):
        path = tmp_path / f"{number}.png"
        draw([group(threshold)], search(chosen), path)
        places.append((_leftmost(path, (214, 39, 40)), _leftmost(path, (44, 160, 44))))

    (low_threshold, low_weight), (high_threshold, high_weight) = places
    assert low_threshold + 100 < high_threshold < 720
    assert 720 < low_weight + 300 < high_weight


def test_both_thresholds_of_a_two_sided_rule_are_drawn(tmp_path: Path) -> None:
    places = []
    for number, groups in enumerate([[group(1.0)], [group(5.0)], [group(1.0, 5.0)]]):
        path = tmp_path / f"{number}.png"
        draw(groups, None, path)
        places.append(_lines(path, (214, 39, 40)))
    (low,), (high,), both = places
    assert low + 100 < high
    assert both == [low, high]


def test_the_thresholds_of_classes_are_drawn_faintly(tmp_path: Path) -> None:
    path = tmp_path / "classes.png"
    groups = [group(lower, size=100) for lower in (1.0, 3.0, 5.0)]
    draw(groups, None, path)
    # Over white, which is where no image is: 0.3 of tab:red.
    assert len(_lines(path, (243, 190, 190))) >= 2
    assert _lines(path, (214, 39, 40)) == []


def test_the_label_states_each_groups_own_share() -> None:
    assert threshold_label([group(1.25, size=200)], [9]) == (
        "threshold 1.25: 4.5% of the images below"
    )
    assert threshold_label([group(1.25, 7.5, size=200)], [9]) == (
        "thresholds 1.25 and 7.5: 4.5% of the images outside"
    )
    classes = [group(1.25, size=100), group(3.5, size=300)]
    assert threshold_label(classes, [4, 20]) == (
        "thresholds of 2 predicted classes:\n6.0% of the images flagged, 4.0% to 6.7% of a class"
    )
    assert threshold_label([group(1.0, 2.0, size=10)] * 2, [1, 1]).startswith(
        "lower and upper thresholds of 2 predicted classes"
    )


def _share_of_white(image: Image.Image) -> float:
    return float(np.mean(np.asarray(image.convert("RGB")).min(axis=2) > 250))


def _leftmost(path: Path, colour: tuple[int, int, int]) -> int:
    """Where the line stands: the column that has most pixels of its colour."""
    with Image.open(path) as image:
        close = np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).max(axis=2) < 40
    return int(close.sum(axis=0).argmax())


def _lines(path: Path, colour: tuple[int, int, int]) -> list[int]:
    """Columns of the left picture where a line of that colour stands, of neighbours the first."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)[:, :700]
    close = np.abs(pixels - colour).max(axis=2) < 12
    columns = np.flatnonzero(close.sum(axis=0) > 100)
    return [int(column) for column in columns if column - 1 not in columns]


FAULTS = tuple(
    FaultSeen(fault=name, images=100, flagged=flagged, records=records)
    for name, flagged, records in [
        ("blank frame", 0.0, None),
        ("haze", 0.09, 1_150.4),
        ("dirt", 1.0, 50.0),
    ]
)
SEARCH = WeightSearch(
    transforms=("solarize", "shapes"),
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
    calibration = calibration_of(
        [1.0] * 5, [2.0] * 5, weight_search=SEARCH, weight=0.5, faults=FAULTS
    )
    plot_calibration(calibration, tmp_path / "out.png")
    scores, groups, flagged, search, faults = given
    assert faults == FAULTS
    np.testing.assert_array_equal(scores, calibration.arrays[SCORE])
    assert groups == calibration.document.groups
    assert flagged == [flagged_images(group, calibration) for group in groups]
    assert search == SEARCH
    assert (tmp_path / "out.png").read_bytes() == b"drawn"


def test_faults_are_drawn_the_most_visible_first_with_their_alarms() -> None:
    axes = Figure(figsize=(6, 4.5)).subplots()
    output._draw_faults(axes, FAULTS)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dirt", "haze", "blank frame"]
    (bars,) = axes.containers
    assert isinstance(bars, BarContainer)
    np.testing.assert_allclose(np.asarray(bars.datavalues, float), [100, 9, 0])
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["100%, 50 images", "9%, 1,150 images", "0%, no alarm"]
    assert axes.get_title() == "what it sees, of 100 images each"


def test_faults_stand_beside_the_rest() -> None:
    plain, with_faults = (
        calibration_png(SCORES, [group(1.4)], [25], search(), faults) for faults in ((), FAULTS)
    )
    with Image.open(io.BytesIO(plain)) as image, Image.open(io.BytesIO(with_faults)) as wide:
        assert (image.size, wide.size) == ((1_440, 540), (2_160, 540))
        assert _share_of_white(wide.crop((1_450, 60, 2_160, 540))) < 0.97


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
