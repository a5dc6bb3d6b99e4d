"""What blocks found in words: one sentence for whoever is on call, then what decided.

The promise is that of `nap_stream.core.blocks`.
"""

import math
from datetime import UTC, datetime

from nap_stream.core.alert_state import Reason, Transition
from nap_stream.core.block_readings import JudgedBy
from nap_stream.core.blocks import STATISTICS
from nap_stream.core.learned_references import NEEDED_BLOCKS
from nap_stream.core.sequential import QUIET_CUSUM
from nap_stream.drift.records import BlockFinding, DetectorReading, DriftAlert
from nap_stream.text import duration, moment, number, percent, plain, rfc3339

_FLAGGED, _LOW, _HIGH = STATISTICS
_DAY_MS = 86_400_000
_BY_CHANCE = 0.01
_COMPARED = {
    JudgedBy.OWN: "{n} blocks of {whose} in the baseline",
    JudgedBy.POOLED: "the worst of the keys in the baseline, which has too few blocks of this one "
    "(at least {n} blocks of each)",
    JudgedBy.LEARNING: "the worst of the keys in the baseline (at least {n} blocks of each), as "
    "this one is new: {learned} of {needed} blocks for a baseline of its own are learned",
    JudgedBy.ACCEPTED: "nothing yet: its change was accepted, and {learned} of {needed} blocks for "
    "a baseline of its own are learned",
    JudgedBy.LEARNED: "{n} blocks of its own, learned since it came or was accepted",
    JudgedBy.WAITING: "nothing: there is no room for more new keys, or no baseline at this time",
}

_AS_WORST = (
    "{before} of the worst known key's did in {stretch}",
    "the worst known key's in {stretch}",
    "{before} of that key's did",
)
_BEFORE = {
    JudgedBy.OWN: ("{before} did in {stretch}", "in {stretch}", "{before} did then"),
    JudgedBy.POOLED: (
        "{before} did in {stretch}, by whose worst key it is judged",
        "the worst known key's in {stretch}",
        "{before} of its own did then",
    ),
    JudgedBy.LEARNED: ("{before} did while it learned", "while it learned", "{before} did then"),
    **dict.fromkeys((JudgedBy.LEARNING, JudgedBy.ACCEPTED, JudgedBy.WAITING), _AS_WORST),
}
"""What is said of the time before: of flags, and of scores in two parts. The share of a key that is
judged by others is its own where the baseline knows it, and theirs where it does not."""


def block_summary(alert: DriftAlert, found: BlockFinding, lead: str) -> str:
    """Give one plain sentence: since when, how much, as compared with what, how sure.

    ``lead`` is what it begins with.
    """
    if alert.change.transition is Transition.RESOLVED:
        return _over(alert, found)
    whose = "all" if alert.key is None else "its"
    since = f"since {clock_time(found.reading.onset_ms, alert.time_ms)}"
    begin = f"{lead}{since}" if alert.key is None else f"{lead}{plain(alert.key)}: {since}"
    stretch = f"the baseline ({days(found.since_ms, found.until_ms, alert.time_ms)})"
    share, before = rounded(found.reading.share), rounded(found.reading.baseline_share)
    did, than, did_then = (
        words.format(before=before, stretch=stretch) for words in _BEFORE[found.reading.judged_by]
    )
    if found.reading.statistic == _FLAGGED:
        what = f"{share} of {whose} images look out-of-distribution; {did}"
    else:
        side = "lower" if found.reading.statistic == _LOW else "higher"
        what = (
            f"{whose} images score {side} than {than}; {share} of them look out-of-distribution, "
            f"{did_then}"
        )
    text = f"{begin} {what}. By chance this happens at most once in {span(found.run_time_ms)}"
    return text[:1].upper() + text[1:] if alert.key is None and not lead else text


def decided_words(found: BlockFinding | None, *, has_baseline: bool) -> str:
    """Say which monitor decides, and why."""
    if found is None:
        why = "drift.blocks is off" if has_baseline else "the calibration holds no baseline"
        return f"Single records decide: {why}"
    return (
        f"Blocks of {duration(found.block_ms)} decide, as the calibration holds a baseline: its "
        "promise does not need records that are independent of each other"
    )


def compared_words(found: BlockFinding, key: str | None) -> str:
    """Say what the blocks are compared with."""
    whose = "the whole stream" if key is None else "the same key"
    return _COMPARED[found.reading.judged_by].format(
        n=number(found.baseline_blocks),
        whose=whose,
        learned=number(found.reading.learned),
        needed=number(NEEDED_BLOCKS),
    )


def block_detector_words(reading: DetectorReading, alert: DriftAlert, found: BlockFinding) -> str:
    """Say what the blocks show, and how likely that is by chance."""
    what = {
        _FLAGGED: "has more flagged records",
        _LOW: "has more low p-values",
        _HIGH: "has more high p-values (repeated or unusually simple images can look so)",
    }[found.reading.statistic]
    evidence, fires, ends = map(
        number, (reading.statistic, reading.threshold, reading.resolve_threshold)
    )
    since = clock_time(found.reading.onset_ms, alert.time_ms)
    return (
        f"{_counted_blocks(found)} since {since}: what changed most is that a block {what} "
        f"than those it is compared with: {compared_words(found, alert.key)}. Its evidence is "
        f"{evidence}; it fires at {fires} and ends below {ends}, or earlier, once the blocks speak "
        f"at most {number(math.exp(QUIET_CUSUM))} to 1 for a change."
    )


def block_promise_words(found: BlockFinding) -> str:
    """Say what the monitor promises where blocks decide, and under which condition."""
    blocks = found.run_time_ms / found.block_ms
    soon = span(round(_BY_CHANCE * found.run_time_ms))
    new = (
        " A key that the baseline does not know must be no worse than the worst that it knows, "
        f"until it has learned {NEEDED_BLOCKS} blocks of its own. The confidence covers the first "
        f"{number(found.new_keys)} keys that learn. What a later one learns is too low with a "
        f"probability of at most {percent(found.late_risk)}, each for itself."
        if found.new_keys
        else ""
    )
    return (
        "While the stream is as it was in the baseline, the probability that this monitor raises "
        f"any false alarm within a time T is at most T / {span(found.run_time_ms)}, for every T: "
        f"{percent(_BY_CHANCE)} within {soon}. That is one in the time of {number(blocks)} "
        "blocks, of all keys and the stream together. "
        f"It holds for at least {percent(found.confidence)} of all baselines that could have been "
        f"drawn, provided that blocks of {duration(found.block_ms)} of one key, and of one kind of "
        f"time, are exchangeable with those of the baseline. Records need not be independent.{new}"
    )


def rounded(share: float) -> str:
    """A fraction in whole percents, as a person says it; a small one with its first digit."""
    return f"{share:.0%}".replace("%", " %") if share >= _BY_CHANCE else f"{100 * share:.1g} %"


def clock_time(time_ms: int, now_ms: int) -> str:
    """A time of day to the minute, with its date unless that is the day of ``now_ms``."""
    then, now = moment(rfc3339(time_ms)), moment(rfc3339(now_ms))
    date, clock = then[:10], then[11:16] if then[17:19] == "00" else then[11:19]
    return f"{clock} UTC" if date == now[:10] else f"{date} {clock} UTC"


def days(since_ms: int, until_ms: int, now_ms: int) -> str:
    """A stretch by its days, as in 12 to 26 May; with the year unless that is the one of now."""
    first, last, now = (
        datetime.fromtimestamp(time_ms / 1000, UTC)
        for time_ms in (since_ms, max(since_ms, until_ms - 1), now_ms)
    )
    year = "" if first.year == last.year == now.year else f" {last.year}"
    end = f"{last.day} {last:%B}{year}"
    if first.date() == last.date():
        return end
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} to {end}"
    of_first = "" if first.year == last.year else f" {first.year}"
    return f"{first.day} {first:%B}{of_first} to {end}"


def span(time_ms: int) -> str:
    """A length of time for a person: whole days where they are two or more."""
    whole = time_ms / _DAY_MS
    return f"{number(round(whole))} days" if whole >= 2 else duration(time_ms)  # noqa: PLR2004


def _counted_blocks(found: BlockFinding) -> str:
    blocks = f"{number(found.reading.blocks)} block{'' if found.reading.blocks == 1 else 's'}"
    return (
        f"{number(found.reading.flagged)} of {number(found.reading.records)} records are flagged "
        f"({percent(found.reading.share)}) in {blocks} of {duration(found.block_ms)}"
    )


def _over(alert: DriftAlert, found: BlockFinding) -> str:
    lasted, accepted = duration(alert.time_ms - alert.change.alert.since_ms), alert.acceptance
    whose = "the stream" if alert.key is None else plain(alert.key)
    if alert.change.reason is Reason.ACCEPTED and accepted is not None:
        return (
            f"Accepted after {lasted} by {plain(accepted.by)}: {plain(accepted.reason)}. {whose} "
            f"is taken as it is since {clock_time(accepted.from_ms, alert.time_ms)}, and learns a "
            f"baseline of its own: nothing watches it for {number(NEEDED_BLOCKS)} blocks of "
            f"{duration(found.block_ms)} each, of every kind of time"
        )
    if alert.change.reason is Reason.SILENT:
        return f"Closed after {lasted}: no images of {whose} come any more"
    if alert.change.reason is Reason.FORGOTTEN:
        return (
            f"Closed after {lasted}: there are more keys than drift.keys.max_keys, and {whose} is "
            "no longer known; it may be as it was"
        )
    if found.reading.judged_by is JudgedBy.LEARNED:
        return f"Over after {lasted}: {whose} looks as it did while it learned again"
    stretch = f"the baseline ({days(found.since_ms, found.until_ms, alert.time_ms)})"
    if found.reading.judged_by is JudgedBy.OWN:
        return f"Over after {lasted}: {whose} looks as in {stretch} again"
    return f"Over after {lasted}: {whose} looks no worse than the worst key of {stretch}"
