"""The alert rules speak of metrics and labels that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream.metrics import Metrics
from tests.support.summaries import partition

PROJECT = Path(__file__).parents[2]
RULES = PROJECT / "deploy/prometheus-rules.yaml"
RUNBOOK = PROJECT / "docs/alerts.md"
TARGET_LABELS = {"instance", "job"}
"""Put on every series by the scrape."""
SELECTOR = re.compile(r"\b(nap_stream_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"')
TEMPLATE_LABEL = re.compile(r"\$labels\.(\w+)")
GROUPING = re.compile(r"(?:without|by|on|ignoring) \(([^)]*)\)")
DURATION = re.compile(r"[0-9]+[smh]")


def rules() -> list[dict[str, Any]]:
    tree = yaml.safe_load(RULES.read_text())
    assert list(tree) == ["groups"]
    names = [group["name"] for group in tree["groups"]]
    assert len(set(names)) == len(names)
    return [rule for group in tree["groups"] for rule in group["rules"]]


ALL = rules()
EACH = pytest.mark.parametrize("rule", ALL, ids=[rule["alert"] for rule in ALL])


def series() -> dict[str, list[dict[str, str]]]:
    """The labels of every sample by its name."""
    metrics = Metrics("1")
    metrics.add_sink("kafka")
    metrics.set_partition(partition(0), 5, 1_500)
    metrics.observe_stage("decode", 0.1)
    found: dict[str, list[dict[str, str]]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


SERIES = series()


def test_every_alert_has_a_name_of_its_own() -> None:
    names = [rule["alert"] for rule in ALL]
    assert len(set(names)) == len(names)
    assert all(name.startswith("NapStream") for name in names)


@EACH
def test_an_alert_says_how_urgent_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert DURATION.fullmatch(rule["for"])
    assert rule["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert re.fullmatch(r"docs/alerts\.md#[a-z-]+", notes["runbook"])


@EACH
def test_its_metrics_and_labels_exist(rule: dict[str, Any]) -> None:
    expression = " ".join(rule["expr"].split())
    found = SELECTOR.findall(expression)
    assert found
    known: set[str] = set(TARGET_LABELS)
    for name, matchers in found:
        assert name in SERIES, f"{name} is no metric"
        labels = SERIES[name]
        known.update(*labels)
        for label, wanted in MATCHER.findall(matchers):
            assert wanted in {each.get(label) for each in labels}, f"{name} has no {label}={wanted}"
    for names in GROUPING.findall(expression):
        assert set(names.replace(" ", "").split(",")) <= known
    text = rule["annotations"]["summary"] + rule["annotations"]["description"]
    assert set(TEMPLATE_LABEL.findall(text)) <= known
    assert expression.count("(") == expression.count(")")


@EACH
def test_counters_are_taken_as_rates(rule: dict[str, Any]) -> None:
    expression = " ".join(rule["expr"].split())
    for match in SELECTOR.finditer(expression):
        if match[1].endswith("_total"):
            before, after = expression[: match.start()], expression[match.end() :]
            assert before.endswith(("rate(", "increase("))
            assert re.match(r"\[[0-9]+[mh]\]\)", after)


@EACH
def test_its_runbook_has_a_section(rule: dict[str, Any]) -> None:
    anchor = rule["annotations"]["runbook"].partition("#")[2]
    headings = re.findall(r"^#+ (.*)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings}
    assert anchor in anchors
