"""nap-stream doctor."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

STYLES = {"ok": "green", "failed": "bold red", "skipped": "dim"}


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The monitor's YAML file.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster, as for ray.init.")] = None,
    create_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create the topics that are missing.")
    ] = False,
) -> None:
    """Check this installation and say what to do about each failure.

    Exit code 0 where nothing failed, 1 otherwise.

    \b
    Examples:
      nap-stream doctor
      nap-stream doctor --config monitor.yaml --create-topics
    """
    from nap_stream.runtime.doctor import Outcome, examine
    from nap_stream.settings_loader import load_settings

    settings = load_settings(config) if config is not None else None
    console = Console(soft_wrap=True, highlight=False)
    failed = False
    for finding in examine(settings, address=address, make_topics=create_topics):
        outcome = finding.outcome.value
        console.print(
            Text.assemble((f"{outcome:8}", STYLES[outcome]), f"{finding.check:12}", finding.detail)
        )
        if finding.outcome is Outcome.FAILED:
            failed = True
            if finding.action:
                console.print(Text(f"{'':20}→ {finding.action}"))
    sys.exit(1 if failed else 0)
