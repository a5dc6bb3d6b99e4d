"""What the monitors of blocks tell: of all keys after a block, and of one key at any time."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class JudgedBy(StrEnum):
    """What a key's blocks are compared with."""

    OWN = "own"
    """Baseline blocks of the key itself."""
    POOLED = "pooled"
    """Those of all known keys: the baseline has too few of this one."""
    LEARNING = "learning"
    """Those of all known keys, while it learns its own."""
    ACCEPTED = "accepted"
    """Nothing, while it learns its own: somebody vouched for how it is now."""
    LEARNED = "learned"
    """Its own blocks since it came or was accepted."""
    WAITING = "waiting"
    """Nothing: there is no room for more new keys, or no reference at this time."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockReadings:
    """Where the monitors of K keys stand after the block ``[start_ms, end_ms)``.

    ``keys`` are those judged, sorted, `NO_KEY` for the stream. ``log_statistic`` is float64 (K,),
    at most ``log_threshold``, float64 (K,); ``active`` is bool (K,).
    """

    start_ms: int
    end_ms: int
    keys: tuple[str, ...]
    log_statistic: NDArray[np.float64]
    log_threshold: NDArray[np.float64]
    active: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BlockReading:
    """Where the monitor of one key stands.

    The most likely change began with the block at ``onset_ms``; since then ``flagged`` of
    ``records`` in ``blocks`` blocks. ``statistic``, of `nap_stream.core.blocks.STATISTICS`, is what
    speaks for it. ``baseline_share`` is the OOD fraction that it is compared with, at the kind of
    time of the key's last block. ``learned`` of `NEEDED_BLOCKS` blocks are known of a new key, of
    the kind of time it knows least.
    """

    log_statistic: float
    log_threshold: float
    active: bool
    onset_ms: int
    blocks: int
    records: int
    flagged: int
    statistic: str
    baseline_share: float
    judged_by: JudgedBy
    learned: int

    @property
    def share(self) -> float:
        """The OOD fraction since the onset; 0 without a record."""
        return self.flagged / self.records if self.records else 0.0
