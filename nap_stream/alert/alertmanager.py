"""From an alert to the shape of Alertmanager's ``POST /api/v2/alerts``.

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
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from nap_stream.alert.base import AlertEvent
from nap_stream.alert.envelope import rfc3339
from nap_stream.alert.gap import GAP_TYPE
from nap_stream.alert.plain import plain
from nap_stream.alert.render import render_lines
from nap_stream.settings import AlertSettings

DRIFT_NAME = "NapStreamDrift"
GAP_NAME = "NapStreamGap"
DEFAULT_SEVERITY = "warning"
MAX_DESCRIPTION = 3_000
"""Characters: Slack, behind Alertmanager, cuts a text at about so many."""
_ANNOTATIONS = ("reason", "onset", "segment")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def alertmanager_alerts(
    alert: AlertEvent, settings: AlertSettings, now_ms: int
) -> list[dict[str, Any]]:
    """Make the request's list: the alert, and before it the one whose severity it leaves.

    Args:
        alert: Of drift or of a gap; what its data lack is left out.
        settings: Give labels, links and the repeat interval.
        now_ms: Milliseconds since the epoch.
    """
    event = alert.event
    data = _mapping(event.get("data"))
    severity = str(data.get("severity") or DEFAULT_SEVERITY)
    previous = str(data.get("previous_severity") or severity)
    start_ms = min(_time_ms(data.get("firing_since"), now_ms), now_ms)
    if alert.state == "resolved":
        end_ms = max(start_ms, min(_time_ms(event.get("time"), now_ms), now_ms))
    else:
        end_ms = now_ms + round(2_000 * settings.repeat_interval_s)
    former = [(previous, now_ms)] if previous != severity else []
    shown = _annotations(alert, data, settings)
    url = data.get("dashboard_url") or settings.dashboard_url
    return [
        {
            "labels": _labels(alert, data, settings, level),
            "annotations": shown,
            "startsAt": rfc3339(start_ms),
            "endsAt": rfc3339(end),
        }
        | ({"generatorURL": str(url)} if url else {})
        for level, end in (*former, (severity, end_ms))
    ]


def _labels(
    alert: AlertEvent, data: Mapping[str, Any], settings: AlertSettings, severity: str
) -> dict[str, str]:
    is_gap = alert.event.get("type") == GAP_TYPE
    own = {
        "alertname": GAP_NAME if is_gap else DRIFT_NAME,
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
    summary = data.get("summary") or _summary(alert, data)
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


def _summary(alert: AlertEvent, data: Mapping[str, Any]) -> str:
    if alert.event.get("type") != GAP_TYPE:
        return f"{alert.key}: {alert.state}"
    partition, start, end = (
        data.get(name, "?") for name in ("partition", "base_offset", "end_offset")
    )
    return (
        f"Topic {data.get('topic', '?')}: partition {partition} offsets [{start}, {end}) are not "
        "in the log"
    )


def _time_ms(text: Any, otherwise_ms: int) -> int:
    """A time in RFC 3339 as milliseconds since the epoch."""
    try:
        return (datetime.fromisoformat(str(text)) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, TypeError):
        return otherwise_ms


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
