"""What a new baseline came to, for people: rows of a table, and sentences that warn."""

import math
from collections.abc import Iterator

import numpy as np

from nap_stream.baselines.make import MadeBaseline
from nap_stream.baselines.stretch import SHOWN, Stretch, StretchQuery
from nap_stream.calibration.baseline import Baseline
from nap_stream.core.alert_state import DEFAULT_FALSE_ALARMS
from nap_stream.core.block_detectors import blocks_to_alarm
from nap_stream.core.block_plan import (
    GOOD_BLOCKS,
    MIN_BLOCKS,
    BlockPlan,
    plan_blocks,
    references_of,
)
from nap_stream.core.blocks import Blocks
from nap_stream.core.learned_references import NEEDED_BLOCKS
from nap_stream.core.panes import NO_KEY
from nap_stream.core.time_kinds import DAY_MS, KindEvidence
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import DriftSettings
from nap_stream.text import bounded, duration, listed, percent, rfc3339

_MIDDLE = 0.1
"""A key that comes later than this part of the stretch, or goes earlier, is named."""
_GAP_SHARE = 0.1
_FEW_JUMPS = 0.001
_FEW_UNSCORED = 0.01
_REASONS = {
    "decorrelation": "ten times that",
    "records": "20 records in a block of a key",
    "blocks": "1,000 blocks of a key at most",
    "correlation": "neighbouring shorter blocks are alike",
    "asked": "as asked for, or longer so that blocks do not become too many",
}


def promise_of(made: MadeBaseline, drift: DriftSettings) -> BlockPlan:
    """What the monitor will promise with this baseline at these settings.

    Raises:
        ConfigError: The time between false alarms is shorter than a block.
    """
    baseline = made.baseline
    if drift.expected_run_length is None:
        words = drift.false_alarms or DEFAULT_FALSE_ALARMS
    else:
        words = f"one per {drift.expected_run_length:,.0f} records"
    records = int(made.blocks.of(NO_KEY).records.sum())
    run_time_ms = drift.run_time_ms(records, baseline.until_ms - baseline.since_ms)
    if run_time_ms < baseline.block_ms:
        raise ConfigError(
            f"{words} is more often than once in a block of {duration(baseline.block_ms)}",
            "drift.false_alarms",
            "Tolerate fewer false alarms, or choose shorter blocks with --block",
        )
    references = references_of(made.blocks, baseline.kinds)
    return plan_blocks(references, run_time_ms=run_time_ms, confidence=drift.confidence)


def rows_of(baseline: Baseline, blocks: Blocks) -> Iterator[tuple[str, str]]:
    """What a baseline states, by name."""
    stretch = f"{rfc3339(baseline.since_ms)} to {rfc3339(baseline.until_ms)}"
    length = duration(baseline.until_ms - baseline.since_ms)
    yield "stretch", f"{stretch} ({length}) of {baseline.topic} in {baseline.log_root}"
    chains = [f"{part.partition} [{part.start}, {part.end})" for part in baseline.chains]
    yield "partitions", listed(chains, SHOWN)
    keys = len(baseline.keys) - 1
    told = f"of {keys:,} keys by {baseline.by}" if baseline.by is not None else "not told apart"
    stream = blocks.of(NO_KEY)
    share = int(stream.flagged.sum()) / max(1, int(stream.records.sum()))
    yield "records", f"{baseline.records:,} {told}; {percent(share)} flagged"
    yield "vouched for by", f"{baseline.made_by}: {baseline.reason}"
    yield "look foreign", f"{percent(baseline.foreign_share)} of the records"
    yield "dependence", f"over about {duration(round(baseline.decorrelation_ms))}"
    yield "scores", f"one a key in {duration(baseline.thinned_ms)} at most"
    yield "blocks", f"{duration(baseline.block_ms)} long, {_counts(blocks)}"
    yield "kinds of time", f"{', '.join(baseline.kinds.names)} ({baseline.kinds.timezone})"
    yield "calibration images", baseline.parent[:16]


def more_rows(made: MadeBaseline, promise: BlockPlan) -> Iterator[tuple[str, str]]:
    """Why it came to that, and what it promises."""
    why = _REASONS[made.choice.reason]
    alike = f"neighbours correlate by {made.correlation:.2f}, up to {made.correlation_limit:.2f} "
    yield "length of blocks", f"{why}; {alike}is in order"
    yield "time of day", _evidence(made.evidence)
    confidence = f"{promise.confidence:.2%}".replace(".00%", "%")
    time = f"{duration(promise.run_time_ms)}, or {promise.run_blocks:,.0f} blocks"
    yield "promise", f"at most one false alarm in {time}, for {confidence} of the baselines"


def _counts(blocks: Blocks) -> str:
    counts = np.bincount(blocks.key, minlength=len(blocks.keys))
    text = f"{counts[0]:,} of the stream"
    if len(counts) > 1:
        of_keys = counts[1:]
        text += f", {np.median(of_keys):,.0f} of a key ({of_keys.min():,} to {of_keys.max():,})"
    return text


def _evidence(found: KindEvidence) -> str:
    days = f"{found.days} {'day' if found.days == 1 else 'days'}"
    if found.day_p_value is None:
        return f"not tested: {days}, and three whole ones are needed"
    weekend = (
        "weekends not tested"
        if found.weekend_p_value is None
        else f"weekends p = {found.weekend_p_value:.2g}"
    )
    explained = f"; explains {percent(found.explained)} of the spread" if found.explained else ""
    return f"p = {found.day_p_value:.2g}, {weekend}, over {days}{explained}"


def warnings_of(
    stretch: Stretch, query: StretchQuery, made: MadeBaseline, promise: BlockPlan
) -> Iterator[str]:
    """What somebody who vouches for the stretch should know, a sentence each."""
    yield from _gap_warnings(stretch, query, made)
    yield from _clock_warnings(stretch)
    if stretch.unscored > _FEW_UNSCORED * stretch.images:
        share = percent(stretch.unscored / stretch.images)
        yield f"{stretch.unscored:,} images ({share}) have no scores, and are not in the baseline"
    if query.keys is not None:
        yield from _key_warnings(stretch, made)
    yield from _block_warnings(made, promise)
    if made.foreign.by_key:
        yield (
            f"some records look foreign to the rest of their key: {made.foreign}. The baseline "
            "keeps them, and so is less sensitive"
        )
    looked_at, keys = made.foreign.keys, max(1, len(made.baseline.keys) - 1)
    if looked_at < keys:
        yield f"foreign records could be looked for in {looked_at:,} of {keys:,} keys alone"


def _gap_warnings(stretch: Stretch, query: StretchQuery, made: MadeBaseline) -> Iterator[str]:
    if stretch.gaps:
        lost = sum(gap.end - gap.start for gap in stretch.gaps)
        named = listed([str(gap) for gap in stretch.gaps], SHOWN, "; ")
        yield f"{lost:,} offsets of the stretch are declared as lost: {named}"
    baseline = made.baseline
    length_ms = baseline.until_ms - baseline.since_ms
    if query.until_ms - query.since_ms - length_ms > _GAP_SHARE * (query.until_ms - query.since_ms):
        yield (
            f"there are records from {rfc3339(baseline.since_ms)} to {rfc3339(baseline.until_ms)} "
            "alone, and --since and --until ask for more: that is the stretch"
        )
    held = made.blocks.of(NO_KEY).start_ms
    starts = np.append(held, baseline.until_ms - baseline.until_ms % baseline.block_ms)
    silent = np.diff(starts) - baseline.block_ms
    share = float(np.maximum(silent, 0).sum()) / length_ms
    if share > _GAP_SHARE:
        place = int(silent.argmax())
        start, end = int(starts[place]) + baseline.block_ms, int(starts[place + 1])
        yield (
            f"{percent(share)} of the stretch has no records, longest from {rfc3339(start)} to "
            f"{rfc3339(end)}"
        )


def _clock_warnings(stretch: Stretch) -> Iterator[str]:
    if stretch.jumping > _FEW_JUMPS * stretch.scored:
        yield (
            f"the event times of {stretch.jumping:,} images jump: they cannot be true, or run "
            f"back by more than a minute; the first at {stretch.first_jump}"
        )


def _key_warnings(stretch: Stretch, made: MadeBaseline) -> Iterator[str]:
    baseline = made.baseline
    named = [number for number, name in enumerate(stretch.keys) if name != NO_KEY]
    if len(named) == 1:
        yield (
            f"there is one key only, {bounded(stretch.keys[named[0]])}: new keys will be judged by "
            "it alone"
        )
    without = int(stretch.key_records.sum() - stretch.key_records[named].sum())
    if without:
        yield f"{without:,} records have no key, and are judged with the whole stream alone"
    inside = _MIDDLE * (baseline.until_ms - baseline.since_ms)
    late = [n for n in named if stretch.first_ms[n] > baseline.since_ms + inside]
    early = [n for n in named if stretch.last_ms[n] < baseline.until_ms - inside]
    for numbers, times_ms, what, at in (
        (late, stretch.first_ms, "appear", "from"),
        (early, stretch.last_ms, "end", "until"),
    ):
        names = [f"{bounded(stretch.keys[n])} ({at} {rfc3339(int(times_ms[n]))})" for n in numbers]
        if names:
            yield f"keys that {what} in the middle of the stretch: {listed(names, SHOWN)}"
    spellings: dict[str, list[str]] = {}
    for n in named:
        spellings.setdefault(stretch.keys[n].casefold(), []).append(bounded(stretch.keys[n]))
    twice = [" and ".join(sorted(names)) for names in spellings.values() if len(names) > 1]
    if twice:
        yield f"keys that differ by upper and lower case alone: {listed(twice, SHOWN)}"
    if stretch.split_keys and baseline.one_per_pane:
        yield (
            f"{stretch.split_keys:,} keys stand in several partitions: of each pane one record a "
            "partition was counted"
        )


def _block_warnings(made: MadeBaseline, promise: BlockPlan) -> Iterator[str]:
    references = promise.references
    if made.correlation > made.correlation_limit:
        yield (
            f"neighbouring blocks are alike (correlation {made.correlation:.2f}): something "
            "changes within the stretch, or records depend on each other for longer than blocks "
            "last. The promise may not hold: choose a longer stretch in which nothing changes"
        )
    if references.without:
        named = listed([bounded(name) for name in references.without], SHOWN)
        yield (
            f"keys with too few blocks for a comparison of their own: {named}. To the monitor they "
            f"are new keys, judged by the worst known one until they have learned {NEEDED_BLOCKS} "
            f"blocks; of new keys it watches only {promise.new_keys:,} at a time"
            if references.known
            else f"no key has enough blocks for a comparison of its own ({named}): no key is "
            "watched, only the whole stream"
        )
    yield from _kind_warnings(made, promise)
    fewest = promise.fewest_blocks
    if fewest < GOOD_BLOCKS:
        few = [
            bounded(name) or "the stream"
            for name in references.keys
            if 0 < max(references.blocks_by_kind(name)) < GOOD_BLOCKS
        ]
        named = listed(few, SHOWN) or "some kinds of time"
        yield (
            f"as few as {fewest} blocks are compared with, of {named}; the promise holds with "
            f"them too, but takes in that they say little: a change is seen late. {GOOD_BLOCKS} "
            "or more are good"
        )


def _kind_warnings(made: MadeBaseline, promise: BlockPlan) -> Iterator[str]:
    """Of kinds of time that are not told apart, and of what those cost that are."""
    found, kinds, fewest = made.evidence, made.baseline.kinds, promise.fewest_blocks
    if found.wanted is not None:
        told = f"{', '.join(kinds.names)}, which explains {percent(found.explained)}"
        yield (
            f"the time matters, but there are too few blocks to tell "
            f"{', '.join(found.wanted.names)} apart, which explains "
            f"{percent(found.wanted_explained)} of the spread; told apart is "
            f"{told if kinds.count > 1 else 'nothing'}. What is usual at one time then hides a "
            f"fault at another. A stretch of about {found.wanted_days:,} days would do"
        )
    if kinds.count > 1 and fewest < GOOD_BLOCKS:
        now, alike, good = _soonest(promise)
        who = "a key" if promise.references.known else "a stream"
        days = math.ceil(found.days * GOOD_BLOCKS / max(1, fewest))
        yield (
            f"kinds of time with few blocks make alarms late: {who} whose images all turn bad is "
            f"{now}; with --times none {alike}, but what is usual at one "
            f"time then hides a fault at another; with {GOOD_BLOCKS} blocks of each kind, from a "
            f"stretch of about {days:,} days, {good}"
        )


def _soonest(promise: BlockPlan) -> tuple[str, str, str]:
    """When the largest fault of a usual key is seen: now, without kinds, with enough blocks."""
    references = promise.references
    block_ms, kinds = references.block_ms, references.kinds
    known = references.known
    sizes = np.median([references.blocks_by_kind(name) for name in known or (NO_KEY,)], axis=0)
    round_ms = DAY_MS * (7 if kinds.weekend_apart else 1)
    middles = np.arange(0, round_ms, block_ms, dtype=np.int64) + block_ms // 2
    each = np.maximum(sizes, MIN_BLOCKS)
    longer = each * GOOD_BLOCKS / each.min()
    kind = kinds.kind_of(middles)
    now, good = (
        np.stack([promise.rates_at(int(size), kinds.count) for size in found])[kind]
        for found in (each, longer)
    )
    cases = now, promise.rates_at(int(sizes.sum()), 1)[np.newaxis], good
    threshold = promise.key_log_threshold if known else promise.stream_log_threshold
    taken = [blocks_to_alarm(rates, threshold) for rates in cases]
    first, second, third = (
        "not seen" if blocks is None else f"seen after about {duration(round(blocks * block_ms))}"
        for blocks in taken
    )
    return first, second, third
