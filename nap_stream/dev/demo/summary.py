"""What the demo shows at its end: all of it read back from the scored log and the alert topic."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.dev.demo.folder import DemoFolder
from nap_stream.dev.demo.history import LoggedImage
from nap_stream.dev.demo.outcome import Check
from nap_stream.dev.demo.picture import Picture, chart
from nap_stream.scored_log.local_store import LocalStore
from nap_stream.scored_log.query import GroupBy, Query, aggregate

CHART_HEIGHT = 12
MAX_CHART_WIDTH = 110


def show_chart(picture: Picture, console: Console) -> None:
    """Draw the OOD fraction against its bound."""
    console.print()
    _title("OOD fraction of the rolling window, from the scored log", console)
    width = min(console.width, MAX_CHART_WIDTH)
    console.print(chart(picture, width=width, height=CHART_HEIGHT), soft_wrap=True)


def show_counts(root: Path, images: Sequence[LoggedImage], console: Console) -> None:
    """Show what is in the log: counts by predicted class, by what was sent, and by camera."""
    console.print()
    _title("Query over the log: by predicted class (nap-stream query --by class)", console)
    console.print(_class_table(aggregate(LocalStore(root), Query(), GroupBy.CLASS)))
    console.print()
    _title("The same by what was really sent, which only the files' names tell", console)
    console.print(_table_by("kind", images, lambda image: image.kind))
    console.print()
    _title("And by camera, from the header `camera`", console)
    console.print(_table_by("camera", images, lambda image: image.camera))


def show_outcome(checks: Sequence[Check], console: Console) -> None:
    """Say what held and what did not."""
    console.print()
    _title("Outcome", console)
    for check in checks:
        verdict = ("ok      ", "green") if check.holds else ("FAILED  ", "bold red")
        found = (f"  ({check.found})", "dim")
        console.print(Text.assemble(verdict, check.claim, found), soft_wrap=True)


def show_places(folder: DemoFolder, console: Console) -> None:
    """Say where everything lies, and what can be tried on it."""
    console.print()
    _title(f"Everything lies in {folder.root}", console)
    places: Mapping[Path, str] = {
        folder.config: "the monitor's configuration",
        folder.weights: "the trained network",
        folder.images: "all images, as PNG files",
        folder.calibration: "the calibration",
        folder.log: "the scored log, in Parquet",
        folder.alerts: "the alerts, as CloudEvents",
        folder.picture: "the picture",
        folder.monitor_output: "what the monitor printed",
    }
    table = _plain_table()
    for path, text in places.items():
        table.add_row(Text(path.name), Text(text))
    console.print(table)
    console.print()
    _title("Try next (the demo's broker is gone; these need none)", console)
    program, config = _program(), folder.config
    for command in (
        f"query --config {config} --ood --limit 10",
        f"query --config {config} --by hour --format json",
        f"verify --config {config} --deep",
        f"replay --config {config}",
        f"plan --config {config}",
    ):
        console.print(Text(f"  {program} {command}"), soft_wrap=True)


def show_duration(seconds: float, console: Console) -> None:
    """Say how long all of it took."""
    console.print()
    console.print(Text(f"The demo took {seconds:.1f} s."))


def _class_table(counts: Any) -> Table:
    table = _table("class", "rows", "OOD", "OOD fraction")
    for row in counts.to_pylist():
        name = "(not scored)" if row["class_name"] is None else row["class_name"]
        fraction = row["ood_fraction"]
        shown = "-" if fraction is None else f"{fraction:.1%}"
        table.add_row(Text(name), str(row["rows"]), str(row["ood"]), shown)
    return table


def _table_by(name: str, images: Sequence[LoggedImage], of: Callable[[LoggedImage], str]) -> Table:
    table = _table(name, "rows", "OOD", "OOD fraction")
    for value in sorted({of(image) for image in images}):
        flags = [image.is_ood for image in images if of(image) == value]
        flagged = sum(1 for flag in flags if flag)
        table.add_row(Text(value), str(len(flags)), str(flagged), f"{flagged / len(flags):.1%}")
    return table


def _table(name: str, *numbers: str) -> Table:
    table = _plain_table()
    table.show_header = True
    table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _plain_table() -> Table:
    return Table(show_header=False, show_edge=False, pad_edge=False, box=None, padding=(0, 2))


def _title(text: str, console: Console) -> None:
    console.print(Text(text, style="bold"), soft_wrap=True)


def _program() -> str:
    """How to call this program from the shell that called it."""
    if shutil.which("nap-stream"):
        return "nap-stream"
    called = Path(sys.argv[0])
    return str(called) if called.name == "nap-stream" else f"{sys.executable} -m nap_stream"
