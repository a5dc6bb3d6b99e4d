"""Calibrations made by hand, for tests of what uses one."""

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.core.conformal import flag_rank, flag_rate_interval, threshold
from nap_stream.core.fusion import fuse
from nap_stream.model.feature_map import FeatureSite
from nap_stream.settings import PreprocessingSettings

WEIGHT = 0.4


def calibration_of(
    scores: NDArray[np.float32], *, alpha: float, site: FeatureSite | None = None
) -> Calibration:
    """A calibration whose energy, NAP and fused scores are all ``scores``."""
    fused = np.sort(fuse(scores, scores, WEIGHT))
    return Calibration(
        alpha=alpha,
        threshold=threshold(fused, alpha),
        flag_rank=flag_rank(alpha, len(scores)),
        flag_rate_interval=flag_rate_interval(alpha, len(scores), 0.95),
        flag_rate_confidence=0.95,
        base="energy",
        weight=WEIGHT,
        weight_choice="given",
        model_factory="tests:none",
        model_fingerprint="0" * 64,
        feature_site=site or FeatureSite("module_input", "pool", None, 0, (4, 2, 2)),
        preprocessing=PreprocessingSettings(),
        image_source="held-out",
        undecodable=0,
        mean_confidence=0.9,
        versions={},
        created_ms=0,
        energy=scores,
        nap=scores,
        sorted_scores=fused,
    )
