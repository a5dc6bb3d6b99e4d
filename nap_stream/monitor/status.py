"""How a run is: where workers and drift stand now, and how that is shown.

The status, and its display: a live line in a terminal, an event now and then elsewhere.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from rich.console import Console
from rich.live import Live
from rich.text import Text

from nap_stream.clock import Clock, SystemClock
from nap_stream.core.alert_state import AlertState
from nap_stream.drift.records import DriftSnapshot, MonthlyEffect
from nap_stream.records import Status, WorkerReport
from nap_stream.text import duration, listed, moment, rfc3339

SHOWN = 5
"""Of topics or partitions, in a sentence."""


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """The run now.

    ``rows_by_status`` counts those in the log since this coordinator started, or since the run did
    where it must end after so many; ``images_scored`` and ``dead_letters`` are the workers' own
    counts. ``window_size`` is how many records a full window has. ``max_lag`` (offsets) is null
    until a lag is known. ``alerts_fired`` and ``alerts_resolved`` count those that began and ended
    here, of the stream and of keys. ``workers`` holds the last report of each, without stage times;
    ``waiting_for`` says of each that waits for something outside of it what that is. ``now_ms`` is
    when all this was so. An OOD fraction is stale whose newest image is older than
    ``stale_after_s``. ``workers_expected`` is how many the settings ask for. ``signing_failure``
    says why the log's newest signed checkpoint was not made; None where it was, or none is wanted.
    ``events_lost`` says what the log's chain of events lacks for good. ``wrong_clocks`` says whose
    clocks are far from the coordinator's. ``topics_gone`` were read by a pattern and are there no
    more; ``unread`` are partitions that drift waits for, as the log has them and no worker says how
    far they are. ``topics_left_out`` says of topics, of several, why not all of them is read, and
    ``nothing_left`` that nothing is of any. ``started_ms`` is when this coordinator started,
    and ``metrics_url`` where it is scraped, once it is.
    """

    rows_by_status: Mapping[Status, int]
    drift: DriftSnapshot
    window_size: int
    images_scored: int
    images_per_second: float
    alerts_fired: int
    alerts_resolved: int
    alerts_waiting: int
    max_lag: int | None
    dead_letters: int
    worker_restarts: int
    workers: Mapping[str, WorkerReport]
    waiting_for: Mapping[str, str] = field(default_factory=dict)
    now_ms: int = 0
    stale_after_s: float = math.inf
    workers_expected: int = 1
    signing_failure: str | None = None
    events_lost: str | None = None
    wrong_clocks: tuple[str, ...] = ()
    topics_gone: Sequence[str] = ()
    topics_left_out: Mapping[str, str] = field(default_factory=dict)
    nothing_left: bool = False
    unread: tuple[str, ...] = ()
    started_ms: int = 0
    metrics_url: str | None = None

    @property
    def rows(self) -> int:
        """All rows, whatever their status."""
        return sum(self.rows_by_status.values())

    @property
    def alerts_firing(self) -> int:
        """Those of the stream and of keys that fire."""
        return self.drift.keys_firing + (self.drift.state is AlertState.FIRING)

    @property
    def ood_fraction(self) -> float | None:
        """The OOD fraction of the window; None until that is full."""
        return None if self.drift.bound is None else self.drift.fraction

    @property
    def stale_since_ms(self) -> int | None:
        """As of when the OOD fraction is, where that is long ago; None where it is of now."""
        end_ms = self.drift.window_end_ms
        is_stale = end_ms is not None and self.now_ms - end_ms > self.stale_after_s * 1000
        return end_ms if is_stale else None

    @property
    def decides(self) -> str | None:
        """What decides, and how the month compares; None where single records do."""
        blocks = self.drift.blocks
        if blocks is None:
            return None
        new = f"; {blocks.new_keys:,} keys are new" if blocks.new_keys else ""
        waiting = f", {blocks.waiting_keys:,} have no room to learn" if blocks.waiting_keys else ""
        return f"{blocks.words}{new}{waiting}{_month_words(blocks.month)}"

    @property
    def left_out(self) -> str:
        """What stands in ``topics_left_out``, of some topics."""
        return listed(tuple(self.topics_left_out.values()), SHOWN, "; ")

    def degraded(self) -> tuple[str, ...]:
        """Say what the alert state and the OOD fraction do not: that they are blind, or old."""
        return tuple(_degraded(self))


def _unseen(status: CoordinatorStatus) -> Iterator[str]:
    yield from status.topics_left_out.values()
    if status.topics_gone:
        yield f"the broker has no more of {listed(status.topics_gone, SHOWN)}, which the log has"
    if status.unread:
        yield f"drift is not judged further yet: no worker has {listed(status.unread, SHOWN)}"


def _month_words(month: MonthlyEffect | None) -> str:
    if month is None:
        return ""
    low, high = (f"{100 * bound:+.1f}" for bound in (month.low, month.high))
    return (
        f"; {rfc3339(month.month_ms)[:7]}: {month.share:.1%} out-of-distribution, "
        f"{100 * month.change:+.1f} points from the baseline (95 %: {low} to {high})"
    )


def _degraded(status: CoordinatorStatus) -> Iterator[str]:
    drift, unscored = status.drift, status.drift.unscored
    if status.signing_failure is not None:
        yield f"where the log ends was not signed: {status.signing_failure}"
    if status.events_lost is not None:
        yield status.events_lost
    yield from status.wrong_clocks
    yield from _unseen(status)
    if unscored is not None and unscored.severity is not None:
        since = moment(rfc3339(drift.unscored_since_ms or unscored.start_ms))
        statuses = ", ".join(f"{name} {count:,}" for name, count in unscored.by_status)
        yield (
            f"unscored-images fires since {since} ({unscored.severity}): {unscored.unscored:,} of "
            f"the last {unscored.images:,} images have no scores ({statuses})"
        )
    stale_ms = status.stale_since_ms
    if unscored is not None and drift.window_end_ms is None:
        yield "no image was scored yet: nothing is known of drift"
    elif stale_ms is not None and drift.fraction is not None:
        if unscored is None:
            why = "no image was scored since"
        elif unscored.end_ms > stale_ms:
            why = "none of the images since could be scored"
        elif status.max_lag:
            why = f"no later one was scored yet, with {status.max_lag:,} offsets still to be read"
        else:
            why = "no image came since"
        as_of = moment(rfc3339(stale_ms))
        yield f"the OOD fraction of {drift.fraction:.1%} is as of {as_of}: {why}"


EVENT_EVERY_S = 10.0

Show = Callable[[CoordinatorStatus], None]


@contextmanager
def status_display(console: Console, clock: Clock | None = None) -> Iterator[Show]:
    """A function that shows a status: live on a terminal, as a log event every 10 s elsewhere."""
    clock = clock or SystemClock()
    if not console.is_terminal:
        yield _events(clock)
        return
    waits = Text("starting: Ray, and the coordinator…")
    with Live(waits, console=console, refresh_per_second=4, transient=False) as live:
        yield lambda status: live.update(status_text(status))


def status_text(status: CoordinatorStatus) -> Text:
    """One line for a person: rates, the OOD fraction against its bound, lag, alert state."""
    drift = status.drift
    is_firing = drift.state is AlertState.FIRING
    text = Text.assemble(
        (f" {_state(drift)} ", "bold white on red" if is_firing else "black on green"),
        f"  {status.rows:,} rows",
        f"  {status.images_per_second:,.1f} images/s",
        _ood_words(status),
        f"  lag {'?' if status.max_lag is None else format(status.max_lag, ',')}",
        f"  workers {len(status.workers)}",
    )
    if drift.unscored is not None and drift.unscored.unscored:
        share = drift.unscored
        is_told = share.severity is not None
        firing = f"UNSCORED IMAGES {share.severity.upper()}: " if share.severity else "unscored "
        text.append(
            f"  {firing}{share.unscored:,} of {share.images:,} ({share.share:.1%})",
            "bold red" if is_told else "yellow" if share.share > share.bound else "",
        )
    if status.decides:
        text.append(f"  {status.decides}", "dim")
    if awaited := first_wait(status):
        text.append(f"  {awaited}", "cyan")
    if drift.keys_firing:
        text.append(f"  keys firing {drift.keys_firing:,} of {drift.keys:,}", "bold red")
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
        shown_at, unscored = clock.monotonic(), status.drift.unscored
        structlog.get_logger().info(
            "status",
            alert_state=str(status.drift.state),
            severity=status.drift.severity,
            keys_firing=status.drift.keys_firing,
            rows=status.rows,
            images_per_second=round(status.images_per_second, 1),
            ood_fraction=status.ood_fraction,
            ood_fraction_as_of=_time(status.drift.window_end_ms),
            bound=status.drift.bound,
            unscored=None if unscored is None else unscored.share,
            degraded=list(status.degraded()),
            **({} if status.decides is None else {"decides": status.decides}),
            awaits=first_wait(status),
            max_lag=status.max_lag,
            dead_letters=status.dead_letters,
            waiting_for=dict(status.waiting_for),
        )

    return show


def first_wait(status: CoordinatorStatus) -> str:
    """Say what a run waits for until its window is full; empty afterwards."""
    if status.ood_fraction is not None:
        return ""
    drift, size = status.drift, status.window_size
    heard, wanted = len(status.workers), status.workers_expected
    if drift.window_records:
        return f"{drift.window_records:,} of {size:,} images until the window is full"
    if heard < wanted:
        return f"waiting for {wanted - heard} of {wanted} workers to load the model"
    if not any(report.partitions for report in status.workers.values()):
        return "waiting to join the group"
    if not status.rows and not status.images_scored:
        return "waiting for the first images" if not status.max_lag else "scoring the first images"
    return "waiting for the first images with scores to be judged"


def _ood_words(status: CoordinatorStatus) -> tuple[str, str]:
    drift = status.drift
    words = f"  OOD {_percent(status.ood_fraction)}"
    if (stale_ms := status.stale_since_ms) is not None:
        ago = duration(status.now_ms - stale_ms)
        words += f" as of {moment(rfc3339(stale_ms))}, {ago} ago"
    return f"{words} (bound {_percent(drift.bound)})", "" if stale_ms is None else "yellow"


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else rfc3339(time_ms)


def _state(drift: DriftSnapshot) -> str:
    severity = "" if drift.severity is None else f" {drift.severity.upper()}"
    return f"{drift.state.upper()}{severity}"


def _first_wait(status: CoordinatorStatus) -> str:
    worker, what = min(status.waiting_for.items())
    others = len(status.waiting_for) - 1
    return f"{worker}: {what}" + (f" (and {others} more)" if others else "")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"
