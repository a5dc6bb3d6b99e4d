import io
from pathlib import Path

import numpy as np
from PIL import Image

from nap_stream.core.conformal import Group
from nap_stream.core.methods import WeightSearch
from nap_stream.evaluation.output import calibration_png, table_png, threshold_label
from nap_stream.evaluation.tables import EvaluationTable

SCORES = np.random.default_rng(0).normal(3, 1, 500)


def search(chosen: float = 0.3) -> WeightSearch:
    weights = np.linspace(0, 1, 11)
    auroc = 0.9 - (weights - 0.3) ** 2
    curves = tuple(tuple(map(float, auroc + shift)) for shift in (-0.02, 0.01))
    names, chosen_only = ("invert", "shrunk"), (chosen, chosen)
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
