"""The program: its commands, and how it ends where one of them fails."""

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import nap_stream
from nap_stream.cli.alerts import alerts, replay
from nap_stream.cli.baseline import baseline, compare
from nap_stream.cli.bench import bench
from nap_stream.cli.calibrate import build_calibration_app, calibrate
from nap_stream.cli.demo import demo, produce
from nap_stream.cli.evaluate import evaluate
from nap_stream.cli.events import ack, history
from nap_stream.cli.init import init
from nap_stream.cli.log import compact, prune
from nap_stream.cli.plan import plan
from nap_stream.cli.proof import checkpoint, checkpoint_key, verify_export
from nap_stream.cli.query import query, sql
from nap_stream.cli.rebaseline import rebaseline
from nap_stream.cli.report import report
from nap_stream.cli.run import doctor, run
from nap_stream.cli.show import erase, show
from nap_stream.cli.verify import verify
from nap_stream.errors import ConfigError, NapStreamError
from nap_stream.process import configure_logging
from nap_stream.text import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"nap-stream {nap_stream.__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The Typer application."""
    # Typer's own tracebacks would show local variables, and with them secrets.
    app = typer.Typer(
        name="nap-stream",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _root(
        _version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True)
        ] = False,
    ) -> None:
        """Out-of-distribution monitoring for image classifiers on Kafka streams.

        \b
        Write a configuration, calibrate on held-out in-distribution images, run the monitor:
          nap-stream init
          nap-stream calibrate --model monitor.yaml --images held-out/ --out calibration/
          nap-stream run --config monitor.yaml

        \b
        See it at work without anything of your own:
          nap-stream demo
        """
        # Standard output is for what a command has found.
        configure_logging(for_people=True, level=logging.WARNING)

    for command in (
        *(init, calibrate, evaluate, plan),
        *(run, produce, alerts),
        *(baseline, compare, rebaseline),
        *(query, sql, show, report, replay, verify, compact, prune),
        *(history, ack, erase),
        *(checkpoint_key, checkpoint, verify_export),
        *(doctor, bench, demo),
    ):
        app.command()(command)
    app.add_typer(build_calibration_app(), name="calibration")
    return app


def main() -> None:
    """Run the program; a user's mistake ends it with a sentence, not with a traceback."""
    try:
        build_app()()
    except NapStreamError as error:
        # Names of topics and files come from outside: the terminal must not obey them.
        lines = [printable(line) for line in str(error).splitlines()]
        message = Text("error: " + "\n".join(lines))
        message.stylize("bold red", 0, len("error:"))
        Console(stderr=True, soft_wrap=True).print(message)
        sys.exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe, such as head, has gone: nothing is wrong here.
        sys.stderr.close()
        sys.exit(0)
