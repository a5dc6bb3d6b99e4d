"""Blocks of keys and of their stream, from counts by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.blocks import Blocks, added_up, block_sums, shrunk
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import BIN_COUNT

BLOCK_MS = 60_000


def key_blocks(
    shares: Mapping[str, Sequence[tuple[int, int]]], *, block_ms: int = BLOCK_MS, first: int = 0
) -> Blocks:
    """Give blocks from (records, flagged) of each key, one after another from number ``first`` on.

    Flagged records are in the lowest bin of p-values, others in the middle. No record, no block.
    """
    names = (NO_KEY, *sorted(shares))
    rows, keys, times = [], [], []
    for name, counts in shares.items():
        for place, (records, flagged) in enumerate(counts):
            row = np.zeros(2 + BIN_COUNT, dtype=np.int64)
            row[:2], row[2], row[2 + 4] = (records, flagged), flagged, records - flagged
            for number in (0, names.index(name)):
                rows.append(row)
                keys.append(number)
                times.append((first + place) * block_ms)
    table = np.array(rows, dtype=np.int64).reshape(-1, 2 + BIN_COUNT)
    return added_up(np.array(keys), np.array(times), table, names, block_ms)


def block_statistics(
    records: NDArray[np.int64],
    flagged: NDArray[np.int64],
    bins: NDArray[np.int64],
    center: NDArray[np.float64],
    prior: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The statistics of blocks of a key, float64 (..., 3), from their counts."""
    excess = block_sums(flagged, bins) - records[..., np.newaxis] * center
    return shrunk(excess, records, prior)
