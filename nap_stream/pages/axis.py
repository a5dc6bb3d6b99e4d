"""Where the parts of a chart lie. Across, all is in per cent of its period; up, of its height."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from nap_stream.text import LATEST_MS

Span = tuple[int, int]
_HOUR_MS = 3_600_000
_FORMS = {7_200: "%b %Y", 96: "%d %b", 24: "%d %b %H:%M", 1: "%H:%M", 0: "%H:%M:%S"}
"""How times are written, by the least hours of the period."""
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
_MOST_LINES = 5


@dataclass(frozen=True, slots=True)
class Axis:
    """A period across a chart: ``[since_ms, until_ms)``, milliseconds since the epoch."""

    since_ms: int
    until_ms: int

    @property
    def period(self) -> Span:
        """The same as a pair."""
        return self.since_ms, self.until_ms

    def at(self, time_ms: int) -> float:
        """How far along a time is, from 0 to 100."""
        along = (time_ms - self.since_ms) / (self.until_ms - self.since_ms)
        return round(100 * min(1.0, max(0.0, along)), 3)

    def bar(self, span: Span) -> tuple[float, float]:
        """Where a stretch of time begins, and how wide it is; wide enough to be seen."""
        start = self.at(span[0])
        return min(start, 99.8), max(0.2, round(self.at(span[1]) - start, 3))

    @property
    def ticks(self) -> list[tuple[float, str, str]]:
        """Where labels stand, at which of their ends, and what they say."""
        span_ms = self.until_ms - self.since_ms
        form = next(form for least, form in _FORMS.items() if span_ms >= least * _HOUR_MS)
        anchors = ("start", *["middle"] * 3, "end")
        times = (min(self.since_ms + span_ms * place / 4, LATEST_MS) for place in range(5))
        labels = (f"{datetime.fromtimestamp(time / 1000, UTC):{form}}" for time in times)
        return [(25.0 * n, *each) for n, each in enumerate(zip(anchors, labels, strict=True))]


def heights(
    tops: Iterable[float],
) -> tuple[Callable[[float], float], tuple[tuple[float, str], ...]]:
    """How high shares are drawn, from 100 at the lower edge to 0, and the lines of the grid.

    ``tops`` are shares that are to be seen, with some room above them.
    """
    highest = min(1.0, max([0.02, *(1.25 * top for top in tops)]))
    step = next((s for s in _STEPS if highest / s < _MOST_LINES), 0.5)

    def up(share: float) -> float:
        return round(100 - 100 * min(1.0, share / highest), 2)

    lines = range(1, int(highest / step + 1e-9) + 1)
    return up, tuple((up(step * n), f"{100 * step * n:.3g} %") for n in lines)
