"""Where the parts of a report's charts lie. Across, all is in per cent of the period."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nap_stream.report.counts import Count
from nap_stream.report.history import Episode, Span
from nap_stream.text import LATEST_MS

_HOUR_MS = 3_600_000
_FORMS = {7_200: "%b %Y", 96: "%d %b", 24: "%d %b %H:%M", 1: "%H:%M", 0: "%H:%M:%S"}
"""How times are written, by the least hours of the period."""
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
_MOST_LINES = 5
_NEXT_LABEL = 3.0
"""Labels of alerts stand no closer than this: those between share one."""


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


@dataclass(frozen=True, slots=True)
class Chart:
    """The OOD fraction of a topic over time, in a box of 100 by 100 whose lower edge is 0.

    ``line``, ``band`` (its interval) and ``bound`` are paths of SVG. ``marks`` are alerts: where
    each begins, how wide it is, and its label, empty where it shares that of one before.
    ``shares`` are the lines of its grid.
    """

    topic: str
    line: str
    band: str
    bound: str
    marks: tuple[tuple[float, float, str], ...]
    shares: tuple[tuple[float, str], ...]


def coarser(times: Mapping[tuple[str, int], Count], width_ms: int, topic: str) -> dict[int, Count]:
    """The counts of a topic in wider stretches, by their starts, in order."""
    found: dict[int, Count] = {}
    for (name, start), count in sorted(times.items()):
        if name == topic:
            place = start // width_ms * width_ms
            found[place] = found.get(place, Count()) + count
    return found


def ood_chart(
    topic: str,
    points: Mapping[int, Count],
    width_ms: int,
    *,
    bounds: Sequence[tuple[Span, float]],
    alerts: Iterable[tuple[int, Episode]],
    axis: Axis,
) -> Chart:
    """Draw the OOD fraction of a topic.

    ``points`` are by their starts, ``width_ms`` wide; ``bounds`` with when each holds;
    ``alerts`` with their numbers.
    """
    scored = {start: count for start, count in points.items() if count.scored}
    tops = [count.share for count in scored.values()] + [bound for _, bound in bounds]
    highest = min(1.0, max([0.02, *(1.25 * top for top in tops)]))
    step = next((s for s in _STEPS if highest / s < _MOST_LINES), 0.5)

    def up(share: float) -> float:
        return round(100 - 100 * min(1.0, share / highest), 2)

    line, band, end = "", "", None
    for start, count in scored.items():
        left, right, level = axis.at(start), axis.at(start + width_ms), up(count.share)
        low, high = map(up, count.interval)
        line += f"V{level}H{right}" if start == end else f"M{left} {level}H{right}"
        band += f"M{left} {high}H{right}V{low}H{left}Z"
        end = start + width_ms
    bound = " ".join(
        f"M{axis.at(start)} {up(value)}H{axis.at(end)}"
        for (start, end), value in bounds
        if end > axis.since_ms
    )
    shares = tuple(
        (up(step * n), f"{100 * step * n:.3g} %") for n in range(1, int(highest / step + 1e-9) + 1)
    )
    marks = _marks(alerts, axis)
    return Chart(topic, line, band, bound, marks, shares)


def _marks(
    alerts: Iterable[tuple[int, Episode]], axis: Axis
) -> tuple[tuple[float, float, str], ...]:
    marks: list[tuple[float, float, str]] = []
    labelled = -1
    for number, found in alerts:
        start, width = axis.bar((found.start_ms, found.end_ms or axis.until_ms))
        if labelled >= 0 and start < marks[labelled][0] + _NEXT_LABEL:
            first, wide, label = marks[labelled]
            marks[labelled] = (first, wide, f"{label.partition('-')[0]}-{number}")
            marks.append((start, width, ""))
        else:
            labelled = len(marks)
            marks.append((start, width, str(number)))
    return tuple(marks)
