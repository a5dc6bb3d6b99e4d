"""The alert of images without scores as an event, and its words.

An event is a function of the decision, the settings and the calibration alone, as that of a drift
alert is (`nap_stream.alert.event`), and fulfils ``unscored.schema.json`` beside this module.
"""

import math
from typing import Any

from nap_stream.alert.event import (
    AlertEvent,
    alert_event,
    asked_for,
    cloud_event,
    finite,
    place_tree,
    provenance,
    share_tree,
    state_tree,
    window_tree,
)
from nap_stream.alert.words import LEADS, time_of_day
from nap_stream.core.alert_state import Transition
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.sequential import QUIET_CUSUM
from nap_stream.drift.records import CalibrationFacts, DriftAlert, UnscoredAlert
from nap_stream.records import UnscoredImages
from nap_stream.settings.schema import Settings
from nap_stream.text import bounded, duration, number, percent, plain, rfc3339

UNSCORED_SCHEMA = "urn:nap-stream:unscored:1"
"""Names the version of ``data``. A change that a reader must know of makes a new one."""
UNSCORED_PREFIX = "io.nap-stream.unscored."
NAME = "unscored-images"
"""What the alert is called, as its detector is."""
_NOTABLE_SHARE = 1 / 2
"""Of the images without scores: a key that has less of them is not named in the sentence."""


def event_of(
    alert: DriftAlert | UnscoredAlert,
    plan: DetectionPlan,
    settings: Settings,
    calibration: CalibrationFacts,
    version: str,
) -> AlertEvent:
    """Make the event of an alert of either kind, as this version of the program does."""
    if isinstance(alert, UnscoredAlert):
        return unscored_event(alert, settings, calibration, version)
    return alert_event(alert, plan, settings, calibration, version)


def unscored_event(
    alert: UnscoredAlert, settings: Settings, calibration: CalibrationFacts, version: str
) -> AlertEvent:
    """Make the event of an alert of images without scores.

    Its Kafka key is the monitor's name, "/" and `NAME`.
    """
    monitor, topic, change = settings.alerts.monitor, settings.kafka.topic, alert.change
    run_length, share, since = settings.drift.run_length, alert.share, alert.since
    data = {
        "monitor": monitor,
        "topic": topic,
        **state_tree(change, summary(alert)),
        "since_onset": {
            "start": rfc3339(since.start_ms),
            "images": since.records,
            "unscored": since.hits,
        },
        "unscored": share_tree(share),
        "reasons": [
            {
                "status": each.status.value,
                "error": bounded(plain(each.error)),
                "images": each.images,
            }
            for each in alert.reasons
        ],
        "keys": [{"name": bounded(key.name), "images": key.flagged} for key in alert.keys],
        "examples": [_example(each, settings) for each in alert.examples],
        "ood_window": None
        if alert.window is None
        else window_tree(alert.window)
        | {"age_s": max(0, alert.time_ms - alert.window.end_ms) / 1_000},
        "detector": {
            "name": alert.reading.detector.value,
            "active": alert.reading.active,
            "statistic": finite(alert.reading.statistic),
            "threshold": finite(alert.reading.threshold),
            "resolve_threshold": finite(alert.reading.resolve_threshold),
            "words": detector_words(alert),
        },
        "promise": {
            "run_length": run_length,
            "bound": share.bound,
            "false_alarms": asked_for(settings),
            "words": promise_words(run_length, share.bound),
        },
        **provenance(settings, calibration, version),
    }
    event = cloud_event(
        data,
        settings,
        kind=UNSCORED_PREFIX + change.transition.value,
        schema=UNSCORED_SCHEMA,
        identity=[
            NAME,
            monitor,
            topic,
            change.transition.value,
            change.reason.value,
            change.alert.repeats,
            alert.time_ms,
            change.alert.since_ms,
            calibration.fingerprint,
            run_length,
            share.bound,
        ],
        subject=topic,
        time_ms=alert.time_ms,
    )
    return AlertEvent(f"{monitor}/{NAME}", event)


def summary(alert: UnscoredAlert) -> str:
    """Give one plain sentence: what, since when, how bad, and what is no longer known."""
    change, share, since = alert.change, alert.share, alert.since
    if change.transition is Transition.RESOLVED:
        lasted = duration(alert.time_ms - change.alert.since_ms)
        return (
            f"Over after {lasted}: images can be scored again; {number(share.unscored)} of the "
            f"last {number(share.images)} could not ({percent(share.share)})"
        )
    counted = f"{number(since.hits)} of {number(since.records)} images ({percent(since.share)})"
    return (
        f"{LEADS[change.reason]}{counted} since about "
        f"{time_of_day(since.start_ms, alert.time_ms)} could not be scored, at most "
        f"{percent(share.bound)} expected{_why(alert)}{_stale(alert)}"
    )


def detector_words(alert: UnscoredAlert) -> str:
    """Say what the detector found, and how likely it is to fire by chance."""
    reading, bound = alert.reading, percent(alert.share.bound)
    return (
        f"{number(alert.since.hits)} of {number(alert.since.records)} images since about "
        f"{time_of_day(alert.since.start_ms, alert.time_ms)} have no scores. Its evidence is "
        f"{number(reading.statistic)}; it fires at {number(reading.threshold)} and ends below "
        f"{number(reading.resolve_threshold)}, or earlier, once the images speak at most "
        f"{number(math.exp(QUIET_CUSUM))} to 1 for a change. It fires by chance within T images "
        f"with a probability of at most T / {number(reading.threshold)}, however images depend on "
        f"each other, as long as one without scores is no more likely than {bound} given those "
        "before."
    )


def promise_words(run_length: float, bound: float) -> str:
    """Say what this alert promises about false alarms, and under which condition."""
    return (
        f"While an image without scores is no more likely than {percent(bound)}, given the images "
        "before, the probability that this alert is raised within T images is at most T / "
        f"{number(run_length)}, for every T. That is beside the promise of the drift alert, which "
        "has the same run length for itself."
    )


def _why(alert: UnscoredAlert) -> str:
    words = ""
    if alert.reasons:
        first = alert.reasons[0]
        words = f": {first.status.value}, {bounded(plain(first.error))}"
    if alert.keys and alert.keys[0].flagged >= _NOTABLE_SHARE * alert.since.hits:
        words += f"; {plain(bounded(alert.keys[0].name))} has most of them"
    return words


def _stale(alert: UnscoredAlert) -> str:
    window = alert.window
    if window is None:
        return ". No image was scored yet: nothing is known of drift"
    if window.end_ms >= alert.time_ms:
        return ""
    as_of = time_of_day(window.end_ms, alert.time_ms)
    fraction = percent(window.fraction)
    return f". None was scored since {as_of}: the OOD fraction of {fraction} is as of then"


def _example(each: UnscoredImages, settings: Settings) -> dict[str, Any]:
    return {
        **place_tree(each.partition, settings),
        "offset": each.offset,
        "index": each.index,
        "event_time": rfc3339(each.event_time_ms),
        "key": bounded(each.key),
        "status": each.status.value,
        "error": bounded(plain(each.error)),
        "segment": each.segment,
    }
