"""What a calibrated detector sees of the faults that cameras have.

Held-out images are made faulty, one way after the other (`nap_stream.calibration.faults`), and
scored. No fault takes part in choosing or fitting anything.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import ceil

import numpy as np

from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.checks import is_drawable
from nap_stream.calibration.document import FaultSeen
from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.read import Advance, Reader
from nap_stream.core.alert_state import DEFAULT_FALSE_ALARMS, records_per_second
from nap_stream.core.base_scores import BaseScores, evenly_spaced
from nap_stream.core.detection import records_to_alarm
from nap_stream.drift.detectors import detection_plan
from nap_stream.errors import ConfigError
from nap_stream.image_files import ImageFile
from nap_stream.model.load import LoadedModel
from nap_stream.settings.drift import DriftSettings

FAULT_IMAGES = 100
"""Images that are made faulty, at most: a share of them is told to about 5 points."""
_BLOCK = 20
"""Images that are made faulty together: what is random does not depend on the batch size."""
_SEED = 0
_RUNS = 50
"""Simulated drifts a fault: the typical delay is told to about a tenth."""


def fault_passes(images: int, loaded: LoadedModel) -> int:
    """Forward passes, in images, of `faults_seen` with so many images to choose from.

    0 where the model's input is too small for the faults to be drawn.
    """
    return len(FAULTS) * min(images, FAULT_IMAGES) if is_drawable(loaded) else 0


def faults_seen(
    calibration: Calibration,
    files: Iterable[ImageFile],
    images: int,
    drift: DriftSettings,
    *,
    reader: Reader,
    base_scores: BaseScores,
    batch_size: int,
    advance: Advance,
) -> tuple[FaultSeen, ...]:
    """Flag faulty images, and say when the configured alarm would fire.

    ``files`` are the ``images`` calibration images, of which some are chosen, evenly spaced.
    Empty where the model's input is too small for the faults to be drawn, or none of the images can
    be decoded. An image that the model makes nothing finite of is not flagged: the stream's
    would have no scores.
    """
    if not fault_passes(images, reader.loaded):
        return ()
    wanted = set(evenly_spaced(images, FAULT_IMAGES).tolist())
    chosen = [file for number, file in enumerate(files) if number in wanted]
    blocks = [chosen[start : start + _BLOCK] for start in range(0, len(chosen), _BLOCK)]
    shares = {}
    for fault in FAULTS:
        parts = [
            part
            for part in reader.score_faulty(blocks, fault, base_scores, advance, batch_size)
            if len(part)
        ]
        if not parts:
            return ()  # none of them can be decoded, which no fault changes
        flags = [calibration.judge(part.values, part.class_id).is_ood for part in parts]
        shares[fault] = np.concatenate(flags)
    rates = {fault: float(flagged.mean()) for fault, flagged in shares.items()}
    alarms = {rate: _alarm(calibration, drift, rate) for rate in set(rates.values())}
    return tuple(
        FaultSeen(
            fault=fault,
            images=len(flagged),
            flagged=rates[fault],
            records=alarms[rates[fault]],
        )
        for fault, flagged in shares.items()
    )


def _alarm(calibration: Calibration, drift: DriftSettings, flagged: float) -> float | None:
    """Records until the alarm fires; None where it does not, or where no detector can be made.

    The flags alone are looked at: of how faults shift p-values nothing else is known here.
    """
    try:
        plan = replace(detection_plan(drift, calibration.facts), tail_rates=())
    except ConfigError:
        return None
    per_second = records_per_second(drift.false_alarms or DEFAULT_FALSE_ALARMS)
    return records_to_alarm(
        plan,
        calibration.alpha,
        flagged,
        pane_records=max(1, ceil(per_second * drift.pane_ms / 1_000)),
        generator=np.random.default_rng(_SEED),
        runs=_RUNS,
    )
