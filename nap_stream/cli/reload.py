"""nap-stream reload: a monitor that runs takes up what its configuration says now."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nap_stream.cli.options import show_warnings, tell
from nap_stream.clock import SystemClock
from nap_stream.fetched import shown
from nap_stream.process import user_name
from nap_stream.settings.load import load_kafka_settings, place_of
from nap_stream.text import bounded, moment, printable, rfc3339

if TYPE_CHECKING:
    from nap_stream.monitor.mailbox import Answer


def reload(
    config: Annotated[Path, typer.Option("--config", "-c", help="The monitor's YAML file.")],
    address: Annotated[
        str | None,
        typer.Option(
            help="The Ray cluster that it runs on, as for ray.init; RAY_ADDRESS, or Ray on this "
            "machine, without it."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long to wait for the outcome.")
    ] = 900.0,
) -> None:
    """Have a monitor that runs take up other settings, another calibration or model.

    Its driver reads the configuration again that it was started with, with its own environment,
    and checks all of it, and the model where that may be another, before anything is touched: what
    is refused changes nothing. Then the workers publish, commit and leave, and new ones go on where
    they ended. No offset is left out or judged twice. --config says which monitor it is, by
    kafka.group_id.

    What makes it another monitor is refused: kafka's servers, topics and group, log.root,
    alerts.monitor and alerts.topic, and where its metrics are.

    Exit code 0 where it is in force, or nothing has changed; 1 where it was refused, or no answer
    came in time.

    \b
    Examples:
      nap-stream reload --config monitor.yaml --address 10.0.0.1:6379
      kill -HUP PID          # the same, for a run that has started Ray by itself; its log answers
    """
    group, told, warned = load_kafka_settings(config).group_id, False, False
    given = shown(place_of(config))
    waits = {
        "asked": "waiting for the driver",
        "checking": "checking settings, calibration and model",
        "replacing": "the workers publish, commit and leave",
        "loading": "new workers load the model",
    }
    console = Console(stderr=True)
    with console.status("looking for the monitor") as status:
        from nap_stream.monitor.session import ask_reload

        def show(answer: "Answer") -> None:
            nonlocal told, warned
            if not told and answer.source != given:
                tell(f"the driver reads {answer.source} again, not {given}")
            told = True
            if not warned:
                show_warnings(answer.warnings, console)
                warned = bool(answer.warnings)
            if answer.stage.value in waits:
                status.update(waits[answer.stage.value])
                if not console.is_terminal:
                    tell(waits[answer.stage.value])

        answer = ask_reload(
            group,
            bounded(f"{user_name() or 'somebody'}@{platform.node()}"),
            address=address,
            timeout_s=timeout,
            clock=SystemClock(),
            on_answer=show,
        )
    since = "" if answer.since_ms is None else f" since {moment(rfc3339(answer.since_ms))}"
    if not answer.changes:
        typer.echo(f"nothing has changed: the settings that are read are in force{since}")
        return
    typer.echo(f"in force{since}:")
    for name, was, now in answer.changes:
        typer.echo(printable(f"  {name}: {was} → {now}"))
