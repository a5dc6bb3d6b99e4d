"""Alerts as CloudEvents 1.0 events in JSON: of what the drift monitor decided, and of gaps.

An event is a function of the decision, the plan and the calibration alone, or of the gap and the
monitor that reports it. So computing it again gives the same id, time and data, and two monitors
that share an alert topic have different events. Events fulfil the JSON Schemas beside this module:
``alert.schema.json`` and ``gap.schema.json``.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nap_stream.alert.block_words import compared_words, decided_words
from nap_stream.alert.words import detector_words, direction, promise_words, shift_words, summary
from nap_stream.core.alert_state import DEFAULT_FALSE_ALARMS, Change
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.learned_references import NEEDED_BLOCKS
from nap_stream.core.panes import WindowState
from nap_stream.drift.records import (
    BaselineFacts,
    BlockFinding,
    CalibrationFacts,
    Contribution,
    DetectorReading,
    DriftAlert,
    TailShift,
    UnscoredShare,
)
from nap_stream.records import Acceptance, Example, SegmentSummary, TopicPartition
from nap_stream.settings.schema import Settings
from nap_stream.text import bounded, rfc3339

DATA_SCHEMA = "urn:nap-stream:alert:5"
"""Names the version of ``data``. A change that a reader must know of makes a new one."""
DATA_SCHEMAS_BEFORE = ("urn:nap-stream:alert:4", "urn:nap-stream:alert:3")
"""The same without what tells of blocks, and without ``unscored`` too."""
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
        **_evidence(alert, plan, settings),
        **_decided(alert, calibration),
        "promise": {
            "run_length": plan.run_length,
            "confidence": plan.confidence,
            "detector_run_length": plan.detector_run_length,
            "false_alarms": asked_for(settings),
            "run_time_s": None if alert.block is None else alert.block.run_time_ms / 1000,
            "words": promise_words(plan, settings, calibration, alert.block),
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
            # As before there were blocks, where they do not decide.
            *(() if alert.block is None else ("blocks", alert.block.run_time_ms)),
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
    topic = _other_topic(place, settings)
    return AlertEvent(f"{monitor}/gap/{f'{topic}/' if topic else ''}{place.partition}", event)


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


def _evidence(alert: DriftAlert, plan: DetectionPlan, settings: Settings) -> dict[str, Any]:
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
            {
                **place_tree(r.partition, settings),
                "start": r.start,
                "end": r.end,
            }
            for r in alert.offsets
        ],
        "examples": [_example(example, settings) for example in alert.examples],
    }


def _decided(alert: DriftAlert, calibration: CalibrationFacts) -> dict[str, Any]:
    """Which monitor decides, why, and against what."""
    found, accepted, baseline = alert.block, alert.acceptance, calibration.baseline
    return {
        "decided_by": {
            "monitor": "records" if found is None else "blocks",
            "words": decided_words(found, has_baseline=baseline is not None),
        },
        "baseline": None if found is None or baseline is None else _baseline(baseline),
        "blocks": None if found is None else _blocks(found, alert.key),
        "acceptance": None if accepted is None else _acceptance(accepted),
    }


def _baseline(baseline: BaselineFacts) -> dict[str, Any]:
    return {
        "name": bounded(baseline.name),
        "start": rfc3339(baseline.since_ms),
        "end": rfc3339(baseline.until_ms),
        "made": rfc3339(baseline.made_ms),
        "by": bounded(baseline.made_by),
        "reason": baseline.reason,
    }


def _blocks(found: BlockFinding, key: str | None) -> dict[str, Any]:
    seen = found.reading
    return {
        "block_s": found.block_ms / 1000,
        "onset": rfc3339(seen.onset_ms),
        "blocks": seen.blocks,
        "records": seen.records,
        "flagged": seen.flagged,
        "share": seen.share,
        "baseline_share": seen.baseline_share,
        "statistic": seen.statistic,
        "judged_by": seen.judged_by.value,
        "baseline_blocks": found.baseline_blocks,
        "learned": seen.learned,
        "needed": NEEDED_BLOCKS,
        "words": f"Compared with {compared_words(found, key)}",
    }


def _acceptance(accepted: Acceptance) -> dict[str, Any]:
    return {
        "number": accepted.number,
        "from": rfc3339(accepted.from_ms),
        "effective": rfc3339(accepted.effective_ms),
        "made": rfc3339(accepted.made_ms),
        "by": bounded(accepted.by),
        "reason": accepted.reason,
    }


def _detector(reading: DetectorReading, alert: DriftAlert, plan: DetectionPlan) -> dict[str, Any]:
    return {
        "name": reading.detector.value,
        "active": reading.active,
        "deciding": reading.deciding,
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


def _other_topic(place: TopicPartition, settings: Settings) -> str | None:
    """The topic, where a monitor of several has another name than it."""
    return None if place.topic == settings.kafka.topic else place.topic


def place_tree(place: TopicPartition, settings: Settings) -> dict[str, Any]:
    """A partition, with its topic where a monitor of several has another name than it."""
    topic = _other_topic(place, settings)
    return {**({} if topic is None else {"topic": topic}), "partition": place.partition}


def _example(example: Example, settings: Settings) -> dict[str, Any]:
    return {
        **place_tree(example.partition, settings),
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
