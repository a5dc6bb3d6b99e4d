"""A plan for people, in words and as a PNG: where detectors fire, what it costs in delay."""

import io
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import Delay
from nap_stream.evaluation.metrics import require_evaluate_extra
from nap_stream.files import publish
from nap_stream.planning.expected import DetectorDelays, Expectation
from nap_stream.planning.findings import Findings, Share
from nap_stream.planning.rates import ANY, KEYS, AlarmCount, RealRate
from nap_stream.planning.request import PlanRequest, count, factor, in_largest_unit
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
    return f"{words}\n{in_largest_unit(delay.typical / records_per_second)}"


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


def draw_plan(request: PlanRequest, expectation: Expectation, out: Path) -> None:
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
    _draw(axes, request, expectation)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    publish(out, content.getvalue())


def _draw(axes: "Axes", request: PlanRequest, expectation: Expectation) -> None:
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
        request.plan.flag_rate,
        color="0.9",
        label=f"allowed by the calibration, up to {percent(request.plan.flag_rate)}",
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
    title = f"{request.words}, confidence {request.plan.confidence * 100:g} %"
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper right")
    if request.records_per_second:
        _add_times(axes, request.records_per_second)


def _add_times(axes: "Axes", records_per_second: float) -> None:
    low, high = axes.get_ylim()
    beside = axes.twinx()
    beside.set_yscale("log")
    beside.set_ylim(low, high)
    shown = [time for time in _TIMES_S if low <= time * records_per_second <= high]
    places = [time * records_per_second for time in shown]
    beside.set_yticks(places, [in_largest_unit(time) for time in shown], minor=False)
    beside.set_yticks([], minor=True)
    beside.set_ylabel(f"at {records_per_second:g} records a second")


def render_plan(request: PlanRequest, expectation: Expectation) -> RenderableType:
    """Everything about settings and calibration, to print."""
    return Group(
        facts_table(_facts(request)),
        Text(),
        _delays(request, expectation),
        Text(),
        bars(expectation),
        Text(),
        *_unscored(request, expectation),
        _best_windows(request, expectation),
        Text(),
        _prices(request, expectation),
        Text(),
        *(Text(f"- {remark}") for remark in _remarks(request, expectation)),
    )


def facts_table(rows: Iterator[tuple[str, str]]) -> Table:
    """Names and values, one a line."""
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return table


def _facts(request: PlanRequest) -> Iterator[tuple[str, str]]:
    plan, facts, rate = request.plan, request.facts, request.records_per_second
    yield "false alarms", f"{request.words}: at most one in {plan.run_length:,.0f} records"
    each = f"at most one in {plan.detector_run_length:,.0f} each"
    yield "", f"shared by {request.detectors} detectors, {each}"
    yield "confidence", f"{plan.confidence * 100:g} % of calibrations keep that promise"
    groups = f", {facts.groups} predicted classes" if facts.per_class else ""
    yield "calibration", f"{facts.size:,} images{groups}, {facts.fingerprint[:16]}"
    yield "base rate", f"{percent(facts.alpha)} of in-distribution images are flagged (alpha)"
    yield "", f"at most {percent(plan.flag_rate)} (p_U) at its share of the confidence"
    known = f", {count(request.pane_records)} records at {rate:g} a second" if rate else ""
    yield "panes", f"{request.drift.pane_ms:,} ms{known}: verdicts come at their ends"
    if request.drift.keys is not None:
        yield "keys", "each has an e-detector of flags, whose delay is in records of the key"


def _drift_table(title: str, first: str, second: str, expectation: Expectation) -> Table:
    table = Table(first, second, title=title, title_justify="left")
    for number in range(len(expectation.rates)):
        table.add_column(f"flag rate\n{drift_name(expectation, number)}", justify="right")
    return table


def _delays(request: PlanRequest, expectation: Expectation) -> Table:
    title = "Mean delay in records ± its standard error"
    table = _drift_table(title, "detector", "fires at", expectation)
    for found in expectation.detectors:
        cells = [delay_words(delay, request.records_per_second) for delay in found.delays]
        table.add_row(detector_name(found), _threshold(found), *cells)
    return table


def _threshold(found: DetectorDelays) -> str:
    if found.window_records is None:
        return f"statistic {found.threshold:,.0f}"
    if found.threshold > found.window_records:
        return "never: too small"
    return f"{found.threshold:,.0f} flagged, {percent(found.threshold / found.window_records)}"


def _unscored(request: PlanRequest, expectation: Expectation) -> Iterator[RenderableType]:
    watched = request.drift.unscored
    if watched is None:
        return
    title = "Images until the alert unscored-images, where so many of them have no scores"
    table = Table("bound", "fires at", title=title, title_justify="left")
    for each in expectation.unscored:
        table.add_column(percent(each.share), justify="right")
    cells = [delay_words(each.delay, request.records_per_second) for each in expectation.unscored]
    threshold = f"statistic {request.plan.run_length:,.0f}"
    table.add_row(f"at most {percent(watched.bound)} in order", threshold, *cells)
    yield table
    yield Text()


def _best_windows(request: PlanRequest, expectation: Expectation) -> Table:
    title = "The window that sees each drift first"
    table = Table("flag rate", "window", "delay", title=title, title_justify="left")
    for number, best in enumerate(expectation.best_windows):
        if best.delay is None or best.window_records is None:
            table.add_row(drift_name(expectation, number), "none that was tried", "")
            continue
        words = delay_words(best.delay, request.records_per_second).replace("\n", ", ")
        table.add_row(drift_name(expectation, number), f"{best.window_records:,}", words)
    return table


def _prices(request: PlanRequest, expectation: Expectation) -> Table:
    title = "What more certainty costs in delay, and what images buy"
    table = _drift_table(title, "change", "p_U", expectation)
    prices = expectation.prices
    rows = (
        ("e-detector of flags", [price.sequential for price in prices]),
        (f"rolling window, {request.plan.window_records:,}", [price.window for price in prices]),
    )
    for name, delays in rows:
        table.add_section()
        table.add_row(Text(name, style="bold"))
        for price, changed in zip(prices, delays, strict=True):
            cells = map(_price_cell, changed, delays[0])
            table.add_row(price.change, percent(price.flag_rate), *cells)
    return table


def _price_cell(delay: Delay, before: Delay) -> str:
    if delay is before or delay.mean is None or not before.mean:
        return delay_words(delay, None)
    return f"{count(delay.mean)} ({delay.mean / before.mean - 1:+.0%})"


def _remarks(request: PlanRequest, expectation: Expectation) -> Iterator[str]:
    blind = [
        drift_name(expectation, number)
        for number, rate in enumerate(expectation.rates)
        if rate <= request.plan.flag_rate
    ]
    if blind:
        yield (
            f"Flag rates of at most {percent(request.plan.flag_rate)} can be in-distribution for "
            f"all that {request.facts.size:,} calibration images tell: no detector is to fire at "
            f"{'; '.join(blind)}. More images lower that."
        )
    if request.plan.tail_rates:
        yield (
            "The e-detector of scores looks at tails of the p-values on both sides. Here only "
            "flagged ones become more; it is for shifts that flags do not show."
        )
    else:
        yield "The calibration is too small to test tails of the p-values: scores are not watched."
    if request.drift.unscored is not None:
        yield (
            "The alert unscored-images has the same promise for itself: at most one false alarm in "
            f"{request.plan.run_length:,.0f} images while at most "
            f"{percent(request.drift.unscored.bound)} of them have no scores."
        )
    yield (
        "An alert waits besides until its segment is published (log.segment_max_age_s) and its "
        "pane is closed."
    )
    if request.drift.one_per_pane:
        yield "One record of each key counts in a pane: only such records are meant here."
    if request.records_per_second is None:
        yield "The rate of records is not known: panes are taken to be small, delays have no times."
    else:
        yield f"No delay is shorter than a pane, {in_largest_unit(request.drift.pane_ms / 1_000)}."


_NAMES = {ANY: "any of the stream's", KEYS: "a single key's, its records"}


def render_findings(request: PlanRequest, findings: Findings) -> RenderableType:
    """Everything about the stretch but its warnings, to print."""
    return Group(
        Text("The recorded stretch, taken to be in-distribution", "bold"),
        facts_table(_rows(request, findings)),
        Text(),
        _tails(findings),
        Text(),
        _rates(findings),
        Text(
            "One in so many records, until the first alarm of streams put together from blocks of "
            'the stretch, and of records drawn one by one; "over" where no alarm was seen. '
            "Intervals at 95 %, of that resampling alone: of alarms rarer than one in "
            f"{count(findings.series.records)} records the stretch itself can tell little."
        ),
    )


def _rows(request: PlanRequest, findings: Findings) -> Iterator[tuple[str, str]]:
    series, found = findings.series, findings.flag_rate
    first, last = (
        datetime.fromtimestamp(ms / 1_000, UTC).isoformat(sep=" ", timespec="seconds")
        for ms in (series.first_ms, series.last_ms)
    )
    keys = f", {len(series.keys):,} keys" if series.keys else ""
    yield "stretch", f"{series.records:,} records in {len(series.panes):,} panes{keys}"
    yield "", f"{first} to {last}, topic {findings.recorded.topic}"
    if request.drift.unscored is not None and findings.recorded.by_status:
        counts = ", ".join(f"{name} {n:,}" for name, n in findings.recorded.failures(request.drift))
        share = percent(findings.recorded.unscored_share(request.drift))
        bound = percent(request.drift.unscored.bound)
        yield "unscored", f"{share} of the images{f' ({counts})' if counts else ''}, bound {bound}"
    yield "flag rate", f"{_interval(found)}; the calibration allows {percent(found.allowed)}"
    chosen = "chosen by the autocorrelation" if findings.automatic else "as asked for"
    seconds = findings.block_panes * findings.pane_distance_ms / 1_000
    size = f"{findings.block_panes:,} panes, {count(findings.block_records)} records"
    yield "blocks", f"{size}, {in_largest_unit(seconds)}; {chosen}"
    effect, error = findings.design_effect, findings.design_effect * findings.effect_error
    yield "design effect", f"{effect:.3g} ± {error:.2g}: {_worth(request, findings)}"


def _worth(request: PlanRequest, findings: Findings) -> str:
    if findings.is_too_even:
        return "flags come more evenly than those of independent records"
    window = request.plan.window_records
    worth = count(window / findings.design_effect)
    return f"a window of {count(window)} records is worth {worth} independent ones"


def _interval(share: Share) -> str:
    return f"{percent(share.value)} ({percent(share.low)} to {percent(share.high)})"


def _tails(findings: Findings) -> Table:
    columns = ("records with a", "share", "interval", "the calibration allows")
    table = Table(*columns, title="Tails of the p-values", title_justify="left")
    for event, found in findings.tails:
        style = "yellow" if found.is_above else ""
        interval = f"{percent(found.low)} to {percent(found.high)}"
        table.add_row(
            str(event), percent(found.value), interval, percent(found.allowed), style=style
        )
    return table


def _rates(findings: Findings) -> Table:
    columns = ("detector", "asked for", "promised", "on this stretch", "if independent")
    table = Table(
        *columns, "times as often", title="False alarms on this stretch", title_justify="left"
    )
    before = ""
    for rate in findings.rates:
        style = "yellow" if rate.resampled.interval[0] > rate.promised else ""
        if before and before != rate.detector:
            table.add_section()
        table.add_row(
            "" if before == rate.detector else _NAMES.get(rate.detector, rate.detector),
            f"{rate.run_length:,.0f}",
            f"{1 / rate.promised:,.0f}",
            _one_in(rate.resampled),
            _one_in(rate.independent),
            _ratio(rate),
            style=style,
        )
        before = rate.detector
    return table


def _one_in(alarms: AlarmCount) -> str:
    low, high = alarms.interval
    if not alarms.alarms:
        return f"over {count(1 / high)}"
    return f"{count(1 / alarms.rate)}\n({count(1 / high)} to {count(1 / low)})"


def _ratio(rate: RealRate) -> str:
    if (ratio := rate.ratio) is None:
        return ""
    value, low, high = ratio
    return f"{factor(value)}\n({factor(low)} to {factor(high)})"
