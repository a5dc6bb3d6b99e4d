"""What a recorded stretch says, for people."""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nap_stream.alert.plain import percent
from nap_stream.planning.findings import Findings, Share
from nap_stream.planning.question import Question
from nap_stream.planning.rates import ANY, KEYS, RealRate
from nap_stream.planning.run_lengths import AlarmCount
from nap_stream.planning.terminal import facts_table
from nap_stream.planning.words import count, duration, factor

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
