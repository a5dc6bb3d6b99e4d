"""PNG pictures of an evaluation and of a calibration, drawn with matplotlib on an Agg canvas.

A calibration as a picture.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nap_stream.calibration.calibration import CLASS_ID, SCORE, Calibration
from nap_stream.core.conformal import Group
from nap_stream.core.methods import WeightSearch
from nap_stream.evaluation.metrics import Metric, Scores, require_evaluate_extra
from nap_stream.evaluation.tables import Column, EvaluationTable, columns
from nap_stream.files import publish
from nap_stream.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_LONGEST_LABEL = 32
_CHANCE = 0.5
_DARK = 0.28
_FAINT = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class WeightCurve:
    """What the search for the weight of a fusion found; all arrays have shape (weights,).

    Attributes:
        weights: In [0, 1], ascending.
        auroc: Mean separation of in-distribution from pseudo-OOD images at each weight.
        low: Lower edge of its band.
        high: Upper edge of its band.
        chosen: The weight that was taken.
    """

    weights: Scores
    auroc: Scores
    low: Scores
    high: Scores
    chosen: float

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.weights, self.auroc, self.low, self.high)}
        if len(shapes) != 1 or self.weights.ndim != 1 or len(self.weights) == 0:
            raise ValueError(f"Got {shapes = }, expected one of (n,) with n >= 1")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of a group of calibration images: all, or those of one predicted class.

    Attributes:
        lower: An image whose score is below it is flagged.
        upper: One whose score is above it is, too; None where the rule has one side.
        images: How many calibration images the group has.
        flagged: How many of those the thresholds flag.
    """

    lower: float
    upper: float | None
    images: int
    flagged: int


def table_png(table: EvaluationTable) -> bytes:
    """AUROC by method and set as a heat map: blue above chance, red below, with intervals.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    all_columns = columns(table)
    height = 1.6 + 0.42 * len(table.methods)
    figure = _figure(3.2 + 0.95 * len(all_columns), height)
    axes = figure.add_subplot()
    values = [[entry.metrics.auroc for entry in column.entries] for column in all_columns]
    axes.imshow(np.array(values).T, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
    for x, column in enumerate(all_columns):
        for y in range(len(table.methods)):
            _annotate(axes, x, y, column)
    axes.axvline(len(table.ood_sizes) - 0.5, color="black", linewidth=2)
    axes.set_xticks(
        range(len(all_columns)),
        [_label(column.name) for column in all_columns],
        rotation=30,
        ha="right",
        parse_math=False,
    )
    axes.set_yticks(
        range(len(table.methods)), [_label(method) for method in table.methods], parse_math=False
    )
    axes.set_title(
        f"AUROC in per cent, {table.confidence * 100:g} % intervals; in-distribution: "
        f"{_label(table.in_distribution)}",
        fontsize=10,
        parse_math=False,
    )
    return _png(figure)


def plot_calibration(
    scores: Scores, groups: Sequence[Thresholds], curve: WeightCurve | None, out: Path
) -> None:
    """Draw the calibration scores with their thresholds, and the search for the weight.

    Args:
        scores: Of the in-distribution calibration images, shape (m,), higher = more
            in-distribution.
        groups: Their thresholds: one, or one a class, whose lines are faint.
        curve: Of the search; None where the weight was given, which the picture then says.
        out: The PNG, 1,440 x 540 pixels; one that is there is replaced.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    figure = _figure(12, 4.5)
    left, right = figure.subplots(1, 2)
    _draw_scores(left, scores, groups)
    if curve is None:
        right.axis("off")
        right.text(0.5, 0.5, "no weight was searched", ha="center", transform=right.transAxes)
    else:
        _draw_curve(right, curve)
    publish(out, _png(figure))


def threshold_label(groups: Sequence[Thresholds]) -> str:
    """What the lines are, and the share of the images that they flag: each group's own."""
    lower = [group.lower for group in groups]
    upper = [group.upper for group in groups if group.upper is not None]
    share = sum(group.flagged for group in groups) / sum(group.images for group in groups)
    if len(groups) == 1:
        ends = (
            f"thresholds {lower[0]:.4g} and {upper[0]:.4g}"
            if upper
            else (f"threshold {lower[0]:.4g}")
        )
        return f"{ends}: {share:.1%} of the images {'outside' if upper else 'below'}"
    shares = [group.flagged / group.images for group in groups]
    sides = "lower and upper thresholds" if upper else "thresholds"
    return (
        f"{sides} of {len(groups)} predicted classes:\n{share:.1%} of the images flagged, "
        f"{min(shares):.1%} to {max(shares):.1%} of a class"
    )


def _draw_scores(axes: "Axes", scores: Scores, groups: Sequence[Thresholds]) -> None:
    axes.hist(scores, bins=60, color="tab:blue")
    # The legend stands above the bars.
    axes.margins(y=0.25)
    label: str | None = threshold_label(groups)
    for group in groups:
        for place in (group.lower, group.upper):
            if place is not None:
                axes.axvline(
                    place, color="tab:red", alpha=1 if len(groups) == 1 else _FAINT, label=label
                )
                label = None
    axes.set_xlabel("score, higher = more in-distribution")
    axes.set_ylabel("calibration images")
    axes.set_title(f"{len(scores):,} in-distribution images")
    axes.legend()


def _draw_curve(axes: "Axes", curve: WeightCurve) -> None:
    axes.fill_between(
        curve.weights, curve.low, curve.high, alpha=0.25, label="one standard error over transforms"
    )
    axes.plot(curve.weights, curve.auroc, marker=".", label="mean AUROC")
    axes.axvline(
        curve.chosen, color="tab:green", linestyle="--", label=f"chosen weight {curve.chosen:g}"
    )
    axes.set_xlabel("weight of the base score, 0 = NAP alone")
    axes.set_ylabel("AUROC against pseudo-OOD images")
    axes.set_title("search for the weight")
    axes.legend()


def _annotate(axes: "Axes", x: int, y: int, column: Column) -> None:
    is_dark = abs(column.entries[y].metrics.auroc - _CHANCE) > _DARK
    colour = "white" if is_dark else "black"
    weight = "bold" if column.is_best(y, Metric.AUROC) else "normal"
    value, interval = column.percent(y, Metric.AUROC), column.interval(y, Metric.AUROC)
    axes.text(x, y, value, ha="center", va="bottom", color=colour, fontsize=9, fontweight=weight)
    axes.text(x, y, interval, ha="center", va="top", color=colour, fontsize=6)


def _label(name: str) -> str:
    line = one_line(name)
    return line if len(line) <= _LONGEST_LABEL else f"{line[: _LONGEST_LABEL - 1]}…"


def _figure(width: float, height: float) -> "Figure":
    require_evaluate_extra()
    # Takes a second to import, and comes with an extra.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def draw_calibration(calibration: Calibration, out: Path) -> None:
    """Draw the calibration scores with their thresholds, and the search for the weight.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    search = calibration.document.weight_search
    plot_calibration(
        calibration.arrays[SCORE],
        [_thresholds(group, calibration) for group in calibration.document.groups],
        None if search is None else _curve(search),
        out,
    )


def _thresholds(group: Group, calibration: Calibration) -> Thresholds:
    scores = calibration.arrays[SCORE]
    if group.class_id is not None:
        scores = scores[calibration.arrays[CLASS_ID] == group.class_id]
    flagged = scores < group.lower
    if group.upper is not None:
        flagged |= scores > group.upper
    return Thresholds(group.lower, group.upper, len(scores), int(flagged.sum()))


def _curve(search: WeightSearch) -> WeightCurve:
    curves = np.array(search.auroc)
    mean = curves.mean(axis=0)
    # Over transforms, which is what the interval of the chosen weight is over too.
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else 0 * mean
    return WeightCurve(np.array(search.weights), mean, mean - error, mean + error, search.chosen)
