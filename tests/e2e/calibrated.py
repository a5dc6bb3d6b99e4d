"""Nets of end-to-end tests with their calibrations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_stream.core.conformal import Rule
from nap_stream.settings.schema import ModelSettings
from tests.e2e.monitor import model_section
from tests.support.images import write_images
from tests.support.small_calibration import write_calibrated


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


def calibrated(folder: Path, model: dict[str, Any], *, first_seed: int = 100_000) -> Path:
    """The calibration of a net on 400 held-out smooth images, of seeds from a first one on."""
    return write_calibrated(
        folder / "artifact",
        write_images(folder / "held-out", 400, first_seed=first_seed),
        model=ModelSettings.model_validate(model),
        rule=Rule(0.05),
        batch_size=32,
    )
