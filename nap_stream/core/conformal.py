"""Conformal p-values against a calibration set, and what a finite one leaves uncertain.

Split-conformal theory: Bates et al., "Testing for outliers with conformal p-values", Annals of
Statistics 51 (2023), arXiv 2104.08279; the law of the flag rate given the calibration set:
Angelopoulos and Bates, "Conformal prediction: a gentle introduction", section 3.2.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv


def p_values(
    sorted_scores: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Conformal p-values, small for out-of-distribution images.

    ``p = (1 + #{calibration scores <= score}) / (m + 1)``: a calibration score that ties with
    the score counts as at least as out-of-distribution, which can only lower the flag rate.

    Args:
        sorted_scores: float64 (m,), ascending: scores of in-distribution images that the
            model was not trained on. Higher is more in-distribution.
        scores: Any float dtype and shape. Compared in float64.

    Returns:
        float64 of the shape of ``scores``, in [1 / (m + 1), 1]; NaN where the score is NaN.

    Raises:
        ValueError: ``sorted_scores`` is empty, not one-dimensional, not ascending or holds NaN.
    """
    _check_calibration(sorted_scores)
    wide = np.asarray(scores, dtype=np.float64)
    at_most = np.searchsorted(sorted_scores, wide, side="right")
    p = (1 + at_most) / (len(sorted_scores) + 1)
    return np.where(np.isnan(wide), np.nan, p)


def two_sided_p_values(
    sorted_scores: NDArray[np.float64], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Conformal p-values that are small for a score at either end of the calibration scores.

    Twice the smaller of the p-values towards either side, at most 1. The rank of an exchangeable
    score among the m + 1 is uniform, so that ``P(p <= alpha) = 2 floor(alpha (m + 1) / 2) /
    (m + 1)`` where scores are continuous: see `two_sided_flag_rank`.

    Args:
        sorted_scores: See `p_values`.
        scores: See `p_values`.

    Returns:
        float64 of the shape of ``scores``, in [2 / (m + 1), 1]; NaN where the score is NaN.

    Raises:
        ValueError: See `p_values`.
    """
    _check_calibration(sorted_scores)
    wide = np.asarray(scores, dtype=np.float64)
    m = len(sorted_scores)
    at_most = np.searchsorted(sorted_scores, wide, side="right")
    at_least = m - np.searchsorted(sorted_scores, wide, side="left")
    p = np.minimum(1.0, 2 * ((1 + np.minimum(at_most, at_least)) / (m + 1)))
    return np.where(np.isnan(wide), np.nan, p)


def two_sided_flag_rank(alpha: float, m: int) -> int:
    """``k = 2 floor(alpha (m + 1) / 2)``: how many of the m + 1 ranks are flagged, half an end.

    The true flag rate of `two_sided_p_values` at a threshold of alpha is Beta(k, m + 1 - k), as
    it is one-sided with `flag_rank`: the gaps between m uniform order statistics are
    exchangeable, so that any k of the m + 1 have that law together.

    Raises:
        ValueError: ``alpha`` or ``m`` is out of range.
    """
    return 2 * flag_rank(alpha / 2, m)


def flag_rank(alpha: float, m: int) -> int:
    """``k = floor(alpha (m + 1))``: an image is flagged if at most ``k - 1`` scores are below.

    Computed as the largest ``k`` whose p-value ``k / (m + 1)`` is ``<= alpha`` in float64, so
    that rounding cannot contradict `p_values`: ``flag_rank(0.05, 19)`` is 1.

    Args:
        alpha: The p-value at and below which an image is flagged, in (0, 1).
        m: Size of the calibration set, at least 1.

    Raises:
        ValueError: ``alpha`` or ``m`` is out of range.
    """
    if not (0 < alpha < 1 and m >= 1):
        raise ValueError(f"expected 0 < alpha < 1 and m >= 1, got {alpha = }, {m = }")
    k = math.floor(alpha * (m + 1)) + 1
    while k / (m + 1) > alpha:
        k -= 1
    return k


def required_size(alpha: float) -> int:
    """Give the smallest calibration set that can flag anything: the least m with a rank of 1.

    For two-sided p-values that is ``required_size(alpha / 2)``.

    Raises:
        ValueError: ``alpha`` is not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"expected 0 < alpha < 1, got {alpha = }")
    m = max(1, math.ceil(1 / alpha) - 2)
    while flag_rank(alpha, m) < 1:
        m += 1
    return m


def threshold(sorted_scores: NDArray[np.float64], alpha: float) -> float:
    """Give the score below which an image is flagged: ``p <= alpha`` exactly if ``score < t``.

    It is the k-th smallest calibration score, with k from `flag_rank`.

    Returns:
        The threshold; minus infinity where the calibration set is too small to flag anything.

    Raises:
        ValueError: See `p_values` and `flag_rank`.
    """
    _check_calibration(sorted_scores)
    k = flag_rank(alpha, len(sorted_scores))
    return float(sorted_scores[k - 1]) if k else -math.inf


def flag_rate_interval(k: int, m: int, confidence: float) -> tuple[float, float]:
    """Give the equal-tailed interval of the true flag rate of in-distribution images.

    Over the draw of the calibration set, the rate at which a threshold flags images with
    continuous iid scores is a Beta(k, m + 1 - k) variable, not alpha.

    Args:
        k: From `flag_rank` or `two_sided_flag_rank`, at least 1.
        m: Size of the calibration set.
        confidence: Probability that the interval holds the rate, in (0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
    tail = (1 - confidence) / 2
    return _flag_rate_quantile(k, m, tail), _flag_rate_quantile(k, m, 1 - tail)


def upper_flag_rate(k: int, m: int, confidence: float) -> float:
    """Give ``p_U``, which the true flag rate exceeds for a share 1 - confidence of calibrations.

    Args:
        k: From `flag_rank` or `two_sided_flag_rank`, at least 1.
        m: Size of the calibration set.
        confidence: In (0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    return _flag_rate_quantile(k, m, confidence)


def _flag_rate_quantile(k: int, m: int, probability: float) -> float:
    if not 1 <= k <= m:
        raise ValueError(f"expected 1 <= k <= m, got {k = }, {m = }: too few calibration scores")
    if not 0 < probability < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {probability}")
    return float(betaincinv(k, m + 1 - k, probability))


def _check_calibration(sorted_scores: NDArray[np.float64]) -> None:
    if sorted_scores.ndim != 1 or not len(sorted_scores):
        raise ValueError(f"expected scores of shape (m,), m >= 1, got {sorted_scores.shape}")
    # NaN compares false, so this finds NaN too, except alone.
    ascending = np.all(sorted_scores[:-1] <= sorted_scores[1:])
    if not ascending or np.isnan(sorted_scores[0]):
        raise ValueError("expected calibration scores in ascending order, without NaN")
