"""An alert event as a person reads it.

Events come from a topic: they may be of another version, damaged or hostile. What is missing is
left out, and nothing of them reaches the terminal as markup or control characters.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from nap_stream.alert.event import DATA_SCHEMA
from nap_stream.alert.gap import GAP_SCHEMA, GAP_TYPE

MAX_FIELD = 500
"""Characters of one field that are shown."""
MAX_ITEMS = 100
"""Items of one list that are shown."""
_STYLES = {"FIRING": "bold red", "RESOLVED": "bold green", "GAP": "bold yellow"}
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


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


def plain(value: Any) -> str:
    """Give a value as text on one line, without control, formatting or unassigned characters."""
    text = value if isinstance(value, str) else repr(value)
    shown = text[:MAX_FIELD] + ("…" if len(text) > MAX_FIELD else "")
    return "".join(
        f"\\u{{{ord(char):x}}}" if unicodedata.category(char) in _UNSAFE else char for char in shown
    )


def _headline(event: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    kind = "gap" if event.get("type") == GAP_TYPE else event.get("type", "alert")
    state = plain(data.get("state", kind)).upper()
    return "  ".join([state, *_present(data, "monitor"), *_present(event, "time")])


def _details(event: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if event.get("dataschema") not in (DATA_SCHEMA, GAP_SCHEMA):
        yield f"Unknown version {plain(event.get('dataschema'))}: shown as far as it is understood."
    if event.get("type") == GAP_TYPE:
        yield from _gap(data)
    window = _mapping(data.get("window"))
    yield from _fractions(data, window)
    if {"start", "end"} <= window.keys():
        yield f"Window: {plain(window['start'])} to {plain(window['end'])}"
    if ranges := _items(data.get("offsets")):
        listed = ", ".join(_offset_range(item) for item in ranges)
        yield f"Topic {plain(data.get('topic'))}: {listed}"
    yield from _present(data, "confidence")
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


def _fractions(data: Mapping[str, Any], window: Mapping[str, Any]) -> Iterator[str]:
    if {"flagged", "fraction"} <= data.keys():
        yield (
            f"{plain(data['flagged'])} of the last {plain(window.get('records', '?'))} records are "
            f"out-of-distribution: {_percent(data['fraction'])}"
        )
    if {"firing_limit", "bound"} <= data.keys():
        yield (
            f"Bound: {plain(data['firing_limit'])} records, {_percent(data['bound'])}; resolved "
            f"below {plain(data.get('resolve_limit', '?'))}"
        )
    if data.get("per_class") is True:
        size, rank = (plain(data.get(key, "?")) for key in ("bound_size", "flag_rank"))
        yield f"Bound of the class with the highest: {size} calibration images, flag rank {rank}"


def _provenance(event: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if "alpha" in data:
        size = plain(data.get("calibration_size", "?"))
        images = f"{size} calibration images"
        if data.get("per_class") is True:
            images = f"those of the predicted class of {images}"
        yield f"Flag: p-value at most {plain(data['alpha'])}, against {images}"
    fingerprints = [
        f"{name} {plain(data[key])[:12]}"
        for name, key in (
            ("model", "model_fingerprint"),
            ("calibration", "calibration_fingerprint"),
        )
        if key in data
    ]
    if fingerprints:
        yield f"Fingerprints: {', '.join(fingerprints)}"
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
    return (
        f"partition/offset/index {place}  p = {shown}  "
        f"class {fields.get('class_name', '?')}  {fields.get('event_time', '?')}  "
        f"{fields.get('segment', '?')}"
    )


def _percent(value: Any) -> str:
    is_fraction = isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 1
    return f"{value:.1%}" if is_fraction and value >= 0 else plain(value)


def _present(fields: Mapping[str, Any], key: str) -> list[str]:
    return [plain(fields[key])] if key in fields else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: Any) -> Sequence[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else []
