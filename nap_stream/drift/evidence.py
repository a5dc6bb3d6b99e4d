"""What an alert can show: offsets, examples, keys and classes, kept in a bounded way."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from nap_stream.core.panes import ClosedPane
from nap_stream.drift.records import Contribution
from nap_stream.records import Example, OffsetRange, SegmentSummary, TopicPartition

MAX_SEGMENTS = 10_000
"""For alerts, the offsets and examples of so many of the newest segments are kept. Twice as many
are kept while they wait to be judged."""
MAX_CLASS_PANES = 100_000
"""The classes and keys of so many panes are kept. Each pane holds a record of the window, so there
are more only where clocks have gone wild."""


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


@dataclass(frozen=True, slots=True)
class EvidenceState:
    """All that `WindowEvidence` holds: segments, and (start of a pane, flagged records by name)."""

    segments: tuple[KeptSegment, ...]
    classes: tuple[tuple[int, dict[str, int]], ...]
    keys: tuple[tuple[int, dict[str, int]], ...]


class WindowEvidence:
    """The segments and panes that hold the window's records, and those not yet judged.

    It shows at most ``examples``, and names at most ``contributors`` keys and as many classes. It
    goes on from the state of another one, if given.
    """

    def __init__(
        self, examples: int, contributors: int, state: EvidenceState | None = None
    ) -> None:
        state = state or EvidenceState((), (), ())
        self._examples, self._contributors = examples, contributors
        self._segments = list(state.segments)
        self._classes = {start_ms: Counter(flagged) for start_ms, flagged in state.classes}
        self._keys = dict(state.keys)

    def state(self) -> EvidenceState:
        """Give all that it holds."""
        return EvidenceState(
            tuple(self._segments), tuple(self._classes.items()), tuple(self._keys.items())
        )

    def add(self, summary: SegmentSummary, earliest_ms: int | None) -> None:
        """Keep a segment. One without scored records is no evidence.

        ``earliest_ms`` is the start of the oldest pane in which its records could be counted.
        """
        if not len(summary.panes):
            return
        first_ms, last_ms = int(summary.panes.start_ms[0]), int(summary.panes.start_ms[-1])
        earliest_ms = first_ms if earliest_ms is None else earliest_ms
        offsets = OffsetRange(summary.partition, summary.base_offset, summary.end_offset)
        if len(self._segments) >= 2 * MAX_SEGMENTS:
            del self._segments[:MAX_SEGMENTS]
        first_ms, last_ms = max(first_ms, earliest_ms), max(last_ms, earliest_ms)
        self._segments.append(KeptSegment(offsets, first_ms, last_ms, summary.examples))
        for flagged in summary.flagged_classes:
            start = max(flagged.start_ms, earliest_ms)
            self._classes.setdefault(start, Counter())[flagged.class_name] += flagged.flagged

    def close(self, pane: ClosedPane) -> None:
        """Keep the keys of a pane that have flagged records."""
        counts = pane.key_flagged.tolist()
        flagged = {key: count for key, count in zip(pane.keys, counts, strict=True) if count}
        if flagged:
            self._keys[pane.start_ms] = flagged

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
        return self._most(span, self._classes)

    def key_contributions(self, span: Span) -> tuple[Contribution, ...]:
        """Give the keys with the most flagged records."""
        return self._most(span, self._keys)

    def forget_before(self, start_ms: int) -> None:
        """Drop what has left the window, which now starts at ``start_ms``."""
        kept = [segment for segment in self._segments if segment.last_ms >= start_ms]
        self._segments = kept[-MAX_SEGMENTS:]
        for counts in (self._classes, self._keys):
            old = [start for start in counts if start < start_ms]
            for start in old or sorted(counts)[:-MAX_CLASS_PANES]:
                del counts[start]

    def _within(self, span: Span) -> list[KeptSegment]:
        start_ms, end_ms = span.start_ms, span.end_ms
        return [s for s in self._segments if s.last_ms >= start_ms and s.first_ms < end_ms]

    def _most(self, span: Span, panes: Mapping[int, Mapping[str, int]]) -> tuple[Contribution, ...]:
        total: Counter[str] = Counter()
        for start, counts in panes.items():
            if span.start_ms <= start < span.end_ms:
                total.update(counts)
        most = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        return tuple(Contribution(*item) for item in most[: self._contributors])
