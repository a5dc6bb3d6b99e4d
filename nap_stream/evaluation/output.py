"""An evaluation as CSV and JSON, and in a folder with all its forms."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nap_stream.evaluation.bootstrap import Intervals
from nap_stream.evaluation.files import publish
from nap_stream.evaluation.markdown import to_markdown
from nap_stream.evaluation.metrics import Metric, Metrics
from nap_stream.evaluation.pictures import table_png
from nap_stream.evaluation.table import EvaluationTable, Summary

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
