"""The dashboard's queries."""

import json
from pathlib import Path
from typing import Any

TREE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "deploy/grafana-dashboard.json").read_text()
)


def queries() -> list[tuple[str, str]]:
    """The expression of each panel's target and of each annotation, after where it stands."""
    panels = [panel for panel in TREE["panels"] if panel["type"] != "row"]
    return [
        *(
            (f"{panel['title']} {target['refId']}", target["expr"])
            for panel in panels
            for target in panel["targets"]
        ),
        *((each["name"], each["expr"]) for each in TREE["annotations"]["list"]),
    ]


def for_prometheus(expr: str, instance: str) -> str:
    """An expression with Grafana's variables as Grafana fills them in."""
    filled = expr.replace("$job", "nap-stream").replace("$instance", instance)
    return filled.replace("$__rate_interval", "10s")
