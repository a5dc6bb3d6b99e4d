import pytest

from nap_stream.drift.limits import window_limits
from nap_stream.errors import CalibrationError, ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings


def test_limits_are_those_of_the_reference_table() -> None:
    limits = window_limits(DriftSettings(), CalibrationFacts(0.05, 2_000, "c", "m"))
    firing, resolving = limits(1_000)
    assert firing == 80
    assert 50 < resolving < firing


def test_a_calibration_that_flags_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="18 calibration images are too few") as error:
        window_limits(DriftSettings(), CalibrationFacts(0.05, 18, "c", "m"))
    assert "at least 19" in error.value.action


def test_a_window_that_cannot_fire_is_refused() -> None:
    with pytest.raises(ConfigError, match="can never fire") as error:
        window_limits(DriftSettings(window_records=1), CalibrationFacts(0.05, 199, "c", "m"))
    assert error.value.where == "drift.window_records"
