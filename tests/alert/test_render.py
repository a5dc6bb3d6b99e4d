import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nap_stream.alert.event import alert_event
from nap_stream.alert.gap import gap_event
from nap_stream.alert.render import MAX_FIELD, plain, render, render_lines
from tests.alert.test_event import PER_CLASS_VERDICT, RESOLVED, VERDICT
from tests.support.summaries import FACTS, PER_CLASS_FACTS, settings, summary

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def event_tree() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(
        json.dumps(alert_event(VERDICT, settings(), FACTS, "1.2.3").event)
    )
    return tree


def test_says_what_a_person_needs() -> None:
    lines = render_lines(event_tree())
    assert lines[0] == "FIRING  ood-fraction  2023-11-14T22:13:21.500Z"
    text = "\n".join(lines)
    assert "125 of the last 1000 records are out-of-distribution: 12.5%" in text
    assert "Bound: 94 records, 9.4%; resolved below 77" in text
    assert "Window: 2023-11-14T22:13:20.000Z to 2023-11-14T22:13:21.500Z" in text
    assert "Topic images: partition 0 offsets [0, 700), partition 1 offsets [300, 640)" in text
    assert "partition/offset/index 1/321/2  p = 0.005  class cat" in text
    assert "topic=images/x.parquet" in text
    assert "probability of at most 0.001" in text
    assert "Flag: p-value at most 0.05, against 199 calibration images" in text
    assert "Fingerprints: model ffffffffffff, calibration cccccccccccc" in text
    assert lines[-1].endswith(", nap-stream 1.2.3")
    assert "Bound of the class" not in text


def test_per_class_says_whose_bound_it_is() -> None:
    event = alert_event(PER_CLASS_VERDICT, settings(), PER_CLASS_FACTS, "1").event
    lines = render_lines(dict(event))
    assert "  Bound: 170 records, 17.0%; resolved below 53" in lines
    assert "  Bound of the class with the highest: 38 calibration images, flag rank 1" in lines
    assert (
        "  Flag: p-value at most 0.05, against those of the predicted class of 238 calibration "
        "images"
    ) in lines


def gap_tree() -> dict[str, Any]:
    given = summary(3, 200, [], end=270, gap="offsets [200, 270): retention deleted them")
    return dict(gap_event(given, settings(), "1.2.3").event)


def test_a_gap_says_which_offsets_and_why() -> None:
    lines = render_lines(gap_tree())
    assert lines[:4] == [
        "GAP  ood-fraction",
        "  Topic images: partition 3 offsets [200, 270) are not in the log: 70",
        "  Why: offsets [200, 270): retention deleted them",
        "  Declared in topic=images/partition=3/00000000000000000200.parquet",
    ]
    assert lines[4].endswith(", nap-stream 1.2.3")
    assert len(lines) == 5
    assert [span.style for span in render(gap_tree()).spans] == ["bold yellow"]


@given(JSON, st.sampled_from(sorted(gap_tree()["data"])))
def test_any_damage_of_a_gap_is_survived(value: Any, key: str) -> None:
    event = gap_tree()
    event["data"] = event["data"] | {key: value}
    assert all(line.isprintable() for line in render_lines(event))


def test_resolved_has_no_examples() -> None:
    lines = render_lines(dict(alert_event(RESOLVED, settings(), FACTS, "1").event))
    assert lines[0].startswith("RESOLVED")
    assert not any("Most extreme" in line for line in lines)


@pytest.mark.parametrize(
    "path", [("monitor",), ("topic",), ("confidence",), ("examples", 0, "class_name")]
)
def test_nothing_hostile_reaches_the_terminal(path: tuple[Any, ...]) -> None:
    event = event_tree()
    place = event["data"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "\x1b[2J[bold red]x[/]\r\n\u202egpj\u200b\x9b1m"

    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system=None, width=1_000).print(render(event))

    shown = output.getvalue()
    assert "\\u{1b}[2J[bold red]x[/]\\u{d}\\u{a}\\u{202e}gpj\\u{200b}\\u{9b}1m" in shown
    assert not set("\x1b\r\u202e\u200b\x9b") & set(shown)
    assert shown.count("\n") == len(render_lines(event))


def test_the_headline_is_coloured_and_nothing_else() -> None:
    text = render(event_tree())
    assert text.plain == "\n".join(render_lines(event_tree()))
    assert [(span.start, span.style) for span in text.spans] == [(0, "bold red")]
    assert text.spans[0].end == len(render_lines(event_tree())[0])


def test_another_version_is_shown_as_far_as_it_goes() -> None:
    event = event_tree()
    event["dataschema"] = "urn:nap-stream:alert:9"
    del event["data"]["window"]
    event["data"]["fraction"] = "a lot"
    lines = render_lines(event)
    assert "  Unknown version urn:nap-stream:alert:9: shown as far as it is understood." in lines
    assert "  125 of the last ? records are out-of-distribution: a lot" in lines


@pytest.mark.parametrize(
    "event", [None, [], "text", 3, {}, {"data": None}, {"data": {"offsets": 1}}]
)
def test_what_is_no_alert_is_said(event: Any) -> None:
    lines = render_lines(event)
    assert lines
    assert render(event).plain == "\n".join(lines)


@given(JSON, st.sampled_from(sorted(event_tree()["data"])))
def test_any_damage_is_survived(value: Any, key: str) -> None:
    event = event_tree()
    event["data"][key] = value
    assert all(line.isprintable() for line in render_lines(event))
    assert all(line.isprintable() for line in render_lines(value))


def test_long_fields_are_cut() -> None:
    assert plain("x" * 10_000) == "x" * MAX_FIELD + "…"
