"""Cameras whose records depend on each other, and a baseline of their blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nap_stream.calibration.calibration import Calibration
from nap_stream.core.blocks import Blocks, blocks_of
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.drift.records import BaselineFacts, CalibrationFacts
from tests.support.baseline_calibrations import with_baseline as hold_baseline
from tests.support.small_calibration import calibration_of
from tests.support.summaries import FACTS, PANE_MS, Row, summary

BLOCK_MS = 5 * PANE_MS
BASELINE_BLOCKS = 60
BASELINE_MS = BASELINE_BLOCKS * BLOCK_MS
"""Where the baseline ends; it begins at 0."""
CAMERAS = ("camera-1", "camera-2", "camera-3")
USUAL = {"camera-1": 0.03, "camera-2": 0.05, "camera-3": 0.1}
"""The OOD fractions of the cameras."""
DWELL = 4
"""Flags of a camera come and go in runs of so many, on average."""


def cameras(
    start_ms: int, until_ms: int, rates: Mapping[str, float] = USUAL, seed: int = 0
) -> list[Row]:
    """A record a millisecond, of each camera in turn; runs of flags at each one's own rate."""
    names, records = list(rates), until_ms - start_ms
    flags = [
        runs(records // len(names) + 1, rates[name], seed=seed * 100 + number)
        for number, name in enumerate(names)
    ]
    turns = ((i % len(names), i // len(names)) for i in range(records))
    return [
        Row(start_ms + i, bool(flags[camera][turn]), key=names[camera])
        for i, (camera, turn) in enumerate(turns)
    ]


def runs(count: int, rate: float, *, seed: int, dwell: int = DWELL) -> list[bool]:
    """Flags of a Markov chain with two states: a share of ``rate``, in runs of ``dwell``."""
    if rate in {0.0, 1.0}:
        return [bool(rate)] * count
    rng = np.random.default_rng(seed)
    begin, end = rate / (1 - rate) / dwell, 1 / dwell
    flags, now = [], bool(rng.random() < rate)
    for _ in range(count):
        now = bool(rng.random() >= end) if now else bool(rng.random() < begin)
        flags.append(now)
    return flags


def baseline_of(rows: Sequence[Row], *, by: str | None = "key", made_ms: int = 0) -> BaselineFacts:
    """The baseline of a stretch."""
    told = summary(0, 0, rows)
    return BaselineFacts(
        name="scored-log",
        by=by,
        since_ms=rows[0].time_ms,
        until_ms=rows[-1].time_ms + 1,
        made_ms=made_ms,
        made_by="Ann",
        reason="the first good days",
        blocks=blocks_of([told.panes], BLOCK_MS),
        kinds=TimeKinds(),
    )


def with_baseline(rows: Sequence[Row] | None = None, *, made_ms: int = 0) -> CalibrationFacts:
    """A calibration that holds a baseline: of the usual cameras, unless told otherwise."""
    stretch = cameras(0, BASELINE_MS) if rows is None else rows
    return replace(FACTS, baseline=baseline_of(stretch, made_ms=made_ms))


def calibration_with(blocks: Blocks, *, made_ms: int) -> Calibration:
    """A calibration whose images score 0 to 399, and that holds a baseline with these blocks."""
    scores = [float(i) for i in range(400)]
    parent = calibration_of(scores, scores, alpha=0.05, created_ms=made_ms)
    changes = {"made_by": "Ann", "reason": "the first good days"}
    return hold_baseline(parent, parent.arrays["score"], blocks, **changes)
