"""An alert event as a person reads it: what, since when, from where, what to do, then why.

Events come from a topic: they may be of another version, damaged or hostile. What is missing is
left out, and nothing of them reaches the terminal as markup or control characters.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from nap_stream.alert.event import DATA_SCHEMA, DATA_SCHEMAS_BEFORE, GAP_SCHEMA, GAP_TYPE
from nap_stream.alert.unscored import NAME, UNSCORED_PREFIX, UNSCORED_SCHEMA
from nap_stream.places import topic_of
from nap_stream.text import moment, number, percent, plain

MAX_ITEMS = 100
"""Items of one list that are shown."""
_KNOWN = (DATA_SCHEMA, *DATA_SCHEMAS_BEFORE, GAP_SCHEMA, UNSCORED_SCHEMA)
_STYLES = {"FIRING": "bold red", "RESOLVED": "bold green", "GAP": "bold yellow"}


def render_lines(event: Any) -> list[str]:
    """Write an event's JSON tree as lines of plain text, the first one its headline.

    Any other value gives one line that says so.
    """
    if not isinstance(event, Mapping):
        return [f"Not an alert: {plain(event)}"]
    data = mapping(event.get("data"))
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
    if _is_unscored(event):
        names.insert(0, NAME)
    return "  ".join([state, *severity, *names])


def _details(event: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if event.get("dataschema") not in _KNOWN:
        yield f"Unknown version {plain(event.get('dataschema'))}: shown as far as it is understood."
    if event.get("type") == GAP_TYPE:
        yield from _gap(data)
    yield from _present(data, "summary")
    yield from _times(event, data)
    if _is_unscored(event):
        yield from _reasons(data)
    else:
        yield from _contributors(data)
    yield from _decided(data)
    yield from (f"What to do: {url}" for url in _present(data, "runbook_url"))
    yield from (f"Where to look: {url}" for url in _present(data, "dashboard_url"))
    if labels := list(mapping(data.get("labels")).items())[:MAX_ITEMS]:
        yield "Labels: " + ", ".join(f"{plain(name)}={plain(text)}" for name, text in labels)
    yield from _detectors(data)
    yield from _window(mapping(data.get("window")))
    yield from _share(data)
    yield from _old_window(data)
    yield from _promise(data)
    if ranges := _items(data.get("offsets")):
        named: dict[str, list[str]] = {}
        for item in ranges:
            named.setdefault(plain(topic_of(item, data)), []).append(_offset_range(item))
        yield from (f"Topic {topic}: {', '.join(each)}" for topic, each in named.items())
    if examples := _items(data.get("examples")):
        yield "First of their kind:" if _is_unscored(event) else "Most extreme:"
        yield from (f"  {_example(example)}" for example in examples)
    yield from _provenance(event, data)


def _is_unscored(event: Mapping[str, Any]) -> bool:
    return str(event.get("type")).startswith(UNSCORED_PREFIX)


def _reasons(data: Mapping[str, Any]) -> Iterator[str]:
    if reasons := [mapping(item) for item in _items(data.get("reasons"))]:
        yield "Why they could not be scored:"
        for item in reasons:
            status, error = (plain(item.get(key, "?")) for key in ("status", "error"))
            yield f"  {number(item.get('images', '?'))}: {status}, {error}"
    if keys := [mapping(item) for item in _items(data.get("keys"))]:
        named = (f"{plain(i.get('name', '?'))} ({number(i.get('images', '?'))})" for i in keys)
        yield f"Most of them, keys: {', '.join(named)}"


def _share(data: Mapping[str, Any]) -> Iterator[str]:
    share = mapping(data.get("unscored"))
    if {"unscored", "images", "share"} <= share.keys():
        counts = mapping(share.get("by_status"))
        told = [f"{plain(name)} {number(count)}" for name, count in counts.items()][:MAX_ITEMS]
        statuses = f": {', '.join(told)}" if told else ""
        yield (
            f"Without scores: {number(share['unscored'])} of the last {number(share['images'])} "
            f"images ({percent(share['share'])}, at most {percent(share.get('bound', '?'))} "
            f"expected){statuses}"
        )


def _old_window(data: Mapping[str, Any]) -> Iterator[str]:
    window = mapping(data.get("ood_window"))
    if {"records", "fraction", "end", "age_s"} <= window.keys():
        yield (
            f"OOD fraction as of {moment(window['end'])}: {percent(window['fraction'])} of "
            f"{number(window['records'])} scored records, {number(window['age_s'])} s before this"
        )


def _gap(data: Mapping[str, Any]) -> Iterator[str]:
    yield f"{plain(gap_words(data))}: {plain(data.get('offsets', '?'))}"
    yield from (f"Why: {reason}" for reason in _present(data, "reason"))
    yield from (f"Declared in {segment}" for segment in _present(data, "segment"))


def gap_words(data: Mapping[str, Any]) -> str:
    """Say which offsets are missing. What is not known is a question mark."""
    names = ("topic", "partition", "base_offset", "end_offset")
    topic, partition, start, end = (data.get(name, "?") for name in names)
    return f"Topic {topic}: partition {partition} offsets [{start}, {end}) are not in the log"


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
    given = mapping(data.get("contributors") if is_told else None)
    for kind, title in (("keys", "keys"), ("classes", "predicted classes")):
        if items := [mapping(item) for item in _items(given.get(kind))]:
            named = (
                f"{plain(i.get('name', '?'))} ({number(i.get('flagged', '?'))})" for i in items
            )
            yield f"Most flags, {title}: {', '.join(named)}"
    if data.get("firing_keys"):
        yield f"Keys with drift of their own: {number(data['firing_keys'])}"


def _decided(data: Mapping[str, Any]) -> Iterator[str]:
    """Which monitor decided, and against what; nothing in events from before there were blocks."""
    blocks, decided = mapping(data.get("blocks")), mapping(data.get("decided_by"))
    if not blocks:
        return
    yield from (f"Decided: {words}" for words in _present(decided, "words"))
    yield from _present(blocks, "words")
    baseline = mapping(data.get("baseline"))
    if {"name", "start", "end", "by"} <= baseline.keys():
        made = f", by {plain(baseline['by'])}: {plain(baseline.get('reason', '?'))}"
        yield (
            f"Baseline {plain(baseline['name'])}: {moment(baseline['start'])} to "
            f"{moment(baseline['end'])}{made}"
        )
    accepted = mapping(data.get("acceptance"))
    if {"number", "by", "reason", "from"} <= accepted.keys():
        yield (
            f"Acceptance {number(accepted['number'])}: as it is since {moment(accepted['from'])}, "
            f"by {plain(accepted['by'])}: {plain(accepted['reason'])}"
        )


def _detectors(data: Mapping[str, Any]) -> Iterator[str]:
    if _active(data):
        yield "Why:"
    others, beside = [], []
    for item in map(mapping, _detector_items(data)):
        name = plain(item.get("name", "?"))
        statistic, threshold = (number(item.get(k, "?")) for k in ("statistic", "threshold"))
        if item.get("deciding") is False:
            state = "active" if item.get("active") is True else "not active"
            beside.append(f"{name} ({state}: {statistic}, active from {threshold} on)")
        elif item.get("active") is True:
            yield f"  {name}: {plain(item.get('words', '?'))}"
        else:
            others.append(f"{name} ({statistic}, fires at {threshold})")
    if others:
        yield f"Not active: {', '.join(others)}"
    if beside:
        yield f"Beside it, not deciding: {', '.join(beside)}"


def _active(data: Mapping[str, Any]) -> list[str]:
    given = map(mapping, _detector_items(data))
    return [
        plain(item.get("name", "?"))
        for item in given
        if item.get("active") is True and item.get("deciding") is not False
    ]


def _detector_items(data: Mapping[str, Any]) -> Sequence[Any]:
    """All of the drift alert's, or the one of images without scores."""
    return [data["detector"]] if "detector" in data else _items(data.get("detectors"))


def _window(window: Mapping[str, Any]) -> Iterator[str]:
    if {"flagged", "fraction"} <= window.keys():
        yield (
            f"Whole stream: {number(window['flagged'])} of the last "
            f"{number(window.get('records', '?'))} records flagged ({percent(window['fraction'])})"
        )
    if window.get("firing_limit") is not None:
        yield (
            f"Bound: {number(window['firing_limit'])} records ({percent(window.get('bound', '?'))})"
            f"; resolved below {number(window.get('resolve_limit', '?'))}"
        )
    if {"start", "end"} <= window.keys():
        yield f"Window: {plain(window['start'])} to {plain(window['end'])}"


def _promise(data: Mapping[str, Any]) -> Iterator[str]:
    promise = mapping(data.get("promise"))
    asked = [f" (false alarms: {text})" for text in _present(promise, "false_alarms")]
    yield from (f"Promise{''.join(asked)}: {words}" for words in _present(promise, "words"))


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
    fields = mapping(item)
    partition, start, end = (plain(fields.get(key, "?")) for key in ("partition", "start", "end"))
    return f"partition {partition} offsets [{start}, {end})"


def _example(item: Any) -> str:
    given = mapping(item)
    fields = {key: plain(value) for key, value in given.items()}
    if "status" in given:
        return _unscored_example(fields)
    p_value = given.get("ood_p_value", "?")
    shown = f"{p_value:.3g}" if isinstance(p_value, float) else plain(p_value)
    place = _place(fields)
    key = f"  key {fields['key']}" if given.get("key") else ""
    return (
        f"{place}  p = {shown}{key}  "
        f"class {fields.get('class_name', '?')}  {fields.get('event_time', '?')}  "
        f"{fields.get('segment', '?')}"
    )


def _place(fields: Mapping[str, str]) -> str:
    names = [*(["topic"] if "topic" in fields else []), "partition", "offset", "index"]
    return f"{'/'.join(names)} {'/'.join(fields.get(name, '?') for name in names)}"


def _unscored_example(fields: Mapping[str, str]) -> str:
    place = _place(fields)
    key = f"  key {fields['key']}" if fields.get("key") not in {None, ""} else ""
    return (
        f"{place}  {fields['status']}{key}  {fields.get('error', '?')}  "
        f"{fields.get('event_time', '?')}  {fields.get('segment', '?')}"
    )


def _present(fields: Mapping[str, Any], key: str) -> list[str]:
    return [] if fields.get(key) is None else [plain(fields[key])]


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, or an empty mapping where it is none: events come from outside."""
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> Sequence[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else []
