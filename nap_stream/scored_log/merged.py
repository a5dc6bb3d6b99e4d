"""Compacted files: one file of rows that counts in the chain as the segments that it merged."""

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import pairwise

from nap_stream.scored_log.footer import SegmentFooter, segment_sha256

_SHARED = ("partition", "schema_version", "model_fingerprint", "calibration_fingerprint")


def may_merge(earlier: SegmentFooter, later: SegmentFooter) -> bool:
    """Whether two segments follow each other, and one file's footer can speak for both."""
    return (
        all(getattr(earlier, name) == getattr(later, name) for name in _SHARED)
        and later.base_offset == earlier.end_offset
        and earlier.topic_id in {None, later.topic_id}
        and earlier.rows_sha256 is not None
        and not (earlier.merged or later.merged)
        and later.previous_sha256 == segment_sha256(earlier)
    )


def merged_slots(parts: Iterable[SegmentFooter]) -> set[tuple[int, str]]:
    """Where merged segments stand in the chain: base offset and digest of the predecessor."""
    return {(part.base_offset, part.previous_sha256) for part in parts}


def merged_footer(
    parts: Sequence[SegmentFooter], *, rows_sha256: str, writer_id: str, created_time_ms: int
) -> SegmentFooter:
    """The footer of a compacted file.

    Args:
        parts: Footers of the segments that it merges, in order; none of a compacted file.
        rows_sha256: Digest of all its rows.
        writer_id: Who compacts.
        created_time_ms: Now, since the epoch, UTC.

    Raises:
        ValueError: They do not follow each other, or may not stand in one file.
    """
    for earlier, later in pairwise(parts):
        if not may_merge(earlier, later):
            raise ValueError(f"segments {earlier.base_offset}, {later.base_offset} do not merge")
    first, last = parts[0], parts[-1]
    lows = [part.min_event_time_ms for part in parts if part.min_event_time_ms is not None]
    highs = [part.max_event_time_ms for part in parts if part.max_event_time_ms is not None]
    return dataclasses.replace(
        first,
        end_offset=last.end_offset,
        rows=sum(part.rows for part in parts),
        scored_rows=sum(part.scored_rows for part in parts),
        min_event_time_ms=min(lows, default=None),
        max_event_time_ms=max(highs, default=None),
        writer_id=writer_id,
        created_time_ms=created_time_ms,
        rows_sha256=rows_sha256,
        topic_id=last.topic_id,
        gap=None,
        merged=tuple(parts),
    )


def check_merged(footer: SegmentFooter) -> None:
    """Refuse a compacted file's footer that contradicts those that it merged.

    Raises:
        ValueError: What differs.
    """
    told = merged_footer(
        footer.merged,
        rows_sha256=footer.rows_sha256 or "",
        writer_id=footer.writer_id,
        created_time_ms=footer.created_time_ms,
    )
    names = [field.name for field in dataclasses.fields(footer)]
    differing = [name for name in names if getattr(told, name) != getattr(footer, name)]
    if differing:
        raise ValueError(f"it contradicts the footers that it merged in {', '.join(differing)}")
