"""What the demo shows while it runs: a line for each step, a live line while the stream flows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nap_stream.alert.render import render
from nap_stream.clock import Clock
from nap_stream.dev.demo.monitor_process import MonitorView

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
    view: MonitorView | None


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
