"""A calibration as a picture."""

from pathlib import Path

import numpy as np

from nap_stream.calibration.calibration import CLASS_ID, SCORE, Calibration
from nap_stream.core.judging import Group
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.evaluation.pictures import Thresholds, WeightCurve, plot_calibration


def draw_calibration(calibration: Calibration, out: Path) -> None:
    """Draw the calibration scores with their thresholds, and the search for the weight.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    search = calibration.document.weight_search
    plot_calibration(
        calibration.arrays[SCORE],
        [_thresholds(group, calibration) for group in calibration.document.groups],
        None if search is None else _curve(search),
        out,
    )


def _thresholds(group: Group, calibration: Calibration) -> Thresholds:
    scores = calibration.arrays[SCORE]
    if group.class_id is not None:
        scores = scores[calibration.arrays[CLASS_ID] == group.class_id]
    flagged = scores < group.lower
    if group.upper is not None:
        flagged |= scores > group.upper
    return Thresholds(group.lower, group.upper, len(scores), int(flagged.sum()))


def _curve(search: WeightSearch) -> WeightCurve:
    curves = np.array(search.auroc)
    mean = curves.mean(axis=0)
    # Over transforms, which is what the interval of the chosen weight is over too.
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else 0 * mean
    return WeightCurve(np.array(search.weights), mean, mean - error, mean + error, search.chosen)
