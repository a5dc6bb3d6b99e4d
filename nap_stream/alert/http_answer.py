"""What an HTTP endpoint answers, read with care: it comes from outside."""

from email.utils import parsedate_to_datetime

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from nap_stream.deadline import Deadline

MAX_ANSWER_BYTES = 4 * 2**10
SHOWN_ANSWER = 200
"""Characters that an error shows."""


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


def shown(answer: bytes, secret: str | None) -> str:
    """The first 200 printable characters on one line, without the secret, quoted by repr or not."""
    text = answer.decode(errors="replace")
    if secret is not None:
        doubled = secret.replace("\\", "\\\\")
        for form in (doubled.replace("'", "\\'"), doubled, secret):
            text = text.replace(form, "[secret]")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SHOWN_ANSWER]


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
