"""The columns of a table for people: each OOD set, then the average over them and the worst."""

from collections.abc import Sequence
from dataclasses import dataclass

from nap_stream.evaluation.metrics import Metric
from nap_stream.evaluation.table import Cell, EvaluationTable, Summary

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


def one_line(name: str) -> str:
    """A name with spaces in place of what cannot be printed."""
    return "".join(c if c.isprintable() else " " for c in name)
