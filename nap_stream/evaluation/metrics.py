"""How well a score separates in-distribution from out-of-distribution images.

In-distribution is the positive class, and a higher score means more in-distribution. Values are
fractions between 0 and 1.
"""

from dataclasses import astuple, dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nap_stream.evaluation.extra import require_evaluate_extra

Scores = NDArray[np.float64]

KEPT = 0.95
"""The fraction of the in-distribution images that FPR95 keeps."""


class Metric(StrEnum):
    """The metrics, in the order of the fields of `Metrics`."""

    AUROC = "auroc"
    FPR95 = "fpr95"
    AUPR_IN = "aupr_in"
    AUPR_OUT = "aupr_out"

    @property
    def lower_is_better(self) -> bool:
        """True for an error rate."""
        return self is Metric.FPR95

    @property
    def heading(self) -> str:
        """As papers write it, with the direction of better."""
        return _HEADINGS[self]


_HEADINGS = {
    Metric.AUROC: "AUROC ↑",
    Metric.FPR95: "FPR95 ↓",
    Metric.AUPR_IN: "AUPR-In ↑",
    Metric.AUPR_OUT: "AUPR-Out ↑",
}


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one score on one pair of sets.

    Attributes:
        auroc: Area under the ROC curve: the probability that an in-distribution image has the
            higher score, ties counted half.
        fpr95: False-positive rate, the fraction of OOD images kept, at the largest threshold
            that keeps at least 95 % of the in-distribution images.
        aupr_in: Average precision with in-distribution as the positive class.
        aupr_out: Average precision with OOD as the positive class, on the negated score.
    """

    auroc: float
    fpr95: float
    aupr_in: float
    aupr_out: float

    @classmethod
    def from_values(cls, values: Scores) -> "Metrics":
        """From an array of shape (4,) in the order of `Metric`."""
        return cls(*map(float, values))

    def values(self) -> Scores:
        """As an array of shape (4,) in the order of `Metric`."""
        return np.array(astuple(self), dtype=np.float64)

    def value(self, metric: Metric) -> float:
        """One of them by name."""
        return float(getattr(self, metric.value))


def measure(inside: Scores, outside: Scores) -> Metrics:
    """Compute the metrics with scikit-learn.

    AUPR is the average precision, which unlike the trapezoid under the precision-recall curve
    does not interpolate between its points (Davis and Goadrich, ICML 2006).

    Args:
        inside: Scores of the in-distribution images, shape (n,).
        outside: Scores of the OOD images, shape (k,).

    Raises:
        ValueError: An array is empty, not one-dimensional, or holds NaN or infinity.
        ConfigError: scikit-learn is not installed.
    """
    require_evaluate_extra()
    # Takes a second to import, and comes with an extra.
    from sklearn.metrics import auc, average_precision_score, roc_curve  # noqa: PLC0415

    require_scores(inside, "in-distribution")
    require_scores(outside, "OOD")
    scores = np.concatenate([inside, outside])
    is_inside = np.repeat(np.array([1, 0]), [len(inside), len(outside)])
    false, true, _ = roc_curve(is_inside, scores, drop_intermediate=False)
    return Metrics(
        auroc=float(auc(false, true)),
        fpr95=float(false[np.argmax(true >= KEPT)]),
        aupr_in=float(average_precision_score(is_inside, scores)),
        aupr_out=float(average_precision_score(1 - is_inside, -scores)),
    )


def require_scores(scores: Scores, name: str) -> None:
    """Refuse what cannot be ranked.

    Raises:
        ValueError: The array is empty, not one-dimensional, or holds NaN or infinity.
    """
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} scores have shape {scores.shape}, expected (n,) with n >= 1")
    unusable = int(np.count_nonzero(~np.isfinite(scores)))
    if unusable:
        raise ValueError(f"{unusable} of {len(scores)} {name} scores are not finite")
