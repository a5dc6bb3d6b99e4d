"""The alert rules speak of metrics and labels that there are, and fire when they should."""

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rule_cases import ALWAYS, CASES, MONITOR, Case, healthy, whole_metrics
from tests.support.prometheus import promtool

PROJECT = Path(__file__).parents[2]
RULES = PROJECT / "deploy/prometheus-rules.yaml"
RUNBOOK = PROJECT / "docs/alerts.md"
OPERATING = PROJECT / "docs/operating.md"
TARGET_LABELS = {"instance", "job"}
"""Put on every series by the scrape."""
SELECTOR = re.compile(r"\b(nap_stream_\w+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
TEMPLATE_LABEL = re.compile(r"\$labels\.(\w+)")
GROUPING = re.compile(r"(?:without|by|on|ignoring) \(([^)]*)\)")
DURATION = re.compile(r"[0-9]+[smh]")


def rules() -> list[dict[str, Any]]:
    tree = yaml.safe_load(RULES.read_text())
    assert list(tree) == ["groups"]
    names = [group["name"] for group in tree["groups"]]
    assert len(set(names)) == len(names)
    return [rule for group in tree["groups"] for rule in group["rules"]]


ALL = {rule["alert"]: rule for rule in rules()}
EACH = pytest.mark.parametrize("rule", ALL.values(), ids=ALL)


def series() -> dict[str, list[dict[str, str]]]:
    """The labels of every sample by its name."""
    found: dict[str, list[dict[str, str]]] = {"up": [{"job": "nap-stream"}]}
    for family in whole_metrics().registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


SERIES = series()
HEALTHY = healthy()


def test_every_alert_has_a_name_of_its_own() -> None:
    assert len(ALL) == len(rules())
    assert all(name.startswith("NapStream") for name in ALL)


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
        for label, how, wanted in MATCHER.findall(matchers):
            values = {each[label] for each in labels if label in each}
            matching = {each for each in values if re.fullmatch(wanted, each)}
            assert matching, f"{name} has no {label}{how}{wanted}"
    for names in GROUPING.findall(expression):
        assert set(filter(None, names.replace(" ", "").split(","))) <= known


@EACH
def test_a_counter_is_seen_in_its_first_sample(rule: dict[str, Any]) -> None:
    expression = " ".join(rule["expr"].split())
    for match in SELECTOR.finditer(expression):
        if match[1].endswith("_total"):
            before, after = expression[: match.start()], expression[match.end() :]
            is_over_time = before.endswith(("rate(", "increase(", "last_over_time("))
            assert bool(re.match(r"\[[0-9]+[mhd]\]", after)) == is_over_time
    if "increase(" in expression and "> " in expression and rule["for"] == "0s":
        assert "or 0 * " in expression


@EACH
def test_its_runbook_has_a_section_that_names_it(rule: dict[str, Any]) -> None:
    anchor = rule["annotations"]["runbook"].partition("#")[2]
    sections = re.split(r"^#+ (.*)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    titles = [re.sub(r"[^a-z0-9 -]", "", title.lower()) for title in sections[1::2]]
    texts = dict(zip((title.replace(" ", "-") for title in titles), sections[2::2], strict=True))
    assert f"`{rule['alert']}`" in texts[anchor]


def test_promtool_takes_the_rules() -> None:
    assert f"{len(ALL)} rules found" in promtool("check", "rules", RULES)


def test_promtool_takes_the_example_of_the_documentation(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", OPERATING.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "scrape_configs" in block]
    (tmp_path / RULES.name).write_text(RULES.read_text())
    config = tmp_path / "prometheus.yml"
    config.write_text(example)
    assert "1 rule files found" in promtool("check", "config", config)


def test_every_alert_has_cases_that_fire_and_cases_that_do_not() -> None:
    assert set(CASES) == set(ALL)
    for name, cases in CASES.items():
        assert any(case.fires for case in cases), name
        assert any(not case.fires for case in cases), name


def test_what_an_alert_says_is_of_labels_that_it_has() -> None:
    for name, cases in CASES.items():
        notes = ALL[name]["annotations"]
        named = set(TEMPLATE_LABEL.findall(notes["summary"] + notes["description"]))
        assert all(named <= set(labels) for case in cases for labels in case.fires), name


def test_each_alert_fires_where_it_should_and_nowhere_else(tmp_path: Path) -> None:
    files = [of_cases(tmp_path, name, cases) for name, cases in CASES.items()]
    promtool("test", "rules", *files)


def test_a_monitor_that_is_well_raises_no_alert(tmp_path: Path) -> None:
    nothing = [{"expr": "ALERTS", "eval_time": f"{at}m", "exp_samples": []} for at in (1, 30, 150)]
    group = {
        "interval": "1m",
        "input_series": inputs(MONITOR, {}, SERIES, 150),
        "promql_expr_test": nothing,
    }
    file = tmp_path / "well.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [group]}))
    promtool("test", "rules", file)


def of_cases(folder: Path, name: str, cases: list[Case]) -> Path:
    """A file for promtool, in which this alert is all that there is of rules."""
    rules_file, file = folder / f"{name}.rules.yaml", folder / f"{name}.yaml"
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [ALL[name]]}]}))
    step = cases[0].step
    tree = {
        "rule_files": [str(rules_file)],
        "evaluation_interval": f"{step}m",
        "tests": [of_case(name, case, step) for case in cases],
    }
    file.write_text(yaml.safe_dump(tree))
    return file


def of_case(name: str, case: Case, step: int) -> dict[str, Any]:
    alert = {"alertname": name, "alertstate": "firing", "severity": ALL[name]["labels"]["severity"]}
    expected = [
        {"labels": f"ALERTS{{{_inside({**alert, **labels})}}}", "value": 1} for labels in case.fires
    ]
    given = [{"series": "another", "values": "0x9"}]
    names = {name for name, _ in SELECTOR.findall(ALL[name]["expr"])}
    samples = case.at // step + 1
    if case.series is not None:
        given += inputs(case.target, case.series, names, samples)
    if not case.alone:
        given += inputs({"job": "nap-stream", "instance": "second:9464"}, {}, names, samples)
    # The comment is for promtool, which shows the expression where it fails.
    expr = f'ALERTS{{alertstate="firing"}} # {case.name}'
    looked = {"expr": expr, "eval_time": f"{case.at}m", "exp_samples": expected}
    return {
        "interval": f"{step}m",
        "input_series": given,
        "promql_expr_test": [looked],
    }


def inputs(
    target: Mapping[str, str], changed: Mapping[str, str], names: Container[str], samples: int
) -> list[dict[str, str]]:
    """The series of a monitor for promtool, of these metrics."""
    unknown = set(changed) - set(HEALTHY)
    assert not unknown, f"no monitor has {unknown}"
    given = []
    for short, values in (HEALTHY | dict(changed)).items():
        head, _, inside = short.removesuffix("}").partition("{")
        name = head if head == "up" else f"nap_stream_{head}"
        if name in names:
            own = re.sub(rf"\b({'|'.join(target)})=", r"exported_\1=", inside)
            labels = ",".join(filter(None, [own, _inside(target)]))
            given.append({"series": f"{name}{{{labels}}}", "values": _values(values, samples)})
    return given


def _inside(labels: Mapping[str, str]) -> str:
    return ",".join(f'{label}="{value}"' for label, value in labels.items())


def _values(values: str, samples: int) -> str:
    values = values.replace(ALWAYS, f"x{samples}")
    # promtool's notation repeats numbers, and not NaN.
    return re.sub(r"NaNx([0-9]+)", lambda found: " ".join(["NaN"] * (int(found[1]) + 1)), values)
