"""Alerts to an HTTP endpoint with the shape of Alertmanager's ``POST /api/v2/alerts``.

Alertmanager knows an alert by its labels alone: whatever is sent with the same labels is the same
alert, and ends at its newest ``endsAt``. So all that may change while an alert fires is an
annotation, but for one label: ``severity``, because routes choose by it whom to wake. An alert
that escalates is to Alertmanager another one, and the former would go on firing until its
``endsAt``, hours later. The event that tells of the change names the severity before, and makes
two alerts: the former, ended, and then the new one. They go in one request, which is sent again
until it is taken, so neither can be lost alone.

Every gap in the log is an alert of its own: its partition and base offset are labels too.

Times: ``startsAt`` and ``endsAt`` of what is over are never in the future, where an event time
ahead of the clock would keep an alert firing, and ``endsAt`` is never before ``startsAt``, which
Alertmanager refuses. A firing alert ends two repeat intervals from now unless it is repeated:
without any ``endsAt`` Alertmanager would end it after five minutes, and what ends by itself does
not outlive a monitor that has died. Repeats come in event time: a stream that stands still for
longer than that lets its alert end.

What the endpoint answers comes from outside, and may quote the secrets that it was sent. It is
shown only where none of them is in it.
"""

import html
import json
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import unquote

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, SSLError

from nap_stream.alert.event import GAP_TYPE, AlertEvent
from nap_stream.alert.render import gap_words, mapping, render_lines
from nap_stream.alert.unscored import UNSCORED_PREFIX
from nap_stream.clock import Clock, Deadline
from nap_stream.errors import AlertDeliveryError, AlertRefusedError, ConfigError
from nap_stream.files import read_token
from nap_stream.settings.alerts import AlertSettings, WebhookSettings
from nap_stream.text import one_line, plain, rfc3339

PAUSE_INITIAL_S = 0.5
PAUSE_MAX_S = 30.0
"""The longest between two attempts, whatever Retry-After asks for: the outbox tries again."""
ALERTS_PATH = "/api/v2/alerts"
_TRY_AGAIN = (408, 429)
_REFUSED = (400, 413, 422)
"""The alert itself is at fault. Other failures may pass, as when somebody corrects the address."""
_HINTS = {
    400: f"Check that alerts.webhook.url is Alertmanager's {ALERTS_PATH}",
    401: "Check alerts.webhook.bearer_token_file",
    403: "Check alerts.webhook.bearer_token_file, and what it allows",
    **dict.fromkeys(
        (404, 405, 410), f"Check the path of alerts.webhook.url: Alertmanager's is {ALERTS_PATH}"
    ),
}
DRIFT_NAME = "NapStreamDrift"
GAP_NAME = "NapStreamGap"
UNSCORED_NAME = "NapStreamUnscored"
DEFAULT_SEVERITY = "warning"
MAX_DESCRIPTION = 3_000
"""Characters: Slack, behind Alertmanager, cuts a text at about so many."""
_ANNOTATIONS = ("reason", "onset", "segment")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_ANSWER_BYTES = 4 * 2**10
SHOWN_ANSWER = 200
"""Characters that an error shows."""
TELLING_PIECE = 12
"""A text gives a secret away with so many of its characters in a row, or all of a shorter one."""
NOT_SHOWN = "[not shown: it holds a secret]"
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))")
"""Of JSON and of Python's repr."""
_INVISIBLE = re.compile(r"[^!-~]+")


class _TryAgainError(AlertDeliveryError):
    """An attempt failed in a way that the next may not."""

    pause_s: float | None = None


class WebhookAlertSink:
    """Posts each alert by itself, on a connection of its own: alerts are rare.

    Raises:
        ConfigError: The certificates cannot be read.
    """

    name: ClassVar[str] = "webhook"

    def __init__(self, settings: AlertSettings, webhook: WebhookSettings, clock: Clock) -> None:
        self._settings, self._webhook, self._clock = settings, webhook, clock
        self._closed = False
        self._where = f"alerts.webhook {webhook.origin}"
        # Path and query, but for what all addresses have, may be a secret. Endpoints quote them, as
        # in "Cannot POST /services/…", and redirect to what begins with them.
        path = urllib3.util.parse_url(webhook.url).request_uri
        self._path = path.removesuffix(ALERTS_PATH).rstrip("/")
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=webhook.timeout_s, read=webhook.timeout_s),
            # The loop in `publish` makes pauses that are bounded and that `close` ends.
            retries=False,
            ssl_context=_trust(webhook),
        )

    def publish(self, alert: AlertEvent) -> None:
        """Post an alert, again after a failure that may pass, and return when it is taken.

        Raises:
            AlertRefusedError: The endpoint will never take this alert.
            AlertDeliveryError: The endpoint was not reached, or did not take the alert.
        """
        token = self._token()
        pause_s = PAUSE_INITIAL_S
        for attempts_left in reversed(range(self._webhook.attempts)):
            if self._closed:
                raise AlertDeliveryError("the alert sink is closed", self._where)
            try:
                return self._post(alert, token)
            except _TryAgainError as error:
                if attempts_left == 0:
                    raise
                self._pause(pause_s if error.pause_s is None else error.pause_s)
            pause_s *= 2
        return None

    def delivered(self) -> frozenset[str]:
        """Nothing: it cannot be asked. To Alertmanager, an alert that comes again is the same."""
        return frozenset()

    def close(self) -> None:
        """Release connections, and end `publish` with its next attempt. Safe to call twice."""
        self._closed = True
        self._pool.clear()

    def _pause(self, seconds: float) -> None:
        left_s = min(seconds, PAUSE_MAX_S)
        while left_s > 0 and not self._closed:
            step_s = min(PAUSE_INITIAL_S, left_s)
            self._clock.sleep(step_s)
            left_s -= step_s

    def _post(self, alert: AlertEvent, token: str | None) -> None:
        alerts = alertmanager_alerts(alert, self._settings, self._clock.now_ms())
        headers = {"Content-Type": "application/json", "User-Agent": "nap-stream"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            response = self._pool.request(
                "POST",
                self._webhook.url,
                body=json.dumps(alerts, allow_nan=False).encode(),
                headers=headers,
                redirect=False,
                preload_content=False,
            )
        # An endpoint may answer with the header that it was sent, which errors then quote: their
        # texts are shown without the token, and they themselves left out of tracebacks.
        except SSLError as error:
            why = excerpt(str(error).encode(errors="replace"), token, self._path)
            raise AlertDeliveryError(
                f"no TLS connection: {why}", self._where, "Check alerts.webhook.ca_file"
            ) from None
        except HTTPError as error:
            why = excerpt(str(error).encode(errors="replace"), token, self._path)
            raise _TryAgainError(
                f"no answer: {type(error).__name__}: {why}",
                self._where,
                "Check alerts.webhook.url, the network, and that the endpoint runs",
            ) from None
        try:
            self._require_success(response, token)
        finally:
            response.close()

    def _require_success(self, response: urllib3.BaseHTTPResponse, token: str | None) -> None:
        status = response.status
        if 200 <= status < 300:  # noqa: PLR2004  what HTTP calls success
            return
        body = beginning(response, Deadline(self._clock, self._webhook.timeout_s))
        problem = f"answered {status} {excerpt(body, token, self._path)}".rstrip()
        if 300 <= status < 400:  # noqa: PLR2004  what HTTP calls redirection
            place = excerpt(response.headers.get("Location", "").encode(), token, self._path)
            raise AlertDeliveryError(
                f"{problem}: a redirect to {place!r}, which is not followed",
                self._where,
                "Set alerts.webhook.url to the address itself",
            )
        if status in _TRY_AGAIN or status >= 500:  # noqa: PLR2004  what HTTP calls a server's fault
            error = _TryAgainError(problem, self._where, "It is tried again")
            error.pause_s = retry_after_s(response.headers.get("Retry-After"), self._clock.now_ms())
            raise error
        kind = AlertRefusedError if status in _REFUSED else AlertDeliveryError
        raise kind(problem, self._where, _HINTS.get(status, "Ask who runs it"))

    def _token(self) -> str | None:
        path = self._webhook.bearer_token_file
        if path is None:
            return None
        where = f"alerts.webhook.bearer_token_file {path}"
        try:
            return read_token(path, where)
        except ConfigError as error:
            raise AlertDeliveryError(error.problem, error.where, error.action) from None


def _trust(webhook: WebhookSettings) -> ssl.SSLContext | None:
    if not webhook.url.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=webhook.ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificates cannot be read: {error}", f"alerts.webhook.ca_file {webhook.ca_file}"
        ) from error


def alertmanager_alerts(
    alert: AlertEvent, settings: AlertSettings, now_ms: int
) -> list[dict[str, Any]]:
    """Make the request's list: the alert, and before it the one whose severity it leaves.

    What the alert's data lack is left out. ``now_ms`` is in milliseconds since the epoch.
    """
    event = alert.event
    data = mapping(event.get("data"))
    severity = str(data.get("severity") or DEFAULT_SEVERITY)
    previous = str(data.get("previous_severity") or severity)
    start_ms = min(_time_ms(data.get("firing_since"), now_ms), now_ms)
    if alert.state == "resolved":
        end_ms = max(start_ms, min(_time_ms(event.get("time"), now_ms), now_ms))
    else:
        end_ms = now_ms + round(2_000 * settings.repeat_interval_s)
    former = [(previous, now_ms)] if previous != severity else []
    annotations = _annotations(alert, data, settings)
    url = data.get("dashboard_url") or settings.dashboard_url
    return [
        {
            "labels": _labels(alert, data, settings, level),
            "annotations": annotations,
            "startsAt": rfc3339(start_ms),
            "endsAt": rfc3339(end),
        }
        | ({"generatorURL": str(url)} if url else {})
        for level, end in (*former, (severity, end_ms))
    ]


def _labels(
    alert: AlertEvent, data: Mapping[str, Any], settings: AlertSettings, severity: str
) -> dict[str, str]:
    kind = str(alert.event.get("type"))
    is_gap, is_unscored = kind == GAP_TYPE, kind.startswith(UNSCORED_PREFIX)
    own = {
        "alertname": GAP_NAME if is_gap else UNSCORED_NAME if is_unscored else DRIFT_NAME,
        "monitor": data.get("monitor") or alert.key,
        "topic": data.get("topic"),
        "severity": severity,
    }
    if is_gap:
        own |= {name: data.get(name) for name in ("partition", "base_offset")}
    if (key := data.get("key")) is not None:
        # Alertmanager drops empty labels, and would take this for the alert of the whole stream.
        own["key"] = key or '""'
    return settings.labels | {name: str(value) for name, value in own.items() if value is not None}


def _annotations(
    alert: AlertEvent, data: Mapping[str, Any], settings: AlertSettings
) -> dict[str, str]:
    is_gap = alert.event.get("type") == GAP_TYPE
    summary = data.get("summary") or (gap_words(data) if is_gap else f"{alert.key}: {alert.state}")
    lines = [line.removeprefix("  ") for line in render_lines(alert.event)[1:]]
    text = "\n".join(line for line in lines if line != plain(summary))
    shown = {
        "summary": summary,
        "description": text[:MAX_DESCRIPTION],
        "id": alert.id,
        "runbook_url": data.get("runbook_url") or settings.runbook_url,
        "dashboard_url": data.get("dashboard_url") or settings.dashboard_url,
        **{name: data.get(name) for name in _ANNOTATIONS},
    }
    return {name: str(value) for name, value in shown.items() if value is not None}


def _time_ms(text: Any, otherwise_ms: int) -> int:
    """A time in RFC 3339 as milliseconds since the epoch."""
    try:
        return (datetime.fromisoformat(str(text)) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, TypeError):
        return otherwise_ms


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


def excerpt(answer: bytes, *secrets: str | None) -> str:
    """The first 200 printable characters on one line; none of them where a secret is told.

    The answer may be cut, and may hold a secret: all or a piece of it, as it is, or escaped as in
    JSON, a repr, an address or HTML. Secrets are of visible ASCII characters; None and empty ones
    count for nothing.
    """
    text = answer.decode(errors="replace")
    if any(_tells(text, secret) for secret in secrets if secret):
        return NOT_SHOWN
    return " ".join(one_line(text).split())[:SHOWN_ANSWER]


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

    The header's value is seconds or a date; ``now_ms`` is in milliseconds since the epoch.
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
