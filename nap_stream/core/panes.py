"""Counts of scored records by event-time pane and key, and the rolling window over closed panes.

Beside them, counts of all images by what became of them: those that have no scores are in no other.

Panes and watermarks: Akidau et al., "The Dataflow Model", VLDB 8 (2015). Merging is associative.

Within a partition a record's time is the largest event time up to it, in order of offset: a record
that comes out of order counts in the pane of the one before it. So the counts of a partition
depend on its rows alone and not on how they were cut into segments.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.tails import BIN_COUNT, bins_of

NO_KEY = ""
"""The key of records without one, and of all where keys are not told apart."""
MAX_KEY_CHARACTERS = 200
HASHED = "sha256:"
"""Begins the text of a key that is not shown as it is; 64 hexadecimal digits follow."""
MAX_OPEN_ENTRIES = 1_000_000
"""Some 150 MB: entries of open panes behind a partition that holds the watermark back."""
PANE_ARRAYS = ("start_ms", "key", "records", "flagged", "bins")


@dataclass(frozen=True, slots=True, eq=False)
class PaneCounts:
    """R entries, one for each pane and key that holds records, ordered by pane.

    ``start_ms`` int64 (R,), start of the pane in milliseconds since the epoch, ascending; ``key``
    int64 (R,), index into ``keys``; ``records``, ``flagged`` int64 (R,); ``bins`` int64
    (R, BIN_COUNT), the records by p-value, see `nap_stream.core.tails`.
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
        same = (np.array_equal(getattr(self, n), getattr(other, n)) for n in PANE_ARRAYS)
        return self.keys == other.keys and all(same)

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
    is_first = changes(start[order], key[order])
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
class ImageCounts:
    """How many images of a partition are of each of K kinds, in R panes, ascending.

    ``start_ms`` int64 (R,), start of the pane in milliseconds since the epoch; ``images`` int64
    (R, K).
    """

    start_ms: NDArray[np.int64]
    images: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or len(self.images) != len(self.start_ms):  # noqa: PLR2004
            raise ValueError(f"expected ({len(self.start_ms)}, K) images, got {self.images.shape}")

    def __len__(self) -> int:
        return len(self.start_ms)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageCounts):
            return NotImplemented
        is_same = np.array_equal(self.start_ms, other.start_ms)
        return is_same and np.array_equal(self.images, other.images)

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def part(self, start: int, end: int) -> "ImageCounts":
        """The panes ``[start, end)``."""
        return ImageCounts(self.start_ms[start:end], self.images[start:end])


def count_images(
    event_times_ms: NDArray[np.int64], kind: NDArray[np.int64], *, pane_ms: int, kinds: int
) -> ImageCounts:
    """Count all images of one partition, scored or not, in order of (offset, index).

    Args:
        event_times_ms: int64 (N,), milliseconds since the epoch.
        kind: int64 (N,), of each image, in [0, kinds).
        pane_ms: Width of a pane in milliseconds, at least 1.
        kinds: K, how many there are.
    """
    times = np.maximum.accumulate(event_times_ms) if len(event_times_ms) else event_times_ms
    starts, pane = np.unique(times - times % pane_ms, return_inverse=True)
    images = np.zeros((len(starts), kinds), dtype=np.int64)
    np.add.at(images, (pane, kind), 1)
    return ImageCounts(starts, images)


def changes(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell where one of two columns, int64 (N,), has another value than in the row before."""
    changed = np.ones(len(first), dtype=np.bool_)
    changed[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return changed


def key_text(key: bytes | None) -> str:
    """Give a key as text that can be shown: no two keys have the same, but null and empty.

    `NO_KEY` for null and empty ones. Where it is not printable UTF-8 of at most
    `MAX_KEY_CHARACTERS`, the SHA-256 of its bytes stands for it.
    """
    if not key:
        return NO_KEY
    try:
        text = key.decode("utf-8")
    except UnicodeDecodeError:
        return _hashed(key)
    is_shown = text.isprintable() and len(text) <= MAX_KEY_CHARACTERS
    return text if is_shown and not text.startswith(HASHED) else _hashed(key)


def _hashed(key: bytes) -> str:
    return HASHED + hashlib.sha256(key).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class ClosedPane:
    """A pane to which nothing more is added.

    ``records`` and ``flagged`` are counts, ``bins`` int64 (BIN_COUNT,). ``keys`` are the K keys
    in it, sorted, without `NO_KEY`; ``key_records`` and ``key_flagged`` are int64 (K,),
    ``key_bins`` int64 (K, BIN_COUNT). ``images`` are those of each kind, scored or not, see
    `ImageCounts`; empty where there are none.
    """

    start_ms: int
    records: int
    flagged: int
    bins: NDArray[np.int64]
    keys: tuple[str, ...]
    key_records: NDArray[np.int64]
    key_flagged: NDArray[np.int64]
    key_bins: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((0, BIN_COUNT), dtype=np.int64)
    )
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def closed_pane(start_ms: int, parts: list[PaneCounts], *, one_per_pane: bool) -> ClosedPane:
    """Add up the scored records that came for one pane, in any number of parts.

    Where ``one_per_pane``, of a key that stands in several of them only the first counts, so that
    their order matters: by partition and offset. See `count_panes`.
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
        _summed_by(slot, bins, size)[:-1],
    )


def _summed_by(slot: NDArray[np.int64], rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Add up the rows, int64 (R, ...), of each of ``size`` slots."""
    order = np.argsort(slot, kind="stable")
    first = np.flatnonzero(np.diff(slot[order], prepend=-1))
    summed = np.zeros((size, *rows.shape[1:]), dtype=np.int64)
    summed[slot[order[first]]] = np.add.reduceat(rows[order], first, axis=0)
    return summed


def _without_keys(start_ms: int, parts: list[PaneCounts]) -> ClosedPane:
    none = np.zeros(0, dtype=np.int64)
    records = sum(int(part.records.sum()) for part in parts)
    flagged = sum(int(part.flagged.sum()) for part in parts)
    bins = np.zeros(BIN_COUNT, dtype=np.int64)
    for part in parts:
        bins += part.bins.sum(axis=0)
    return ClosedPane(start_ms, records, flagged, bins, (), none, none)


def _first_of_each(names: list[str]) -> list[int]:
    seen: set[str] = set()
    kept = []
    for number, name in enumerate(names):
        if name == NO_KEY or name not in seen:
            seen.add(name)
            kept.append(number)
    return kept


class PaneBuffer:
    """Panes that wait for the watermark, which closes them one at a time in order of event time.

    What is closed depends on the counts and not on the order in which they came, as long as
    nothing comes late. A late record, whose pane is closed, counts in the oldest pane that can
    still be open: a monitor that dropped it would be blind to a source whose clock lags.

    Panes are ``pane_ms`` milliseconds wide, at least 1; for ``one_per_pane`` see `count_panes`. A
    pane may hold images without scores alone. Beyond ``max_open_entries`` entries the oldest panes
    are closed without waiting for the watermark, which bounds memory.
    """

    def __init__(
        self, pane_ms: int, *, one_per_pane: bool, max_open_entries: int = MAX_OPEN_ENTRIES
    ) -> None:
        if pane_ms < 1 or max_open_entries < 1:
            raise ValueError(f"expected at least 1, got {pane_ms = }, {max_open_entries = }")
        self._pane_ms, self._one_per_pane = pane_ms, one_per_pane
        self._max_entries = max_open_entries
        self._open: dict[int, list[tuple[int, PaneCounts]]] = {}
        self._images: dict[int, NDArray[np.int64]] = {}
        self._starts: list[int] = []
        self._entries = 0
        self.closed_until_ms: int | None = None
        self.late_records = 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(
        self,
        counts: PaneCounts,
        partition: int,
        earliest_ms: int | None,
        images: ImageCounts | None = None,
    ) -> None:
        """Add a partition's counts, which come in order of offset.

        ``earliest_ms`` is the partition's watermark: what lies before it counts in its pane.
        """
        placed = counts.start_ms
        if earliest_ms is not None:
            placed = np.maximum(placed, earliest_ms - earliest_ms % self._pane_ms)
        if self.closed_until_ms is not None:
            late = placed < self.closed_until_ms
            self.late_records += int(counts.records[late].sum())
            placed = np.maximum(placed, self.closed_until_ms)
        cuts = [0, *(np.flatnonzero(np.diff(placed)) + 1).tolist(), len(counts)]
        for start, end in pairwise(cuts):
            if end > start:
                self._put(int(placed[start]), partition, counts.part(start, end))
        if images is not None:
            self._add_images(images, earliest_ms)

    def _add_images(self, counts: ImageCounts, earliest_ms: int | None) -> None:
        bounds = [] if self.closed_until_ms is None else [self.closed_until_ms]
        if earliest_ms is not None:
            bounds.append(earliest_ms - earliest_ms % self._pane_ms)
        placed = np.maximum(counts.start_ms, max(bounds)) if bounds else counts.start_ms
        for start_ms, images in zip(placed.tolist(), counts.images, strict=True):
            self._put_images(start_ms, images)

    def close(self, watermark_ms: int | None) -> list[ClosedPane]:
        """Close the panes that end at or before the watermark, and those beyond the limit.

        No record with an earlier event time is expected; None while nothing is known.
        """
        closed = []
        while self._starts and (
            self._entries > self._max_entries
            or (watermark_ms is not None and self._starts[0] + self._pane_ms <= watermark_ms)
        ):
            closed.append(self._close_oldest())
        if watermark_ms is not None:
            self._close_until(watermark_ms - watermark_ms % self._pane_ms)
        return closed

    def close_all(self) -> list[ClosedPane]:
        """Close every open pane, whatever the watermark."""
        return [self._close_oldest() for _ in range(len(self._starts))]

    def open_parts(self) -> list[tuple[int, int, PaneCounts]]:
        """Give what is open, as (start of its pane, partition, counts), in order."""
        return [
            (start, partition, counts)
            for start in sorted(self._open)
            for partition, counts in self._open[start]
        ]

    def open_images(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Give the images of open panes, as (start of its pane, images by kind), in order."""
        return sorted(self._images.items(), key=lambda item: item[0])

    def restore(
        self,
        parts: list[tuple[int, int, PaneCounts]],
        closed_until_ms: int | None,
        late_records: int,
        images: Iterable[tuple[int, NDArray[np.int64]]] = (),
    ) -> None:
        """Take up where another buffer of the same kind was."""
        self.closed_until_ms, self.late_records = closed_until_ms, late_records
        for start, partition, counts in parts:
            self._put(start, partition, counts)
        for start, counted in images:
            self._put_images(start, counted)

    def _put(self, start_ms: int, partition: int, counts: PaneCounts) -> None:
        self._open_pane(start_ms)
        self._open.setdefault(start_ms, []).append((partition, counts))
        self._entries += len(counts)

    def _put_images(self, start_ms: int, images: NDArray[np.int64]) -> None:
        self._open_pane(start_ms)
        known = self._images.get(start_ms)
        self._entries += known is None
        self._images[start_ms] = images if known is None else known + images

    def _open_pane(self, start_ms: int) -> None:
        if start_ms not in self._open and start_ms not in self._images:
            heapq.heappush(self._starts, start_ms)

    def _close_oldest(self) -> ClosedPane:
        start = heapq.heappop(self._starts)
        # Stable, so that a partition's counts keep their order of offsets.
        held = sorted(self._open.pop(start, []), key=lambda item: item[0])
        parts, images = [part for _, part in held], self._images.pop(start, None)
        self._entries -= sum(len(part) for part in parts) + (images is not None)
        self._close_until(start + self._pane_ms)
        pane = closed_pane(start, parts, one_per_pane=self._one_per_pane)
        return pane if images is None else replace(pane, images=images)

    def _close_until(self, time_ms: int) -> None:
        if self.closed_until_ms is None or time_ms > self.closed_until_ms:
            self.closed_until_ms = time_ms


@dataclass(frozen=True, slots=True)
class WindowState:
    """The rolling window after a pane was closed: it covers ``[start_ms, end_ms)``."""

    start_ms: int
    end_ms: int
    records: int
    flagged: int

    @property
    def fraction(self) -> float:
        """The OOD fraction."""
        return self.flagged / self.records


class RollingWindow:
    """The newest panes, of ``pane_ms`` milliseconds, that together hold at least ``size`` records.

    ``size`` is at least 1. It bounds memory, as a pane holds a record at least.
    """

    def __init__(self, size: int, pane_ms: int) -> None:
        if size < 1 or pane_ms < 1:
            raise ValueError(f"expected at least 1 of each, got {size = }, {pane_ms = }")
        self._size, self._pane_ms = size, pane_ms
        self._panes: deque[tuple[int, int, int]] = deque()
        self._records, self._flagged = 0, 0

    @property
    def state(self) -> WindowState | None:
        """The window now; None before the first pane."""
        return self._state() if self._panes else None

    @property
    def is_full(self) -> bool:
        """Whether it holds ``size`` records."""
        return self._records >= self._size

    @property
    def panes(self) -> tuple[tuple[int, int, int], ...]:
        """(start, records, flagged) of its panes, in order."""
        return tuple(self._panes)

    def push(self, start_ms: int, records: int, flagged: int) -> WindowState:
        """Take the next pane, and let the oldest go that are not needed. Returns the state."""
        if not 0 <= flagged <= records or records == 0:
            raise ValueError(
                f"expected 0 <= flagged <= records and records > 0, got {flagged = }, {records = }"
            )
        self._panes.append((start_ms, records, flagged))
        self._records += records
        self._flagged += flagged
        while self._records - self._panes[0][1] >= self._size:
            _, old_records, old_flagged = self._panes.popleft()
            self._records -= old_records
            self._flagged -= old_flagged
        return self._state()

    def _state(self) -> WindowState:
        end_ms = self._panes[-1][0] + self._pane_ms
        return WindowState(self._panes[0][0], end_ms, self._records, self._flagged)
