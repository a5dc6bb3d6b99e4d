"""Summaries and settings for tests of the drift monitor and the coordinator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_stream.core.bounds import FlagRateLaw
from nap_stream.core.windows import panes_of
from nap_stream.records import (
    CalibrationFacts,
    Example,
    SegmentSummary,
    Status,
    TopicPartition,
    WorkerReport,
)
from nap_stream.settings import Settings

TOPIC = "images"
PANE_MS = 10
FACTS = CalibrationFacts(
    alpha=0.05,
    size=199,
    per_class=False,
    flag_rate_laws=(FlagRateLaw(10, 199),),
    fingerprint="c" * 64,
    model_fingerprint="f" * 64,
)
PER_CLASS_FACTS = CalibrationFacts(
    alpha=0.05,
    size=238,
    per_class=True,
    flag_rate_laws=(FlagRateLaw(1, 38), FlagRateLaw(10, 200)),
    fingerprint="c" * 64,
    model_fingerprint="f" * 64,
)

Row = tuple[int, bool]
"""Event time in milliseconds, and whether the record is flagged."""


def partition(number: int) -> TopicPartition:
    return TopicPartition(TOPIC, number)


def summary(
    number: int, base: int, rows: Sequence[Row], *, end: int | None = None, gap: str | None = None
) -> SegmentSummary:
    """The summary of a segment with one row an offset from ``base`` on."""
    name = partition(number)
    path = f"topic={TOPIC}/partition={number}/{base:020}.parquet"
    examples = [
        Example(name, base + i, 0, time_ms, "cat", 0.005 + i / 10_000, path)
        for i, (time_ms, flagged) in enumerate(rows)
        if flagged
    ]
    return SegmentSummary(
        partition=name,
        base_offset=base,
        end_offset=base + len(rows) if end is None else end,
        rows_by_status={Status.OK: len(rows)} if rows else {},
        panes=panes_of((t for t, _ in rows), (f for _, f in rows), PANE_MS),
        max_event_time_ms=max((t for t, _ in rows), default=None),
        path=path,
        examples=tuple(examples[:5]),
        gap=gap,
    )


def segments(number: int, rows: Sequence[Row], sizes: Sequence[int]) -> list[SegmentSummary]:
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
        "drift": {"window_records": 40, "pane_ms": PANE_MS},
        "metrics": {"port": 0},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return Settings.model_validate(tree)


def report(worker: str = "worker-0", incarnation: int = 0, **values: Any) -> WorkerReport:
    """A worker's report in which nothing has happened but ``values``."""
    fields: dict[str, Any] = {
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
