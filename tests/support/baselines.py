"""Cameras whose records depend on each other, and a baseline of their blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nap_stream.calibration.baseline import (
    PARENT_CLASS_ID,
    PARENT_SCORE,
    Baseline,
    ChainPart,
    block_arrays,
)
from nap_stream.calibration.calibration import Calibration, array_sha256
from nap_stream.core.blocks import Blocks, blocks_of
from nap_stream.core.panes import NO_KEY
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.drift.records import BaselineFacts, CalibrationFacts
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


def calibration_with(blocks: Blocks, *, topic: str, alpha: float, made_ms: int) -> Calibration:
    """A calibration that holds a baseline with these blocks, whose keys are those of messages."""
    scores = [float(i) for i in range(400)]
    parent = calibration_of(scores, scores, alpha=alpha)
    arrays = {
        **{name: a for name, a in parent.arrays.items() if not name.startswith("value.")},
        PARENT_SCORE: parent.arrays["score"],
        PARENT_CLASS_ID: parent.arrays["class_id"],
        **block_arrays(blocks),
    }
    stream = blocks.of(NO_KEY)
    baseline = Baseline(
        log_root="scored-log",
        topic=topic,
        since_ms=int(stream.start_ms[0]),
        until_ms=int(stream.start_ms[-1]) + blocks.block_ms,
        chains=(ChainPart(partition=0, start=0, end=1, head_sha256="a" * 64),),
        records=int(stream.records.sum()),
        made_by="Ann",
        reason="the first good days",
        parent=parent.fingerprint,
        judged_by=(parent.fingerprint,),
        by="key",
        keys=blocks.keys,
        one_per_pane=False,
        pane_ms=100,
        block_ms=blocks.block_ms,
        kinds=TimeKinds(),
        decorrelation_ms=10.0,
        thinned_ms=10,
        foreign_share=0.0,
    )
    changes = {"baseline": baseline, "array_sha256": array_sha256(arrays), "created_ms": made_ms}
    return Calibration(parent.document.model_copy(update=changes), arrays)
