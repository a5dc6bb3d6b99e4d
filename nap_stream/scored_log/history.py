"""Who did what, when: the chain of events as a person reads it, and acknowledgements of alerts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from nap_stream.errors import ConfigError
from nap_stream.scored_log.events import Event, EventKind, alert_id, append_event, require_text
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import bounded, json_text, listed, moment, number, one_line, rfc3339

CHANGED = "changed"
"""The kind of an entry that is no event of its own: what differs from the run before."""
SHOWN_ID = 12
"""Characters of an alert's id in a sentence; `acknowledge` takes as many."""
MAX_BY, MAX_COMMENT = 200, 1_000
"""Characters."""
_LEAST_ID = 4
_NOT_COMPARED = frozenset({"settings_sha256", "user"})
_EMPTY: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a history; of an event, or of what its run changed. ``alert`` is an id."""

    number: int
    time_ms: int
    kind: str
    by: str
    topic: str
    monitor: str
    alert: str | None
    what: str


def entries(events: Sequence[Event]) -> Iterator[Entry]:
    """Tell of all events of a log, in order, and of what each run changed from the one before."""
    ended = {event.by for event in events if event.kind == EventKind.RUN_STOPPED}
    starts = [event for event in events if event.kind == EventKind.RUN_STARTED]
    newest = {(event.topic, event.monitor): event.by for event in starts}
    before: dict[tuple[str, str], Event] = {}
    for event in events:
        what = _words(event)
        changes: list[str] = []
        if event.kind == EventKind.RUN_STARTED:
            monitor = event.topic, event.monitor
            if monitor in before:
                differing = differences(before[monitor].data, event.data)
                changes = [f"{name}: {was} → {now}" for name, was, now in differing]
                what += "" if changes else "; nothing was changed"
            before[monitor] = event
            if event.by not in ended:
                is_newest = newest[monitor] == event.by
                what += f"; it {'runs, or died' if is_newest else 'died: no end is written'}"
        yield _entry(event, event.kind, what)
        yield from (_entry(event, CHANGED, change) for change in changes)


def acknowledge(
    store: SegmentStore, events: Sequence[Event], given: str, *, by: str, comment: str, now_ms: int
) -> Event:
    """Write that somebody has seen to an alert; give that event.

    ``events`` are all of the log; ``given`` is the alert's id, or how it alone begins.

    Raises:
        ConfigError: There is no such alert, or a text is empty, too long, or not printable.
        ScoredLogError: The store cannot be written.
    """
    require_text("by", by, MAX_BY)
    require_text("comment", comment, MAX_COMMENT)
    alert = find_alert(events, given)
    data = {"alert": alert_id(alert), "comment": comment}
    event = replace(alert, time_ms=now_ms, kind=EventKind.ACKNOWLEDGED, by=by, data=data)
    return append_event(store, event)


def find_alert(events: Iterable[Event], given: str) -> Event:
    """Find an alert by its id, or by how it alone begins.

    Raises:
        ConfigError: There is no such alert, or there are several; it says which are near.
    """
    found = ((alert_id(event), event) for event in events if event.kind == EventKind.ALERT)
    alerts = {name: event for name, event in found if name}
    if given in alerts:
        return alerts[given]
    alike = [name for name in alerts if name.startswith(given)]
    if len(alike) == 1 and len(given) >= _LEAST_ID:
        return alerts[alike[0]]
    near = alike or get_close_matches(given, alerts, 3, 0.5) or list(alerts)[-3:]
    told = [f"\n  {name}  {_entry(alerts[name], '', _words(alerts[name])).what}" for name in near]
    problem = f"{len(alike)} alerts begin so" if alike else "no such alert"
    raise ConfigError(
        f"{problem}; of {len(alerts):,} in the log, {'these' if alike else 'near'}: "
        f"{listed(told, between='') if told else 'none'}",
        bounded(one_line(given)),
        "" if told else "`nap-stream history --kind alert` shows what there is",
    )


def _entry(event: Event, kind: str, what: str) -> Entry:
    alert = alert_id(event) or None
    of = (event.by, event.topic, event.monitor)
    return Entry(event.number, event.time_ms, kind, *of, alert, one_line(what))


def _words(event: Event) -> str:
    data = event.data
    shown_id = alert_id(event)[:SHOWN_ID]
    match event.kind:
        case EventKind.RUN_STARTED:
            user = f" by {data['user']}" if data.get("user") else ""
            what = (
                f"version {data.get('version')}{user}, bound {_value(data.get('bound'))}, "
                f"model {str(data.get('model_fingerprint'))[:8]}, "
                f"calibration {str(data.get('calibration_fingerprint'))[:8]}"
            )
        case EventKind.RUN_STOPPED:
            rows = [each for each in _tree(data, "rows_by_status").values() if type(each) is int]
            what = f"{data.get('reason')}, {number(sum(rows))} rows"
        case EventKind.RELOAD_REFUSED | EventKind.LEFT_OUT:
            by = f"asked for by {data.get('asked_by')}: " if "asked_by" in data else ""
            what = f"{by}{data.get('reason')}"
        case EventKind.ALERT:
            told = _tree(data, "event")
            state, inner = str(told.get("type")).rpartition(".")[2], _tree(told, "data")
            what = f"{state} {shown_id}: {inner.get('summary') or inner.get('reason')}"
        case EventKind.ACKNOWLEDGED:
            what = f"alert {shown_id}: {data.get('comment')}"
        case EventKind.ACCEPTED:
            from_ms = data.get("from_ms")
            since = moment(rfc3339(from_ms)) if type(from_ms) is int else "?"
            what = f"{data.get('key') or 'the stream'} as it is since {since}: {data.get('reason')}"
        case EventKind.ERASING:
            names = data.get("sha256")
            count = len(names) if isinstance(names, list) else "?"
            what = f"{count} images, of {data.get('evidence')}: {data.get('reason')}"
        case EventKind.ERASED:
            files = data.get("files") or "no"
            what = f"{files} files were there of what event {data.get('asked')} names"
        case EventKind.PRUNING | EventKind.PRUNED:
            what = _pruning_words(event.kind, data)
        case _:
            what = _value(dict(data))
    return what


def _pruning_words(kind: str, data: Mapping[str, Any]) -> str:
    if kind == EventKind.PRUNED:
        return f"{_sealed_words(data)}: their files are gone"
    before = data.get("before_ms")
    when = rfc3339(before) if type(before) is int else "?"
    return f"{_sealed_words(data)} before {when}: {data.get('reason')}"


def _sealed_words(data: Mapping[str, Any]) -> str:
    seals = data.get("seals")
    each = [one for one in seals if isinstance(one, dict)] if isinstance(seals, list) else []
    rows = sum(one["rows"] for one in each if type(one.get("rows")) is int)
    # Whoever can write to the log can write events: these may be anything.
    chains = len({f"{one.get('topic')}/{one.get('partition')}" for one in each})
    return f"{number(rows)} rows of {chains} partitions"


def _tree(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else _EMPTY


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What two runs say differently when they begin: the name, and what either says of it."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    for name in dict.fromkeys((*before, *after)):
        was, now = before.get(name, "not set"), after.get(name, "not set")
        if was != now:
            yield name, was, now


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of settings, and of what a run says beside them."""
    for name, value in tree.items():
        if not above and name in _NOT_COMPARED:
            continue
        if not above and name == "settings" and isinstance(value, dict):
            for section, inner in value.items():
                yield from _leaves({section: inner}, "settings.")
        elif isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}".removeprefix("settings."), _value(value)


def _value(value: Any) -> str:
    return bounded(json_text(value))
