"""Decisions of a drift monitor, made by hand: what five alerts on one night are about."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from nap_stream.alert.unscored import event_of
from nap_stream.core.alert_state import Change, Detector, Firing, Reason, Severity
from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.panes import WindowState
from nap_stream.core.sequential import RESOLVE_RATIO, Onset
from nap_stream.core.tails import FlagRateLaw, TailEvent
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.records import (
    CalibrationFacts,
    Contribution,
    DetectorReading,
    DriftAlert,
    TailShift,
    UnscoredAlert,
    UnscoredShare,
)
from nap_stream.records import Example, OffsetRange, Status, UnscoredImages
from nap_stream.settings.schema import Settings
from tests.support.limits import window_limits
from tests.support.summaries import partition, settings

SIZE = 2_000
FACTS = CalibrationFacts(
    alpha=0.02,
    size=SIZE,
    per_class=False,
    flag_rate_laws=(FlagRateLaw(40, SIZE),),
    groups=1,
    tail_laws=ConformalTest(
        Rule(0.02), np.arange(float(SIZE)), np.zeros(SIZE, np.int64), 1
    ).tail_laws(),
    fingerprint="c" * 64,
    model_fingerprint="f" * 64,
)
SETTINGS = settings(
    drift={
        "window_records": 1_000,
        "pane_ms": 1_000,
        "expected_run_length": None,
        "keys": {"by": "key"},
    },
    alerts={
        "labels": {"site": "hall-2", "team": "vision"},
        "runbook_url": "https://runbooks.example/ood",
        "dashboard_url": "https://grafana.example/d/images",
    },
)
PLAN = detection_plan(SETTINGS.drift, FACTS)
FIRING_LIMIT, RESOLVE_LIMIT = window_limits(PLAN, 1_020)

NIGHT_MS = 1_769_825_000_000
"""2026-01-31 02:03:20 UTC."""
ONSET_MS = NIGHT_MS - 16_000
SEGMENT = "topic=images/partition=1/00000000000000000300.parquet"
EXAMPLE = Example(partition(1), 321, 2, NIGHT_MS - 4_750, "camera-7", "cat", 0.0005, SEGMENT)
TAIL = next(i for i in PLAN.tail_rates if i[0] == TailEvent(0.95, upper=True))


def window_reading(flagged: int, *, active: bool) -> DetectorReading:
    limits = (float(FIRING_LIMIT), float(RESOLVE_LIMIT))
    return DetectorReading(Detector.OOD_WINDOW, active, float(flagged), *limits)


def evidence_reading(detector: Detector, statistic: float) -> DetectorReading:
    """An e-detector's; active where the statistic has reached its threshold."""
    threshold = PLAN.detector_run_length
    return DetectorReading(
        detector, statistic >= threshold, statistic, threshold, threshold * RESOLVE_RATIO
    )


def window(flagged: int) -> WindowState:
    return WindowState(NIGHT_MS - 20_000, NIGHT_MS, 1_020, flagged)


BEGAN = DriftAlert(
    key=None,
    change=Change(
        Reason.BEGAN,
        Firing(NIGHT_MS, ONSET_MS, NIGHT_MS, (Detector.OOD_WINDOW,), Severity.WARNING),
    ),
    time_ms=NIGHT_MS,
    window=window(FIRING_LIMIT + 4),
    firing_limit=FIRING_LIMIT,
    resolve_limit=RESOLVE_LIMIT,
    since=Onset(0, ONSET_MS, 816, FIRING_LIMIT),
    readings=(
        window_reading(FIRING_LIMIT + 4, active=True),
        evidence_reading(Detector.OOD_SEQUENTIAL, 41_250.7),
        evidence_reading(Detector.SCORE_SHIFT, 2_113.4),
    ),
    offsets=(OffsetRange(partition(0), 0, 700), OffsetRange(partition(1), 300, 640)),
    examples=(EXAMPLE,),
    keys=(Contribution("camera-7", 31), Contribution("camera-2", 4)),
    classes=(Contribution("cat", 28), Contribution("truck", 11)),
    firing_keys=1,
    unscored=UnscoredShare(
        start_ms=NIGHT_MS - 20_000,
        end_ms=NIGHT_MS,
        images=1_024,
        by_status=((Status.CORRUPT, 3), (Status.TOO_LARGE, 1)),
        bound=0.01,
        severity=None,
    ),
)
KEY_BEGAN = DriftAlert(
    key="camera-7",
    change=Change(
        Reason.BEGAN,
        Firing(NIGHT_MS, ONSET_MS, NIGHT_MS, (Detector.OOD_SEQUENTIAL,), Severity.CRITICAL),
    ),
    time_ms=NIGHT_MS,
    window=window(30),
    firing_limit=FIRING_LIMIT,
    resolve_limit=RESOLVE_LIMIT,
    since=Onset(0, ONSET_MS, 40, 18),
    readings=(evidence_reading(Detector.OOD_SEQUENTIAL, PLAN.detector_run_length),),
    offsets=(OffsetRange(partition(1), 300, 640),),
    examples=(EXAMPLE,),
    firing_keys=1,
)
DAY_MS = 86_400_000
ESCALATED = DriftAlert(
    key=None,
    change=Change(
        Reason.ESCALATED,
        Firing(
            NIGHT_MS - 4 * 3_600_000,
            NIGHT_MS - 4 * 3_600_000 - 90_000,
            NIGHT_MS,
            (Detector.OOD_WINDOW, Detector.OOD_SEQUENTIAL),
            Severity.CRITICAL,
            repeats=1,
        ),
        Severity.WARNING,
    ),
    time_ms=NIGHT_MS,
    window=window(347),
    firing_limit=FIRING_LIMIT,
    resolve_limit=RESOLVE_LIMIT,
    since=Onset(0, NIGHT_MS - 4 * 3_600_000 - 90_000, 720_000, 61_000),
    readings=(
        window_reading(347, active=True),
        evidence_reading(Detector.OOD_SEQUENTIAL, PLAN.detector_run_length),
        evidence_reading(Detector.SCORE_SHIFT, 2_113.4),
    ),
    offsets=BEGAN.offsets,
    examples=(EXAMPLE,),
    classes=(Contribution("cat", 280), Contribution("truck", 11)),
)
SHIFTED = DriftAlert(
    key=None,
    change=Change(
        Reason.BEGAN,
        Firing(NIGHT_MS, ONSET_MS, NIGHT_MS, (Detector.SCORE_SHIFT,), Severity.WARNING),
    ),
    time_ms=NIGHT_MS,
    window=window(9),
    firing_limit=FIRING_LIMIT,
    resolve_limit=RESOLVE_LIMIT,
    since=Onset(0, NIGHT_MS - 1_000, 51, 1),
    readings=(
        window_reading(9, active=False),
        evidence_reading(Detector.OOD_SEQUENTIAL, 3.4e-12),
        evidence_reading(Detector.SCORE_SHIFT, PLAN.detector_run_length),
    ),
    tail=TailShift(*TAIL, Onset(TAIL[0].upper, ONSET_MS, 816, 240)),
    offsets=BEGAN.offsets,
    examples=(EXAMPLE,),
    keys=(Contribution("camera-2", 2),),
    classes=(Contribution("truck", 6),),
)
ENDED = DriftAlert(
    key=None,
    change=Change(
        Reason.ENDED,
        Firing(
            NIGHT_MS - 3_900_000,
            NIGHT_MS - 3_960_000,
            NIGHT_MS - 3_900_000,
            (Detector.OOD_WINDOW, Detector.OOD_SEQUENTIAL),
            Severity.WARNING,
        ),
    ),
    time_ms=NIGHT_MS,
    window=window(24),
    firing_limit=FIRING_LIMIT,
    resolve_limit=RESOLVE_LIMIT,
    since=Onset(0, NIGHT_MS - 1_000, 51, 2),
    readings=(
        window_reading(24, active=False),
        evidence_reading(Detector.OOD_SEQUENTIAL, 388_011.2),
        evidence_reading(Detector.SCORE_SHIFT, 2_113.4),
    ),
    offsets=BEGAN.offsets,
)
UNREADABLE = UnscoredImages(
    start_ms=ONSET_MS,
    status=Status.UNSUPPORTED,
    error="not a JPEG, PNG or WebP image: starts with 42 4d 36 00",
    key="camera-7",
    images=420,
    partition=partition(1),
    offset=301,
    index=0,
    event_time_ms=ONSET_MS + 250,
    segment=SEGMENT,
)
UNSCORED_BEGAN = UnscoredAlert(
    change=Change(
        Reason.BEGAN,
        Firing(NIGHT_MS, ONSET_MS, NIGHT_MS, (Detector.UNSCORED_IMAGES,), Severity.CRITICAL),
    ),
    time_ms=NIGHT_MS,
    share=UnscoredShare(
        start_ms=NIGHT_MS - 20_000,
        end_ms=NIGHT_MS,
        images=1_024,
        by_status=((Status.UNSUPPORTED, 420), (Status.CORRUPT, 3)),
        bound=0.01,
        severity=Severity.CRITICAL,
    ),
    since=Onset(0, ONSET_MS, 816, 423),
    reading=DetectorReading(Detector.UNSCORED_IMAGES, True, 129.6e6, 129.6e6, 129.6e3),
    window=WindowState(NIGHT_MS - 40_000, ONSET_MS, 1_000, 51),
    reasons=(
        UNREADABLE,
        replace(UNREADABLE, status=Status.CORRUPT, error="it cannot be decoded", images=3),
    ),
    keys=(Contribution("camera-7", 420),),
    examples=(UNREADABLE,),
)
UNSCORED_ENDED = replace(
    UNSCORED_BEGAN,
    change=Change(
        Reason.ENDED,
        Firing(
            NIGHT_MS - 3_900_000,
            NIGHT_MS - 3_960_000,
            NIGHT_MS - 3_900_000,
            (Detector.UNSCORED_IMAGES,),
            Severity.CRITICAL,
        ),
    ),
    share=replace(UNSCORED_BEGAN.share, by_status=((Status.UNSUPPORTED, 12),), severity=None),
    reading=DetectorReading(Detector.UNSCORED_IMAGES, False, 1e5, 129.6e6, 129.6e3),
    window=window(30),
    reasons=(),
    keys=(),
    examples=(),
)
FIRST_UNREADABLE = replace(UNSCORED_BEGAN, window=None, keys=())
UNSCORED_ALERTS = {
    "unscored": UNSCORED_BEGAN,
    "unscored-ended": UNSCORED_ENDED,
    "unscored-from-the-first": FIRST_UNREADABLE,
}
ALERTS = {
    "began": BEGAN,
    "key": KEY_BEGAN,
    "escalated": ESCALATED,
    "shifted": SHIFTED,
    "ended": ENDED,
}


def event_tree(
    alert: DriftAlert | UnscoredAlert,
    *,
    plan: DetectionPlan = PLAN,
    given: Settings = SETTINGS,
    facts: CalibrationFacts = FACTS,
) -> dict[str, Any]:
    """The event of an alert through JSON, as it travels."""
    event = event_of(alert, plan, given, facts, "1.2.3").event
    tree: dict[str, Any] = json.loads(json.dumps(event, allow_nan=False))
    return tree
