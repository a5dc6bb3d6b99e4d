"""The limits of the drift monitor: its settings and its calibration put into the bound."""

from collections.abc import Callable
from functools import lru_cache

from nap_stream.core.bounds import highest_flag_limit
from nap_stream.errors import ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings


def window_limits(
    settings: DriftSettings, calibration: CalibrationFacts
) -> Callable[[int], tuple[int, int]]:
    """Give the function from the number of records to the firing and the resolve limit.

    Both are counts from `nap_stream.core.bounds.highest_flag_limit`: where the calibration is
    per class, they hold for a window whose records are all predicted as one class, whichever,
    and are not proven for a mix. The function caches them, since a window's number of records
    seldom changes much.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """
    laws = calibration.flag_rate_laws

    @lru_cache(maxsize=4_096)
    def limits(records: int) -> tuple[int, int]:
        firing, _ = highest_flag_limit(records, laws, settings.false_alarm_probability)
        resolving, _ = highest_flag_limit(records, laws, settings.resolve_probability)
        return firing, resolving

    if limits(settings.window_records)[0] > settings.window_records:
        raise ConfigError(
            f"a window of {settings.window_records} records can never fire at a false-alarm "
            f"probability of {settings.false_alarm_probability}",
            "drift.window_records",
            "Make the window larger",
        )
    return limits
