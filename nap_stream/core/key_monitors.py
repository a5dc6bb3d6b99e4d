"""One e-detector of flags for each key, of which there may be a hundred thousand.

Each is the one of `nap_stream.core.sequential`, over the records of its key alone: t of them raise
a false alarm with a probability of at most t / A, and so do all keys together with t in all.

Memory is bounded: keys that were silent longest are forgotten, and begin at M = 0 when they come
back. So does the active monitor of a key that is silent for long: nothing tells whether the key has
recovered. Panes of the past decide which keys are forgotten, and to forget a key only makes its M
smaller. So M_t - t stays a supermartingale: forgetting costs power, and adds no false alarm.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import repeat, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.panes import ClosedPane
from nap_stream.core.sequential import (
    STATE_ARRAYS,
    Bets,
    Onset,
    SequentialState,
    initial_state,
    onset,
    renewed,
    step_alarm,
)

SPARE_SHARE = 16
"""Finding the oldest keys takes a pass over all, so one part in so many is forgotten at once."""
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

    A monitor becomes active at ``log_threshold``. Its alarm ends as
    `nap_stream.core.sequential.goes_on` tells, or with the first pane that finds its key silent.
    What the monitors say depends on the panes alone.

    Args:
        bets: Against the highest in-distribution rate of flags; of one event.
        log_threshold: The logarithm of the run length A.
        max_keys: So many are remembered between panes. Where there are more, keys are forgotten
            until one part in `SPARE_SHARE` of the room is free: those with the oldest last pane
            first, and among equally old ones those with the smallest statistic. Active keys are
            forgotten after all others, and only as many as must be.
        silence_ms: A key is silent in a pane that begins so long after its last one, or longer.

    Raises:
        ValueError: The bets are of several events, there is no room for a key, or keys that stand
            in each pane would be silent.
    """

    def __init__(self, bets: Bets, log_threshold: float, max_keys: int, silence_ms: int) -> None:
        if len(bets.rates) != 1 or max_keys < 1 or silence_ms < 1:
            raise ValueError(
                "expected one event, max_keys >= 1 and silence_ms >= 1, "
                f"got {bets.rates}, {max_keys}, {silence_ms}"
            )
        self._bets, self._log_threshold = bets, log_threshold
        self._max_keys, self._silence_ms = max_keys, silence_ms
        self._table = KeyTable(
            {
                **_as_arrays(initial_state(bets, (0,))),
                "log_value": np.zeros(0),
                "last_ms": np.zeros(0, dtype=np.int64),
                "active": np.zeros(0, dtype=np.bool_),
            }
        )
        self._active = ActiveKeys()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: str) -> bool:
        """Whether it is remembered."""
        return key in self._table

    @property
    def active_count(self) -> int:
        """How many keys have an active monitor."""
        return len(self._active)

    def update(self, pane: ClosedPane) -> KeyReadings:
        """Take the next pane; give the readings of its keys, also of those forgotten at its end."""
        slots = self._slots_of(pane.keys)
        after = step_alarm(
            self._states(slots),
            self._bets,
            log_threshold=self._log_threshold,
            active=self._table["active"][slots],
            records=pane.key_records,
            hits=pane.key_flagged[:, np.newaxis],
            start_ms=np.array(pane.start_ms),
        )
        self._table.write(slots, _as_arrays(after.state))
        self._table.write(
            slots, {"log_value": after.log_value, "active": after.active, "last_ms": pane.start_ms}
        )
        self._active.remove(chosen_keys(pane.keys, after.ended))
        self._active.see(chosen_keys(pane.keys, after.active), pane.start_ms)
        self._renew_silent(pane.start_ms)
        self._forget()
        return KeyReadings(pane.keys, after.log_value, after.active)

    def reading(self, key: str) -> tuple[float, bool, Onset]:
        """Give the logarithm of a key's statistic, whether it is active, and its onset.

        One that is not remembered has minus infinity, and an onset without records.
        """
        slot = int(self._table.slots((key,))[0])
        if slot < 0:
            return -math.inf, False, _NO_ONSET
        log_value, is_active = (self._table[name][slot] for name in ("log_value", "active"))
        return float(log_value), bool(is_active), onset(self._states(slot))

    def names(self) -> tuple[str, ...]:
        """Give the keys in the order of `arrays`."""
        return self._table.names

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give the state of all, to be exact, by key in the order of `names`."""
        return {**self._table.rows(), "evicted": np.array([self.evicted])}

    def restore(self, names: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up where others of the same settings were; their arrays are copied.

        Raises:
            ValueError: The two do not belong together.
            KeyError: An array is missing.
        """
        if arrays["evicted"].shape != (1,):
            raise ValueError("the state of the monitors of keys is damaged")
        self._table.restore(names, arrays)
        self.evicted = int(arrays["evicted"][0])
        active = self._table["active"]
        last_ms = self._table["last_ms"][active].tolist()
        self._active = ActiveKeys(zip(chosen_keys(names, active), last_ms, strict=True))

    def _states(self, slots: int | NDArray[np.int64]) -> SequentialState:
        return SequentialState(**{name: self._table[name][slots] for name in STATE_ARRAYS})

    def _slots_of(self, keys: tuple[str, ...]) -> NDArray[np.int64]:
        slots = self._table.slots(keys)
        new = np.flatnonzero(slots < 0)
        if len(new):
            slots[new] = self._table.add(tuple(keys[i] for i in new.tolist()))
            self._table.write(slots[new], _as_arrays(initial_state(self._bets, (len(new),))))
            self._table.write(slots[new], {"active": False})
        return slots

    def _renew_silent(self, now_ms: int) -> None:
        silent = self._active.remove_silent(now_ms - self._silence_ms)
        if silent:
            slots = self._table.slots(silent)
            self._table.write(slots, _as_arrays(renewed(self._states(slots))))
            self._table.write(slots, {"log_value": -math.inf, "active": False})

    def _forget(self) -> None:
        if len(self) <= self._max_keys:
            return
        slots, names = self._table.slots(self.names()), np.array(self.names(), dtype=object)
        last_ms, active = (self._table[name][slots] for name in ("last_ms", "active"))
        gone, gone_active = excess_keys(names, last_ms, active, self._max_keys)
        self._active.remove(gone_active)
        self._table.remove((*gone, *gone_active))
        self.evicted += len(gone) + len(gone_active)


def chosen_keys(keys: tuple[str, ...], is_chosen: NDArray[np.bool_]) -> list[str]:
    """Give the keys where ``is_chosen``, bool (K,), is true."""
    return [keys[place] for place in np.flatnonzero(is_chosen).tolist()]


def _as_arrays(state: SequentialState) -> dict[str, NDArray[Any]]:
    return {name: getattr(state, name) for name in STATE_ARRAYS}


class KeyTable:
    """Columns with a row for each key: they grow, and rows of keys that went are used again.

    ``empty`` are the columns without rows, (0, ...) each, by name.
    """

    def __init__(self, empty: Mapping[str, NDArray[Any]]) -> None:
        self._columns = dict(empty)
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: str) -> bool:
        return key in self._slots

    def __getitem__(self, column: str) -> NDArray[Any]:
        """A column, (slots, ...). Slots that no key has hold anything."""
        return self._columns[column]

    @property
    def names(self) -> tuple[str, ...]:
        """The keys, in the order in which they came."""
        return tuple(self._slots)

    def items(self) -> Iterable[tuple[str, int]]:
        """The keys and their slots."""
        return self._slots.items()

    def slots(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Give the slots of keys, int64 (K,); -1 of those that have none."""
        return _indices(map(self._slots.get, keys, repeat(-1)))

    def add(self, keys: tuple[str, ...]) -> NDArray[np.int64]:
        """Give slots, int64 (K,), to keys that have none; their rows hold anything."""
        if len(self._free) < len(keys):
            self._make_room(len(keys))
        slots = [self._free.pop() for _ in keys]
        self._slots.update(zip(keys, slots, strict=True))
        return _indices(slots)

    def remove(self, keys: Iterable[str]) -> None:
        """Take the slots of keys that have one."""
        self._free.extend(map(self._slots.pop, keys))

    def write(self, slots: NDArray[np.int64], values: Mapping[str, NDArray[Any] | float]) -> None:
        """Write rows, (K, ...), or one value for all, of some columns."""
        for column, rows in values.items():
            self._columns[column][slots] = rows

    def rows(self) -> dict[str, NDArray[Any]]:
        """Give the columns, (len, ...), by key in the order of `names`."""
        return self.rows_at(self.slots(self._slots))

    def rows_at(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Give the columns at slots, (len(slots), ...)."""
        return {name: column[slots] for name, column in self._columns.items()}

    def restore(self, names: tuple[str, ...], rows: Mapping[str, NDArray[Any]]) -> None:
        """Hold what `names` and `rows` of another table were; the rows are copied.

        Raises:
            ValueError: The two do not belong together.
            KeyError: A column is missing.
        """
        shapes = {name: (len(names), *own.shape[1:]) for name, own in self._columns.items()}
        if len(set(names)) < len(names) or any(rows[n].shape != s for n, s in shapes.items()):
            raise ValueError(f"the rows of {len(names)} keys are damaged")
        self._columns = {name: rows[name].astype(own.dtype) for name, own in self._columns.items()}
        self._slots = {name: slot for slot, name in enumerate(names)}
        self._free = []

    def _make_room(self, count: int) -> None:
        old = len(self._slots) + len(self._free)
        new = max(2 * old, old + count)
        self._columns = {name: _grown(column, new) for name, column in self._columns.items()}
        self._free = [*range(new - 1, old - 1, -1), *self._free]


def _grown(column: NDArray[Any], size: int) -> NDArray[Any]:
    # Left empty: pages that no key has written to are not resident.
    grown = np.empty((size, *column.shape[1:]), dtype=column.dtype)
    grown[: len(column)] = column
    return grown


def _indices(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)


class ActiveKeys:
    """Keys with an active monitor, by the start of their last pane in milliseconds.

    The oldest come first, so that a pane looks at its own keys and at those that are silent. Those
    to begin with may come in any order.
    """

    def __init__(self, last_ms: Iterable[tuple[str, int]] = ()) -> None:
        self._last_ms = OrderedDict(sorted(last_ms, key=lambda item: item[1]))

    def __len__(self) -> int:
        return len(self._last_ms)

    def see(self, keys: Iterable[str], start_ms: int) -> None:
        """Note that keys are active after the pane, which is newer than all before."""
        for key in keys:
            self._last_ms[key] = start_ms
            self._last_ms.move_to_end(key)

    def remove(self, keys: Iterable[str]) -> None:
        """Let go of keys that are here."""
        for key in keys:
            del self._last_ms[key]

    def remove_silent(self, until_ms: int) -> list[str]:
        """Let go of the keys whose last pane started at ``until_ms`` or before; give them."""
        by_age = self._last_ms.items()
        silent = [key for key, _ in takewhile(lambda item: item[1] <= until_ms, by_age)]
        self.remove(silent)
        return silent


def excess_keys(
    names: NDArray[np.object_],
    last_ms: NDArray[np.int64],
    active: NDArray[np.bool_],
    max_keys: int,
) -> tuple[list[str], list[str]]:
    """Tell which of K keys, more than ``max_keys``, are forgotten, and of the active ones which.

    ``last_ms`` is int64 (K,), ``active`` bool (K,); see `KeyMonitors`.
    """
    excess = len(names) - max_keys
    gone = oldest(names[~active], last_ms[~active], excess + max_keys // SPARE_SHARE)
    return gone, oldest(names[active], last_ms[active], excess - len(gone))


def oldest(names: NDArray[np.object_], last_ms: NDArray[np.int64], count: int) -> list[str]:
    """Give up to ``count`` of K names with the smallest times, of equal ones the smallest."""
    if count <= 0 or not len(names):
        return []
    last = min(count, len(names)) - 1
    newest = np.partition(last_ms, last)[last]
    older = names[last_ms < newest].tolist()
    return [*older, *sorted(names[last_ms == newest].tolist())[: count - len(older)]]
