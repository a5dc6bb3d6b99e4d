"""What the words on the command line mean: lengths of blocks, and kinds of time."""

import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nap_stream.core.decorrelation import BLOCK_GRID_MS
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.errors import ConfigError
from nap_stream.text import duration

_LENGTH = re.compile(r"([0-9]{1,6})\s*(s|m|min|h|d)")
_UNITS_MS = {"s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_WEEKEND = "weekend"


def parse_block(text: str) -> int:
    """A length of blocks in milliseconds, as in 10min, 30s, 2h.

    Raises:
        ConfigError: It is none, or not one that blocks can have.
    """
    found = _LENGTH.fullmatch(text.strip())
    length = int(found[1]) * _UNITS_MS[found[2]] if found else 0
    if length not in BLOCK_GRID_MS:
        lengths = ", ".join(duration(each).replace(" ", "") for each in BLOCK_GRID_MS)
        raise ConfigError(f"no length of blocks: {text!r}", "--block", f"Expected one of {lengths}")
    return length


def parse_times(text: str, timezone: str) -> TimeKinds | None:
    """Kinds of time; None where the stretch decides.

    ``auto``, ``none``, or the hours at which a part of the day begins, with ``weekend`` where
    weekends have parts of their own, as in 6,18 and 6,18,weekend.

    Raises:
        ConfigError: It is none of these, or there is no such time zone.
    """
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"there is no time zone {timezone!r}", "--timezone", "Expected a name as Europe/Berlin"
        ) from error
    if text == "auto":
        return None
    words = [] if text == "none" else [word.strip() for word in text.split(",")]
    hours = [word for word in words if word != _WEEKEND]
    try:
        return TimeKinds(tuple(int(hour) for hour in hours), _WEEKEND in words, timezone)
    except ValueError as error:
        raise ConfigError(
            f"no kinds of time: {text!r}",
            "--times",
            "Expected auto, none, or hours at which a part of the day begins, such as 6,18 or "
            "6,18,weekend",
        ) from error
