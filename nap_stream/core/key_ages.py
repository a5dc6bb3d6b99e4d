"""Which keys have been silent longest."""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray


class ActiveKeys:
    """Keys with an active monitor, by the start of their last pane in milliseconds.

    The oldest come first, so that a pane looks at its own keys and at those that are silent.

    Args:
        last_ms: (key, start of its last pane) of the first ones, in any order.
    """

    def __init__(self, last_ms: Iterable[tuple[str, int]] = ()) -> None:
        self._last_ms = OrderedDict(sorted(last_ms, key=lambda item: item[1]))

    def __len__(self) -> int:
        return len(self._last_ms)

    @property
    def names(self) -> tuple[str, ...]:
        """The keys, sorted."""
        return tuple(sorted(self._last_ms))

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


def oldest(names: NDArray[np.object_], last_ms: NDArray[np.int64], count: int) -> list[str]:
    """Give up to ``count`` names with the smallest times, of equal ones the smallest.

    Args:
        names: (K,).
        last_ms: int64 (K,), their times.
        count: Any number; none are given where it is not positive.
    """
    if count <= 0 or not len(names):
        return []
    last = min(count, len(names)) - 1
    newest = np.partition(last_ms, last)[last]
    older = names[last_ms < newest].tolist()
    return [*older, *sorted(names[last_ms == newest].tolist())[: count - len(older)]]
