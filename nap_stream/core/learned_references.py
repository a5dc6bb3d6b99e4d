"""References that new keys learn while nothing is wrong with them: one for each kind of time.

The first `CENTER_BLOCKS` blocks of a kind give the mean that later ones exceed and a block's usual
number of records; of `LEARN_BLOCKS` others the largest excesses are kept, as many as ranks need.
Then the reference is fixed. As the mean is not from the blocks that are ranked, those and later
ones are exchangeable.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.block_plan import GOOD_BLOCKS, References, event_ranks
from nap_stream.core.blocks import STATISTICS, shrunk
from nap_stream.core.key_monitors import KeyTable

CENTER_BLOCKS, LEARN_BLOCKS = 10, GOOD_BLOCKS
NEEDED_BLOCKS = CENTER_BLOCKS + LEARN_BLOCKS
_FIRST, _SECOND = event_ranks(LEARN_BLOCKS)
_NOTHING = {
    "learned_blocks": 0.0,
    "learned_records": 0.0,
    "learned_sums": 0.0,
    "learned_top": -np.inf,
}


class LearnedReferences:
    """What new keys have learned, at so many kinds of time; each has a place."""

    def __init__(self, kinds: int) -> None:
        self._table = KeyTable(
            {
                "learned_blocks": np.zeros((0, kinds), dtype=np.int16),
                "learned_records": np.zeros((0, kinds), dtype=np.float32),
                "learned_sums": np.zeros((0, kinds, len(STATISTICS)), dtype=np.float32),
                "learned_top": np.zeros((0, kinds, len(STATISTICS), _SECOND), dtype=np.float32),
            }
        )

    def __len__(self) -> int:
        return len(self._table)

    def add(self, keys: tuple[str, ...]) -> NDArray[np.int64]:
        """Give places, int64 (K,), to keys that have none; they know nothing."""
        places = self._table.add(keys)
        self._table.write(places, _NOTHING)
        return places

    def remove(self, keys: Iterable[str]) -> None:
        """Take the places of those of the keys that have one."""
        self._table.remove([key for key in keys if key in self._table])

    def forget_unfinished(self, places: NDArray[np.int64]) -> None:
        """Forget what the keys at these places have learned of kinds that they learn still."""
        row, kind = np.nonzero(self._table["learned_blocks"][places] < NEEDED_BLOCKS)
        for column, nothing in _NOTHING.items():
            self._table[column][places[row], kind] = nothing

    def knows(self, places: NDArray[np.int64], kind: int) -> NDArray[np.bool_]:
        """Tell who has a reference of a kind, bool (K,)."""
        known: NDArray[np.bool_] = self._table["learned_blocks"][places, kind] >= NEEDED_BLOCKS
        return known

    def blocks(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give how many blocks are known of each kind: int64 (K, kinds), at most what is needed."""
        return self._table["learned_blocks"][places].astype(np.int64)

    def references(self, places: NDArray[np.int64], kind: int) -> References:
        """Give the references of keys that know `NEEDED_BLOCKS` of a kind."""
        center, prior = self._center(places, kind)
        top = self._table["learned_top"][places, kind].astype(np.float64)
        chosen = top[:, :, [_FIRST - 1, _SECOND - 1]].reshape(len(places), -1)
        return References(center, prior, np.maximum(chosen, 0.0))

    def learn(
        self,
        places: NDArray[np.int64],
        kind: int,
        records: NDArray[np.int64],
        sums: NDArray[np.float64],
    ) -> None:
        """Take a block of a kind of each of K keys into account, unless they know enough.

        ``records`` are int64 (K,), ``sums`` float64 (K, 3), see
        `nap_stream.core.blocks.block_sums`. A block with less than half the usual number of
        records does not count.
        """
        known = self._table["learned_blocks"][places, kind]
        early = known < CENTER_BLOCKS
        self._learn_centers(places[early], kind, records[early], sums[early])
        late = ~early & (known < NEEDED_BLOCKS)
        self._learn_ranks(places[late], kind, records[late], sums[late])

    def _learn_centers(
        self,
        places: NDArray[np.int64],
        kind: int,
        records: NDArray[np.int64],
        sums: NDArray[np.float64],
    ) -> None:
        self._table["learned_records"][places, kind] += records
        self._table["learned_sums"][places, kind] += sums
        self._table["learned_blocks"][places, kind] += 1

    def _learn_ranks(
        self,
        places: NDArray[np.int64],
        kind: int,
        records: NDArray[np.int64],
        sums: NDArray[np.float64],
    ) -> None:
        center, prior = self._center(places, kind)
        full = 2 * records >= prior
        places, records, sums = places[full], records[full], sums[full]
        center, prior = center[full], prior[full]
        excess = shrunk(sums - records[:, np.newaxis] * center, records, prior)
        top = self._table["learned_top"]
        ranked = np.sort(
            np.concatenate((top[places, kind], excess[:, :, np.newaxis]), axis=2), axis=2
        )
        top[places, kind] = ranked[:, :, :0:-1]
        self._table["learned_blocks"][places, kind] += 1

    def shares(self, places: NDArray[np.int64], kind: int) -> NDArray[np.float64]:
        """Give the OOD fractions that are known of a kind, float64 (K,)."""
        return self._center(places, kind)[0][:, 0]

    def _center(
        self, places: NDArray[np.int64], kind: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        records = np.maximum(self._table["learned_records"][places, kind].astype(np.float64), 1.0)
        sums = self._table["learned_sums"][places, kind].astype(np.float64)
        return sums / records[:, np.newaxis], records / CENTER_BLOCKS

    def rows(self, places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Give the state of the keys at these places, by name of a column."""
        return self._table.rows_at(places)

    def restore(self, names: tuple[str, ...], rows: Mapping[str, NDArray[Any]]) -> None:
        """Hold what `rows` of others were, with places from 0 on; the rows are copied.

        Raises:
            ValueError: The two do not belong together.
            KeyError: A column is missing.
        """
        self._table.restore(names, rows)
