"""What a run shows of itself: a live line in a terminal, an event now and then elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nap_stream.clock import Clock, SystemClock
from nap_stream.runtime.status import CoordinatorStatus

EVENT_EVERY_S = 10.0

Show = Callable[[CoordinatorStatus], None]


@contextmanager
def status_display(console: Console, clock: Clock | None = None) -> Iterator[Show]:
    """A function that shows a status: live on a terminal, as a log event every 10 s elsewhere."""
    clock = clock or SystemClock()
    if not console.is_terminal:
        yield _events(clock)
        return
    with Live(Text("starting…"), console=console, refresh_per_second=4, transient=False) as live:
        yield lambda status: live.update(status_text(status))


def status_text(status: CoordinatorStatus) -> Text:
    """One line for a person: rates, the OOD fraction against its bound, lag, alert state."""
    firing = status.alert_state == "firing"
    text = Text.assemble(
        (f" {_state(status)} ", "bold white on red" if firing else "black on green"),
        f"  {status.rows:,} rows",
        f"  {status.images_per_second:,.1f} images/s",
        f"  OOD {_percent(status.ood_fraction)} (bound {_percent(status.bound)})",
        f"  lag {'?' if status.max_lag is None else format(status.max_lag, ',')}",
        f"  workers {len(status.workers)}",
    )
    if status.ood_fraction is None:
        text.append(f"  window {status.window_records:,}/{status.window_size:,}")
    if status.keys_firing:
        text.append(f"  keys firing {status.keys_firing:,} of {status.keys:,}", "bold red")
    if status.dead_letters:
        text.append(f"  dead letters {status.dead_letters:,}", "yellow")
    if status.alerts_waiting:
        text.append(f"  alerts waiting {status.alerts_waiting:,}", "bold red")
    if status.waiting_for:
        text.append(f"  waiting: {_first_wait(status)}", "yellow")
    return text


def _events(clock: Clock) -> Show:
    shown_at = float("-inf")

    def show(status: CoordinatorStatus) -> None:
        nonlocal shown_at
        if clock.monotonic() - shown_at < EVENT_EVERY_S:
            return
        shown_at = clock.monotonic()
        structlog.get_logger().info(
            "status",
            alert_state=str(status.alert_state),
            severity=status.severity,
            keys_firing=status.keys_firing,
            rows=status.rows,
            images_per_second=round(status.images_per_second, 1),
            ood_fraction=status.ood_fraction,
            bound=status.bound,
            max_lag=status.max_lag,
            dead_letters=status.dead_letters,
            waiting_for=dict(status.waiting_for),
        )

    return show


def _state(status: CoordinatorStatus) -> str:
    """The alert's state, and its severity while it fires."""
    severity = "" if status.severity is None else f" {status.severity.upper()}"
    return f"{status.alert_state.upper()}{severity}"


def _first_wait(status: CoordinatorStatus) -> str:
    """What the first worker waits for, and how many others wait too."""
    worker, what = min(status.waiting_for.items())
    others = len(status.waiting_for) - 1
    return f"{worker}: {what}" + (f" (and {others} more)" if others else "")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"
