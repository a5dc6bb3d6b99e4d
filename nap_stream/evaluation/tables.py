"""The records of an evaluation: metrics of methods on OOD sets, with intervals.

The columns of a table for people: each OOD set, then the average over them and the worst.

An evaluation as a table for the terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from nap_stream.evaluation.metrics import Intervals, Metric, Metrics
from nap_stream.text import one_line


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one OOD set."""

    method: str
    ood_set: str
    metrics: Metrics
    intervals: Intervals


@dataclass(frozen=True, slots=True)
class Summary:
    """One method over all OOD sets.

    Attributes:
        method: Its name.
        metrics: Of each metric the mean over the sets, or the worst.
        intervals: Of the same, taken in each resample. Over resamples the worst set changes, so
            that the interval of a worst value lies somewhat on the bad side of it.
        to_best: Of each metric, this method's value less that of the method which is best in
            the table; 0 for the best.
        to_best_intervals: Of the same, from paired resamples. One that holds 0 says that the
            images do not tell this method from the best.
    """

    method: str
    metrics: Metrics
    intervals: Intervals
    to_best: Metrics
    to_best_intervals: Intervals

    def is_level_with_best(self, metric: Metric) -> bool:
        """True where the interval of the difference to the best method holds 0."""
        bounds = self.to_best_intervals
        return bounds.low.value(metric) <= 0 <= bounds.high.value(metric)


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """What an evaluation found. All metrics are fractions.

    Attributes:
        in_distribution: Name of the in-distribution set.
        in_distribution_size: Its images.
        ood_sizes: Images of each OOD set, in the order of the table.
        methods: Names, in the order of the table.
        cells: Each method on each set: by method, then by set.
        averages: Each method's mean over the sets.
        worst: Each method's worst value of each metric over the sets: the least AUROC and AUPR,
            the greatest FPR95.
        resamples: Bootstrap resamples behind the intervals.
        seed: Of the resamples.
        confidence: Of the intervals.
        context: What else identifies the evaluation, such as fingerprints and versions; of
            types that JSON holds.
    """

    in_distribution: str
    in_distribution_size: int
    ood_sizes: Mapping[str, int]
    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    averages: tuple[Summary, ...]
    worst: tuple[Summary, ...]
    resamples: int
    seed: int
    confidence: float
    context: Mapping[str, Any]

    def cells_of(self, ood_set: str) -> tuple[Cell, ...]:
        """The column of one set, in the order of the methods."""
        return tuple(cell for cell in self.cells if cell.ood_set == ood_set)


AVERAGE = "average"
WORST = "worst set"


@dataclass(frozen=True, slots=True)
class Column:
    """What all methods reach on one set, or over the sets, in the order of the methods."""

    name: str
    entries: Sequence[Cell | Summary]
    is_over_sets: bool

    def percent(self, row: int, metric: Metric) -> str:
        """A value in per cent."""
        return as_percent(self.entries[row].metrics.value(metric))

    def interval(self, row: int, metric: Metric) -> str:
        """The ends of a value's interval in per cent."""
        intervals = self.entries[row].intervals
        low, high = intervals.low.value(metric), intervals.high.value(metric)
        return f"{as_percent(low)}-{as_percent(high)}"

    def is_best(self, row: int, metric: Metric) -> bool:
        """True for the best value as it is shown, so that equal texts are equally best."""
        values = [entry.metrics.value(metric) for entry in self.entries]
        best = min(values) if metric.lower_is_better else max(values)
        return self.percent(row, metric) == as_percent(best)

    def is_level_with_best(self, row: int, metric: Metric) -> bool:
        """True where a summary cannot be told from the best one."""
        entry = self.entries[row]
        return isinstance(entry, Summary) and entry.is_level_with_best(metric)


def columns(table: EvaluationTable) -> tuple[Column, ...]:
    """All columns, in the order of the table."""
    return (
        *(Column(name, table.cells_of(name), is_over_sets=False) for name in table.ood_sizes),
        Column(AVERAGE, table.averages, is_over_sets=True),
        Column(WORST, table.worst, is_over_sets=True),
    )


def as_percent(fraction: float) -> str:
    """With one decimal place: the intervals of a few thousand images are wider than that."""
    return f"{fraction * 100:.1f}"


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
