"""The e-detectors of blocks: their bets, and what a hundred thousand of them know.

A block is one observation with `nap_stream.core.block_plan.EVENTS` events; the detector is the one
of `nap_stream.core.sequential`. There are few bets, and what they know is kept in 4 bytes where
that is enough: at 100,000 keys it is what the memory goes to.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.block_plan import EVENTS
from nap_stream.core.key_monitors import KeyTable
from nap_stream.core.sequential import (
    QUIET_CUSUM,
    STATE_ARRAYS,
    AlarmStep,
    Bets,
    Onset,
    SequentialState,
    best_bet,
    bets_against,
    initial_state,
    onset,
    renewed,
    step_alarm,
)

BET_COUNT, SMALLEST_BET, LARGEST_BET = 3, 0.15, 0.95
"""A smaller bet is best against rates that hardly exceed the highest one in order, and an alarm
that it has raised does not end for a hundred blocks."""
END_BLOCKS = 10
"""No bet speaks for a change after so many blocks without a hit, however long it had lasted."""
_SHAPE = (EVENTS, BET_COUNT)
_CUSUM_LIMIT = QUIET_CUSUM - END_BLOCKS * np.log1p(
    -np.geomspace(SMALLEST_BET, LARGEST_BET, BET_COUNT)
)
_LAST_BLOCK, _MOST_BLOCKS = np.iinfo(np.uint32).max, np.iinfo(np.uint16).max
_MOST_TO_ALARM, _STARTS = 1_000, 24
_COLUMNS: Mapping[str, tuple[type, tuple[int, ...]]] = {
    "log_statistic": (np.float32, _SHAPE),
    "log_cusum": (np.float32, _SHAPE),
    "onset_block": (np.uint32, _SHAPE),
    "blocks": (np.uint16, _SHAPE),
    "records": (np.float32, _SHAPE),
    "flagged": (np.float32, _SHAPE),
    "log_value": (np.float64, ()),
    "active": (np.bool_, ()),
}


def block_bets(rates: NDArray[np.float64]) -> Bets:
    """Give the bets on blocks against rates, float64 (..., EVENTS)."""
    return bets_against(rates, LARGEST_BET, smallest=SMALLEST_BET, count=BET_COUNT)


def hits_of(statistics: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Tell which events hold, int64 (..., EVENTS).

    ``statistics`` is float64 (..., 3), ``thresholds`` float64 (..., EVENTS).
    """
    return (np.repeat(statistics, 2, axis=-1) > thresholds).astype(np.int64)


def judge_blocks(
    state: SequentialState,
    rates: NDArray[np.float64],
    hits: NDArray[np.int64],
    *,
    log_threshold: NDArray[np.float64] | float,
    active: NDArray[np.bool_],
    start_ms: int,
) -> AlarmStep:
    """Take a block of each of many detectors into account; see `step_alarm`.

    ``rates`` float64 and ``hits`` int64 are of shape (..., EVENTS), ``active`` bool (...).
    """
    return step_alarm(
        state,
        block_bets(rates),
        log_threshold=log_threshold,
        active=active,
        records=np.ones(active.shape, dtype=np.int64),
        hits=hits,
        start_ms=np.full(active.shape, start_ms),
        cusum_limit=_CUSUM_LIMIT,
    )


def blocks_to_alarm(rates: NDArray[np.float64], log_threshold: float) -> float | None:
    """Give how many blocks the largest fault takes until its alarm; None where none alarms.

    ``rates`` is float64 (T, EVENTS), of T blocks after which they come again: the mean over those
    with which the fault may begin. Each block has more flags and lower p-values than all of the
    baseline's. Smaller faults take longer.
    """
    hits = np.array([[1, 1, 1, 1, 0, 0]])
    starts = np.unique(np.linspace(0, len(rates) - 1, _STARTS).astype(np.int64))
    state = initial_state(block_bets(rates[starts]))
    taken = np.zeros(len(starts))
    for block in range(_MOST_TO_ALARM + 1):
        is_on = taken > 0
        if is_on.all():
            return float(taken.mean())
        after = judge_blocks(
            state,
            rates[(starts + block) % len(rates)],
            np.broadcast_to(hits, (len(starts), EVENTS)),
            log_threshold=log_threshold,
            active=is_on,
            start_ms=block,
        )
        taken[after.active & ~is_on] = block + 1
        state = after.state
    return None


class BlockDetectors(KeyTable):
    """The detectors of keys, one a row, beside columns ``more`` of the same keys.

    A row knows the state of `SequentialState` without hits, with the block of the onset for its
    time, and ``records`` and ``flagged`` in the blocks since then. Blocks are counted up to 65,535.
    """

    def __init__(self, block_ms: int, more: Mapping[str, NDArray[Any]]) -> None:
        own: dict[str, NDArray[Any]] = {
            name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in _COLUMNS.items()
        }
        super().__init__({**own, **more})
        self._block_ms = block_ms

    def begin(self, slots: NDArray[np.int64]) -> None:
        """Begin at M = 0 with keys that came."""
        nothing = dict.fromkeys(_COLUMNS, 0.0)
        self.write(slots, {**nothing, "log_statistic": -math.inf, "log_value": -math.inf})

    def step(
        self,
        slots: NDArray[np.int64],
        rates: NDArray[np.float64],
        hits: NDArray[np.int64],
        *,
        log_threshold: NDArray[np.float64],
        start_ms: int,
        records: NDArray[np.int64],
        flagged: NDArray[np.int64],
    ) -> AlarmStep:
        """Take a block of each of K keys into account, with its counts, int64 (K,).

        The rest is as in `judge_blocks`.
        """
        before = self._states(slots)
        after = judge_blocks(
            before,
            rates,
            hits,
            log_threshold=log_threshold,
            active=self["active"][slots],
            start_ms=start_ms,
        )
        seen = {
            "records": self._seen("records", slots, before, after, records),
            "flagged": self._seen("flagged", slots, before, after, flagged),
        }
        values = {"log_value": after.log_value, "active": after.active}
        self._write_states(slots, after.state)
        self.write(slots, {**seen, **values})
        return after

    def renew(self, slots: NDArray[np.int64]) -> None:
        """Begin anew where an alarm has ended; what it was about stays to be told."""
        before = self._states(slots)
        best = np.argmax(before.log_statistic.reshape(len(slots), -1), axis=1)
        seen = {name: _taken(self[name][slots], best) for name in ("records", "flagged")}
        self._write_states(slots, renewed(before))
        self.write(slots, {**seen, "log_value": -math.inf, "active": False})

    def since(self, slot: int) -> tuple[Onset, int, int]:
        """Give the most likely change of a key, in blocks, with records and flagged ones since."""
        states = self._states(np.array([slot]))
        one = SequentialState(*(getattr(states, name)[0] for name in STATE_ARRAYS))
        best = best_bet(one)
        records, flagged = (round(float(self[n][slot][best])) for n in ("records", "flagged"))
        return onset(one), records, flagged

    def _seen(
        self,
        column: str,
        slots: NDArray[np.int64],
        before: SequentialState,
        after: AlarmStep,
        count: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Add a block's count, int64 (K,), to those since C was at 0, float64 (K, J, B)."""
        goes_on = before.log_cusum > 0
        summed: NDArray[np.float64] = np.where(goes_on, self[column][slots].astype(np.float64), 0.0)
        summed += count[:, np.newaxis, np.newaxis]
        if not after.ended.any():
            return summed
        # A detector that is renewed has the onset of its best bet, and so its number of blocks.
        blocks = (np.where(goes_on, before.records, 0) + 1).reshape(len(slots), -1)
        best = np.argmax(blocks == after.state.records[:, :1, 0], axis=1)
        return np.where(after.ended[:, np.newaxis, np.newaxis], _taken(summed, best), summed)

    def _states(self, slots: NDArray[np.int64]) -> SequentialState:
        blocks = self["blocks"][slots].astype(np.int64)
        return SequentialState(
            self["log_statistic"][slots].astype(np.float64),
            self["log_cusum"][slots].astype(np.float64),
            self["onset_block"][slots].astype(np.int64) * self._block_ms,
            blocks,
            np.zeros_like(blocks),
        )

    def _write_states(self, slots: NDArray[np.int64], state: SequentialState) -> None:
        rows = {
            "log_statistic": state.log_statistic,
            "log_cusum": state.log_cusum,
            "onset_block": np.clip(state.onset_ms // self._block_ms, 0, _LAST_BLOCK),
            "blocks": np.minimum(state.records, _MOST_BLOCKS),
        }
        self.write(slots, rows)


def _taken(values: NDArray[Any], place: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each row, (K, J, B), the value at a flat place, float64 (K, 1, 1)."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.take_along_axis(flat, place[:, np.newaxis], axis=1)[:, :, np.newaxis]
