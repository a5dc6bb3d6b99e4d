"""The footer of a compacted file, made of the footers of what it merged."""

import dataclasses
from typing import Any

import pytest

from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import (
    SegmentFooter,
    check_merged,
    may_merge,
    merged_footer,
    segment_sha256,
)
from tests.scored_log.builders import CALIBRATION, CARS, MODEL

ROWS_SHA256 = "7e" * 32


def _part(
    before: SegmentFooter | None, end_offset: int, rows: int, **changes: Any
) -> SegmentFooter:
    values: dict[str, Any] = {
        "partition": CARS,
        "base_offset": before.end_offset if before else 5,
        "end_offset": end_offset,
        "model_fingerprint": MODEL,
        "calibration_fingerprint": CALIBRATION,
        "rows": rows,
        "scored_rows": rows // 2,
        "min_event_time_ms": 100 - end_offset if rows else None,
        "max_event_time_ms": 100 + end_offset if rows else None,
        "writer_id": "worker-0",
        "created_time_ms": end_offset,
        "previous_sha256": segment_sha256(before) if before else "0a" * 32,
        "rows_sha256": "1b" * 32,
    }
    return SegmentFooter(**{**values, **changes})


FIRST = _part(None, 9, 4)
GAP = _part(FIRST, 12, 0, gap="retention")
LAST = _part(GAP, 20, 3, topic_id="dGhlIHRvcGlj")


def _merged(*parts: SegmentFooter) -> SegmentFooter:
    return merged_footer(parts, rows_sha256=ROWS_SHA256, writer_id="compactor", created_time_ms=999)


def test_a_compacted_file_speaks_for_all_that_it_merged() -> None:
    assert _merged(FIRST, GAP, LAST) == SegmentFooter(
        partition=CARS,
        base_offset=5,
        end_offset=20,
        model_fingerprint=MODEL,
        calibration_fingerprint=CALIBRATION,
        rows=7,
        scored_rows=3,
        min_event_time_ms=80,
        max_event_time_ms=120,
        writer_id="compactor",
        created_time_ms=999,
        previous_sha256="0a" * 32,
        rows_sha256=ROWS_SHA256,
        topic_id="dGhlIHRvcGlj",
        merged=(FIRST, GAP, LAST),
    )
    assert _merged(FIRST, GAP, LAST).parts == (FIRST, GAP, LAST)
    assert FIRST.parts == (FIRST,)


def test_gaps_alone_merge_to_a_file_without_rows() -> None:
    other = _part(GAP, 13, 0, gap="an operator")
    footer = _merged(GAP, other)
    assert (footer.rows, footer.gap, footer.min_event_time_ms) == (0, None, None)
    check_merged(footer)


@pytest.mark.parametrize(
    "later",
    [
        _part(FIRST, 12, 1, partition=TopicPartition("cars", 1)),
        _part(FIRST, 12, 1, model_fingerprint="cc"),
        _part(FIRST, 12, 1, calibration_fingerprint="cc"),
        _part(FIRST, 12, 1, base_offset=10),
        _part(FIRST, 12, 1, base_offset=8),
        _part(FIRST, 12, 1, previous_sha256="0c" * 32),
        _part(FIRST, 12, 1, merged=(LAST,)),
    ],
    ids=["partition", "model", "calibration", "hole", "overlap", "digest", "compacted"],
)
def test_what_one_footer_cannot_speak_for_does_not_merge(later: SegmentFooter) -> None:
    assert may_merge(FIRST, GAP)
    assert not may_merge(FIRST, later)
    with pytest.raises(ValueError, match=f"segments 5, {later.base_offset} do not merge"):
        _merged(FIRST, later)


def test_segments_of_different_topics_do_not_merge() -> None:
    assert may_merge(LAST, _part(LAST, 30, 1, topic_id=LAST.topic_id))
    assert not may_merge(LAST, _part(LAST, 30, 1, topic_id="other"))
    assert not may_merge(LAST, _part(LAST, 30, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("end_offset", 21),
        ("base_offset", 4),
        ("rows", 8),
        ("scored_rows", 4),
        ("min_event_time_ms", 79),
        ("max_event_time_ms", 121),
        ("previous_sha256", "0c" * 32),
        ("topic_id", None),
        ("model_fingerprint", "cc"),
        ("partition", TopicPartition("cars", 1)),
    ],
)
def test_a_footer_that_contradicts_what_it_merged_is_refused(name: str, value: object) -> None:
    footer = _merged(FIRST, GAP, LAST)
    check_merged(footer)
    changes: Any = {name: value}
    with pytest.raises(ValueError, match=f"contradicts the footers that it merged in {name}"):
        check_merged(dataclasses.replace(footer, **changes))
