"""Summaries and settings for tests of the drift monitor and the coordinator."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.conformal import ConformalTest, Rule
from nap_stream.core.panes import NO_KEY, ImageCounts, count_images, count_panes
from nap_stream.core.tails import FlagRateLaw
from nap_stream.drift.records import CalibrationFacts
from nap_stream.records import (
    STATUSES,
    Example,
    FlaggedClass,
    SegmentSummary,
    Status,
    TopicPartition,
    UnscoredImages,
    WorkerReport,
)
from nap_stream.settings.schema import Settings

TOPIC = "images"
PANE_MS = 10
CLASS_NAME = "cat"


def _judge(*sizes: int) -> ConformalTest:
    """Of as many classes as there are sizes, with scores that are not tied."""
    class_id = np.repeat(np.arange(len(sizes)), sizes)
    rule = Rule(0.05, per_class=len(sizes) > 1)
    return ConformalTest(rule, np.arange(float(sum(sizes))), class_id, len(sizes))


FACTS = CalibrationFacts(
    alpha=0.05,
    size=199,
    per_class=False,
    flag_rate_laws=(FlagRateLaw(10, 199),),
    groups=1,
    tail_laws=_judge(199).tail_laws(),
    fingerprint="c" * 64,
    model_fingerprint="f" * 64,
)
PER_CLASS_FACTS = CalibrationFacts(
    alpha=0.05,
    size=238,
    per_class=True,
    flag_rate_laws=(FlagRateLaw(1, 38), FlagRateLaw(10, 200)),
    groups=2,
    tail_laws=_judge(38, 200).tail_laws(),
    fingerprint="c" * 64,
    model_fingerprint="f" * 64,
)


class Row(NamedTuple):
    """A record, scored where its status is ok.

    Without a p-value it has one that is usual for flagged ones, or for others.

    Usual ones differ from offset to offset, and are spread as if the stream were in-distribution.
    """

    time_ms: int
    flagged: bool
    p_value: float | None = None
    key: str = NO_KEY
    status: Status = Status.OK


AnyRow = Row | tuple[int, bool]


def partition(number: int) -> TopicPartition:
    return TopicPartition(TOPIC, number)


def summary(
    number: int,
    base: int,
    rows: Sequence[AnyRow],
    *,
    end: int | None = None,
    gap: str | None = None,
    one_per_pane: bool = False,
) -> SegmentSummary:
    """The summary of a segment with one row an offset from ``base`` on."""
    name = partition(number)
    path = f"topic={TOPIC}/partition={number}/{base:020}.parquet"
    whole = [Row(*row) for row in rows]
    scored = [(base + i, row) for i, row in enumerate(whole) if row.status is Status.OK]
    p_values = [_p_value(row, offset) for offset, row in scored]
    examples = [
        Example(name, offset, 0, row.time_ms, row.key, CLASS_NAME, p_value, path)
        for (offset, row), p_value in zip(scored, p_values, strict=True)
        if row.flagged
    ]
    times = np.array([row.time_ms for row in whole], dtype=np.int64)
    newest = np.maximum.accumulate(times)
    is_scored = np.array([row.status is Status.OK for row in whole], dtype=np.bool_)
    placed = newest[is_scored]
    flagged = np.array([row.flagged for _, row in scored], dtype=np.bool_)
    keys = tuple(sorted({row.key for _, row in scored}))
    found, counts = np.unique(placed[flagged] // PANE_MS * PANE_MS, return_counts=True)
    return SegmentSummary(
        partition=name,
        base_offset=base,
        end_offset=base + len(rows) if end is None else end,
        rows_by_status=Counter(row.status for row in whole),
        panes=count_panes(
            placed,
            np.array(p_values, dtype=np.float64),
            flagged,
            pane_ms=PANE_MS,
            keys=keys,
            key=np.array([keys.index(row.key) for _, row in scored], dtype=np.int64),
            one_per_pane=one_per_pane,
        ),
        images=count_images(
            times,
            np.array([STATUSES.index(row.status) for row in whole], dtype=np.int64),
            pane_ms=PANE_MS,
            kinds=len(STATUSES),
        ),
        unscored=tuple(
            UnscoredImages(
                *(time_ms // PANE_MS * PANE_MS, row.status, f"it is {row.status}", row.key, 1),
                *(name, base + i, 0, row.time_ms, path),
            )
            for i, (row, time_ms) in enumerate(zip(whole, newest.tolist(), strict=True))
            if row.status is not Status.OK
        ),
        max_event_time_ms=max((row.time_ms for row in whole), default=None),
        path=path,
        flagged_classes=tuple(
            FlaggedClass(start, CLASS_NAME, count)
            for start, count in zip(found.tolist(), counts.tolist(), strict=True)
        ),
        examples=tuple(sorted(examples, key=lambda one: (one.ood_p_value, one.offset))[:5]),
        gap=gap,
    )


def all_scored(times_ms: NDArray[np.int64], pane_ms: int) -> ImageCounts:
    """Images that all have scores, by pane."""
    kind = np.full(len(times_ms), STATUSES.index(Status.OK))
    return count_images(times_ms, kind, pane_ms=pane_ms, kinds=len(STATUSES))


def _p_value(row: Row, offset: int) -> float:
    if row.p_value is not None:
        return row.p_value
    if row.flagged:
        return 0.005 + offset % 400 / 10_000
    return 0.05 + 0.95 * ((offset + 1) * 0.618_034 % 1)


def segments(number: int, rows: Sequence[AnyRow], sizes: Sequence[int]) -> list[SegmentSummary]:
    """A partition's rows as a chain of segments; the last one takes what ``sizes`` leaves."""
    chain, base = [], 0
    for size in (*sizes, len(rows)):
        part = rows[base : base + size]
        if part:
            chain.append(summary(number, base, part))
            base += len(part)
    return chain


def settings(**sections: dict[str, Any]) -> Settings:
    """Settings of a monitor with a small window, overridden by section."""
    tree: dict[str, Any] = {
        "kafka": {"topic": TOPIC},
        "model": {"factory": "models:net"},
        "calibration": Path("calibration"),
        "log": {"root": Path("log")},
        "drift": {"window_records": 40, "pane_ms": PANE_MS, "expected_run_length": 1e4},
        "metrics": {"port": 0},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return Settings.model_validate(tree)


def report(worker: str = "worker-0", incarnation: int = 0, **values: Any) -> WorkerReport:
    """A worker's report in which nothing has happened but ``values``."""
    fields: dict[str, Any] = {
        "number": 0,
        "sent_at_ms": 0,
        "work_done": 0,
        "idle": False,
        "rows": 0,
        "images_scored": 0,
        "dead_letters": 0,
        "segments_published": 0,
        "segment_conflicts": 0,
        "rebalances": 0,
        "last_commit_ms": None,
        "partitions": (),
    }
    return WorkerReport(worker=worker, incarnation=incarnation, **(fields | values))
