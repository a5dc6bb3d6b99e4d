"""What an alert can show: offsets, examples, keys and classes, kept in a bounded way."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from nap_stream.core.panes import ClosedPane
from nap_stream.drift.records import Contribution
from nap_stream.records import Example, OffsetRange, SegmentSummary, TopicPartition

MAX_SEGMENTS = 10_000
"""Segments whose offsets and examples are kept, twice as many while they wait to be judged; the
newest, which an alert speaks of."""
MAX_CLASS_PANES = 100_000
"""Panes whose classes are kept; each a window's record at least, but for clocks gone wild."""


@dataclass(frozen=True, slots=True)
class Span:
    """The panes with a start in ``[start_ms, end_ms)``; records of ``key`` only, unless null."""

    start_ms: int
    end_ms: int
    key: str | None = None


@dataclass(frozen=True, slots=True)
class KeptSegment:
    """A segment, and the first and last pane in which its records were counted."""

    offsets: OffsetRange
    first_ms: int
    last_ms: int
    examples: tuple[Example, ...]


class Evidence:
    """The segments and panes that hold the records of the window, and those that wait to be in it.

    Args:
        examples: How many records to show.
        contributors: How many keys and classes to name.
    """

    def __init__(self, examples: int, contributors: int) -> None:
        self._examples, self._contributors = examples, contributors
        self.segments: list[KeptSegment] = []
        self.classes: dict[int, Counter[str]] = {}
        self.keys: dict[int, Mapping[str, int]] = {}

    def add(self, summary: SegmentSummary, earliest_ms: int | None) -> None:
        """Keep a segment. One without scored records is no evidence.

        Args:
            summary: The segment.
            earliest_ms: Start of the oldest pane in which its records could be counted.
        """
        if not len(summary.panes):
            return
        earliest = summary.panes.start_ms[0] if earliest_ms is None else earliest_ms
        offsets = OffsetRange(summary.partition, summary.base_offset, summary.end_offset)
        first, last = (max(int(summary.panes.start_ms[i]), earliest) for i in (0, -1))
        if len(self.segments) >= 2 * MAX_SEGMENTS:
            del self.segments[:MAX_SEGMENTS]
        self.segments.append(KeptSegment(offsets, int(first), int(last), summary.examples))
        for flagged in summary.flagged_classes:
            start = int(max(flagged.start_ms, earliest))
            self.classes.setdefault(start, Counter())[flagged.class_name] += flagged.flagged

    def close(self, pane: ClosedPane) -> None:
        """Keep the keys of a pane that have flagged records."""
        counts = pane.key_flagged.tolist()
        flagged = {key: count for key, count in zip(pane.keys, counts, strict=True) if count}
        if flagged:
            self.keys[pane.start_ms] = flagged

    def offsets(self, span: Span) -> tuple[OffsetRange, ...]:
        """Give one range a partition, of the segments that reach into the span."""
        ranges: dict[TopicPartition, OffsetRange] = {}
        for segment in self._within(span):
            new = segment.offsets
            old = ranges.get(new.partition, new)
            start, end = min(old.start, new.start), max(old.end, new.end)
            ranges[new.partition] = OffsetRange(new.partition, start, end)
        return tuple(ranges[partition] for partition in sorted(ranges))

    def examples(self, span: Span) -> tuple[Example, ...]:
        """Give the known examples of the span with the smallest p-values, smallest first."""
        within = [
            example
            for segment in self._within(span)
            for example in segment.examples
            if span.key in {None, example.key}
            and min(max(example.event_time_ms, segment.first_ms), segment.last_ms) < span.end_ms
            and max(example.event_time_ms, segment.first_ms) >= span.start_ms
        ]
        within.sort(key=lambda e: (e.ood_p_value, e.partition, e.offset, e.index))
        return tuple(within[: self._examples])

    def class_contributions(self, span: Span) -> tuple[Contribution, ...]:
        """Give the predicted classes with the most flagged records, of all keys."""
        return self._most(span, self.classes)

    def key_contributions(self, span: Span) -> tuple[Contribution, ...]:
        """Give the keys with the most flagged records."""
        return self._most(span, self.keys)

    def forget_before(self, start_ms: int) -> None:
        """Drop what has left the window, which now starts at ``start_ms``."""
        kept = [segment for segment in self.segments if segment.last_ms >= start_ms]
        self.segments = kept[-MAX_SEGMENTS:]
        for counts in (self.classes, self.keys):
            old = [start for start in counts if start < start_ms]
            for start in old or sorted(counts)[:-MAX_CLASS_PANES]:
                del counts[start]

    def _within(self, span: Span) -> list[KeptSegment]:
        return [s for s in self.segments if s.last_ms >= span.start_ms and s.first_ms < span.end_ms]

    def _most(self, span: Span, panes: Mapping[int, Mapping[str, int]]) -> tuple[Contribution, ...]:
        total: Counter[str] = Counter()
        for start, counts in panes.items():
            if span.start_ms <= start < span.end_ms:
                total.update(counts)
        most = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        return tuple(Contribution(*item) for item in most[: self._contributors])
