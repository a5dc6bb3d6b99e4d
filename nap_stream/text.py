"""Text from outside made safe to show, and numbers and times as a person reads them."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

MAX_FIELD = 1_000
"""Characters of one field that are shown."""
MAX_NAME = 200
"""Characters of the name of a key or a class in an event. Keys have no more anyway."""
_LARGEST_IN_FULL = 1e15
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
EARLIEST_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
LATEST_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
_NUMBERS = re.compile(r"\b[0-9a-f]{2}\b|[0-9]+")
"""Sizes, positions and bytes in hexadecimal."""
_SECONDS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def printable(text: str) -> str:
    r"""Put text on one line: escapes such as ``\x1b`` stand for what is not printable."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_HARMLESS = "\t\r\n"


def for_any_terminal(text: str) -> str:
    r"""Escape what a terminal may obey, as in ``\x9b``, and let lines and tabs be as they are."""
    if text.isprintable():
        return text
    return "".join(c if c in _HARMLESS else printable(c) for c in text)


_ADDRESS = re.compile(r"([A-Za-z0-9_+.-]:/{1,2}|//(?=[^\s/?#]*:[^\s/?#]*@))(.*)", re.DOTALL)
"""From a scheme's last character on, or from two slashes, a user and a password."""
_FRAGMENT = re.compile("#[^#]*=.*", re.DOTALL)
"""One that has values, as a query does."""


def without_secrets(text: str, mask: str = "…") -> str:
    """Leave out of addresses what may be a secret: user, password, and all from ``?`` on.

    Also a fragment with values in it. It takes those with one slash too, as pathlib writes them.
    ``mask`` stands for what is left out. A secret may hold any character: from the first address
    of a text on, too much is left out rather than too little.
    """
    return _ADDRESS.sub(lambda address: address[1] + _masked(address[2], mask), text)


def _masked(rest: str, mask: str) -> str:
    place, mark, query = rest.partition("?")
    if "@" in query:  # the mark may be a password's
        return mask
    _, user, host = place.rpartition("@")
    host = _FRAGMENT.sub(f"#{mask}", host)
    return f"{mask + '@' if user else ''}{host}{'?' + mask if mark else ''}"


def json_text(value: Any, indent: int | None = None) -> str:
    r"""Write JSON in which escapes such as ``\u009b`` stand for what is not printable.

    Raises:
        ValueError: It has a number that JSON has no form for.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=str)
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Put text on one line: spaces stand for what is not printable."""
    return "".join(c if c.isprintable() else " " for c in text)


def encodable(name: str) -> str:
    """Give a file's name as text that every encoding of Unicode can hold: it may be any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def plain(value: Any) -> str:
    """Give any value as `printable` text of at most `MAX_FIELD` characters before it is escaped."""
    text = value if isinstance(value, str) else repr(value)
    return printable(text[:MAX_FIELD] + ("…" if len(text) > MAX_FIELD else ""))


def bounded(name: str) -> str:
    """Cut a name that is longer than `MAX_NAME`."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def listed(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """Name the first ``most``, and say how many more there are, as in a, b and 3 more."""
    more = f"{between.rstrip(', ')} and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def percent(value: Any) -> str:
    """Write a fraction in [0, 1] as a percentage; anything else as `plain` does."""
    is_fraction = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{100 * value:.3g} %" if is_fraction and 0 <= value <= 1 else plain(value)


def number(value: Any) -> str:
    """Write a number with thousands separators; anything else as `plain` does."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return plain(value)
    if value == 0 or 1 <= abs(value) < _LARGEST_IN_FULL:
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else plain(value)


def rfc3339(time_ms: int) -> str:
    """Write milliseconds since the epoch as RFC 3339 in UTC, as in 2026-01-31T12:00:00.000Z.

    A time that has no such form is the nearest that has: event times come from outside.
    """
    found = _EPOCH + min(max(time_ms, EARLIEST_MS), LATEST_MS) * _MILLISECOND
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: Any) -> str:
    """Write a time in RFC 3339 as in 2026-01-31 12:00:00 UTC; anything else as `plain` does."""
    try:
        found = datetime.fromisoformat(text)
        is_known = found.tzinfo is not None
        return f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if is_known else plain(text)
    except (ValueError, TypeError, OverflowError):
        return plain(text)


def duration(time_ms: int) -> str:
    """Write milliseconds by their two largest units, as in 1 h 5 min."""
    left = max(0, time_ms) // 1_000
    parts = []
    for unit, seconds in _SECONDS:
        count, left = divmod(left, seconds)
        parts.append((count, unit))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or "less than 1 s"


def described(error: BaseException) -> str:
    """Name an error in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def without_numbers(text: str) -> str:
    """Give what errors of one kind have in common: "#" stands for numbers and bytes."""
    return _NUMBERS.sub("#", text)
