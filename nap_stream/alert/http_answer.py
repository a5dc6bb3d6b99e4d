"""What an HTTP endpoint answers, read with care: it comes from outside."""

import html
import re
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from nap_stream.deadline import Deadline

MAX_ANSWER_BYTES = 4 * 2**10
SHOWN_ANSWER = 200
"""Characters that an error shows."""
TELLING_PIECE = 12
"""So many characters in a row of a secret, or all of a shorter one, are taken for the secret."""
NOT_SHOWN = "[not shown: it holds a secret]"
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))")
"""Of JSON and of Python's repr."""
_INVISIBLE = re.compile(r"[^!-~]+")


def beginning(response: BaseHTTPResponse, deadline: Deadline) -> bytes:
    """Read the first 4 KiB of a body; nothing where they do not come by the deadline."""
    answer = b""
    try:
        while len(answer) < MAX_ANSWER_BYTES:
            part = response.read1(MAX_ANSWER_BYTES - len(answer), decode_content=False)
            if not part:
                break
            answer += part
            # A part alone could end within a secret, and so show what is hidden when it is whole.
            if deadline.expired():
                return b""
    except HTTPError:
        return b""
    return answer


def shown(answer: bytes, *secrets: str | None) -> str:
    """The first 200 printable characters on one line; none of them where a secret is told.

    Args:
        answer: Perhaps cut, and perhaps with a secret: whole or a piece of it, as it is, or
            escaped as in JSON, a repr, an address or HTML.
        secrets: Of visible ASCII characters. None and empty ones count for nothing.
    """
    text = answer.decode(errors="replace")
    if any(_tells(text, secret) for secret in secrets if secret):
        return NOT_SHOWN
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SHOWN_ANSWER]


def _tells(text: str, secret: str) -> bool:
    size = min(len(secret), TELLING_PIECE)
    pieces = _pieces(secret, size)
    return any(not pieces.isdisjoint(_pieces(reading, size)) for reading in _readings(text))


def _pieces(text: str, size: int) -> set[str]:
    return {text[start : start + size] for start in range(len(text) - size + 1)}


def _readings(text: str) -> set[str]:
    """The visible ASCII of a text as it is, and with one or two layers of escapes undone."""
    readings = {_INVISIBLE.sub("", text)}
    for _ in range(2):
        readings |= {
            _INVISIBLE.sub("", undone(reading))
            for reading in readings
            for undone in (_unescaped, unquote, html.unescape)
        }
    return readings


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda m: m[3] or chr(int(m[1] or m[2], 16)), text)


def retry_after_s(value: str | None, now_ms: int) -> float | None:
    """Seconds that a ``Retry-After`` asks to wait, not negative; None where it asks nothing.

    Args:
        value: The header's: seconds or a date.
        now_ms: Milliseconds since the epoch.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment_s = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment_s - now_ms / 1000)
