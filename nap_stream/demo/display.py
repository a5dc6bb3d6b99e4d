"""What the demo shows: each step as it happens, the stream as it flows, and what came of it.

Everything but the live line is read back from the scored log and the alert topic.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nap_stream.alert.render import render
from nap_stream.clock import Clock

if TYPE_CHECKING:
    # At run time they would load PyTorch before the first step can be shown.
    import pyarrow as pa

    from nap_stream.demo.outcome import Check, LoggedImage
    from nap_stream.demo.processes import MonitorView

PLAIN_EVERY_S = 3.0
"""How often the state of the stream is printed where no live line can be."""
BRIEF_LINES = 3
"""The headline, what is the matter, and since when; `nap-stream alerts` shows the rest."""
_REDRAWS_A_SECOND = 4


@dataclass(frozen=True, slots=True)
class StreamState:
    """The stream now: the phase that is sent, images sent of all, what the monitor shows."""

    phase: str
    sent: int
    total: int
    view: "MonitorView | None"


class Display:
    """Prints to a console.

    Args:
        console: A terminal, or anything else: then there are plain lines alone.
        clock: For the seconds since construction that stand before each step.
    """

    def __init__(self, console: Console, clock: Clock) -> None:
        self.console = console
        self._clock = clock
        self._started = clock.monotonic()
        self._live: Live | None = None
        self._printed_at = float("-inf")
        self._alerts = 0

    def seconds(self) -> float:
        """Since construction."""
        return self._clock.monotonic() - self._started

    def step(self, text: str, style: str = "") -> None:
        """Print a line about what happened."""
        self._print(Text.assemble((f"{self.seconds():5.1f} s  ", "dim"), (text, style)))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what is waited for, with something that moves on a terminal."""
        self.step(text)
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(text):
            yield

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Show the stream's state live while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            Text(), console=self.console, refresh_per_second=_REDRAWS_A_SECOND, transient=True
        ) as self._live:
            yield
        self._live = None

    def update(self, state: StreamState) -> None:
        """Show the stream's state: at once on a terminal, every few seconds elsewhere."""
        if self._live is not None:
            self._live.update(_state_line(state))
            return
        now = self._clock.monotonic()
        if now - self._printed_at >= PLAIN_EVERY_S:
            self._printed_at = now
            self.step(_state_line(state).plain)

    def alert(self, event: Mapping[str, Any]) -> None:
        """Print an alert as it came from its topic: the first one whole, others in brief."""
        self.step("alert from the alert topic:", "bold")
        text = render(event)
        self._print(text if self._alerts == 0 else Text("\n").join(text.split()[:BRIEF_LINES]))
        self._alerts += 1

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)


def _state_line(state: StreamState) -> Text:
    text = Text.assemble(
        (f"{state.phase:<12}", "bold"), f"  {state.sent:>4,} of {state.total:,} sent"
    )
    view = state.view
    if view is None:
        return text.append("  (no metrics)", "dim")
    text.append(f"  {view.rows:>4,} in the log  ")
    if view.ood_fraction is None or view.bound is None:
        return text.append("window filling", "dim")
    text.append(f"OOD {view.ood_fraction:5.1%} (bound {view.bound:.1%})  ")
    return text.append("FIRING", "bold red") if view.firing else text.append("quiet", "green")


def show_counts(by_class: "pa.Table", images: "Sequence[LoggedImage]", console: Console) -> None:
    """Show what is in the log: counts by predicted class, by what was sent, and by camera."""
    _title("Query over the log: by predicted class (nap-stream query --by class)", console)
    classes = [
        (row["class_name"] or "(not scored)", row["rows"], row["ood"], row["ood_fraction"])
        for row in by_class.to_pylist()
    ]
    console.print(_counts_table("class", classes))
    _title("The same by what was really sent, which only the files' names tell", console)
    console.print(_counts_table("kind", _counts(images, lambda image: image.kind)))
    _title("And by camera, from the header `camera`", console)
    console.print(_counts_table("camera", _counts(images, lambda image: image.camera)))


def show_outcome(checks: "Sequence[Check]", console: Console) -> None:
    """Say what held and what did not."""
    _title("Outcome", console)
    for check in checks:
        verdict = ("ok      ", "green") if check.holds else ("FAILED  ", "bold red")
        found = (f"  ({check.found})", "dim")
        console.print(Text.assemble(verdict, check.claim, found), soft_wrap=True)


def show_places(
    root: Path, contents: Mapping[Path, str], config: Path, report: Path, console: Console
) -> None:
    """Say what lies where, what can be tried on it, and, last, where the report is."""
    _title(f"Everything lies in {root}", console)
    table = _plain_table()
    for path, text in contents.items():
        table.add_row(Text(path.name), Text(text))
    console.print(table)
    _title("Try next (the demo's broker is gone; these need none)", console)
    program = _program()
    for command in (
        f"query --config {config} --ood --limit 10",
        f"query --config {config} --by hour --format json",
        f"report --config {config} --out report.html",
        f"verify --config {config} --deep",
        f"replay --config {config}",
        f"plan --config {config}",
    ):
        console.print(Text(f"  {program} {command}"), soft_wrap=True)
    _title(f"The report of this run, for a browser: {report.resolve().as_uri()}", console)


_Count = tuple[str, int, int, float | None]
"""What was counted, rows, OOD rows, and their fraction where any was scored."""


def _counts(
    images: "Sequence[LoggedImage]", of: "Callable[[LoggedImage], str]"
) -> Iterator[_Count]:
    for value in sorted({of(image) for image in images}):
        flags = [bool(image.is_ood) for image in images if of(image) == value]
        yield value, len(flags), sum(flags), sum(flags) / len(flags)


def _counts_table(name: str, counts: Iterable[_Count]) -> Table:
    table = _plain_table()
    table.show_header = True
    table.add_column(name)
    for number in ("rows", "OOD", "OOD fraction"):
        table.add_column(number, justify="right")
    for value, rows, ood, fraction in counts:
        shown = "-" if fraction is None else f"{fraction:.1%}"
        table.add_row(Text(value), str(rows), str(ood), shown)
    return table


def _plain_table() -> Table:
    return Table(show_header=False, show_edge=False, pad_edge=False, box=None, padding=(0, 2))


def _title(text: str, console: Console) -> None:
    console.print()
    console.print(Text(text, style="bold"), soft_wrap=True)


def _program() -> str:
    """How to call this program from the shell that called it."""
    if shutil.which("nap-stream"):
        return "nap-stream"
    called = Path(sys.argv[0])
    return str(called) if called.name == "nap-stream" else f"{sys.executable} -m nap_stream"
