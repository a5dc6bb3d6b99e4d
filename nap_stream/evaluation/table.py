"""The records of an evaluation: metrics of methods on OOD sets, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nap_stream.evaluation.bootstrap import Intervals
from nap_stream.evaluation.metrics import Metric, Metrics


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
