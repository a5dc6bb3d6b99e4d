"""What a window's alert can show: offsets and examples, kept in a bounded way."""

from collections.abc import Callable
from dataclasses import dataclass

from nap_stream.core.windows import Pane, WindowState
from nap_stream.records import Example, OffsetRange, SegmentSummary, TopicPartition

MAX_SEGMENTS = 10_000
"""Segments whose offsets and examples are kept; the newest, which an alert speaks of."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment in the panes in which its records were counted."""

    offsets: OffsetRange
    first_ms: int
    last_ms: int
    examples: tuple[tuple[int, Example], ...]


class Evidence:
    """The segments that hold the records of the window, and those that wait to be in it.

    Args:
        examples: How many records to show.
    """

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._segments: list[_Segment] = []

    def add(
        self, summary: SegmentSummary, panes: tuple[Pane, ...], place: Callable[[int], int]
    ) -> None:
        """Keep a segment.

        Args:
            summary: The segment. One without scored records is no evidence.
            panes: Those in which its records were counted, in order.
            place: From a record's event time to the start of the pane in which it was counted.
        """
        if panes:
            offsets = OffsetRange(summary.partition, summary.base_offset, summary.end_offset)
            examples = tuple((place(e.event_time_ms), e) for e in summary.examples)
            first, last = panes[0].start_ms, panes[-1].start_ms
            self._segments.append(_Segment(offsets, first, last, examples))

    def offsets(self, window: WindowState) -> tuple[OffsetRange, ...]:
        """Give one range a partition, of the segments that reach into the window."""
        ranges: dict[TopicPartition, OffsetRange] = {}
        for segment in self._segments:
            if segment.last_ms < window.start_ms or segment.first_ms >= window.end_ms:
                continue
            new = segment.offsets
            old = ranges.get(new.partition, new)
            start, end = min(old.start, new.start), max(old.end, new.end)
            ranges[new.partition] = OffsetRange(new.partition, start, end)
        return tuple(ranges[partition] for partition in sorted(ranges))

    def examples(self, window: WindowState) -> tuple[Example, ...]:
        """Give the known examples of the window with the smallest p-values, smallest first."""
        within = [
            example
            for segment in self._segments
            for placed_ms, example in segment.examples
            if window.start_ms <= placed_ms < window.end_ms
        ]
        within.sort(key=lambda e: (e.ood_p_value, e.partition, e.offset, e.index))
        return tuple(within[: self._examples])

    def forget_before(self, start_ms: int) -> None:
        """Drop segments that have left the window, which now starts at ``start_ms``."""
        kept = [segment for segment in self._segments if segment.last_ms >= start_ms]
        self._segments = kept[-MAX_SEGMENTS:]
