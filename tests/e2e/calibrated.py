"""Nets of end-to-end tests with their calibrations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import SystemClock
from nap_stream.core.conformal import Rule
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings
from tests.e2e.monitor import model_section
from tests.support.images import write_images


@dataclass(frozen=True)
class Faulty:
    """The tiny net with faults to switch on: its folder of faults, section and calibration."""

    faults: Path
    model: dict[str, Any]
    calibration: Path


def faulty_net(folder: Path) -> Faulty:
    """The net in ``folder``, which is empty; it has no faults yet."""
    faults = folder / "faults"
    faults.mkdir()
    section = model_section("tests.support.faulty_net:build_faulty", faults=str(faults))
    return Faulty(faults, section, calibrated(folder, section))


def calibrated(folder: Path, model: dict[str, Any]) -> Path:
    """The calibration of a net on 400 held-out smooth images."""
    request = CalibrationRequest(
        model=ModelSettings.model_validate(model),
        scoring=ScoringSettings(method="nap-energy"),
        images=write_images(folder / "held-out", 400, first_seed=100_000),
        fit_images=None,
        rule=Rule(0.05),
        weight=0.4,
        batch_size=32,
        limits=LimitSettings(),
    )
    found = calibrate(request, device=torch.device("cpu"), clock=SystemClock())
    write_calibration(found, folder / "artifact", force=False)
    return folder / "artifact"
