"""nap-stream alerts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nap_stream.cli.options import BootstrapOption, ConfigOption, kafka_settings

if TYPE_CHECKING:
    from nap_stream.alert.consume import ReadAlert


def alerts(
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic: Annotated[
        str | None, typer.Option(help="The alert topic; that of --config without it.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on waiting for new alerts (Ctrl-C ends it).")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Leave out those that are there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One CloudEvent a line, for machines.")
    ] = False,
) -> None:
    """Print the alerts of the alert topic.

    \b
    Examples:
      nap-stream alerts --config monitor.yaml
      nap-stream alerts --config monitor.yaml --follow
      nap-stream alerts --bootstrap-servers localhost:9092 --topic nap-stream-alerts --json
    """
    from nap_stream.alert.consume import read_alerts
    from nap_stream.clock import SystemClock
    from nap_stream.kafka_client import connect

    settings = kafka_settings(config, bootstrap_servers, None)
    name = topic or _alert_topic(config)
    connect(settings)
    found = read_alerts(settings, name, clock=SystemClock(), follow=follow, from_beginning=not new)
    console, notices = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    for alert in found:
        if alert.event is None:
            notices.print(
                f"skipped {name}/{alert.partition}@{alert.offset}: {alert.problem}", markup=False
            )
        elif as_json:
            typer.echo(json.dumps(alert.event, ensure_ascii=True))
        else:
            _show(alert, console)


def _show(alert: "ReadAlert", console: Console) -> None:
    from nap_stream.alert.render import render

    if alert.event is not None:
        console.print(render(alert.event))
        console.print()


def _alert_topic(config: Path | None) -> str:
    from nap_stream.settings import AlertSettings
    from nap_stream.settings_loader import load_alert_settings

    return AlertSettings().topic if config is None else load_alert_settings(config).topic
