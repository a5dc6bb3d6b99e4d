"""nap-stream alerts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from nap_stream.cli.options import BootstrapOption, ConfigOption, JsonEventsOption, kafka_settings

if TYPE_CHECKING:
    from nap_stream.alert.kafka import ReadAlert


State = Literal["firing", "resolved", "gap"]
"""What an event of the alert topic can tell."""
Severity = Literal["warning", "critical"]
"""Of a drift alert."""


def alerts(
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic: Annotated[
        str | None, typer.Option(help="The alert topic; without it, that of --config.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on waiting for new alerts (Ctrl-C ends it).")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Leave out the alerts that are there already.")
    ] = False,
    state: Annotated[State | None, typer.Option(help="Only alerts in this state.")] = None,
    severity: Annotated[
        Severity | None, typer.Option(help="Only drift alerts of this severity.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Only alerts of this key, such as a camera.")
    ] = None,
    as_json: JsonEventsOption = False,
) -> None:
    """Print the alerts of the alert topic.

    \b
    Examples:
      nap-stream alerts --config monitor.yaml
      nap-stream alerts --config monitor.yaml --follow --state firing --severity critical
      nap-stream alerts --bootstrap-servers localhost:9092 --topic nap-stream-alerts --json
    """
    from nap_stream.alert.kafka import read_alerts
    from nap_stream.clock import SystemClock
    from nap_stream.kafka.client import connect

    settings = kafka_settings(config, bootstrap_servers, None)
    name = topic or _alert_topic(config)
    connect(settings)
    wanted = {"severity": severity, "key": key}
    found = read_alerts(settings, name, clock=SystemClock(), follow=follow, from_beginning=not new)
    console, notices = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    for alert in found:
        if alert.event is None:
            notices.print(
                f"skipped {name}/{alert.partition}@{alert.offset}: {alert.problem}", markup=False
            )
        elif not _is_wanted(alert.event, state, wanted):
            continue
        elif as_json:
            typer.echo(json.dumps(alert.event, ensure_ascii=True))
        else:
            _show(alert, console)


def _is_wanted(
    event: Mapping[str, Any], state: State | None, wanted: Mapping[str, str | None]
) -> bool:
    data = event.get("data")
    fields = data if isinstance(data, Mapping) else {}
    told = str(event.get("type")).rpartition(".")[2]
    return state in {None, told} and all(
        value is None or fields.get(name) == value for name, value in wanted.items()
    )


def _show(alert: "ReadAlert", console: Console) -> None:
    from nap_stream.alert.render import render

    if alert.event is not None:
        console.print(render(alert.event))
        console.print()


def _alert_topic(config: Path | None) -> str:
    from nap_stream.settings.load import load_alert_settings
    from nap_stream.settings.schema import AlertSettings

    return AlertSettings().topic if config is None else load_alert_settings(config).topic
