"""An evaluation as Markdown, in the layout of the tables of OOD papers.

An evaluation as CSV and JSON, and in a folder with all its forms.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nap_stream.evaluation.metrics import Intervals, Metric, Metrics
from nap_stream.evaluation.pictures import table_png
from nap_stream.evaluation.tables import Column, EvaluationTable, Summary, columns
from nap_stream.files import publish
from nap_stream.text import one_line

_PAIRS = ((Metric.AUROC, Metric.FPR95), (Metric.AUPR_IN, Metric.AUPR_OUT))
# An underscore within a word is text to Markdown, so that names such as max_logit stay legible.
_MARKUP = re.compile(r"[\\`*|<>\[\]&~#!$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


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
    parts += [f"## {_headings(pair)}\n\n{_values(table, pair)}" for pair in _PAIRS]
    parts.append(legend)
    parts += [
        f"## {level} intervals of {_headings(pair)}\n\n{_intervals(table, pair)}" for pair in _PAIRS
    ]
    if table.context:
        facts = (f"- {escape(name)}: {_fact(value)}" for name, value in table.context.items())
        parts += ["## Context", "\n".join(facts)]
    return "\n\n".join(parts) + "\n"


def escape(name: str) -> str:
    """A name as Markdown text that stays within its line and its cell of a table."""
    return _MARKUP.sub(lambda markup: f"\\{markup.group()}", one_line(name))


def _headings(pair: Sequence[Metric]) -> str:
    return " and ".join(metric.heading for metric in pair)


def _values(table: EvaluationTable, pair: Sequence[Metric]) -> str:
    def text(column: Column, row: int, metric: Metric) -> str:
        value = column.percent(row, metric)
        if column.is_best(row, metric):
            return f"**{value}**"
        return f"{value} †" if column.is_level_with_best(row, metric) else value

    return _grid(table, pair, text)


def _intervals(table: EvaluationTable, pair: Sequence[Metric]) -> str:
    return _grid(table, pair, Column.interval)


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


def _fact(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(text)


_FORMAT = "nap-stream evaluation"
_VERSION = 1
_COLUMNS = ("method", "scope", "ood_set", "metric", "value", "low", "high")


def write_table(table: EvaluationTable, folder: Path) -> tuple[Path, ...]:
    """Write ``table.md``, ``table.csv``, ``table.json`` and ``table.png``.

    Each replaces the file of its name; whatever else the folder holds stays.

    Args:
        table: What to write.
        folder: Made, with its parents, where it is missing.

    Returns:
        The files.

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
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(
    method: str, scope: str, ood_set: str, metrics: Metrics, intervals: Intervals
) -> Iterator[tuple[str | float, ...]]:
    for metric in Metric:
        bounds = intervals.low.value(metric), intervals.high.value(metric)
        yield method, scope, ood_set, metric.value, metrics.value(metric), *bounds


def _estimates(metrics: Metrics, intervals: Intervals) -> dict[str, Any]:
    return {"metrics": asdict(metrics), **asdict(intervals)}


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "method": summary.method,
        **_estimates(summary.metrics, summary.intervals),
        "to_best": _estimates(summary.to_best, summary.to_best_intervals),
    }
