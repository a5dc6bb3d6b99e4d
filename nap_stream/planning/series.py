"""Panes of a recorded stretch, of the stream and of each key, as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.panes import NO_KEY, PaneCounts


@dataclass(frozen=True, slots=True, eq=False)
class PaneSeries:
    """P panes in order of time, each with a record at least.

    ``start_ms``, ``records`` and ``flagged`` are int64 (P,); ``bins`` is int64 (P, BIN_COUNT).
    """

    start_ms: NDArray[np.int64]
    records: NDArray[np.int64]
    flagged: NDArray[np.int64]
    bins: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start_ms)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Scored records of one calibration, in panes of ``pane_ms``.

    ``panes`` are those of the stream. ``by_key`` are the panes of K keys, one key after the other,
    ``key_start`` int64 (K + 1,) where each begins and the last one ends, and ``keys`` their names;
    none of them where keys are not told apart.
    """

    pane_ms: int
    panes: PaneSeries
    keys: tuple[str, ...]
    by_key: PaneSeries
    key_start: NDArray[np.int64]

    @property
    def records(self) -> int:
        """How many records were counted."""
        return int(self.panes.records.sum())

    @property
    def flagged(self) -> int:
        """How many of them are flagged."""
        return int(self.panes.flagged.sum())

    @property
    def first_ms(self) -> int:
        """The start of the first pane, in milliseconds since the epoch."""
        return int(self.panes.start_ms[0])

    @property
    def last_ms(self) -> int:
        """The end of the last pane, in milliseconds since the epoch."""
        return int(self.panes.start_ms[-1]) + self.pane_ms

    def key_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Records and flagged ones of each key, both int64 (K,)."""
        if not self.keys:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        starts = self.key_start[:-1]
        return (
            np.add.reduceat(self.by_key.records, starts),
            np.add.reduceat(self.by_key.flagged, starts),
        )


def merged(parts: list[PaneCounts], pane_ms: int, *, one_per_pane: bool) -> Stretch:
    """Bring partitions' counts together, as `nap_stream.core.panes.closed_pane` does.

    Args:
        parts: Of each partition, in order of their numbers; at least one holds an entry.
        pane_ms: Width of a pane in milliseconds.
        one_per_pane: See `nap_stream.core.panes.count_panes`.
    """
    names = sorted({p.keys[number] for p in parts for number in np.unique(p.key).tolist()})
    slots = {name: slot for slot, name in enumerate(names)}
    slot = np.concatenate(
        [np.array([slots.get(name, -1) for name in p.keys], np.int64)[p.key] for p in parts]
    )
    entries = PaneSeries(
        *(
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("start_ms", "records", "flagged", "bins")
        )
    )
    # Stable: of a key in several partitions the first partition's records come first.
    order = np.lexsort((slot, entries.start_ms))
    keyless = slots.get(NO_KEY, -1)
    if one_per_pane:
        is_first = _changes(entries.start_ms[order], slot[order])
        order = order[is_first | (slot[order] == keyless)]
    start = entries.start_ms[order]
    panes = _added_up(entries, order, _changes(start, start))
    order = order[slot[order] != keyless]
    order = order[np.argsort(slot[order], kind="stable")]
    is_first = _changes(entries.start_ms[order], slot[order])
    key_of_group = slot[order][is_first]
    keys = tuple(name for name in names if name != NO_KEY)
    key_slots = [slots[name] for name in keys]
    begins = np.searchsorted(key_of_group, key_slots)
    return Stretch(
        pane_ms,
        panes,
        keys,
        _added_up(entries, order, is_first),
        np.append(begins, len(key_of_group)).astype(np.int64),
    )


def _changes(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    changed = np.ones(len(first), dtype=np.bool_)
    changed[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return changed


def _added_up(
    entries: PaneSeries, order: NDArray[np.int64], is_first: NDArray[np.bool_]
) -> PaneSeries:
    """The sums of each run of entries, taken in this order, that begins at a first one."""
    cuts = np.flatnonzero(is_first)
    if not len(cuts):
        none = np.zeros(0, dtype=np.int64)
        return PaneSeries(none, none, none, entries.bins[:0])
    return PaneSeries(
        entries.start_ms[order][cuts],
        np.add.reduceat(entries.records[order], cuts),
        np.add.reduceat(entries.flagged[order], cuts),
        np.add.reduceat(entries.bins[order], cuts, axis=0),
    )
