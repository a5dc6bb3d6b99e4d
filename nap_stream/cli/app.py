"""The program: its commands, and how it ends where one of them fails."""

import errno
import logging
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import nap_stream
from nap_stream.errors import ConfigError, NapStreamError
from nap_stream.text import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
"""As a shell has it of a program that SIGPIPE has ended."""
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True, slots=True)
class _Command:
    """A command, by its name: its module, and what the list of commands says of it."""

    module: str
    short_help: str

    def load(self, name: str) -> Any:
        """Import it, and give what typer makes of it."""
        module = import_module(f"nap_stream.cli.{self.module}")
        if name == "calibration":
            return get_command(module.build_calibration_app())
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(getattr(module, name.replace("-", "_")))
        return get_command(app)


COMMANDS = {
    "init": _Command("init", "Write a first monitor.yaml, of a topic and a model."),
    "calibrate": _Command("calibrate", "Calibrate on held-out in-distribution images."),
    "evaluate": _Command("evaluate", "Measure how well methods tell OOD images apart."),
    "plan": _Command("plan", "Say what a promise about false alarms costs."),
    "run": _Command("run", "Run the monitor until it is stopped."),
    "reload": _Command("reload", "Have a running monitor take up other settings."),
    "produce": _Command("demo", "Send image files as messages, for a trial."),
    "alerts": _Command("alerts", "Print the alerts of the alert topic."),
    "baseline": _Command("baseline", "Make a stretch of the log a baseline."),
    "compare": _Command("baseline", "Compare a stretch of the log with a baseline."),
    "rebaseline": _Command("rebaseline", "Accept a known change of one key."),
    "query": _Command("query", "Show rows of the scored log, or count them."),
    "sql": _Command("query", "Ask the scored log in SQL."),
    "show": _Command("show", "Show one row: its picture and what decided it."),
    "report": _Command("report", "Write a report of a period as one HTML page."),
    "replay": _Command("alerts", "Recompute all alerts from the scored log."),
    "verify": _Command("verify", "Check that the log is whole."),
    "compact": _Command("log", "Merge the segments of hours and days."),
    "prune": _Command("log", "Remove the oldest rows of the log, for good."),
    "history": _Command("events", "Show what happened, by whom and when."),
    "ack": _Command("events", "Acknowledge an alert."),
    "erase": _Command("show", "Erase images that were kept as evidence."),
    "checkpoint-key": _Command("proof", "Make a key that signs checkpoints and exports."),
    "checkpoint": _Command("proof", "Sign where all chains of the log end now."),
    "verify-export": _Command("proof", "Check rows that were exported and signed."),
    "doctor": _Command("run", "Check this installation, and say what to do."),
    "bench": _Command("bench", "Measure how fast one worker is here."),
    "demo": _Command("demo", "See the monitor at work, with nothing of your own."),
    "calibration": _Command("calibrate", "Look at a calibration."),
}
"""The program's commands, in the order in which help lists them.

A command is imported when it is called: the others do not wait for what it needs.
"""


class _Commands(TyperGroup):
    """The commands by name; see `COMMANDS`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name, loaded."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, COMMANDS[name].load(name) if name in COMMANDS else command, rest


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"nap-stream {nap_stream.__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The Typer application."""
    # Typer's own tracebacks would show local variables, and with them secrets.
    app = typer.Typer(
        name="nap-stream",
        cls=_Commands,
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
        from nap_stream.process import configure_logging

        # Standard output is for what a command has found.
        configure_logging(for_people=True, level=logging.WARNING)

    def unloaded() -> None:
        """In the place of a command, for the list."""
        raise AssertionError("a command is loaded when it is called by its name")

    for name, command in COMMANDS.items():
        app.command(name, short_help=command.short_help)(unloaded)
    return app


def main() -> None:
    """Run the program; a user's mistake ends it with a sentence, not with a traceback."""
    try:
        build_app()()
    except NapStreamError as error:
        _tell(str(error))
        sys.exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as ended:
        # The reader of a pipe, such as head, has gone. Typer and rich have that end with 1, which
        # some commands have for a defect; and 0 would say that all was told.
        if isinstance(ended.__context__, BrokenPipeError):
            sys.exit(EXIT_READER_GONE)
        raise
    except OSError as error:
        if error.errno not in _NOT_WRITTEN or error.filename is not None:
            raise
        # Parquet goes through a temporary file, where a position can be told.
        _tell(f"standard output or a temporary file: cannot write: {error.strerror}")
        sys.exit(EXIT_FAILED)


def _tell(problem: str) -> None:
    from rich.console import Console
    from rich.text import Text

    # Names of topics and files come from outside: the terminal must not obey them.
    lines = [printable(line) for line in problem.splitlines()]
    message = Text("error: " + "\n".join(lines))
    message.stylize("bold red", 0, len("error:"))
    Console(stderr=True, soft_wrap=True).print(message)
