"""Calibrations of the small networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nap_stream.calibration.artifact import Calibration
from nap_stream.core.conformal import flag_rank, flag_rate_interval, threshold
from nap_stream.core.fusion import fuse
from nap_stream.model.feature_site import FeatureSite
from nap_stream.settings import PreprocessingSettings
from tests.support.image_bytes import encoded, picture


def write_images(folder: Path, count: int) -> Path:
    """Write image files of various sizes to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        data = encoded(picture(9 + index % 3, 9, seed=index), "PNG")
        (folder / f"{index:04}.png").write_bytes(data)
    return folder


def calibration_of(
    energy: Sequence[float], nap: Sequence[float], alpha: float = 0.25, **changes: Any
) -> Calibration:
    """Make a calibration of given scores, without a model."""
    fields: dict[str, Any] = {
        "alpha": alpha,
        "weight": 0.5,
        "energy": np.array(energy, np.float32),
        "nap": np.array(nap, np.float32),
        "flag_rate_confidence": 0.95,
        "base": "energy",
        "weight_choice": "given",
        "model_factory": "package.module:name",
        "model_fingerprint": "1" * 64,
        "feature_site": FeatureSite("module_input", "avgpool", None, 0, (512, 7, 7)),
        "preprocessing": PreprocessingSettings(),
        "image_source": "held-out",
        "undecodable": 1,
        "mean_confidence": 0.1 + 0.2,
        "versions": {"torch": "2"},
        "created_ms": 1_700_000_000_000,
    } | changes
    scores = np.sort(fuse(fields["energy"], fields["nap"], fields["weight"]))
    derived: dict[str, Any] = {
        "sorted_scores": scores,
        "threshold": threshold(scores, alpha),
        "flag_rank": flag_rank(alpha, len(scores)),
        "flag_rate_interval": flag_rate_interval(alpha, len(scores), 0.95),
    }
    return Calibration(**(derived | fields))
