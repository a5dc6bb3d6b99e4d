"""What the blocks of a baseline promise, and how soon they see faults: for people and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nap_stream.clock import Progress
from nap_stream.core.alert_state import DEFAULT_FALSE_ALARMS
from nap_stream.core.block_plan import GOOD_BLOCKS, MIN_BLOCKS, BlockPlan
from nap_stream.core.panes import NO_KEY
from nap_stream.drift.block_alerts import BlockWatch, block_watch
from nap_stream.drift.records import BaselineFacts, CalibrationFacts
from nap_stream.errors import ConfigError
from nap_stream.planning.block_delays import BlockDelay, block_delays
from nap_stream.planning.findings import Warned
from nap_stream.planning.render import facts_table
from nap_stream.planning.request import in_largest_unit
from nap_stream.settings.drift import DriftSettings
from nap_stream.text import listed, percent, printable, rfc3339

FORMAT = "nap-stream plan of a baseline"
VERSION = 1
_SHOWN_KEYS = 10


@dataclass(frozen=True, slots=True, eq=False)
class BaselinePlan:
    """What was asked for, what blocks make of it, and the delays of `block_delays`.

    Records depend on each other over about ``decorrelation_ms``. ``fingerprint`` is that of the
    calibration that holds the baseline.
    """

    words: str
    fingerprint: str
    facts: BaselineFacts
    plan: BlockPlan
    decorrelation_ms: float
    delays: tuple[BlockDelay, ...]

    @property
    def key_blocks(self) -> dict[str, tuple[int, ...]]:
        """Baseline blocks by kind of time, of each known key; of the stream where there is none."""
        references = self.plan.references
        names = references.known or (NO_KEY,)
        return {name: references.blocks_by_kind(name) for name in names}


def plan_baseline(
    drift: DriftSettings,
    calibration: CalibrationFacts,
    *,
    decorrelation_ms: float,
    strengths: tuple[float, ...],
    streams: int,
    seed: int,
    advance: Progress,
) -> BaselinePlan:
    """Put settings and a baseline together, and simulate the delays.

    Raises:
        ConfigError: There is no baseline, it is not to be used, or the settings do not go with it:
            see `nap_stream.drift.block_alerts.block_watch`.
    """
    watch = _watch(drift, calibration)
    delays = block_delays(
        watch.plan,
        watch.baseline.blocks,
        decorrelation_ms=decorrelation_ms,
        alpha=calibration.alpha,
        strengths=strengths,
        streams=streams,
        seed=seed,
        advance=advance,
    )
    words = (
        f"one in {drift.expected_run_length:,.0f} records"
        if drift.expected_run_length is not None
        else drift.false_alarms or DEFAULT_FALSE_ALARMS
    )
    return BaselinePlan(
        words, calibration.fingerprint, watch.baseline, watch.plan, decorrelation_ms, delays
    )


def _watch(drift: DriftSettings, calibration: CalibrationFacts) -> BlockWatch:
    watch = block_watch(drift, calibration)
    if watch is not None:
        return watch
    if calibration.baseline is not None:
        raise ConfigError("blocks do not decide here", "drift.blocks", "Set it to auto")
    raise ConfigError(
        f"the calibration {calibration.fingerprint[:16]} has no baseline",
        "--baseline",
        "Make one with `nap-stream baseline`, or give the calibration with --calibration",
    )


def baseline_warnings(found: BaselinePlan) -> tuple[Warned, ...]:
    """Say what makes the promise weak or the delays long, and what to do."""
    references, warned = found.plan.references, []
    if without := references.without:
        warned.append(
            Warned(
                "keys-without-baseline",
                f"{len(without):,} keys have fewer than {MIN_BLOCKS} blocks in the baseline "
                f"({_listed(without)}): to the monitors they are new, {found.plan.new_keys:,} at a "
                f"time are judged by the worst of the others. Make a baseline of a longer stretch",
            )
        )
    few = [name for name, sizes in found.key_blocks.items() if min(sizes) < GOOD_BLOCKS]
    if few:
        fewest = min(min(found.key_blocks[name]) for name in few)
        warned.append(
            Warned(
                "few-blocks",
                f"{len(few):,} keys have {fewest} blocks of a kind of time and more, fewer than "
                f"{GOOD_BLOCKS}: the promise holds, and faults are seen late. A longer stretch has "
                f"more",
            )
        )
    unseen = [each for each in found.delays if each.median_ms is None]
    if unseen:
        faults = ", ".join(f"{percent(e.strength)} of {e.spread.name}" for e in unseen)
        warned.append(
            Warned(
                "not-seen",
                f"faults of this strength are not seen in half of the streams within "
                f"{in_largest_unit(unseen[0].horizon_ms / 1_000)}: {faults}",
            )
        )
    return tuple(warned)


def _listed(names: tuple[str, ...]) -> str:
    return listed([printable(name) for name in names], _SHOWN_KEYS)


def render_baseline(found: BaselinePlan) -> RenderableType:
    """Everything but the warnings, to print."""
    return Group(
        facts_table(_facts(found)),
        Text(),
        _delays(found),
        Text(),
        Text(
            "From the beginning of a fault to the end of the block after which an alarm of a "
            "faulty key, or of the stream, fires: the mean and its standard error, and in brackets "
            "by when 19 of 20 have fired. Simulated on the baseline's own blocks, in which records "
            "turn flagged in runs as long as the decorrelation time. A fault that moves scores "
            "without flags is seen too, but is not simulated. An alert waits besides until its "
            "segment is published (log.segment_max_age_s) and its pane is closed."
        ),
    )


def _facts(found: BaselinePlan) -> Iterator[tuple[str, str]]:
    facts, plan = found.facts, found.plan
    references = plan.references
    block = in_largest_unit(references.block_ms / 1_000)
    yield "baseline", f"{rfc3339(facts.since_ms)} to {rfc3339(facts.until_ms)} of {facts.name}"
    yield "", f"vouched for by {printable(facts.made_by)}: {printable(facts.reason)}"
    run = in_largest_unit(plan.run_time_ms / 1_000)
    yield "false alarms", f"{found.words}: at most one in {run}, or {plan.run_blocks:,.0f} blocks"
    yield "", "within a time T with a probability of at most T divided by that, for every T"
    yield "confidence", f"{plan.confidence * 100:g} % of such baselines keep that promise"
    long = in_largest_unit(found.decorrelation_ms / 1_000)
    records = float(
        np.median(facts.blocks.records[facts.blocks.key == min(1, len(facts.blocks.keys) - 1)])
    )
    yield "blocks", f"{block} of event time, some {records:,.0f} records of a key"
    yield "", f"records depend on each other over about {long}"
    yield "kinds of time", f"{', '.join(references.kinds.names)} ({references.kinds.timezone})"
    sizes = [min(each) for each in found.key_blocks.values()]
    if references.known:
        few, many = min(sizes), max(sizes)
        counts = f"{few}" if few == many else f"{few} to {many}"
        each = " of each kind of time" if references.kinds.count > 1 else ""
        yield "keys", f"{len(sizes):,} known, by {facts.by}, with {counts} blocks{each}"
        yield "", f"and room for {plan.new_keys:,} new ones at a time, judged by the worst of these"
        late = percent(plan.late_risk)
        yield "", f"the confidence is for the first {plan.new_keys:,} new ones that learn; what a"
        yield (
            "",
            f"later one learns is too low with a probability of at most {late}, each for itself",
        )
        if without := references.without:
            yield "without", f"{len(without):,} keys, with too few blocks: {_listed(without)}"
    else:
        yield "keys", f"not told apart; {sizes[0]} blocks of the whole stream"


def _delays(found: BaselinePlan) -> Table:
    strengths = list(dict.fromkeys(each.strength for each in found.delays))
    title = "Delay, where so many of the frames of faulty keys turn flagged"
    table = Table("fault in", "keys", title=title, title_justify="left")
    for strength in strengths:
        table.add_column(percent(strength), justify="right")
    for spread in dict.fromkeys(each.spread for each in found.delays):
        cells = [_words(each) for each in found.delays if each.spread == spread]
        table.add_row(spread.name, f"{spread.keys:,}" if spread.keys else "", *cells)
    return table


def _words(delay: BlockDelay) -> str:
    within = f"within {in_largest_unit(delay.horizon_ms / 1_000)}"
    if delay.typical_ms is None:
        share = percent(delay.detected / delay.streams)
        return f"{share} {within}" if delay.detected else f"not {within}"
    words = in_largest_unit(delay.typical_ms / 1_000)
    if delay.standard_error_ms is None:
        words = f"median {words}"
    else:
        words = f"{words} ± {in_largest_unit(delay.standard_error_ms / 1_000)}"
    late = "later" if delay.late_ms is None else in_largest_unit(delay.late_ms / 1_000)
    return f"{words}\n({late})"


def baseline_document(found: BaselinePlan, warnings: tuple[Warned, ...]) -> dict[str, Any]:
    """Give everything as a tree of JSON values, times in milliseconds."""
    facts, plan, references = found.facts, found.plan, found.plan.references
    return {
        "format": FORMAT,
        "version": VERSION,
        "asked_for": {
            "false_alarms": found.words,
            "run_time_ms": plan.run_time_ms,
            "run_blocks": plan.run_blocks,
            "confidence": plan.confidence,
        },
        "calibration": {"fingerprint": found.fingerprint},
        "baseline": {
            "log": facts.name,
            "since_ms": facts.since_ms,
            "until_ms": facts.until_ms,
            "made_ms": facts.made_ms,
            "made_by": facts.made_by,
            "reason": facts.reason,
            "by": facts.by,
            "block_ms": references.block_ms,
            "decorrelation_ms": found.decorrelation_ms,
            "kinds_of_time": list(references.kinds.names),
            "timezone": references.kinds.timezone,
            "stream_blocks": list(references.blocks_by_kind(NO_KEY)),
            "key_blocks": {
                name: list(references.blocks_by_kind(name)) for name in references.known
            },
            "keys_without": list(references.without),
            "new_keys": plan.new_keys,
        },
        "delays": [
            {
                "spread": each.spread.name,
                "keys": each.spread.keys,
                "strength": each.strength,
                "streams": each.streams,
                "detected": each.detected,
                "within_ms": each.horizon_ms,
                "mean_ms": each.mean_ms,
                "standard_error_ms": each.standard_error_ms,
                "median_ms": each.median_ms,
                "late_ms": each.late_ms,
            }
            for each in found.delays
        ],
        "warnings": [{"kind": each.kind, "text": each.text} for each in warnings],
    }
