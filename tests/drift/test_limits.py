import pytest

from nap_stream.drift.limits import window_limits
from nap_stream.errors import ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings


def test_limits_are_those_of_the_reference_table() -> None:
    limits = window_limits(DriftSettings(), CalibrationFacts(0.05, 2_000, 100, "c", "m"))
    firing, resolving = limits(1_000)
    assert firing == 80
    assert 50 < resolving < firing


def test_the_rank_decides_not_alpha() -> None:
    two_sided = CalibrationFacts(0.05, 59, 2, "c", "m")
    one_sided = CalibrationFacts(0.05, 59, 3, "c", "m")
    settings = DriftSettings()
    assert window_limits(settings, two_sided)(1_000) < window_limits(settings, one_sided)(1_000)


def test_a_window_that_cannot_fire_is_refused() -> None:
    with pytest.raises(ConfigError, match="can never fire") as error:
        window_limits(DriftSettings(window_records=1), CalibrationFacts(0.05, 199, 10, "c", "m"))
    assert error.value.where == "drift.window_records"
