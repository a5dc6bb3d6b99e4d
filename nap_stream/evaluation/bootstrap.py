"""Percentile bootstrap of the metrics (Efron and Tibshirani 1993, chapter 13).

In-distribution and OOD images are resampled apart, each to its own number. A resample is how
often each image is drawn, so that one draw serves every method: differences between methods are
then between paired values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.evaluation.metrics import KEPT, Metrics, Scores

Counts = NDArray[np.int32]

_BLOCK_VALUES = 200_000


@dataclass(frozen=True, slots=True)
class Intervals:
    """The ends of each metric's bootstrap interval."""

    low: Metrics
    high: Metrics


def draw_counts(images: int, resamples: int, generator: np.random.Generator) -> Counts:
    """How often each image is drawn, with replacement, as many as there are.

    Returns:
        Shape (images, resamples); every column sums to ``images``.
    """
    counts = np.empty((images, resamples), dtype=np.int32)
    for column in range(resamples):
        drawn = generator.integers(images, size=images)
        counts[:, column] = np.bincount(drawn, minlength=images)
    return counts


def resampled_metrics(
    inside: Scores, outside: Scores, inside_counts: Counts, outside_counts: Counts
) -> NDArray[np.float64]:
    """The metrics of every resample, from scores that are sorted once.

    With 3,000 and 1,000 images, 200 resamples take about 10 ms on one core; scikit-learn's
    functions, which sort each time, take about 1.2 s.

    Args:
        inside: Scores of the in-distribution images, shape (n,), finite.
        outside: Scores of the OOD images, shape (k,), finite.
        inside_counts: Shape (n, resamples), from `draw_counts`.
        outside_counts: Shape (k, resamples), from `draw_counts`.

    Returns:
        Shape (resamples, 4), the columns in the order of `Metric`: what
        `nap_stream.evaluation.metrics.measure` gives for the images drawn.
    """
    at_inside = _Thresholds.at(inside, inside, outside)
    at_outside = _Thresholds.at(outside, inside, outside)
    falling_inside, falling_outside = np.argsort(-inside), np.argsort(-outside)
    width = max(1, _BLOCK_VALUES // (len(inside) + len(outside)))
    blocks = []
    for start in range(0, inside_counts.shape[1], width):
        columns = slice(start, start + width)
        true = _drawn_among_first(inside_counts[falling_inside, columns])
        false = _drawn_among_first(outside_counts[falling_outside, columns])
        blocks.append(_metrics_of_block(true, false, at_inside, at_outside))
    return np.concatenate(blocks)


@dataclass(frozen=True, slots=True)
class _Thresholds:
    """How many scores reach, and exceed, each distinct score of a set, from the highest down."""

    true: NDArray[np.int64]
    false: NDArray[np.int64]
    true_above: NDArray[np.int64]
    false_above: NDArray[np.int64]

    @classmethod
    def at(cls, scores: Scores, inside: Scores, outside: Scores) -> "_Thresholds":
        falling, true, false = np.unique(-scores), np.sort(-inside), np.sort(-outside)
        return cls(
            true=np.searchsorted(true, falling, side="right"),
            false=np.searchsorted(false, falling, side="right"),
            true_above=np.searchsorted(true, falling, side="left"),
            false_above=np.searchsorted(false, falling, side="left"),
        )


def _drawn_among_first(counts: Counts) -> Counts:
    """How many of the first 0, 1, ..., n images were drawn: shape (n + 1, resamples)."""
    drawn = np.zeros((len(counts) + 1, counts.shape[1]), dtype=np.int32)
    np.cumsum(counts, axis=0, out=drawn[1:])
    return drawn


def _metrics_of_block(
    true: Counts, false: Counts, at_inside: _Thresholds, at_outside: _Thresholds
) -> NDArray[np.float64]:
    """The metrics, shape (resamples, 4), from `_drawn_among_first` of both sets.

    The recall of in-distribution images grows at their own scores alone, and that of OOD images
    at theirs: nothing needs to be summed over the scores of both.
    """
    inside, outside = len(true) - 1, len(false) - 1
    kept_true, kept_false = true[at_inside.true], false[at_inside.false]
    enough = np.argmax(np.arange(inside + 1) / inside >= KEPT)
    threshold = np.argmax(kept_true >= enough, axis=0)
    fpr95 = np.take_along_axis(kept_false, threshold[np.newaxis], axis=0)[0] / outside
    gained_true = np.diff(kept_true, axis=0, prepend=0)
    # A threshold above every image drawn gains nothing, whatever its precision.
    precision_in = kept_true / np.maximum(kept_true + kept_false, 1)

    gained_false = np.diff(false[at_outside.false], axis=0, prepend=0)
    above = true[at_outside.true_above]
    twice_in_order = _column_sums(gained_false, true[at_outside.true] + above)
    rejected_false = outside - false[at_outside.false_above]
    precision_out = rejected_false / np.maximum(inside - above + rejected_false, 1)
    return np.column_stack(
        [
            twice_in_order / (2 * inside * outside),
            fpr95,
            _column_sums(gained_true, precision_in) / inside,
            _column_sums(gained_false, precision_out) / outside,
        ]
    )


def _column_sums(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Of the products, in float64: those of counts pass 2^31."""
    sums: NDArray[np.float64] = np.einsum("ij,ij->j", left, right, dtype=np.float64)
    return sums


def percentile_intervals(samples: NDArray[np.float64], confidence: float) -> Intervals:
    """The central interval of each metric.

    Args:
        samples: Shape (resamples, 4), the columns in the order of `Metric`.
        confidence: Between 0 and 1, exclusively.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return Intervals(Metrics.from_values(low), Metrics.from_values(high))
