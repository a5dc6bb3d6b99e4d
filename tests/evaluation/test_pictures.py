import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nap_stream.evaluation.pictures import (
    Thresholds,
    WeightCurve,
    plot_calibration,
    table_png,
    threshold_label,
)
from nap_stream.evaluation.tables import EvaluationTable

SCORES = np.random.default_rng(0).normal(3, 1, 500)


def curve(chosen: float = 0.3) -> WeightCurve:
    weights = np.linspace(0, 1, 11)
    auroc = 0.9 - (weights - 0.3) ** 2
    return WeightCurve(weights, auroc, auroc - 0.02, auroc + 0.01, chosen)


def one(lower: float, upper: float | None = None) -> Thresholds:
    return Thresholds(lower, upper, len(SCORES), 25)


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

    plot_calibration(SCORES, [one(1.4)], curve(), with_curve)
    plot_calibration(SCORES, [one(1.4)], None, without)

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
        plot_calibration(SCORES, [one(threshold)], curve(chosen), path)
        places.append((_leftmost(path, (214, 39, 40)), _leftmost(path, (44, 160, 44))))

    (low_threshold, low_weight), (high_threshold, high_weight) = places
    assert low_threshold + 100 < high_threshold < 720
    assert 720 < low_weight + 300 < high_weight


def test_both_thresholds_of_a_two_sided_rule_are_drawn(tmp_path: Path) -> None:
    places = []
    for number, groups in enumerate([[one(1.0)], [one(5.0)], [one(1.0, 5.0)]]):
        path = tmp_path / f"{number}.png"
        plot_calibration(SCORES, groups, None, path)
        places.append(_lines(path, (214, 39, 40)))
    (low,), (high,), both = places
    assert low + 100 < high
    assert both == [low, high]


def test_the_thresholds_of_classes_are_drawn_faintly(tmp_path: Path) -> None:
    path = tmp_path / "classes.png"
    groups = [Thresholds(lower, None, 100, 5) for lower in (1.0, 3.0, 5.0)]
    plot_calibration(SCORES, groups, None, path)
    # Over white, which is where no image is: 0.3 of tab:red.
    assert len(_lines(path, (243, 190, 190))) >= 2
    assert _lines(path, (214, 39, 40)) == []


def test_the_label_states_each_groups_own_share() -> None:
    assert threshold_label([Thresholds(1.25, None, 200, 9)]) == (
        "threshold 1.25: 4.5% of the images below"
    )
    assert threshold_label([Thresholds(1.25, 7.5, 200, 9)]) == (
        "thresholds 1.25 and 7.5: 4.5% of the images outside"
    )
    classes = [Thresholds(1.25, None, 100, 4), Thresholds(3.5, None, 300, 20)]
    assert threshold_label(classes) == (
        "thresholds of 2 predicted classes:\n6.0% of the images flagged, 4.0% to 6.7% of a class"
    )
    assert threshold_label([Thresholds(1.0, 2.0, 10, 1)] * 2).startswith(
        "lower and upper thresholds of 2 predicted classes"
    )


def test_a_curve_has_one_shape() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        WeightCurve(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(2), 0.5)


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
