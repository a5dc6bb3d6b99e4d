"""The dashboard speaks of metrics that there are, in expressions that Prometheus takes."""

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dashboard import TREE, for_prometheus, queries
from tests.deploy.test_prometheus_rules import SERIES
from tests.support.prometheus import promtool

PANELS: list[dict[str, Any]] = TREE["panels"]


def test_every_metric_exists() -> None:
    for where, expr in queries():
        names = set(re.findall(r"\bnap_stream_\w+", expr))
        assert names or "ALERTS{" in expr or "up{" in expr, where
        assert names <= set(SERIES), where


def test_every_query_is_of_the_monitors_that_are_chosen() -> None:
    for where, expr in queries():
        selectors = re.findall(r"\b(?:nap_stream_\w+|up|ALERTS)(\{[^}]*\})?", expr)
        assert all('job=~"$job",instance=~"$instance' in each for each in selectors), where


def test_promtool_takes_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": for_prometheus(expr, ".+")}
        for number, (_, expr) in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_every_panel_says_what_it_shows_of_the_data_source_that_is_chosen() -> None:
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["datasource"]["uid"] == "$datasource", panel["title"]
            letters = [target["refId"] for target in panel["targets"]]
            assert letters == list("ABCDEF"[: len(letters)]), panel["title"]


def test_panels_have_places_and_numbers_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
