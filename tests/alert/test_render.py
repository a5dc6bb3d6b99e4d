import copy
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nap_stream.alert.event import gap_event
from nap_stream.alert.render import render, render_lines
from nap_stream.drift.records import DriftAlert
from tests.alert.samples import (
    ALERTS,
    BEGAN,
    ENDED,
    ESCALATED,
    KEY_BEGAN,
    SHIFTED,
    event_tree,
)
from tests.support.summaries import settings, summary

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
TREE = event_tree(BEGAN)


def lines_of(alert: DriftAlert) -> list[str]:
    return render_lines(event_tree(alert))


def test_says_what_a_person_needs_in_the_order_in_which_it_is_needed() -> None:
    lines = lines_of(BEGAN)
    assert lines[:10] == [
        "FIRING  WARNING  ood-fraction  2026-01-31T02:03:20.000Z",
        (
            "  65 of the last 1,020 images (6.37 %) look out-of-distribution, fewer than 61 "
            "(5.98 %) expected; began about 02:03:04 UTC; camera-7 contributes most"
        ),
        "  Began about 2026-01-31 02:03:04 UTC; firing since 2026-01-31 02:03:20 UTC",
        "  Most flags, keys: camera-7 (31), camera-2 (4)",
        "  Most flags, predicted classes: cat (28), truck (11)",
        "  Keys with drift of their own: 1",
        "  What to do: https://runbooks.example/ood",
        "  Where to look: https://grafana.example/d/images",
        "  Labels: site=hall-2, team=vision",
        "  Why:",
    ]
    assert lines[10].startswith(
        "    ood-window: 65 of the last 1,020 records are flagged; it fires"
    )
    assert lines[11:15] == [
        (
            "  Not active: ood-sequential (41,251, fires at 518,400,000), "
            "score-shift (2,113, fires at 518,400,000)"
        ),
        "  Whole stream: 65 of the last 1,020 records flagged (6.37 %)",
        "  Bound: 61 records (5.98 %); resolved below 30",
        "  Window: 2026-01-31T02:03:00.000Z to 2026-01-31T02:03:20.000Z",
    ]
    assert lines[15] == (
        "  Without scores: 4 of the last 1,024 images (0.391 %, at most 1 % expected): "
        "corrupt 3, too_large 1"
    )
    assert lines[16].startswith("  Promise (false alarms: one per 30 days at 50 images/s): While")
    assert lines[16].endswith("need no independence).")
    assert lines[17:-1] == [
        "  Topic images: partition 0 offsets [0, 700), partition 1 offsets [300, 640)",
        "  Most extreme:",
        (
            "    partition/offset/index 1/321/2  p = 0.0005  key camera-7  class cat  "
            "2026-01-31T02:03:15.250Z  topic=images/partition=1/00000000000000000300.parquet"
        ),
        "  Flag: p-value at most 0.02, against 2,000 calibration images",
        "  Fingerprints: model ffffffffffff, calibration cccccccccccc",
    ]
    assert lines[-1] == f"  id {TREE['id']}, nap-stream 1.2.3"


def test_places_in_several_topics_are_told_by_topic() -> None:
    data = {
        "topic": "all",
        "offsets": [
            {"topic": "north", "partition": 0, "start": 1, "end": 3},
            {"topic": "south", "partition": 0, "start": 5, "end": 6},
            {"topic": "north", "partition": 2, "start": 0, "end": 9},
        ],
        "examples": [{"topic": "south", "partition": 0, "offset": 5, "index": 0}],
    }
    lines = render_lines({"type": TREE["type"], "data": data})
    assert "  Topic north: partition 0 offsets [1, 3), partition 2 offsets [0, 9)" in lines
    assert "  Topic south: partition 0 offsets [5, 6)" in lines
    assert any(line.startswith("    topic/partition/offset/index south/0/5/0  p") for line in lines)


def test_the_alert_of_a_key_names_it_in_the_headline() -> None:
    lines = lines_of(KEY_BEGAN)
    assert lines[0] == "FIRING  CRITICAL  ood-fraction  camera-7  2026-01-31T02:03:20.000Z"
    assert not any("Most flags" in line or "Not active" in line for line in lines)
    assert any(
        line.startswith("    ood-sequential: 18 of 40 records of this key") for line in lines
    )


def test_an_escalated_alert_says_what_was_before() -> None:
    lines = lines_of(ESCALATED)
    assert lines[0].startswith("FIRING  CRITICAL  ")
    assert lines[2] == (
        "  Began about 2026-01-30 22:01:50 UTC; firing since 2026-01-30 22:03:20 UTC; "
        "severity before: warning; sent again: 1"
    )


def test_what_flags_show_is_left_out_of_an_alert_about_other_scores() -> None:
    lines = lines_of(SHIFTED)
    assert not any("Most flags" in line for line in lines)
    assert any("Repeated or unusually simple images can look so." in line for line in lines)
    assert any("Not active: ood-window (9, fires at 61), ood-seq" in line for line in lines)


def test_a_resolved_alert_says_from_when_to_when() -> None:
    lines = lines_of(ENDED)
    assert lines[0].startswith("RESOLVED  WARNING")
    assert lines[2] == (
        "  Began about 2026-01-31 00:57:20 UTC; firing from 2026-01-31 00:58:20 UTC until "
        "2026-01-31 02:03:20 UTC"
    )
    assert not any("Most extreme" in line or "Why:" in line for line in lines)


def test_per_class_says_with_what_images_are_compared() -> None:
    event = copy.deepcopy(TREE)
    event["data"]["per_class"] = True
    assert (
        "  Flag: p-value at most 0.02, against those of the predicted class of 2,000 calibration "
        "images"
    ) in render_lines(event)


def test_before_the_window_is_full_it_has_no_bound() -> None:
    lines = lines_of(replace(BEGAN, firing_limit=None, resolve_limit=None))
    assert any("Whole stream: 65 of the last" in line for line in lines)
    assert not any("Bound:" in line for line in lines)
    event = copy.deepcopy(TREE)
    event["data"]["window"] = None
    assert not any("Window:" in line for line in render_lines(event))


def gap_tree() -> dict[str, Any]:
    found = summary(3, 200, [], end=270, gap="offsets [200, 270): retention deleted them")
    return dict(gap_event(found, settings(), "1.2.3").event)


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


@pytest.mark.parametrize(
    "path",
    [
        ("monitor",),
        ("topic",),
        ("key",),
        ("summary",),
        ("onset",),
        ("firing_since",),
        ("severity",),
        ("previous_severity",),
        ("repeat",),
        ("firing_keys",),
        ("runbook_url",),
        ("dashboard_url",),
        ("labels", "site"),
        ("contributors", "keys", 0, "name"),
        ("contributors", "classes", 0, "flagged"),
        ("detectors", 0, "words"),
        ("detectors", 1, "name"),
        ("detectors", 1, "statistic"),
        ("window", "records"),
        ("window", "bound"),
        ("window", "start"),
        ("promise", "words"),
        ("promise", "false_alarms"),
        ("alpha",),
        ("examples", 0, "class_name"),
        ("examples", 0, "key"),
    ],
)
def test_nothing_hostile_reaches_the_terminal(path: tuple[Any, ...]) -> None:
    event = copy.deepcopy(TREE)
    place = event["data"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "\x1b[2J[bold red]x[/]\r\n\u202egpj\u200b\x9b1m"

    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system=None, width=5_000).print(render(event))

    shown = output.getvalue()
    # The headline is in capitals.
    assert "\\x1b[2j[bold red]x[/]\\r\\n\\u202egpj\\u200b\\x9b1m" in shown.lower()
    assert not set("\x1b\r\u202e\u200b\x9b") & set(shown)
    assert shown.count("\n") == len(render_lines(event))


def test_the_headline_is_coloured_and_nothing_else() -> None:
    text = render(TREE)
    assert text.plain == "\n".join(render_lines(TREE))
    assert [(span.start, span.style) for span in text.spans] == [(0, "bold red")]
    assert text.spans[0].end == len(render_lines(TREE)[0])


def test_another_version_is_shown_as_far_as_it_goes() -> None:
    event = copy.deepcopy(TREE)
    event["dataschema"] = "urn:nap-stream:alert:9"
    event["data"]["window"] = {"flagged": 125, "fraction": "a lot"}
    lines = render_lines(event)
    assert "  Unknown version urn:nap-stream:alert:9: shown as far as it is understood." in lines
    assert "  Whole stream: 125 of the last ? records flagged (a lot)" in lines


@pytest.mark.parametrize(
    "event", [None, [], "text", 3, {}, {"data": None}, {"data": {"offsets": 1}}]
)
def test_what_is_no_alert_is_said(event: Any) -> None:
    lines = render_lines(event)
    assert lines
    assert render(event).plain == "\n".join(lines)


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_the_first_three_lines_need_no_manual(alert: DriftAlert) -> None:
    first = " ".join(lines_of(alert)[:3])
    for word in ("p-value", "alpha", "statistic", "conformal", "Shiryaev", "flag", "e-detector"):
        assert word not in first


@given(JSON, st.sampled_from(sorted(TREE["data"])))
def test_any_damage_is_survived(value: Any, key: str) -> None:
    event = TREE | {"data": TREE["data"] | {key: value}}
    assert all(line.isprintable() for line in render_lines(event))
    assert all(line.isprintable() for line in render_lines(value))


@given(
    JSON,
    st.sampled_from(
        [
            (part, key)
            for part in ("window", "promise", "contributors")
            for key in sorted(TREE["data"][part])
        ]
    ),
)
def test_damage_further_down_is_survived(value: Any, place: tuple[str, str]) -> None:
    part, key = place
    data = TREE["data"] | {part: TREE["data"][part] | {key: value}, "detectors": [value]}
    assert all(line.isprintable() for line in render_lines(TREE | {"data": data}))
