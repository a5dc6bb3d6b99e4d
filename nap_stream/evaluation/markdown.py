"""An evaluation as Markdown, in the layout of the tables of OOD papers."""

import json
import re
from collections.abc import Callable, Sequence

from nap_stream.evaluation.layout import Column, columns, one_line
from nap_stream.evaluation.metrics import Metric
from nap_stream.evaluation.table import EvaluationTable

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
