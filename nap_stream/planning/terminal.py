"""A plan for people: what was asked for, where detectors fire, and what it costs in delay.

What a recorded stretch says, for people.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nap_stream.core.detection import Delay
from nap_stream.planning.expected import DetectorDelays, Expectation
from nap_stream.planning.findings import Findings, Share
from nap_stream.planning.picture import bars, delay_words, detector_name, drift_name
from nap_stream.planning.question import Question, count, duration, factor, is_thinned
from nap_stream.planning.rates import ANY, KEYS, AlarmCount, RealRate
from nap_stream.text import percent


def render_plan(question: Question, expectation: Expectation) -> RenderableType:
    """Everything about settings and calibration, to print."""
    return Group(
        _facts(question),
        Text(),
        _delays(question, expectation),
        Text(),
        bars(expectation),
        Text(),
        _best_windows(question, expectation),
        Text(),
        _prices(question, expectation),
        Text(),
        *(Text(f"- {remark}") for remark in _remarks(question, expectation)),
    )


def facts_table(rows: Iterator[tuple[str, str]]) -> Table:
    """Names and values, one a line."""
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return table


def _facts(question: Question) -> Table:
    return facts_table(_fact_rows(question))


def _fact_rows(question: Question) -> Iterator[tuple[str, str]]:
    plan, facts, rate = question.plan, question.facts, question.records_per_second
    yield "false alarms", f"{question.words}: at most one in {plan.run_length:,.0f} records"
    each = f"at most one in {plan.detector_run_length:,.0f} each"
    yield "", f"shared by {question.detectors} detectors, {each}"
    yield "confidence", f"{plan.confidence * 100:g} % of calibrations keep that promise"
    groups = f", {facts.groups} predicted classes" if facts.per_class else ""
    yield "calibration", f"{facts.size:,} images{groups}, {facts.fingerprint[:16]}"
    yield "base rate", f"{percent(facts.alpha)} of in-distribution images are flagged (alpha)"
    yield "", f"at most {percent(plan.flag_rate)} (p_U) at its share of the confidence"
    panes = f"{question.drift.pane_ms:,} ms"
    known = f", {count(question.pane_records)} records at {rate:g} a second" if rate else ""
    yield "panes", f"{panes}{known}: verdicts come at their ends"
    if question.drift.keys is not None:
        yield "keys", "each has an e-detector of flags, whose delay is in records of the key"


def _delays(question: Question, expectation: Expectation) -> Table:
    table = Table(title="Mean delay in records ± its standard error", title_justify="left")
    table.add_column("detector")
    table.add_column("fires at")
    for number in range(len(expectation.rates)):
        table.add_column(f"flag rate\n{drift_name(expectation, number)}", justify="right")
    for found in expectation.detectors:
        cells = [delay_words(delay, question.records_per_second) for delay in found.delays]
        table.add_row(detector_name(found), _threshold(found), *cells)
    return table


def _threshold(found: DetectorDelays) -> str:
    if found.window_records is None:
        return f"statistic {found.threshold:,.0f}"
    if found.threshold > found.window_records:
        return "never: too small"
    return f"{found.threshold:,.0f} flagged, {percent(found.threshold / found.window_records)}"


def _best_windows(question: Question, expectation: Expectation) -> Table:
    table = Table(title="The window that sees each drift first", title_justify="left")
    for name in ("flag rate", "window", "delay"):
        table.add_column(name)
    for number, best in enumerate(expectation.best_windows):
        if best.delay is None or best.window_records is None:
            table.add_row(drift_name(expectation, number), "none that was tried", "")
            continue
        words = delay_words(best.delay, question.records_per_second).replace("\n", ", ")
        table.add_row(drift_name(expectation, number), f"{best.window_records:,}", words)
    return table


def _prices(question: Question, expectation: Expectation) -> Table:
    table = Table(
        title="What more certainty costs in delay, and what images buy", title_justify="left"
    )
    table.add_column("change")
    table.add_column("p_U")
    for number in range(len(expectation.rates)):
        table.add_column(f"flag rate\n{drift_name(expectation, number)}", justify="right")
    prices = expectation.prices
    rows = (
        ("e-detector of flags", [price.sequential for price in prices]),
        (f"rolling window, {question.plan.window_records:,}", [price.window for price in prices]),
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


def _remarks(question: Question, expectation: Expectation) -> Iterator[str]:
    blind = [
        drift_name(expectation, number)
        for number, rate in enumerate(expectation.rates)
        if rate <= question.plan.flag_rate
    ]
    if blind:
        yield (
            f"Flag rates of at most {percent(question.plan.flag_rate)} can be in-distribution for "
            f"all that {question.facts.size:,} calibration images tell: no detector is to fire at "
            f"{'; '.join(blind)}. More images lower that."
        )
    if question.plan.tail_rates:
        yield (
            "The e-detector of scores looks at tails of the p-values on both sides. Here only "
            "flagged ones become more; it is for shifts that flags do not show."
        )
    else:
        yield "The calibration is too small to test tails of the p-values: scores are not watched."
    yield (
        "An alert waits besides until its segment is published (log.segment_max_age_s) and its "
        "pane is closed."
    )
    if is_thinned(question.drift):
        yield "One record of each key counts in a pane: only such records are meant here."
    if question.records_per_second is None:
        yield "The rate of records is not known: panes are taken to be small, delays have no times."
    else:
        seconds = question.drift.pane_ms / 1_000
        yield f"No delay is shorter than a pane, {duration(seconds)}."


_NAMES = {ANY: "any of the stream's", KEYS: "a single key's, its records"}


def render_findings(question: Question, findings: Findings) -> RenderableType:
    """Everything about the stretch but its warnings, to print."""
    return Group(
        Text("The recorded stretch, taken to be in-distribution", "bold"),
        facts_table(_rows(question, findings)),
        Text(),
        _tails(findings),
        Text(),
        _rates(findings),
        Text(
            "One in so many records, until the first alarm of streams put together from blocks of "
            'the stretch, and of records drawn one by one; "over" where no alarm was seen. '
            "Intervals at 95 %, of that resampling alone: of alarms rarer than one in "
            f"{count(findings.stretch.records)} records the stretch itself can tell little."
        ),
    )


def _rows(question: Question, findings: Findings) -> Iterator[tuple[str, str]]:
    stretch, found = findings.stretch, findings.flag_rate
    first, last = (
        datetime.fromtimestamp(ms / 1_000, UTC).isoformat(sep=" ", timespec="seconds")
        for ms in (stretch.first_ms, stretch.last_ms)
    )
    keys = f", {len(stretch.keys):,} keys" if stretch.keys else ""
    yield "stretch", f"{stretch.records:,} records in {len(stretch.panes):,} panes{keys}"
    yield "", f"{first} to {last}, topic {findings.recorded.topic}"
    yield "flag rate", f"{_interval(found)}; the calibration allows {percent(found.allowed)}"
    chosen = "chosen by the autocorrelation" if findings.automatic else "as asked for"
    seconds = findings.block_panes * findings.pane_distance_ms / 1_000
    records = f"{count(findings.block_records)} records"
    yield "blocks", f"{findings.block_panes:,} panes, {records}, {duration(seconds)}; {chosen}"
    effect = findings.design_effect
    error = f"{effect:.3g} ± {effect * findings.effect_error:.2g}"
    yield "design effect", f"{error}: {_worth(question, findings)}"


def _worth(question: Question, findings: Findings) -> str:
    if findings.is_too_even:
        return "flags come more evenly than those of independent records"
    window = question.plan.window_records
    worth = count(window / findings.design_effect)
    return f"a window of {count(window)} records is worth {worth} independent ones"


def _interval(share: Share) -> str:
    return f"{percent(share.value)} ({percent(share.low)} to {percent(share.high)})"


def _tails(findings: Findings) -> Table:
    table = Table(title="Tails of the p-values", title_justify="left")
    for name in ("records with a", "share", "interval", "the calibration allows"):
        table.add_column(name)
    for event, found in findings.tails:
        style = "yellow" if found.is_above else ""
        interval = f"{percent(found.low)} to {percent(found.high)}"
        table.add_row(
            str(event), percent(found.value), interval, percent(found.allowed), style=style
        )
    return table


def _rates(findings: Findings) -> Table:
    table = Table(title="False alarms on this stretch", title_justify="left")
    for name in (
        "detector",
        "asked for",
        "promised",
        "on this stretch",
        "if independent",
        "times as often",
    ):
        table.add_column(name)
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
