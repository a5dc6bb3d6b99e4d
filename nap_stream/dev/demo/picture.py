"""The OOD fraction against its bound over time: as a PNG, and in characters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from rich.text import Text

from nap_stream.dev.demo.history import HistoryPoint

_BLOCKS = " ▁▂▃▄▅▆▇█"
_MARGIN = 7
_SHADES = ("#eef6ee", "#f8e9e7")
_COLOURS = {"firing": "#b3261e", "resolved": "#2e7d32"}


@dataclass(frozen=True, slots=True)
class Picture:
    """What there is to draw; all times in milliseconds since the epoch.

    ``phases`` are (title, end), in order; ``alerts`` are (state, time).
    """

    history: Sequence[HistoryPoint]
    started_ms: int
    phases: Sequence[tuple[str, int]]
    alerts: Sequence[tuple[str, int]]

    def seconds(self, time_ms: int) -> float:
        """A time as seconds from the start."""
        return (time_ms - self.started_ms) / 1000

    def end_ms(self) -> int:
        """The latest time that is drawn."""
        times = [point.time_ms for point in self.history] + [end for _, end in self.phases]
        return max(times, default=self.started_ms + 1)


def write_png(picture: Picture, path: Path) -> None:
    """Draw with matplotlib, 1,400 x 630 pixels."""
    # Takes a second to import, for which the start of the demo need not wait.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4.5), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    start = 0.0
    for number, (title, end_ms) in enumerate(picture.phases):
        end = picture.seconds(end_ms)
        axes.axvspan(start, end, color=_SHADES[number % len(_SHADES)], zorder=0)
        axes.text((start + end) / 2, 1.01, title, transform=axes.get_xaxis_transform(), ha="center")
        start = end
    times = [picture.seconds(point.time_ms) for point in picture.history]
    axes.plot(times, [p.fraction for p in picture.history], label="OOD fraction of the window")
    axes.plot(times, [p.bound for p in picture.history], "k--", label="bound")
    for state, time_ms in picture.alerts:
        colour = _COLOURS.get(state, "black")
        axes.axvline(picture.seconds(time_ms), color=colour, label=f"alert: {state}")
    axes.set_xlabel("event time, seconds from the start of the stream")
    axes.set_ylabel("OOD fraction")
    axes.set_xlim(0, picture.seconds(picture.end_ms()))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    figure.savefig(path, format="png")


def chart(picture: Picture, *, width: int, height: int) -> Text:
    """Draw in characters, red where the fraction reaches the bound.

    Args:
        picture: What to draw.
        width: Characters, the scale on the left included.
        height: Lines of the plot itself; the axis and the phases' titles stand below.
    """
    columns = _columns(picture, width - _MARGIN)
    highest = max((max(p.fraction, p.bound) for p in picture.history), default=0.0)
    top = max(0.1, math.ceil(highest * 10) / 10)
    bound = picture.history[-1].bound if picture.history else 0.0
    bound_line = height - 1 - min(height - 1, int(bound / top * height))
    text = Text()
    for line in range(height):
        level = height - 1 - line
        scale = f"{top:.0%}" if line == 0 else f"{bound:.1%}" if line == bound_line else ""
        text.append(f"{scale:>{_MARGIN - 1}}│", "dim")
        cells = [_cell(point, top / height, level, line == bound_line) for point in columns]
        for style, run in groupby(cells, key=itemgetter(1)):
            text.append("".join(character for character, _ in run), style)
        text.append("\n")
    return text.append(" " * (_MARGIN - 1) + "└").append_text(_axis(picture, len(columns)))


def _cell(
    point: HistoryPoint | None, fraction_a_line: float, level: int, on_bound: bool
) -> tuple[str, str]:
    """A character and its style."""
    filled = 0.0 if point is None else point.fraction / fraction_a_line - level
    block = _BLOCKS[round(min(max(filled, 0), 1) * 8)]
    if block == " ":
        return ("─", "yellow") if on_bound else (" ", "")
    return block, "red" if point and point.fraction >= point.bound else "green"


def _columns(picture: Picture, width: int) -> list[HistoryPoint | None]:
    """The last point of each column's time, or of a column before it."""
    span = max(1, picture.end_ms() - picture.started_ms)
    columns: list[HistoryPoint | None] = [None] * width
    for point in picture.history:
        column = (point.time_ms - picture.started_ms) * width // span
        columns[min(max(column, 0), width - 1)] = point
    for column in range(1, width):
        columns[column] = columns[column] or columns[column - 1]
    return columns


def _axis(picture: Picture, width: int) -> Text:
    span = max(1, picture.end_ms() - picture.started_ms)
    marks, titles, start = ["─"] * width, "", 0
    for title, end_ms in picture.phases:
        end = min(width, (end_ms - picture.started_ms) * width // span)
        marks[max(end - 1, 0)] = "┴"
        titles += title[: max(0, end - start - 1)].ljust(end - start)
        start = end
    return Text("".join(marks) + "\n" + " " * _MARGIN + titles, "dim")
