"""An evaluation as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from nap_stream.evaluation.layout import Column, columns, one_line
from nap_stream.evaluation.metrics import Metric
from nap_stream.evaluation.table import EvaluationTable

_SHOWN = (Metric.AUROC, Metric.FPR95)


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
