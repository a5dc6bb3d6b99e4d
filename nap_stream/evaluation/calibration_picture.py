"""A calibration as a picture."""

from pathlib import Path

import numpy as np

from nap_stream.calibration.calibration import SCORE, Calibration
from nap_stream.core.weight_curve import WeightSearch
from nap_stream.evaluation.pictures import WeightCurve, plot_calibration


def draw_calibration(calibration: Calibration, out: Path) -> None:
    """Draw the calibration scores with their threshold, and the search for the weight.

    Where thresholds stand per class, that of the first class is drawn; of a two-sided rule, the
    lower one.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    search = calibration.document.weight_search
    plot_calibration(
        calibration.arrays[SCORE],
        calibration.document.groups[0].lower,
        None if search is None else _curve(search),
        out,
    )


def _curve(search: WeightSearch) -> WeightCurve:
    curves = np.array(search.auroc)
    mean = curves.mean(axis=0)
    # Over transforms, which is what the interval of the chosen weight is over too.
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else 0 * mean
    return WeightCurve(np.array(search.weights), mean, mean - error, mean + error, search.chosen)
