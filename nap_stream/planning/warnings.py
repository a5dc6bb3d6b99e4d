"""Where a recorded stretch contradicts the calibration or the promise, and what to do."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nap_stream.alert.plain import percent
from nap_stream.planning.findings import Findings
from nap_stream.planning.question import Question
from nap_stream.planning.rates import ANY, KEYS, PANES
from nap_stream.planning.words import count, factor

HIGH_DESIGN_EFFECT = 1.5
_CERTAIN = 3.0
_WHOLE_SECOND_MS = 1_000


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning: ``kind`` for programs, ``text`` for people."""

    kind: str
    text: str


def warnings_of(question: Question, findings: Findings) -> tuple[Warned, ...]:
    """Give all warnings, the most serious first."""
    return (
        *_of_contradictions(question, findings),
        *_of_evenness(findings),
        *_of_flag_rate(findings),
        *_of_keys(findings),
        *_of_tails(findings),
        *_of_dependence(question, findings),
        *_of_false_alarms(findings),
        *_of_the_window(question, findings),
        *_of_other_calibrations(findings),
    )


def _of_contradictions(question: Question, findings: Findings) -> Iterator[Warned]:
    recorded = findings.recorded
    if recorded.contradicting:
        yield Warned(
            "flags-contradict-p-values",
            f"{recorded.contradicting:,} scored records are flagged against their p-value and the "
            f"calibration's alpha of {question.facts.alpha:g}, the first at "
            f"{recorded.first_contradicting}: what wrote them did not judge by this calibration. "
            "They count here as they are flagged, as they do in the monitor",
        )


def _of_evenness(findings: Findings) -> Iterator[Warned]:
    if findings.is_too_even:
        yield Warned(
            "too-even",
            "flags come more evenly than those of independent images: their number varies "
            f"{factor(findings.design_effect)} times as much, as it does where the same images "
            "are sent again and again. Intervals and rates of false alarms say little then: "
            "record a stretch of images that differ",
        )


def _of_flag_rate(findings: Findings) -> Iterator[Warned]:
    found = findings.flag_rate
    interval = f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"
    if found.is_above:
        yield Warned(
            "flag-rate-high",
            f"images of this stream are flagged at {interval}, the calibration allows "
            f"{percent(found.allowed)}: recalibrate with images of this stream, or expect alarms "
            "without a drift",
        )
    if found.high < findings.lowest_rate:
        yield Warned(
            "flag-rate-low",
            f"images of this stream are flagged at {interval}, those of the calibration at "
            f"{percent(findings.lowest_rate)} or more: false alarms are rarer than asked for and "
            "drifts are seen later; recalibrate with images of this stream",
        )


def _of_keys(findings: Findings) -> Iterator[Warned]:
    if not findings.high_keys:
        return
    named = ", ".join(
        f"{each.key} {percent(each.flagged / each.records)} of {count(each.records)}"
        for each in findings.high_keys
    )
    more = findings.high_key_count - len(findings.high_keys)
    allowed = percent(findings.flag_rate.allowed)
    yield Warned(
        "key-rate-high",
        f"keys that are flagged more often than the calibration allows ({allowed}): {named}"
        f"{f' and {more:,} more' if more else ''}: look at their images, or calibrate with them",
    )


def _of_tails(findings: Findings) -> Iterator[Warned]:
    high = [(event, found) for event, found in findings.tails if found.is_above]
    if high:
        told = "; ".join(
            f"{event}: {percent(found.value)} of the records, the calibration allows "
            f"{percent(found.allowed)}"
            for event, found in high
        )
        yield Warned(
            "p-values-not-uniform",
            f"p-values of this stream are not spread as those of the calibration ({told}): the "
            "score-shift detector will fire; recalibrate with images of this stream",
        )


def _of_dependence(question: Question, findings: Findings) -> Iterator[Warned]:
    effect = findings.design_effect
    if effect <= HIGH_DESIGN_EFFECT or effect <= 1 + _CERTAIN * findings.effect_error:
        return
    window = question.plan.window_records
    yield Warned(
        "dependent",
        f"flags depend on each other: their number varies {factor(effect)} times as much as that "
        f"of independent records, so that a window of {count(window)} is worth "
        f"{count(window / effect)}: {_thinning(question, findings)}",
    )


def _thinning(question: Question, findings: Findings) -> str:
    keys, pane_ms = question.drift.keys, question.drift.pane_ms
    apart_ms = findings.panes_to_forget * max(findings.pane_distance_ms, pane_ms)
    unit = _WHOLE_SECOND_MS if apart_ms > _WHOLE_SECOND_MS else 1
    pane = f"drift.pane_ms: {math.ceil(apart_ms / unit) * unit}"
    thinned = f"drift.keys.one_per_pane: true, {pane}"
    if keys is None:
        return f"name cameras with drift.keys, count one record of each in a pane ({thinned})"
    if not keys.one_per_pane:
        return f"count one record of a key in a pane ({thinned})"
    return f"make panes longer, of which one record of a key counts ({pane})"


def _of_false_alarms(findings: Findings) -> Iterator[Warned]:
    """For the stream and for keys, the run length at which the promise is broken most clearly."""
    for detector, name in ((ANY, "the detectors have"), (KEYS, "a key's monitor has")):
        broken = [
            each
            for each in findings.rates
            if each.detector == detector and each.resampled.interval[0] > each.promised
        ]
        if not broken:
            continue
        worst = max(broken, key=lambda each: each.resampled.interval[0] / each.promised)
        yield Warned(
            "false-alarms-high",
            f"promised one false alarm in {count(1 / worst.promised)} records at most, {name} one "
            f"in {count(1 / worst.resampled.rate)} on this stretch, "
            f"{factor(worst.resampled.rate / worst.promised)} times as many",
        )


def _of_the_window(question: Question, findings: Findings) -> Iterator[Warned]:
    window = question.plan.window_records
    watched = PANES * findings.stretch.records / len(findings.stretch.panes)
    if findings.rates and window > watched:
        yield Warned(
            "window-not-full",
            f"the rolling window of {count(window)} records does not fill within the "
            f"{count(watched)} of a resampled stream: that it raises no false alarm there says "
            "nothing",
        )


def _of_other_calibrations(findings: Findings) -> Iterator[Warned]:
    others = findings.recorded.other_calibrations
    if others:
        yield Warned(
            "other-calibration",
            f"{count(others)} scored records of the stretch were judged by another calibration "
            "and are left out",
        )
