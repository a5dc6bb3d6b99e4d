"""Delays as bars in characters.

The delays of a plan as a PNG, drawn with matplotlib on an Agg canvas.
"""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import Delay
from nap_stream.evaluation.metrics import require_evaluate_extra
from nap_stream.files import publish
from nap_stream.planning.expected import DetectorDelays, Expectation
from nap_stream.planning.question import Question, count, duration, factor
from nap_stream.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    Detector.OOD_WINDOW: "rolling window",
    Detector.OOD_SEQUENTIAL: "e-detector of flags",
    Detector.SCORE_SHIFT: "e-detector of scores",
}
_SHORTEST = 10
_LONGEST_BAR = 40


def detector_name(found: DetectorDelays) -> str:
    """A detector in words, with the records that a window was asked for and those of its panes."""
    if found.window_records is None or found.asked_records is None:
        return NAMES[found.detector]
    name = f"{NAMES[found.detector]}, {found.asked_records:,}"
    is_rounded = found.asked_records != found.window_records
    return f"{name} ({found.window_records:,} in whole panes)" if is_rounded else name


def drift_name(expectation: Expectation, number: int) -> str:
    """A drift in words: how many times as high the flag rate is, and how high."""
    return f"{factor(expectation.factors[number])}x, {percent(expectation.rates[number])}"


def delay_words(delay: Delay, records_per_second: float | None) -> str:
    """How soon a drift is seen: records, with their error, and time where the rate is known."""
    if delay.blind:
        return "never, by design"
    within = f"within {count(delay.horizon)}"
    if not delay.detected:
        return f"not {within}"
    share = percent(delay.detected / delay.runs)
    if delay.typical is None:
        return f"{share} {within}"
    words = count(delay.typical)
    if delay.standard_error is not None:
        words += f" ± {count(delay.standard_error)}"
    if delay.mean is None:
        words = f"median {words}\n{share} {within}"
    if records_per_second is None:
        return words
    return f"{words}\n{duration(delay.typical / records_per_second)}"


def bars(expectation: Expectation) -> Text:
    """A bar for each drift and detector, on a logarithmic scale."""
    delays = [delay for found in expectation.detectors for delay in found.delays]
    longest = max((delay.typical or 0 for delay in delays), default=0)
    width = max(len(detector_name(found)) for found in expectation.detectors)
    text = Text(f"Records from a drift to its alarm, logarithmic from {_SHORTEST} on", "bold")
    for number in range(len(expectation.rates)):
        text.append(f"\n{drift_name(expectation, number)}", "default")
        for found in expectation.detectors:
            text.append(f"\n  {detector_name(found):<{width}} ", "not bold dim")
            text.append_text(_bar(found.delays[number], longest))
    return text


def _bar(delay: Delay, longest: float) -> Text:
    if delay.typical is None:
        return Text(delay_words(delay, None), "not bold yellow")
    span = math.log(max(longest / _SHORTEST, 2))
    filled = math.log(max(delay.typical / _SHORTEST, 1)) / span
    bar = Text("█" * max(1, round(_LONGEST_BAR * filled)), "cyan")
    return bar.append(f" {count(delay.typical)}", "not bold")


_TIMES_S = (1, 10, 60, 600, 3_600, 6 * 3_600, 86_400, 7 * 86_400)


def draw_plan(question: Question, expectation: Expectation, out: Path) -> None:
    """Draw the delay over the drift, a line for each detector; 1,200 x 720 pixels.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    require_evaluate_extra()
    # Takes a second to import, and comes with an extra.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, question, expectation)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    publish(out, content.getvalue())


def _draw(axes: "Axes", question: Question, expectation: Expectation) -> None:
    for found in expectation.detectors:
        seen = [
            (rate, delay)
            for rate, delay in zip(expectation.rates, found.delays, strict=True)
            if delay.typical is not None
        ]
        axes.errorbar(
            [rate for rate, _ in seen],
            [delay.typical or 0 for _, delay in seen],
            yerr=[2 * (delay.standard_error or 0) for _, delay in seen],
            marker="o",
            capsize=3,
            linestyle="-" if found.window_records is None else "--",
            label=detector_name(found),
        )
    axes.axvspan(
        expectation.base_rate,
        question.plan.flag_rate,
        color="0.9",
        label=f"allowed by the calibration, up to {percent(question.plan.flag_rate)}",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    labels = [
        f"{percent(rate)}\n{factor:g}x"
        for rate, factor in zip(expectation.rates, expectation.factors, strict=True)
    ]
    axes.set_xticks(expectation.rates, labels, minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("flag rate after the drift")
    axes.set_ylabel("records from the drift to the alarm")
    title = f"{question.words}, confidence {question.plan.confidence * 100:g} %"
    axes.set_title(title, parse_math=False)
    axes.legend()
    if question.records_per_second:
        _add_times(axes, question.records_per_second)


def _add_times(axes: "Axes", records_per_second: float) -> None:
    low, high = axes.get_ylim()
    beside = axes.twinx()
    beside.set_yscale("log")
    beside.set_ylim(low, high)
    shown = [time for time in _TIMES_S if low <= time * records_per_second <= high]
    places = [time * records_per_second for time in shown]
    beside.set_yticks(places, [duration(time) for time in shown], minor=False)
    beside.set_yticks([], minor=True)
    beside.set_ylabel(f"at {records_per_second:g} records a second")
