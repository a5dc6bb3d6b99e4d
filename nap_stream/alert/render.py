"""An alert event as a person reads it: what, since when, from where, what to do, then why.

Events come from a topic: they may be of another version, damaged or hostile. What is missing is
left out, and nothing of them reaches the terminal as markup or control characters.

From an alert to the shape of Alertmanager's ``POST /api/v2/alerts``.

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

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.text import Text

from nap_stream.alert.base import AlertEvent, rfc3339
from nap_stream.alert.event import DATA_SCHEMA, GAP_SCHEMA, GAP_TYPE
from nap_stream.settings.schema import AlertSettings
from nap_stream.text import moment, number, percent, plain

OLD_SCHEMA = "urn:nap-stream:alert:2"
"""Of the time when an alert had one detector."""
MAX_ITEMS = 100
"""Items of one list that are shown."""
_STYLES = {"FIRING": "bold red", "RESOLVED": "bold green", "GAP": "bold yellow"}


def render_lines(event: Any) -> list[str]:
    """Write an alert as lines of plain text, the first one its headline.

    Args:
        event: The JSON tree of the event; any other value gives one line that says so.
    """
    if not isinstance(event, Mapping):
        return [f"Not an alert: {plain(event)}"]
    data = _mapping(event.get("data"))
    return [_headline(event, data), *(f"  {line}" for line in _details(event, data))]


def render(event: Any) -> Text:
    """Write an alert as rich text: `render_lines` with the headline in the state's colour."""
    lines = render_lines(event)
    headline = lines[0].partition(" ")[0] if isinstance(event, Mapping) else ""
    text = Text().append(lines[0], style=_STYLES.get(headline, "bold"))
    for line in lines[1:]:
        text.append("\n" + line)
    return text


def _headline(event: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    kind = "gap" if event.get("type") == GAP_TYPE else event.get("type", "alert")
    state = plain(data.get("state", kind)).upper()
    severity = [text.upper() for text in _present(data, "severity")]
    names = [*_present(data, "monitor"), *_present(data, "key"), *_present(event, "time")]
    return "  ".join([state, *severity, *names])


def _details(event: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if event.get("dataschema") not in (DATA_SCHEMA, OLD_SCHEMA, GAP_SCHEMA):
        yield f"Unknown version {plain(event.get('dataschema'))}: shown as far as it is understood."
    if event.get("type") == GAP_TYPE:
        yield from _gap(data)
    yield from _present(data, "summary")
    yield from _times(event, data)
    yield from _contributors(data)
    yield from (f"What to do: {url}" for url in _present(data, "runbook_url"))
    yield from (f"Where to look: {url}" for url in _present(data, "dashboard_url"))
    if labels := list(_mapping(data.get("labels")).items())[:MAX_ITEMS]:
        yield "Labels: " + ", ".join(f"{plain(name)}={plain(text)}" for name, text in labels)
    yield from _detectors(data)
    yield from _window(data)
    yield from _promise(data)
    if ranges := _items(data.get("offsets")):
        listed = ", ".join(_offset_range(item) for item in ranges)
        yield f"Topic {plain(data.get('topic'))}: {listed}"
    if examples := _items(data.get("examples")):
        yield "Most extreme:"
        yield from (f"  {_example(example)}" for example in examples)
    yield from _provenance(event, data)


def _gap(data: Mapping[str, Any]) -> Iterator[str]:
    shown = {
        key: plain(data.get(key, "?"))
        for key in ("topic", "partition", "base_offset", "end_offset", "offsets")
    }
    yield (
        f"Topic {shown['topic']}: partition {shown['partition']} offsets "
        f"[{shown['base_offset']}, {shown['end_offset']}) are not in the log: {shown['offsets']}"
    )
    yield from (f"Why: {reason}" for reason in _present(data, "reason"))
    yield from (f"Declared in {segment}" for segment in _present(data, "segment"))


def _times(event: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    told = [f"Began about {moment(data['onset'])}"] if data.get("onset") else []
    if data.get("firing_since"):
        ended = data.get("state") == "resolved"
        until = f" until {moment(event.get('time'))}" if ended else ""
        told.append(f"firing {'from' if ended else 'since'} {moment(data['firing_since'])}{until}")
    told += [f"severity before: {text}" for text in _present(data, "previous_severity")]
    if data.get("repeat"):
        told.append(f"sent again: {number(data['repeat'])}")
    if told:
        yield "; ".join(told)


def _contributors(data: Mapping[str, Any]) -> Iterator[str]:
    # Flags say nothing of what is over, or of a shift that shows in other p-values alone.
    is_told = data.get("state") != "resolved" and _active(data) != ["score-shift"]
    given = _mapping(data.get("contributors") if is_told else None)
    for kind, title in (("keys", "keys"), ("classes", "predicted classes")):
        if items := [_mapping(item) for item in _items(given.get(kind))]:
            named = (
                f"{plain(i.get('name', '?'))} ({number(i.get('flagged', '?'))})" for i in items
            )
            yield f"Most flags, {title}: {', '.join(named)}"
    if data.get("firing_keys"):
        yield f"Keys with drift of their own: {number(data['firing_keys'])}"


def _detectors(data: Mapping[str, Any]) -> Iterator[str]:
    if _active(data):
        yield "Why:"
    others = []
    for item in map(_mapping, _items(data.get("detectors"))):
        name = plain(item.get("name", "?"))
        if item.get("active") is True:
            yield f"  {name}: {plain(item.get('words', '?'))}"
        else:
            statistic, threshold = (number(item.get(k, "?")) for k in ("statistic", "threshold"))
            others.append(f"{name} ({statistic}, fires at {threshold})")
    if others:
        yield f"Not active: {', '.join(others)}"


def _active(data: Mapping[str, Any]) -> list[str]:
    given = map(_mapping, _items(data.get("detectors")))
    return [plain(item.get("name", "?")) for item in given if item.get("active") is True]


def _window(data: Mapping[str, Any]) -> Iterator[str]:
    window = _mapping(data.get("window"))
    # Of old events all but the window's extent stands one level higher.
    fields = window if "fraction" in window else data
    if {"flagged", "fraction"} <= fields.keys():
        yield (
            f"Whole stream: {number(fields['flagged'])} of the last "
            f"{number(window.get('records', '?'))} records flagged ({percent(fields['fraction'])})"
        )
    if fields.get("firing_limit") is not None:
        yield (
            f"Bound: {number(fields['firing_limit'])} records ({percent(fields.get('bound', '?'))})"
            f"; resolved below {number(fields.get('resolve_limit', '?'))}"
        )
    if {"start", "end"} <= window.keys():
        yield f"Window: {plain(window['start'])} to {plain(window['end'])}"


def _promise(data: Mapping[str, Any]) -> Iterator[str]:
    promise = _mapping(data.get("promise"))
    asked = [f" (false alarms: {text})" for text in _present(promise, "false_alarms")]
    yield from (f"Promise{''.join(asked)}: {words}" for words in _present(promise, "words"))
    yield from _present(data, "confidence")


def _provenance(event: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if "alpha" in data:
        images = f"{number(data.get('calibration_size', '?'))} calibration images"
        if data.get("per_class") is True:
            images = f"those of the predicted class of {images}"
        yield f"Flag: p-value at most {plain(data['alpha'])}, against {images}"
    named = (("model", "model_fingerprint"), ("calibration", "calibration_fingerprint"))
    if shown := [f"{name} {plain(data[key])[:12]}" for name, key in named if key in data]:
        yield f"Fingerprints: {', '.join(shown)}"
    program = [f"nap-stream {version}" for version in _present(data, "version")]
    yield ", ".join([f"id {plain(event.get('id'))}", *program])


def _offset_range(item: Any) -> str:
    fields = _mapping(item)
    partition, start, end = (plain(fields.get(key, "?")) for key in ("partition", "start", "end"))
    return f"partition {partition} offsets [{start}, {end})"


def _example(item: Any) -> str:
    given = _mapping(item)
    fields = {key: plain(value) for key, value in given.items()}
    p_value = given.get("ood_p_value", "?")
    shown = f"{p_value:.3g}" if isinstance(p_value, float) else plain(p_value)
    place = "/".join(fields.get(key, "?") for key in ("partition", "offset", "index"))
    key = f"  key {fields['key']}" if given.get("key") else ""
    return (
        f"partition/offset/index {place}  p = {shown}{key}  "
        f"class {fields.get('class_name', '?')}  {fields.get('event_time', '?')}  "
        f"{fields.get('segment', '?')}"
    )


def _present(fields: Mapping[str, Any], key: str) -> list[str]:
    return [] if fields.get(key) is None else [plain(fields[key])]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> Sequence[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else []


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
