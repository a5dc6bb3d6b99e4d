"""What a drift alert says in words: one sentence for whoever is on call, then why.

Where blocks decide, `nap_stream.alert.block_words` has the sentence. The promise is that of
`nap_stream.core.detection`, with the conditions under which it holds: see `nap_stream.core.bounds`
for the rolling window and `nap_stream.core.sequential` for e-detectors.
"""

import math

from nap_stream.alert.block_words import (
    block_detector_words,
    block_promise_words,
    block_summary,
)
from nap_stream.core.alert_state import Detector, Reason, Transition
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.sequential import QUIET_CUSUM, Onset
from nap_stream.core.tails import TailEvent
from nap_stream.drift.records import (
    BlockFinding,
    CalibrationFacts,
    DetectorReading,
    DriftAlert,
    TailShift,
)
from nap_stream.settings.schema import Settings
from nap_stream.text import bounded, duration, moment, number, percent, plain, rfc3339

LEADS = {Reason.BEGAN: "", Reason.ESCALATED: "Now critical: ", Reason.REPEATED: "Still firing: "}
_BY_CHANCE = 0.01
_NOTABLE_SHARE = 1 / 3
"""Of the window's flagged records: whoever has less of them is not named in the sentence."""
_LOOK = "look out-of-distribution"


def summary(alert: DriftAlert, plan: DetectionPlan) -> str:
    """Give one plain sentence: what, since when, how bad."""
    if alert.block is not None:
        return block_summary(alert, alert.block, LEADS.get(alert.change.reason, ""))
    if alert.change.transition is Transition.RESOLVED:
        return _ended(alert)
    lead = LEADS[alert.change.reason]
    if alert.key is not None:
        return lead + _since_onset(alert, plan, f" of {plain(alert.key)}")
    active, tail = {r.detector for r in alert.readings if r.active}, alert.tail
    if active == {Detector.SCORE_SHIFT} and tail is not None:
        words = shift_words(tail, alert.time_ms)
        return f"{lead}The model's scores have shifted towards {direction(tail.event)}: {words}"
    is_window = Detector.OOD_WINDOW in active and (
        Detector.OOD_SEQUENTIAL not in active or alert.window.fraction >= alert.since.share
    )
    found = _in_window(alert) if is_window else _since_onset(alert, plan, "")
    return lead + found + _contributor(alert)


def direction(event: TailEvent) -> str:
    """Say to which side the scores have shifted where this tail has grown."""
    return "more in-distribution" if event.upper else "less in-distribution"


def detector_words(reading: DetectorReading, alert: DriftAlert, plan: DetectionPlan) -> str:
    """Say what a detector found, and how likely it is to fire by chance."""
    if not reading.deciding:
        return (
            f"Shown beside what decides: no alert comes of it. Its statistic is "
            f"{number(reading.statistic)}; it is active from {number(reading.threshold)} on. What "
            "it promises about false alarms needs records that do not depend on each other as "
            "those of a camera do."
        )
    if reading.detector is Detector.BLOCKS and alert.block is not None:
        return block_detector_words(reading, alert, alert.block)
    if reading.detector is Detector.OOD_WINDOW:
        return _window_words(reading, alert, plan)
    evidence = (
        f"Its evidence is {number(reading.statistic)}; it fires at {number(reading.threshold)} and "
        f"ends below {number(reading.resolve_threshold)}, or earlier, once the records "
        f"speak at most {number(math.exp(QUIET_CUSUM))} to 1 for a change."
    )
    if reading.detector is Detector.SCORE_SHIFT:
        found = "" if alert.tail is None else f"{shift_words(alert.tail, alert.time_ms)}. "
        if alert.tail is not None and alert.tail.event.upper:
            found += "Repeated or unusually simple images can look so. "
        return (
            f"{found}{evidence} It fires by chance {_chance(plan, 'records')}, however records "
            "depend on each other, as long as no tail of the p-values is more likely, given the "
            "records before, than its bound."
        )
    whose = "" if alert.key is None else " of this key"
    rate = percent(plan.flag_rate)
    return (
        f"{_counted(alert.since, f'records{whose}')} since about "
        f"{time_of_day(alert.since.start_ms, alert.time_ms)} are flagged, at most {rate} expected. "
        f"{evidence} It fires by chance {_chance(plan, f'records{whose}')}, however flags depend "
        f"on each other, as long as a flag is no more likely than {rate} given the records before."
    )


def shift_words(tail: TailShift, now_ms: int) -> str:
    """Say which tail has grown most, and how far, in terms of calibration images."""
    edge = tail.event.edge
    which, share = ("most", 1 - edge) if tail.event.upper else ("least", edge)
    return (
        f"{_counted(tail.since, 'images')} since about "
        f"{time_of_day(tail.since.start_ms, now_ms)} score like the {which} in-distribution "
        f"{percent(share)} of calibration images, "
        f"at most {percent(tail.highest_rate)} expected"
    )


def promise_words(
    plan: DetectionPlan,
    settings: Settings,
    calibration: CalibrationFacts,
    found: BlockFinding | None = None,
) -> str:
    """Say what the monitor promises about false alarms, and under which conditions.

    ``found`` is what blocks say, where they decide.
    """
    if found is not None:
        return block_promise_words(found)
    run_length, rate = number(plan.run_length), percent(plan.flag_rate)
    by_class = ", compared class by class," if calibration.per_class else ","
    flags = f"a flag is no more likely than {rate}"
    if settings.drift.keys is not None:
        flags += ", for each key on its own too"
    tails = ", and no tail of the p-values more likely than its bound" if plan.tail_rates else ""
    return (
        "While the stream is in-distribution, the probability that this monitor raises a false "
        f"alarm within T records is at most T / {run_length}, for every T: {percent(_BY_CHANCE)} "
        f"within {number(_BY_CHANCE * plan.run_length)} records. This holds for at least "
        f"{percent(plan.confidence)} of all draws of {number(calibration.size)} calibration "
        f"images{by_class} provided that flags are independent, with a rate of at most {rate} "
        f"(rolling window), and that, given the records before, {flags}{tails} (sequential tests, "
        "which need no independence)."
    )


def _window_words(reading: DetectorReading, alert: DriftAlert, plan: DetectionPlan) -> str:
    return (
        f"{number(reading.statistic)} of the last {number(alert.window.records)} records are "
        f"flagged; it fires at {number(reading.threshold)} and ends below "
        f"{number(reading.resolve_threshold)}. Independent flags with a rate of at most "
        f"{percent(plan.flag_rate)} make it fire {_chance(plan, 'records')}."
    )


def _chance(plan: DetectionPlan, records: str) -> str:
    run_length = number(plan.detector_run_length)
    return f"within T {records} with a probability of at most T / {run_length}"


def _in_window(alert: DriftAlert) -> str:
    window, limit = alert.window, alert.firing_limit
    found = (
        f"{number(window.flagged)} of the last {number(window.records)} images "
        f"({percent(window.fraction)}) {_LOOK}"
    )
    if limit is not None and window.flagged >= limit:
        found += f", fewer than {number(limit)} ({percent(limit / window.records)}) expected"
    elif alert.resolve_limit is not None:
        found += f", and the alert ends below {number(alert.resolve_limit)}"
    return f"{found}; began about {time_of_day(alert.change.alert.onset_ms, alert.time_ms)}"


def _since_onset(alert: DriftAlert, plan: DetectionPlan, whose: str) -> str:
    return (
        f"{_counted(alert.since, f'images{whose}')} since about "
        f"{time_of_day(alert.since.start_ms, alert.time_ms)} {_LOOK}, "
        f"at most {percent(plan.flag_rate)} expected"
    )


def _ended(alert: DriftAlert) -> str:
    firing, window = alert.change.alert, alert.window
    lasted = duration(alert.time_ms - firing.since_ms)
    if alert.change.reason is Reason.SILENT and alert.key is not None:
        return f"Closed after {lasted}: no images of {plain(alert.key)} come any more"
    if alert.change.reason is Reason.FORGOTTEN and alert.key is not None:
        return (
            f"Closed after {lasted}: more keys are active than drift.keys.max_keys, and "
            f"{plain(alert.key)} is no longer known; it may be as it was"
        )
    over, as_before = f"Over after {lasted}: ", f"no longer {_LOOK} more often than expected"
    if alert.key is not None:
        return f"{over}the images of {plain(alert.key)} {as_before}"
    if firing.detectors == (Detector.SCORE_SHIFT,):
        return f"{over}the model's scores are no longer shifted"
    return (
        f"{over}images {as_before}; {number(window.flagged)} of the last "
        f"{number(window.records)} do ({percent(window.fraction)})"
    )


def _contributor(alert: DriftAlert) -> str:
    least = alert.window.flagged * _NOTABLE_SHARE
    for kind, most in (("", alert.keys), ("class ", alert.classes)):
        if most and most[0].flagged >= least:
            return f"; {kind}{plain(bounded(most[0].name))} contributes most"
    return ""


def _counted(since: Onset, things: str) -> str:
    return f"{number(since.hits)} of {number(since.records)} {things} ({percent(since.share)})"


def time_of_day(time_ms: int, now_ms: int) -> str:
    """A time of day, with its date unless that is the day of ``now_ms``."""
    then, now = moment(rfc3339(time_ms)), moment(rfc3339(now_ms))
    return then.partition(" ")[2] if then[:10] == now[:10] else then
