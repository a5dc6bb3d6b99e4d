"""The limits of the drift monitor: its settings and its calibration put into the bound."""

from collections.abc import Callable
from functools import lru_cache, partial

from nap_stream.core.bounds import flag_limit
from nap_stream.errors import ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings


def window_limits(
    settings: DriftSettings, calibration: CalibrationFacts
) -> Callable[[int], tuple[int, int]]:
    """Give the function from the number of records to the firing and the resolve limit.

    Both are counts from `nap_stream.core.bounds.flag_limit`. The function caches them, since a
    window's number of records seldom changes much.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """
    k, m = calibration.flag_rank, calibration.size

    @lru_cache(maxsize=4_096)
    def limits(records: int) -> tuple[int, int]:
        limit = partial(flag_limit, records, k, m)
        return limit(settings.false_alarm_probability), limit(settings.resolve_probability)

    if limits(settings.window_records)[0] > settings.window_records:
        raise ConfigError(
            f"a window of {settings.window_records} records can never fire at a false-alarm "
            f"probability of {settings.false_alarm_probability}",
            "drift.window_records",
            "Make the window larger",
        )
    return limits
