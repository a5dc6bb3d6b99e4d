"""nap-stream run, and nap-stream doctor, which says whether it can."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from nap_stream.cli.options import ConfigOption, show_warnings
from nap_stream.errors import WorkerError
from nap_stream.settings.load import load_settings, masked_yaml


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="The monitor's YAML file.")],
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, as for ray.init; Ray on this machine without it."),
    ] = None,
    until_idle: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.5, help="End when nothing came for so long."),
    ] = None,
    max_records: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End once at least N records are logged.")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Show the settings in force, and end. Secrets are masked: fill them in again.",
        ),
    ] = False,
) -> None:
    """Run the monitor until it is stopped (SIGTERM, Ctrl-C) or a limit is reached.

    \b
    Example:
      nap-stream run --config monitor.yaml
      nap-stream run --config monitor.yaml --until-idle 10

    Settings can be overridden from the environment, for example
    NAP_STREAM__KAFKA__BOOTSTRAP_SERVERS=broker:9092.
    """
    settings = load_settings(config)
    if print_config:
        typer.echo(masked_yaml(settings), nl=False)
        return
    # Ray reads it when it is imported; without it, alike events of different workers are merged.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    from nap_stream.monitor.run import run_monitor
    from nap_stream.monitor.status import status_display
    from nap_stream.process import configure_logging

    console = Console(stderr=True)
    configure_logging(for_people=console.is_terminal)
    with status_display(console) as show:
        result = run_monitor(
            settings,
            address=address,
            until_idle_s=until_idle,
            max_records=max_records,
            on_status=show,
        )
    if result.status is not None:
        # A drift alert that did not fire says nothing of what could not be read.
        show_warnings(result.status.degraded(), console)
    if result.unclean:
        raise WorkerError(
            "did not publish, commit and leave within driver.shutdown_deadline_s",
            ", ".join(result.unclean),
            "Nothing is lost: the next run takes up where the log ends",
        )


STYLES = {"ok": "green", "failed": "bold red", "skipped": "dim"}


def doctor(
    config: ConfigOption = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster, as for ray.init.")] = None,
    create_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create the topics that are missing.")
    ] = False,
) -> None:
    """Check this installation and say what to do about each failure.

    Exit code 0 where nothing failed, 1 otherwise. A calibration's warnings fail nothing.

    \b
    Examples:
      nap-stream doctor
      nap-stream doctor --config monitor.yaml --create-topics
    """
    from nap_stream.doctor import Outcome, examine

    settings = load_settings(config) if config is not None else None
    console = Console(soft_wrap=True, highlight=False)
    failed = False
    for finding in examine(settings, address=address, make_topics=create_topics):
        outcome = finding.outcome.value
        console.print(
            Text.assemble((f"{outcome:8}", STYLES[outcome]), f"{finding.check:12}", finding.detail)
        )
        show_warnings(finding.warnings, console)
        if finding.outcome is Outcome.FAILED:
            failed = True
            if finding.action:
                console.print(Text(f"{'':20}→ {finding.action}"))
    sys.exit(1 if failed else 0)
