"""The delays of a plan as a PNG, drawn with matplotlib on an Agg canvas."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from nap_stream.alert.plain import percent
from nap_stream.evaluation.extra import require_evaluate_extra
from nap_stream.evaluation.files import publish
from nap_stream.planning.chart import detector_name
from nap_stream.planning.expected import Expectation
from nap_stream.planning.question import Question
from nap_stream.planning.words import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
