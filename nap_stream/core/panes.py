"""Counts of scored records by event-time pane and key. Merging is associative.

Panes and watermarks: Akidau et al., "The Dataflow Model", VLDB 8 (2015).

Within a partition a record's time is the largest event time up to it, in order of offset: a record
that comes out of order counts in the pane of the one before it. So the counts of a partition
depend on its rows alone and not on how they were cut into segments.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.tail_events import BIN_COUNT, bins_of

NO_KEY = ""
"""The key of records without one, and of all where keys are not told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class PaneCounts:
    """R entries, one for each pane and key that holds records, ordered by pane.

    ``start_ms`` int64 (R,), start of the pane in milliseconds since the epoch, ascending; ``key``
    int64 (R,), index into ``keys``; ``records``, ``flagged`` int64 (R,); ``bins`` int64
    (R, BIN_COUNT), the records by p-value, see `nap_stream.core.tail_events`.
    """

    start_ms: NDArray[np.int64]
    key: NDArray[np.int64]
    records: NDArray[np.int64]
    flagged: NDArray[np.int64]
    bins: NDArray[np.int64]
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        size = len(self.start_ms)
        shapes = [a.shape for a in (self.key, self.records, self.flagged)]
        if shapes != [(size,)] * 3 or self.bins.shape != (size, BIN_COUNT):
            raise ValueError(f"expected arrays of {size} entries, got {shapes}, {self.bins.shape}")

    def __len__(self) -> int:
        return len(self.start_ms)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PaneCounts):
            return NotImplemented
        return self.keys == other.keys and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("start_ms", "key", "records", "flagged", "bins")
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def part(self, start: int, end: int) -> "PaneCounts":
        """The entries ``[start, end)``, and of the keys those that are in them."""
        cut = slice(start, end)
        key, keys = self.key[cut], self.keys
        if len(keys) > 1:
            used, key = np.unique(key, return_inverse=True)
            keys = tuple(keys[number] for number in used.tolist())
        return PaneCounts(
            self.start_ms[cut],
            key.astype(np.int64),
            self.records[cut],
            self.flagged[cut],
            self.bins[cut],
            keys,
        )


def count_panes(
    event_times_ms: NDArray[np.int64],
    p_values: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    *,
    pane_ms: int,
    keys: tuple[str, ...] = (NO_KEY,),
    key: NDArray[np.int64] | None = None,
    one_per_pane: bool = False,
) -> PaneCounts:
    """Count scored records of one partition, in order of (offset, index).

    Args:
        event_times_ms: int64 (N,), milliseconds since the epoch.
        p_values: float64 (N,), conformal p-values.
        flagged: bool (N,).
        pane_ms: Width of a pane in milliseconds, at least 1.
        keys: The names of the keys.
        key: int64 (N,), index into ``keys`` of each record; None where all have the first.
        one_per_pane: Count only the first record of each key in a pane; those of `NO_KEY` all
            count.
    """
    if not len(event_times_ms):
        empty = np.zeros(0, dtype=np.int64)
        return PaneCounts(empty, empty, empty, empty, np.zeros((0, BIN_COUNT), np.int64), ())
    times = np.maximum.accumulate(event_times_ms)
    start = times - times % pane_ms
    if key is None:
        key = np.zeros(len(times), dtype=np.int64)
    order = np.lexsort((key, start))
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (np.diff(start[order]) != 0) | (np.diff(key[order]) != 0)
    if one_per_pane:
        kept = is_first | np.asarray([name == NO_KEY for name in keys])[key[order]]
        order, is_first = order[kept], is_first[kept]
    entry = np.cumsum(is_first) - 1
    size = int(entry[-1]) + 1
    bins = np.zeros((size, BIN_COUNT), dtype=np.int64)
    np.add.at(bins, (entry, bins_of(p_values[order])), 1)
    return PaneCounts(
        start[order][is_first],
        key[order][is_first],
        bins.sum(axis=1),
        np.bincount(entry, weights=flagged[order], minlength=size).astype(np.int64),
        bins,
        keys,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ClosedPane:
    """A pane to which nothing more is added.

    ``records`` and ``flagged`` are counts, ``bins`` int64 (BIN_COUNT,). ``keys`` are the K keys
    in it, sorted, without `NO_KEY`; ``key_records`` and ``key_flagged`` are int64 (K,).
    """

    start_ms: int
    records: int
    flagged: int
    bins: NDArray[np.int64]
    keys: tuple[str, ...]
    key_records: NDArray[np.int64]
    key_flagged: NDArray[np.int64]


def closed_pane(start_ms: int, parts: list[PaneCounts], *, one_per_pane: bool) -> ClosedPane:
    """Add up what came for one pane.

    Args:
        start_ms: Its start.
        parts: At least one. Where ``one_per_pane``, of a key that stands in several of them
            only the first counts, so that their order matters: by partition and offset.
        one_per_pane: See `count_panes`.
    """
    if all(part.keys == (NO_KEY,) for part in parts):
        return _without_keys(start_ms, parts)
    names = [part.keys[number] for part in parts for number in part.key.tolist()]
    records, flagged, bins = (
        np.concatenate([getattr(part, field) for part in parts])
        for field in ("records", "flagged", "bins")
    )
    if one_per_pane:
        kept = _first_of_each(names)
        names = [names[i] for i in kept]
        records, flagged, bins = records[kept], flagged[kept], bins[kept]
    keys = tuple(sorted(set(names) - {NO_KEY}))
    slots = {name: slot for slot, name in enumerate((*keys, NO_KEY))}
    slot = np.fromiter((slots[name] for name in names), dtype=np.int64, count=len(names))
    size = len(slots)
    return ClosedPane(
        start_ms,
        int(records.sum()),
        int(flagged.sum()),
        bins.sum(axis=0),
        keys,
        np.bincount(slot, weights=records, minlength=size).astype(np.int64)[:-1],
        np.bincount(slot, weights=flagged, minlength=size).astype(np.int64)[:-1],
    )


def _without_keys(start_ms: int, parts: list[PaneCounts]) -> ClosedPane:
    none = np.zeros(0, dtype=np.int64)
    records = sum(int(part.records.sum()) for part in parts)
    flagged = sum(int(part.flagged.sum()) for part in parts)
    bins = np.sum([part.bins.sum(axis=0) for part in parts], axis=0)
    return ClosedPane(start_ms, records, flagged, bins, (), none, none)


def _first_of_each(names: list[str]) -> list[int]:
    seen: set[str] = set()
    kept = []
    for number, name in enumerate(names):
        if name == NO_KEY or name not in seen:
            seen.add(name)
            kept.append(number)
    return kept
