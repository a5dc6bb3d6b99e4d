"""Rows of arrays by key: they grow as keys come, and the room of keys that went is used again."""

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray


class KeyTable:
    """Columns with a row for each key.

    Args:
        empty: The columns without rows, (0, ...) each, by name.
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
    def nbytes(self) -> int:
        """Bytes of the columns, slots included that no key has had yet."""
        return sum(column.nbytes for column in self._columns.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The keys, in the order of `all_slots`."""
        return tuple(self._slots)

    def all_slots(self) -> NDArray[np.int64]:
        """Give the slots of all keys, int64 (len,)."""
        return _indices(self._slots.values())

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
        slots = self.all_slots()
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
