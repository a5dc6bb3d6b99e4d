"""How far each partition has been taken, in order of offset, and which of them are idle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from nap_stream.clock import Clock
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition

Item = TypeVar("Item")


class OffsetLedger(Generic[Item]):
    """Puts items that cover offset ranges of one partition in order, each range once.

    It holds a covered stretch without holes, and what came beyond it.

    The first range fixes where the covered stretch starts. Ranges come from a chain of
    segments, so two different ones overlap only if segments were compacted in between. ``end`` is
    where the covered stretch of an earlier ledger ended; None for a new one.
    """

    def __init__(self, end: int | None = None) -> None:
        self._end = end
        self._waiting: dict[int, tuple[int, Item]] = {}
        self._known_end = end or 0
        self.duplicates = 0

    @property
    def end(self) -> int | None:
        """Where the covered stretch ends (exclusive); None before the first range."""
        return self._end

    @property
    def hole(self) -> tuple[int, int] | None:
        """The first missing range ``[start, end)`` below a range that is known to exist."""
        if self._end is None or self._known_end <= self._end:
            return None
        return self._end, min(self._waiting, default=self._known_end)

    def add(self, base: int, end: int, item: Item) -> list[Item]:
        """Take the range ``[base, end)``.

        A range that is covered or waiting already is a duplicate. One that starts within the
        covered stretch and ends beyond it cannot be divided: its rest becomes a hole.

        Returns:
            The items that are now next in order of offset, without a hole before them.
        """
        if self._end is None:
            self._end = base
        if end <= self._end or end <= self._waiting.get(base, (0, item))[0]:
            self.duplicates += 1
            return []
        self._known_end = max(self._known_end, end)
        if base < self._end:
            return []
        self._waiting[base] = (end, item)
        return self._take()

    def skip_hole(self) -> list[Item]:
        """Take the first hole for lost.

        Returns:
            The items that are now next in order of offset; empty where there is no hole.
        """
        if (hole := self.hole) is None:
            return []
        self._end = hole[1]
        return self._take()

    def _take(self) -> list[Item]:
        """Move on over waiting ranges; drop those that the covered stretch has overtaken."""
        items = []
        while self._waiting and (base := min(self._waiting)) <= (self._end or 0):
            end, item = self._waiting.pop(base)
            if base == self._end:
                self._end = end
                items.append(item)
        return items


@dataclass(slots=True)
class KnownPartition:
    """How far a partition has been taken, and when it was last heard of.

    ``watermark_ms`` never falls.
    """

    heard_s: float
    ledger: OffsetLedger[SegmentSummary] = field(default_factory=OffsetLedger)
    watermark_ms: int | None = None

    @property
    def rank(self) -> float:
        """The watermark, or what is below all of them while there is none."""
        return -math.inf if self.watermark_ms is None else self.watermark_ms


class Partitions:
    """The partitions of a monitor.

    A partition's watermark is the largest event time that it has brought. The monitor's is the
    minimum over partitions that are not idle, or the maximum where all are. ``clock`` tells which
    are: those that were not heard of for ``idle_s`` seconds.
    """

    def __init__(self, clock: Clock, idle_s: float) -> None:
        self._clock, self._idle_s = clock, idle_s
        self._known: dict[TopicPartition, KnownPartition] = {}
        # A heap of those that may be active, each with a rank that it has or had: each summary asks
        # for the least one, and with thousands of partitions none of them can look at all.
        self._ranked: list[tuple[float, TopicPartition]] = []
        self._is_ranked: set[TopicPartition] = set()

    def state(self) -> list[tuple[str, int, int | None, int | None]]:
        """Give topic, number, end of what has been taken and watermark of each."""
        return [
            (name.topic, name.partition, known.ledger.end, known.watermark_ms)
            for name, known in self._known.items()
        ]

    def restore(self, state: Sequence[tuple[str, int, int | None, int | None]]) -> None:
        """Take up where others were: all were heard of just now."""
        now_s = self._clock.monotonic()
        for topic, number, end, watermark_ms in state:
            name = TopicPartition(topic, number)
            self._known[name] = KnownPartition(now_s, OffsetLedger(end), watermark_ms)
            self._rank(name)

    def __getitem__(self, partition: TopicPartition) -> KnownPartition:
        """One that has been named."""
        return self._known[partition]

    @property
    def names(self) -> tuple[TopicPartition, ...]:
        """Those that have been named."""
        return tuple(self._known)

    @property
    def duplicates(self) -> int:
        """How many summaries were known already."""
        return sum(known.ledger.duplicates for known in self._known.values())

    def hold(self, partition: TopicPartition) -> None:
        """Expect more of a partition: it is not idle now, and holds the watermark back."""
        now_s, known = self._clock.monotonic(), self._known.get(partition)
        if known is None:
            self._known[partition] = KnownPartition(now_s)
        else:
            known.heard_s = now_s
        self._rank(partition)

    def release(self, partition: TopicPartition) -> None:
        """Expect nothing more of a partition: it no longer holds the watermark back."""
        self._known[partition].heard_s = -math.inf

    def end(self, partition: TopicPartition) -> int | None:
        """Give the offset before which all of a partition has been taken; None if none has."""
        known = self._known.get(partition)
        return known.ledger.end if known else None

    def ends(self) -> dict[TopicPartition, int]:
        """Give the same of each; 0 where none has."""
        return {name: known.ledger.end or 0 for name, known in self._known.items()}

    def holes(self) -> tuple[OffsetRange, ...]:
        """Give the first missing offsets of each partition; what lies beyond waits for them."""
        return tuple(
            OffsetRange(name, *known.ledger.hole)
            for name, known in self._known.items()
            if known.ledger.hole
        )

    def watermark_ms(self) -> int | None:
        """No record with an earlier event time is expected; None while nothing is known."""
        now_s = self._clock.monotonic()
        while self._ranked:
            rank, name = self._ranked[0]
            known = self._known[name]
            if now_s - known.heard_s >= self._idle_s:
                heappop(self._ranked)
                self._is_ranked.remove(name)
            elif rank < known.rank:
                heapreplace(self._ranked, (known.rank, name))
            else:
                return known.watermark_ms
        return self.newest_ms()

    def newest_ms(self) -> int | None:
        """The largest event time that any partition has brought; None while nothing is known."""
        return max(self.watermarks().values(), default=None)

    def watermarks(self) -> Mapping[TopicPartition, int]:
        """The watermarks of those that have brought something."""
        marks = ((name, known.watermark_ms) for name, known in self._known.items())
        return {name: mark for name, mark in marks if mark is not None}

    def _rank(self, name: TopicPartition) -> None:
        if name not in self._is_ranked:
            self._is_ranked.add(name)
            heappush(self._ranked, (self._known[name].rank, name))
