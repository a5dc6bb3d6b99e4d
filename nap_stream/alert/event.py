"""Alerts as CloudEvents 1.0 events in JSON: of what the drift monitor decided, and of gaps.

An event is a function of the decision, the plan and the calibration alone, or of the gap and the
monitor that reports it. So computing it again gives the same id, time and data, and two monitors
that share an alert topic have different events. Events fulfil the JSON Schemas beside this module:
``alert.schema.json`` and ``gap.schema.json``.

In words a drift alert is one sentence for whoever is on call, then the evidence. The promise is
that of `nap_stream.core.detection`, with the conditions under which it holds: see
`nap_stream.core.bounds` for the rolling window and `nap_stream.core.sequential` for e-detectors.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nap_stream.core.alert_state import (
    DEFAULT_FALSE_ALARMS,
    Change,
    Detector,
    Reason,
    Transition,
)
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.panes import WindowState
from nap_stream.core.sequential import QUIET_CUSUM, Onset
from nap_stream.core.tails import TailEvent
from nap_stream.drift.records import (
    CalibrationFacts,
    Contribution,
    DetectorReading,
    DriftAlert,
    TailShift,
    UnscoredShare,
)
from nap_stream.records import Example, SegmentSummary
from nap_stream.settings.schema import Settings
from nap_stream.text import bounded, duration, moment, number, percent, plain, rfc3339

DATA_SCHEMA = "urn:nap-stream:alert:4"
"""Names the version of ``data``. A change that a reader must know of makes a new one."""
DATA_SCHEMA_BEFORE = "urn:nap-stream:alert:3"
"""The same without ``unscored``."""
TYPE_PREFIX = "io.nap-stream.drift."
GAP_SCHEMA = "urn:nap-stream:gap:1"
"""The same for ``data`` of a gap."""
GAP_TYPE = "io.nap-stream.gap"


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A CloudEvents 1.0 event, ready to send.

    ``key`` names the monitor. The alert of a key of images appends "/" and that key, the alert of
    missing offsets "/gap/" and the partition. Alerts of one ``key`` are delivered in order.
    ``event`` is the JSON tree of the whole event: context attributes and data.
    """

    key: str
    event: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The event's id: the same whenever the same alert is computed again."""
        return str(self.event["id"])

    @property
    def state(self) -> str:
        """The last part of the event's type: firing, resolved or gap."""
        return str(self.event["type"]).rsplit(".", maxsplit=1)[-1]


def alert_event(
    alert: DriftAlert,
    plan: DetectionPlan,
    settings: Settings,
    calibration: CalibrationFacts,
    version: str,
) -> AlertEvent:
    """Make the event of an alert, as this version of the program does.

    Its Kafka key is the monitor's name; for the alert of one key "/" and that key follow. So the
    alerts of one thing keep their order, and a compacted topic keeps the last one of each.
    """
    monitor, topic, change = settings.alerts.monitor, settings.kafka.topic, alert.change
    data = {
        "monitor": monitor,
        "topic": topic,
        "key": alert.key,
        **state_tree(change, summary(alert, plan)),
        "firing_keys": alert.firing_keys,
        **_evidence(alert, plan),
        "promise": {
            "run_length": plan.run_length,
            "confidence": plan.confidence,
            "detector_run_length": plan.detector_run_length,
            "false_alarms": asked_for(settings),
            "words": promise_words(plan, settings, calibration),
        },
        "alpha": calibration.alpha,
        "calibration_size": calibration.size,
        "per_class": calibration.per_class,
        "flag_rate": plan.flag_rate,
        **provenance(settings, calibration, version),
    }
    event = cloud_event(
        data,
        settings,
        kind=TYPE_PREFIX + change.transition.value,
        schema=DATA_SCHEMA,
        identity=[
            monitor,
            topic,
            alert.key,
            change.transition.value,
            change.reason.value,
            change.alert.repeats,
            alert.time_ms,
            change.alert.since_ms,
            calibration.fingerprint,
            plan.run_length,
            plan.confidence,
            plan.window_records,
        ],
        subject=topic if alert.key is None else f"{topic}/{alert.key}",
        time_ms=alert.time_ms,
    )
    return AlertEvent(monitor if alert.key is None else f"{monitor}/{alert.key}", event)


def asked_for(settings: Settings) -> str | None:
    """The sentence that the promise was asked for with; None where it was a run length."""
    if settings.drift.expected_run_length is not None:
        return None
    return settings.drift.false_alarms or DEFAULT_FALSE_ALARMS


def provenance(settings: Settings, calibration: CalibrationFacts, version: str) -> dict[str, Any]:
    """What an alert comes from, and what its settings add to it."""
    return {
        "model_fingerprint": calibration.model_fingerprint,
        "calibration_fingerprint": calibration.fingerprint,
        "version": version,
        "labels": settings.alerts.labels,
        "runbook_url": settings.alerts.runbook_url,
        "dashboard_url": settings.alerts.dashboard_url,
    }


def gap_event(found: SegmentSummary, settings: Settings, version: str) -> AlertEvent:
    """Make the event of a gap that the log declares, as this version of the program does.

    It has no time: neither offsets that are gone nor their segment's summary have one. The alert's
    timestamp in Kafka says when it was sent.

    Raises:
        ValueError: The segment declares no gap.
    """
    if found.gap is None:
        raise ValueError("only a declared gap makes an alert")
    monitor, place = settings.alerts.monitor, found.partition
    data = {
        "monitor": monitor,
        "topic": place.topic,
        "partition": place.partition,
        "base_offset": found.base_offset,
        "end_offset": found.end_offset,
        "offsets": found.end_offset - found.base_offset,
        "reason": found.gap,
        "segment": found.path,
        "version": version,
    }
    offsets = (found.base_offset, found.end_offset)
    event = cloud_event(
        data,
        settings,
        kind=GAP_TYPE,
        schema=GAP_SCHEMA,
        identity=[GAP_TYPE, monitor, place.topic, place.partition, *offsets],
        subject=place.topic,
    )
    # In a compacted topic a gap must not take the place of the monitor's last drift alert.
    return AlertEvent(f"{monitor}/gap/{place.partition}", event)


def cloud_event(
    data: Mapping[str, Any],
    settings: Settings,
    *,
    kind: str,
    schema: str,
    identity: Sequence[str | float | None],
    subject: str,
    time_ms: int | None = None,
) -> dict[str, Any]:
    """Put data, a JSON tree, into an envelope.

    The event's id is the digest of ``identity``: events that differ there are different ones.
    ``time_ms`` is in milliseconds since the epoch, None where the event has no time.
    """
    topic, monitor = (quote(n, safe="") for n in (settings.kafka.topic, settings.alerts.monitor))
    return {
        "specversion": "1.0",
        "id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        "source": f"/nap-stream/{topic}/{monitor}",
        "type": kind,
        "subject": subject,
        **({} if time_ms is None else {"time": rfc3339(time_ms)}),
        "datacontenttype": "application/json",
        "dataschema": schema,
        "data": data,
    }


def state_tree(change: Change, words: str) -> dict[str, Any]:
    """The state that an alert announces; ``words`` is its sentence."""
    previous = change.previous_severity
    return {
        "state": change.transition.value,
        "reason": change.reason.value,
        "repeat": change.alert.repeats,
        "severity": change.alert.severity.value,
        "previous_severity": None if previous is None else previous.value,
        "summary": words,
        "firing_since": rfc3339(change.alert.since_ms),
        "onset": rfc3339(change.alert.onset_ms),
    }


def window_tree(window: WindowState) -> dict[str, Any]:
    """The rolling window of scored records."""
    return {
        "start": rfc3339(window.start_ms),
        "end": rfc3339(window.end_ms),
        "records": window.records,
        "flagged": window.flagged,
        "fraction": window.fraction,
    }


def share_tree(share: UnscoredShare) -> dict[str, Any]:
    """How many of the newest images have no scores."""
    return {
        "start": rfc3339(share.start_ms),
        "end": rfc3339(share.end_ms),
        "images": share.images,
        "unscored": share.unscored,
        "share": share.share,
        "bound": share.bound,
        "by_status": {status.value: count for status, count in share.by_status},
        "severity": None if share.severity is None else share.severity.value,
    }


def _evidence(alert: DriftAlert, plan: DetectionPlan) -> dict[str, Any]:
    since, window, limit = alert.since, alert.window, alert.firing_limit
    return {
        "since_onset": {
            "start": rfc3339(since.start_ms),
            "records": since.records,
            "flagged": since.hits,
        },
        "window": {
            **window_tree(window),
            "firing_limit": limit,
            "bound": None if limit is None else limit / window.records,
            "resolve_limit": alert.resolve_limit,
        },
        "unscored": None if alert.unscored is None else share_tree(alert.unscored),
        "detectors": [_detector(reading, alert, plan) for reading in alert.readings],
        "score_shift": None if alert.tail is None else _shift(alert.tail, alert.time_ms),
        "contributors": {
            "keys": [_contribution(each) for each in alert.keys],
            "classes": [_contribution(each) for each in alert.classes],
        },
        "offsets": [
            {"partition": r.partition.partition, "start": r.start, "end": r.end}
            for r in alert.offsets
        ],
        "examples": [_example(example) for example in alert.examples],
    }


def _detector(reading: DetectorReading, alert: DriftAlert, plan: DetectionPlan) -> dict[str, Any]:
    return {
        "name": reading.detector.value,
        "active": reading.active,
        "statistic": finite(reading.statistic),
        "threshold": finite(reading.threshold),
        "resolve_threshold": finite(reading.resolve_threshold),
        "words": detector_words(reading, alert, plan),
    }


def _shift(tail: TailShift, now_ms: int) -> dict[str, Any]:
    return {
        "tail": str(tail.event),
        "direction": direction(tail.event),
        "highest_rate": tail.highest_rate,
        "since": rfc3339(tail.since.start_ms),
        "records": tail.since.records,
        "hits": tail.since.hits,
        "words": shift_words(tail, now_ms),
    }


def _contribution(each: Contribution) -> dict[str, Any]:
    return {"name": bounded(each.name), "flagged": each.flagged}


def _example(example: Example) -> dict[str, Any]:
    return {
        "partition": example.partition.partition,
        "offset": example.offset,
        "index": example.index,
        "event_time": rfc3339(example.event_time_ms),
        "key": bounded(example.key),
        "class_name": bounded(example.class_name),
        "ood_p_value": example.ood_p_value,
        "segment": example.segment,
    }


def finite(value: float) -> float:
    """A number that JSON can hold."""
    return min(value, sys.float_info.max)


LEADS = {Reason.BEGAN: "", Reason.ESCALATED: "Now critical: ", Reason.REPEATED: "Still firing: "}
_BY_CHANCE = 0.01
_NOTABLE_SHARE = 1 / 3
"""Of the window's flagged records: whoever has less of them is not named in the sentence."""
_LOOK = "look out-of-distribution"


def summary(alert: DriftAlert, plan: DetectionPlan) -> str:
    """Give one plain sentence: what, since when, how bad."""
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


def promise_words(plan: DetectionPlan, settings: Settings, calibration: CalibrationFacts) -> str:
    """Say what the monitor promises about false alarms, and under which conditions."""
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
