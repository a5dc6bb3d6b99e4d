"""What the options that choose rows mean."""

import re
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from nap_stream.cli.options import span_ms
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError

if TYPE_CHECKING:
    from nap_stream.scored_log.counting import GroupBy

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_OFFSETS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}", re.ASCII)


def day_span_ms(
    since: str | None, until: str | None, day: str | None
) -> tuple[int | None, int | None]:
    """What --since, --until and --day mean, in milliseconds since the epoch."""
    if day is None:
        return span_ms(since, until, SystemClock())
    if since is not None or until is not None or not _is_date(day):
        raise ConfigError(
            "expected a date such as 2026-05-31, and neither --since nor --until", f"--day {day}"
        )
    start, _ = span_ms(f"{day}T00:00Z", None, SystemClock())
    assert start is not None
    return start, start + 86_400_000


def _is_date(text: str) -> bool:
    if not _DAY.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _matching(pattern: re.Pattern[str], option: str, text: str, expected: str) -> str:
    if not pattern.fullmatch(text):
        raise ConfigError(f"expected {expected}, got {text!r}", option)
    return text


def fingerprints(option: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """What --model and --calibration mean."""
    return tuple(_matching(_FINGERPRINT, option, each, "hex digits") for each in given or ())


def offsets_of(text: str) -> tuple[int, int]:
    """What --offset means: the first and the last one."""
    found = _OFFSETS.fullmatch(_matching(_OFFSETS, "--offset", text, "N or N-M"))
    assert found is not None
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise ConfigError(f"{first} is not before {last}", "--offset", "Give the smaller one first")
    return first, last


def sha256_of(text: str) -> str:
    """What --sha256 means."""
    return _matching(_SHA256, "--sha256", text, "64 hex digits").lower()


def key_of(text: str) -> bytes:
    """What --key means, as query writes keys."""
    from nap_stream.scored_log.output import text_as_bytes

    try:
        return text_as_bytes(text)
    except ValueError as error:
        raise ConfigError(f"not base64 after base64: ({error})", f"--key {text}") from error


def header_of(text: str) -> tuple[str, bytes | None]:
    """What --header means: a name, and its value or None for any."""
    name, equals, value = text.partition("=")
    return name, key_of(value) if equals else None


def groups_of(text: str) -> "list[GroupBy]":
    """What --by means."""
    from nap_stream.scored_log.counting import GroupBy

    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(GroupBy) or len(set(names)) < len(names) or len(names) > 2:  # noqa: PLR2004
        raise ConfigError(
            f"expected one or two of {', '.join(GroupBy)}, got {text!r}", "--by", "Give day,class"
        )
    if set(names) == {GroupBy.HOUR, GroupBy.DAY}:
        raise ConfigError("an hour is of one day", "--by", "Give hour, or day")
    return [GroupBy(name) for name in names]
