"""Puts items that cover offset ranges of one partition in order, each range once."""

from typing import Generic, TypeVar

Item = TypeVar("Item")


class OffsetLedger(Generic[Item]):
    """The ranges of one partition: a covered stretch without holes, and what came beyond it.

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
