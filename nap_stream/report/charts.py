"""Where the parts of a report's charts lie. Across, all is in per cent of the period."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nap_stream.pages.axis import Axis, heights
from nap_stream.report.counts import Count
from nap_stream.report.history import Episode, Span

_NEXT_LABEL = 3.0
"""Labels of alerts stand no closer than this: those between share one."""


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
    up, shares = heights(tops)
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
