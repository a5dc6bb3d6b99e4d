"""One e-detector of flags for each key, of which there may be a hundred thousand.

Each is the one of `nap_stream.core.sequential`, over the records of its key alone: t of them raise
a false alarm with a probability of at most t / A, and so do all keys together with t in all.

Memory is bounded: keys that were silent longest are forgotten, and begin at M = 0 when they come
back. Which keys these are follows from records of the past, and M only becomes smaller by it, so
that M_t - t stays a supermartingale: forgetting costs power, and never a false alarm more.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.panes import ClosedPane
from nap_stream.core.sequential import (
    Bets,
    Onset,
    SequentialState,
    capped,
    goes_on,
    initial_state,
    log_mixture,
    onset,
    renewed,
    update,
)

SPARE_SHARE = 16
"""To find the oldest keys takes a look at all; this part of them is forgotten at once."""
_STATE_ARRAYS = tuple(field.name for field in fields(SequentialState))
_NO_ONSET = Onset(event=0, start_ms=0, records=0, hits=0)


@dataclass(frozen=True, slots=True, eq=False)
class KeyReadings:
    """Where the monitors of K keys stand.

    ``keys`` are sorted; ``log_statistic`` is float64 (K,), the logarithm of the mixed statistic, at
    most the threshold's; ``active`` is bool (K,).
    """

    keys: tuple[str, ...]
    log_statistic: NDArray[np.float64]
    active: NDArray[np.bool_]


class KeyMonitors:
    """The monitors of all keys that are remembered.

    A monitor becomes active at ``log_threshold`` and ends to be as
    `nap_stream.core.sequential.goes_on` tells. What they say depends on the panes alone.

    Args:
        bets: Against the highest in-distribution rate of flags; of one event.
        log_threshold: The logarithm of the run length A.
        max_keys: So many are remembered between panes. Where they are more, those whose last pane
            is oldest are forgotten, of equally old ones the smallest, until one part in
            `SPARE_SHARE` of the room is free. Active ones are forgotten after all others, and
            only as many as must be.

    Raises:
        ValueError: The bets are of several events, or there is no room for a key.
    """

    def __init__(self, bets: Bets, log_threshold: float, max_keys: int) -> None:
        if len(bets.rates) != 1 or max_keys < 1:
            raise ValueError(f"expected one event and max_keys >= 1, got {bets.rates}, {max_keys}")
        self._bets, self._log_threshold, self._max_keys = bets, log_threshold, max_keys
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._by_slot: dict[str, NDArray[Any]] = {
            **_as_arrays(initial_state(bets, (0,))),
            "log_value": np.zeros(0),
            "last_ms": np.zeros(0, dtype=np.int64),
            "active": np.zeros(0, dtype=np.bool_),
        }
        self._active_keys: tuple[str, ...] = ()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def active(self) -> tuple[str, ...]:
        """The keys whose monitors are active, sorted."""
        return self._active_keys

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, slots included that no key has had yet."""
        return sum(array.nbytes for array in self._by_slot.values())

    def update(self, pane: ClosedPane) -> KeyReadings:
        """Take the next pane; give the readings of its keys, also of those forgotten at its end."""
        slots = self._slots_of(pane.keys)
        after = update(
            self._states(slots),
            self._bets,
            pane.key_records,
            pane.key_flagged[:, np.newaxis],
            np.array(pane.start_ms),
        )
        log_values = np.minimum(log_mixture(after), self._log_threshold)
        was_active = self._by_slot["active"][slots]
        state = capped(after, self._log_threshold)
        is_active = np.where(
            was_active,
            goes_on(state, log_values, self._log_threshold),
            log_values >= self._log_threshold,
        )
        self._write(slots, _as_arrays(state))
        self._write(slots, {"log_value": log_values, "active": is_active})
        self._by_slot["last_ms"][slots] = pane.start_ms
        if (ended := was_active & ~is_active).any():
            self._write(slots[ended], _as_arrays(renewed(self._states(slots[ended]))))
        self._forget()
        # An active key is forgotten only for one that has become so.
        if (was_active != is_active).any():
            self._active_keys = self._sorted_active()
        return KeyReadings(pane.keys, log_values, is_active)

    def reading(self, key: str) -> tuple[float, bool, Onset]:
        """Give the logarithm of a key's statistic, whether it is active, and its onset.

        One that is not remembered has minus infinity, and an onset without records.
        """
        slot = self._slots.get(key)
        if slot is None:
            return -math.inf, False, _NO_ONSET
        log_value, is_active = (self._by_slot[name][slot] for name in ("log_value", "active"))
        return float(log_value), bool(is_active), onset(self._states(slot))

    def names(self) -> tuple[str, ...]:
        """Give the keys in the order of `arrays`."""
        return tuple(self._slots)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give the state of all, to be exact, by key in the order of `names`."""
        slots = _indices(self._slots.values())
        held = {name: array[slots] for name, array in self._by_slot.items()}
        return {**held, "evicted": np.array([self.evicted])}

    def restore(self, names: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up where others of the same settings were.

        Args:
            names: Theirs.
            arrays: Theirs; they are copied.

        Raises:
            ValueError: The two do not belong together.
            KeyError: An array is missing.
        """
        wanted = {name: (len(names), *own.shape[1:]) for name, own in self._by_slot.items()}
        wanted["evicted"] = (1,)
        if len(set(names)) < len(names) or any(arrays[n].shape != s for n, s in wanted.items()):
            raise ValueError(f"the state of the monitors of {len(names)} keys is damaged")
        self._by_slot = {name: arrays[name].astype(a.dtype) for name, a in self._by_slot.items()}
        self._slots = {name: slot for slot, name in enumerate(names)}
        self._free = []
        self._active_keys = self._sorted_active()
        self.evicted = int(arrays["evicted"][0])

    def _states(self, slots: int | NDArray[np.int64]) -> SequentialState:
        return SequentialState(**{name: self._by_slot[name][slots] for name in _STATE_ARRAYS})

    def _write(self, slots: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        for name, array in values.items():
            self._by_slot[name][slots] = array

    def _slots_of(self, keys: tuple[str, ...]) -> NDArray[np.int64]:
        """Give the slots of keys; new ones get one."""
        slots = _indices(map(self._slots.get, keys, repeat(-1)))
        new = np.flatnonzero(slots < 0)
        if len(new):
            self._make_room(len(new))
            for i in new.tolist():
                slots[i] = self._slots[keys[i]] = self._free.pop()
            self._write(slots[new], _as_arrays(initial_state(self._bets, (len(new),))))
            self._by_slot["active"][slots[new]] = False
        return slots

    def _make_room(self, count: int) -> None:
        """Let at least ``count`` slots be free."""
        if len(self._free) >= count:
            return
        old = len(self._by_slot["active"])
        new = max(2 * old, old + count)
        self._by_slot = {name: _grown(array, new) for name, array in self._by_slot.items()}
        self._free = [*range(new - 1, old - 1, -1), *self._free]

    def _forget(self) -> None:
        """Forget keys beyond the limit."""
        excess = len(self) - self._max_keys
        if excess <= 0:
            return
        slots = _indices(self._slots.values())
        names, last_ms = np.array(self.names(), dtype=object), self._by_slot["last_ms"][slots]
        active = self._by_slot["active"][slots]
        spare = self._max_keys // SPARE_SHARE
        gone = _oldest(names[~active], last_ms[~active], excess + spare)
        gone += _oldest(names[active], last_ms[active], excess - len(gone))
        self._free.extend(self._slots.pop(name) for name in gone)
        self.evicted += len(gone)

    def _sorted_active(self) -> tuple[str, ...]:
        active = self._by_slot["active"][_indices(self._slots.values())]
        names = self.names()
        return tuple(sorted(names[i] for i in np.flatnonzero(active).tolist()))


def _oldest(names: NDArray[np.object_], last_ms: NDArray[np.int64], count: int) -> list[str]:
    """Give up to ``count`` names with the smallest times, of equal ones the smallest."""
    if count <= 0 or not len(names):
        return []
    last = min(count, len(names)) - 1
    newest = np.partition(last_ms, last)[last]
    older = names[last_ms < newest].tolist()
    return [*older, *sorted(names[last_ms == newest].tolist())[: count - len(older)]]


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    # Left empty: pages that no key has written to are not resident.
    grown = np.empty((size, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


def _as_arrays(state: SequentialState) -> dict[str, NDArray[Any]]:
    return {name: getattr(state, name) for name in _STATE_ARRAYS}


def _indices(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)
