"""What people see of an evaluation and of a calibration.

A table on the terminal, in Markdown as in OOD papers, as CSV and as JSON; pictures as PNG, drawn
with matplotlib on an Agg canvas.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from nap_stream.calibration.calibration import CLASS_ID, SCORE, Calibration
from nap_stream.calibration.document import FaultSeen, most_visible_first
from nap_stream.core.conformal import Group
from nap_stream.core.selection import Selection, WeightSearch
from nap_stream.evaluation.metrics import (
    DetectionMetrics,
    Intervals,
    Metric,
    Scores,
    require_evaluate_extra,
)
from nap_stream.evaluation.tables import Column, EvaluationTable, Summary, columns
from nap_stream.files import publish
from nap_stream.text import json_text, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMAT = "nap-stream evaluation"
_VERSION = 1
_COLUMNS = ("method", "scope", "ood_set", "metric", "value", "low", "high")
_SHOWN = (Metric.AUROC, Metric.FPR95)
_PAIRS = ((Metric.AUROC, Metric.FPR95), (Metric.AUPR_IN, Metric.AUPR_OUT))
# An underscore within a word is text to Markdown, so that names such as max_logit stay legible.
_MARKUP = re.compile(r"[\\`*|<>\[\]&~#!$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_DPI = 120
_LONGEST_LABEL = 32
_CHANCE = 0.5
_DARK = 0.28
_FAINT = 0.3


def write_table(table: EvaluationTable, folder: Path) -> tuple[Path, ...]:
    """Write ``table.md``, ``table.csv``, ``table.json`` and ``table.png``.

    Each replaces the file of its name; whatever else the folder holds stays.

    Raises:
        ConfigError: A file cannot be written, or matplotlib is not installed.
    """
    contents = {
        "table.md": to_markdown(table).encode(),
        "table.csv": to_csv(table).encode(),
        "table.json": to_json(table).encode(),
        "table.png": table_png(table),
    }
    for name, content in contents.items():
        publish(folder / name, content)
    return tuple(folder / name for name in contents)


def render(table: EvaluationTable) -> Table:
    """AUROC and FPR95 in per cent, one row a method, one column a set; the best are bold.

    Where the terminal is narrow, FPR95 stands below AUROC.
    """
    heading = " ".join(metric.heading for metric in _SHOWN)
    shown = Table(
        caption=f"{heading}, per cent; in-distribution: {one_line(table.in_distribution)},"
        f" {table.in_distribution_size:,} images",
        show_edge=False,
        pad_edge=False,
    )
    shown.add_column("method", no_wrap=True)
    all_columns = columns(table)
    for column in all_columns:
        name = Text(one_line(column.name), style="italic" if column.is_over_sets else "")
        shown.add_column(name, justify="right", overflow="fold")
    for row, method in enumerate(table.methods):
        cells = (_cell(column, row) for column in all_columns)
        shown.add_row(Text(one_line(method)), *cells)
    return shown


def _cell(column: Column, row: int) -> Text:
    parts = (
        Text(column.percent(row, metric), style="bold" if column.is_best(row, metric) else "")
        for metric in _SHOWN
    )
    return Text(" ").join(parts)


def to_markdown(table: EvaluationTable) -> str:
    """Tables of AUROC and FPR95 and of AUPR, then of their intervals; all in per cent.

    A row is a method; the columns are each OOD set's, then those of the average over the sets
    and of the worst set. The best value of a column is bold; † marks averages and worst values
    that the paired resamples do not tell from the best.
    """
    level = f"{table.confidence * 100:g} %"
    sizes = ", ".join(f"{escape(name)} {size:,}" for name, size in table.ood_sizes.items())
    introduction = (
        f"In-distribution: {escape(table.in_distribution)}, {table.in_distribution_size:,} images;"
        f" OOD: {sizes}. In-distribution is the positive class; values are per cent."
    )
    legend = (
        f"**Bold**: the best of a column. †: the {level} interval of the difference to the best"
        f" holds 0 ({table.resamples:,} paired bootstrap resamples, seed {table.seed})."
    )
    parts = [f"# {escape(table.in_distribution)} against OOD sets", introduction]
    parts += [f"## {_headings(pair)}\n\n{_grid(table, pair, _value)}" for pair in _PAIRS]
    parts.append(legend)
    parts += [
        f"## {level} intervals of {_headings(pair)}\n\n{_grid(table, pair, Column.interval)}"
        for pair in _PAIRS
    ]
    if table.context:
        texts = {
            name: value if isinstance(value, str) else json_text(value)
            for name, value in table.context.items()
        }
        facts = (f"- {escape(name)}: {escape(text)}" for name, text in texts.items())
        parts += ["## Context", "\n".join(facts)]
    return "\n\n".join(parts) + "\n"


def escape(name: str) -> str:
    """A name as Markdown text that stays within its line and its cell of a table."""
    return _MARKUP.sub(lambda markup: f"\\{markup.group()}", one_line(name))


def _headings(pair: Sequence[Metric]) -> str:
    return " and ".join(metric.heading for metric in pair)


def _value(column: Column, row: int, metric: Metric) -> str:
    value = column.percent(row, metric)
    if column.is_best(row, metric):
        return f"**{value}**"
    return f"{value} †" if column.is_level_with_best(row, metric) else value


def _grid(
    table: EvaluationTable, pair: Sequence[Metric], text: Callable[[Column, int, Metric], str]
) -> str:
    places = [(column, metric) for column in columns(table) for metric in pair]
    headings = [f"{escape(column.name)} {metric.heading}" for column, metric in places]
    rows = [
        [escape(method), *(text(column, row, metric) for column, metric in places)]
        for row, method in enumerate(table.methods)
    ]
    alignment = ["---", *["---:"] * len(places)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [["Method", *headings], alignment, *rows])


def to_csv(table: EvaluationTable) -> str:
    """One row for each method, OOD set and metric; values are fractions, in full precision.

    ``scope`` is ``set``, or over all sets ``average`` and ``worst`` with their differences to the
    best method, ``average_to_best`` and ``worst_to_best``; then ``ood_set`` is empty.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for cell in table.cells:
        writer.writerows(_rows(cell.method, "set", cell.ood_set, cell.metrics, cell.intervals))
    for scope, summaries in (("average", table.averages), ("worst", table.worst)):
        for one in summaries:
            writer.writerows(_rows(one.method, scope, "", one.metrics, one.intervals))
            writer.writerows(
                _rows(one.method, f"{scope}_to_best", "", one.to_best, one.to_best_intervals)
            )
    return text.getvalue()


def to_json(table: EvaluationTable) -> str:
    """The whole table as one object; values are fractions, in full precision.

    Raises:
        ValueError: The context holds NaN or infinity.
        TypeError: The context holds what JSON cannot.
    """
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "in_distribution": {"name": table.in_distribution, "images": table.in_distribution_size},
        "ood_sets": [{"name": name, "images": size} for name, size in table.ood_sizes.items()],
        "methods": list(table.methods),
        "resamples": table.resamples,
        "seed": table.seed,
        "confidence": table.confidence,
        "context": dict(table.context),
        "cells": [
            {
                "method": cell.method,
                "ood_set": cell.ood_set,
                **_estimates(cell.metrics, cell.intervals),
            }
            for cell in table.cells
        ],
        "averages": [_summary(summary) for summary in table.averages],
        "worst": [_summary(summary) for summary in table.worst],
    }
    return json_text(document, 2) + "\n"


def _rows(
    method: str, scope: str, ood_set: str, metrics: DetectionMetrics, intervals: Intervals
) -> Iterator[tuple[str | float, ...]]:
    for metric in Metric:
        bounds = intervals.low.value(metric), intervals.high.value(metric)
        yield method, scope, ood_set, metric.value, metrics.value(metric), *bounds


def _estimates(metrics: DetectionMetrics, intervals: Intervals) -> dict[str, Any]:
    return {"metrics": asdict(metrics), **asdict(intervals)}


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "method": summary.method,
        **_estimates(summary.metrics, summary.intervals),
        "to_best": _estimates(summary.to_best, summary.to_best_intervals),
    }


def table_png(table: EvaluationTable) -> bytes:
    """AUROC by method and set as a heat map: blue above chance, red below, with intervals.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    all_columns = columns(table)
    figure = _figure(3.2 + 0.95 * len(all_columns), 1.6 + 0.42 * len(table.methods))
    axes = figure.add_subplot()
    values = np.array([[entry.metrics.auroc for entry in column.entries] for column in all_columns])
    axes.imshow(values.T, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
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


def plot_calibration(calibration: Calibration, out: Path) -> None:
    """Draw a calibration's scores with their thresholds, the search for its weights, and faults.

    The PNG has 1,440 x 540 pixels, and with faults 2,160 x 540; it replaces one that is there. The
    thresholds of classes are faint lines. Where the weight was given, the picture says that none
    was searched.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    groups, scores = calibration.document.groups, calibration.arrays[SCORE]
    flagged = [flagged_images(group, calibration) for group in groups]
    document = calibration.document
    search = document.weight_search or document.selection
    if isinstance(search, Selection) and not search.is_chosen:
        search = None
    publish(out, calibration_png(scores, groups, flagged, search, document.faults))


def calibration_png(
    scores: Scores,
    groups: Sequence[Group],
    flagged: Sequence[int],
    search: WeightSearch | Selection | None,
    faults: Sequence[FaultSeen] = (),
) -> bytes:
    """Draw scores, shape (m,), with the thresholds of groups that flag so many images each."""
    figure = _figure(18 if faults else 12, 4.5)
    left, right, *rest = figure.subplots(1, 3 if faults else 2)
    for axes in rest:
        _draw_faults(axes, faults)
    _draw_scores(left, scores, groups, threshold_label(groups, flagged))
    if search is None:
        right.axis("off")
        right.text(0.5, 0.5, "no weight was searched", ha="center", transform=right.transAxes)
    elif isinstance(search, WeightSearch):
        _draw_search(right, search)
    else:
        _draw_selection(right, search)
    return _png(figure)


def flagged_images(group: Group, calibration: Calibration) -> int:
    """How many of a group's calibration images its thresholds flag."""
    scores = calibration.arrays[SCORE]
    if group.class_id is not None:
        scores = scores[calibration.arrays[CLASS_ID] == group.class_id]
    flagged = scores < group.lower
    if group.upper is not None:
        flagged |= scores > group.upper
    return int(flagged.sum())


def threshold_label(groups: Sequence[Group], flagged: Sequence[int]) -> str:
    """What the lines are, and the share of the images that they flag: each group's own."""
    lower = [group.lower for group in groups]
    upper = [group.upper for group in groups if group.upper is not None]
    share = sum(flagged) / sum(group.size for group in groups)
    if len(groups) == 1:
        if upper:
            ends = f"thresholds {lower[0]:.4g} and {upper[0]:.4g}"
            return f"{ends}: {share:.1%} of the images outside"
        return f"threshold {lower[0]:.4g}: {share:.1%} of the images below"
    shares = [count / group.size for group, count in zip(groups, flagged, strict=True)]
    sides = "lower and upper thresholds" if upper else "thresholds"
    return (
        f"{sides} of {len(groups)} predicted classes:\n{share:.1%} of the images flagged, "
        f"{min(shares):.1%} to {max(shares):.1%} of a class"
    )


def _draw_scores(axes: "Axes", scores: Scores, groups: Sequence[Group], lines: str) -> None:
    axes.hist(scores, bins=60, color="tab:blue")
    # The legend stands above the bars.
    axes.margins(y=0.25)
    label: str | None = lines
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
    # matplotlib warns where it looks for the best place and the machine is slow.
    axes.legend(loc="upper right")


def search_curve(search: WeightSearch) -> tuple[Scores, Scores]:
    """The mean AUROC at each weight and its standard error, each of shape (weights,)."""
    curves = np.array(search.auroc)
    mean = curves.mean(axis=0)
    # Over transforms, which is what the interval of the chosen weight is over too.
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else 0 * mean
    return mean, error


def _draw_search(axes: "Axes", search: WeightSearch) -> None:
    mean, error = search_curve(search)
    axes.fill_between(
        search.weights,
        mean - error,
        mean + error,
        alpha=0.25,
        label="one standard error over transforms",
    )
    axes.plot(search.weights, mean, marker=".", label="mean AUROC")
    axes.axvline(
        search.chosen, color="tab:green", linestyle="--", label=f"chosen weight {search.chosen:g}"
    )
    axes.set_xlabel("weight of the base score, 0 = NAP alone")
    axes.set_ylabel("AUROC against pseudo-OOD images")
    axes.set_title("search for the weight")
    axes.legend(loc="lower right")


def _draw_selection(axes: "Axes", selection: Selection) -> None:
    areas = {
        **{
            f"{name} ({selection.weights.get(name, 0):g})": a for name, a in selection.auroc.items()
        },
        "sum": selection.sum_auroc,
    }
    for row, each in enumerate(areas.values()):
        axes.plot(each, [row] * len(each), ".", color="0.6")
        axes.plot(np.mean(each), row, "|", color="C0", markersize=20, markeredgewidth=3)
    axes.set_yticks(range(len(areas)), list(areas), parse_math=False)
    axes.set_xlabel("AUROC against pseudo-OOD images: each transform, and the mean")
    axes.set_title("scores (weight) and their sum")


def _draw_faults(axes: "Axes", faults: Sequence[FaultSeen]) -> None:
    shown = most_visible_first(faults)
    bars = axes.barh([seen.fault for seen in shown], [100 * seen.flagged for seen in shown])
    texts = [f"{seen.flagged:.0%}, {seen.alarm}" for seen in shown]
    axes.bar_label(bars, texts, padding=4, fontsize=8)
    axes.invert_yaxis()
    # A text stands beside its bar, and the longest bar reaches to 100.
    axes.set_xlim(0, 150)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("per cent of the images flagged; alarm after so many")
    axes.set_title(f"what it sees, of {faults[0].images} images each")


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
