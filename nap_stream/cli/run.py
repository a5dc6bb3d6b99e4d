"""nap-stream run, and nap-stream doctor, which says whether it can."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from nap_stream.cli.images import images_table
from nap_stream.cli.options import ConfigOption, show_warnings
from nap_stream.errors import BrokerError, WorkerError
from nap_stream.fetched import shown
from nap_stream.settings.load import (
    load_settings,
    load_uncalibrated_settings,
    masked_yaml,
    place_of,
)
from nap_stream.text import listed, printable

if TYPE_CHECKING:
    from nap_stream.doctor import Finding


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

    SIGHUP, or `nap-stream reload`, has it take up what the file says now.

    Settings can be overridden from the environment, for example
    NAP_STREAM__KAFKA__BOOTSTRAP_SERVERS=broker:9092.
    """
    from nap_stream.process import configure_logging, note_hangups

    # Before the other imports, which take seconds: a signal that comes meanwhile is not the end.
    with note_hangups() as hangup:
        settings = load_settings(config)
        if print_config:
            typer.echo(masked_yaml(settings), nl=False)
            return
        # Ray reads it when it is imported; without it, alike events of other workers are merged.
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        from nap_stream.monitor.run import run_monitor
        from nap_stream.monitor.status import status_display

        console = Console(stderr=True)
        configure_logging(for_people=console.is_terminal)
        with status_display(console) as show:
            result = run_monitor(
                settings,
                address=address,
                until_idle_s=until_idle,
                max_records=max_records,
                on_status=show,
                hangup=hangup,
                reread=lambda: load_settings(config),
                source=shown(place_of(config)),
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
    if result.status is not None and result.status.topics_left_out and result.ending == "idle":
        raise BrokerError(
            "not all topics were read to their ends",
            listed(tuple(result.status.topics_left_out), 5),
            "See the warnings above; what is left out is in no row",
        )


STYLES = {"ok": "green", "failed": "bold red", "not yet": "yellow", "skipped": "dim"}
EXIT_NOT_YET = 3
_INDENT = 20


def doctor(
    config: ConfigOption = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster, as for ray.init.")] = None,
    create_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create the topics that are missing.")
    ] = False,
) -> None:
    """Check this installation and say what to do about each failure.

    With --config also the broker, the topics, the log, the model, the calibration, and the newest
    ten messages of the topic: what they hold, and what the model predicts. It joins no group.

    Exit code 0 where all is ready, 1 where something failed, 3 where nothing failed and the
    calibration is not there yet. A calibration's warnings fail nothing, nor does a message that
    cannot be read, unless none can.

    \b
    Examples:
      nap-stream doctor
      nap-stream doctor --config monitor.yaml --create-topics
    """
    console = Console(soft_wrap=True, highlight=False)
    outcomes = []
    # Before the imports, which take seconds.
    with Console(stderr=True).status("starting") as status:
        settings = None if config is None else load_uncalibrated_settings(config)
        from nap_stream.doctor import CHECKS, Outcome, examine

        status.update(f"checking {CHECKS[0]}")
        for finding in examine(
            settings,
            address=address,
            make_topics=create_topics,
            config="FILE" if config is None else shown(config),
        ):
            outcomes.append(finding.outcome)
            _show_finding(finding, console)
            following = CHECKS[CHECKS.index(finding.check) + 1 :]
            status.update(f"checking {following[0]}" if following else "")
    if Outcome.FAILED in outcomes:
        sys.exit(1)
    sys.exit(EXIT_NOT_YET if Outcome.NOT_YET in outcomes else 0)


def _show_finding(finding: "Finding", console: Console) -> None:
    outcome = finding.outcome.value
    console.print(
        Text.assemble(
            (f"{outcome:8}", STYLES[outcome]), f"{finding.check:12}", printable(finding.detail)
        )
    )
    show_warnings(finding.warnings, console)
    if finding.action:
        console.print(Text(f"{'':{_INDENT}}→ {printable(finding.action)}"))
    if finding.images:
        # A table wraps what a line may not.
        Console(highlight=False).print(images_table(finding.images))
