"""How soon the monitors of blocks see a fault, simulated on the baseline's own blocks.

A stream is the baseline's blocks from a random one on, over the end to its beginning. After
`WARM_UP_BLOCKS` quiet ones a fault begins at a random moment of a block, in one key, in a tenth of
them or in all, and from then on a share of these keys' records turns flagged: instead of the
p-values that they had they get such as are evenly spread up to alpha.

Which records those are depends on those before as the baseline's do: in a block that is as long as
u decorrelation times, the share that turns is that of u independent draws.

The delay is from the beginning of the fault to the end of the block after which the monitor of a
faulty key, or that of the stream, fires: what an alert says of other keys is not counted.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.clock import Progress
from nap_stream.core.block_detectors import block_bets, hits_of
from nap_stream.core.block_plan import BlockPlan, BlockReferences
from nap_stream.core.blocks import Blocks, block_sums, shrunk
from nap_stream.core.detection import p_value_shares
from nap_stream.core.panes import NO_KEY
from nap_stream.core.sequential import (
    STATE_ARRAYS,
    SequentialState,
    initial_state,
    log_mixture,
    update,
)

STRENGTHS = (0.1, 0.3, 1.0)
"""Shares of a faulty key's records that turn flagged."""
WARM_UP_BLOCKS = 20
HORIZON_BLOCKS = 300
MOST_KEYS = 100
"""Of more faulty keys so many are simulated: the first of all would fire sooner still."""
_ROWS = 20_000
"""Detectors that are simulated at once."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How many keys become faulty at once; 0 for the records of a stream without keys."""

    name: str
    keys: int


@dataclass(frozen=True, slots=True)
class BlockDelay:
    """From a fault to the alarm, in milliseconds of event time, over ``streams`` simulated streams.

    ``strength`` is the share of records that turn flagged, in the keys of the ``spread``.
    ``detected`` streams had their alarm within ``horizon_ms``. ``mean_ms`` and its standard error
    are null unless all had, ``median_ms`` and ``late_ms``, the 95th percentile, where fewer had
    than it takes.
    """

    spread: Spread
    strength: float
    streams: int
    detected: int
    horizon_ms: int
    mean_ms: float | None
    standard_error_ms: float | None
    median_ms: float | None
    late_ms: float | None

    @property
    def typical_ms(self) -> float | None:
        """The mean, or else the median; None where neither is known."""
        return self.mean_ms if self.mean_ms is not None else self.median_ms


def spreads_of(references: BlockReferences) -> tuple[Spread, ...]:
    """Give one key, a tenth of them where that is more, and all; the stream where none is known."""
    known = len(references.known)
    if not known:
        return (Spread("the stream", 0),)
    found = [Spread("one key", 1)]
    if 1 < (tenth := math.ceil(known / 10)) < known:
        found.append(Spread("a tenth of the keys", tenth))
    if known > 1:
        found.append(Spread("all keys", known))
    return tuple(found)


def block_delays(
    plan: BlockPlan,
    blocks: Blocks,
    *,
    decorrelation_ms: float,
    alpha: float,
    strengths: tuple[float, ...],
    streams: int,
    seed: int,
    advance: Progress,
) -> tuple[BlockDelay, ...]:
    """Simulate the delay of every strength at every spread.

    ``blocks`` are those of the baseline that ``plan`` is of, be it of the whole stream alone;
    ``strengths`` are in (0, 1].

    Raises:
        ValueError: A strength is out of range, or there is no reference to judge by.
    """
    if not all(0 < strength <= 1 for strength in strengths):
        raise ValueError(f"expected strengths in (0, 1], got {strengths}")
    if not len(plan.references.sizes):
        raise ValueError("expected a plan with references")
    if plan.references.keys == (NO_KEY,):
        blocks = blocks.of(NO_KEY)
    stretch = _Stretch.of(plan, blocks, decorrelation_ms, alpha)
    spreads = spreads_of(plan.references)
    found = []
    for spread in spreads:
        for number, strength in enumerate(strengths):
            # The same streams for each strength, so that strengths compare well.
            rng = np.random.default_rng([seed, spread.keys])
            delays = _delays(plan, stretch, spread, strength=strength, streams=streams, rng=rng)
            found.append(_summed_up(spread, strength, delays, HORIZON_BLOCKS * blocks.block_ms))
            advance(
                spreads.index(spread) * len(strengths) + number + 1, len(spreads) * len(strengths)
            )
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Stretch:
    """The baseline by block and by time.

    Of N blocks ``code`` int64 (N,) is key * T + number of its time, ascending; ``records`` int64
    (N,), ``sums`` float64 (N, 3). Of T times ``kind`` int64 (T,) is the kind, ``stream_excess``
    float64 (T, 3) and ``stream_records`` int64 (T,) what the stream's monitor counts. A block holds
    ``units`` decorrelation times; ``turned`` float64 (3,) are the sums of a record that turned.
    """

    code: NDArray[np.int64]
    records: NDArray[np.int64]
    sums: NDArray[np.float64]
    kind: NDArray[np.int64]
    stream_excess: NDArray[np.float64]
    stream_records: NDArray[np.int64]
    units: int
    turned: NDArray[np.float64]

    @classmethod
    def of(
        cls, plan: BlockPlan, blocks: Blocks, decorrelation_ms: float, alpha: float
    ) -> "_Stretch":
        references = plan.references
        starts, at = np.unique(blocks.start_ms, return_inverse=True)
        kind = references.kinds.kind_of(starts + blocks.block_ms // 2)
        sums = block_sums(blocks.flagged, blocks.bins)
        group = references.group_of[blocks.key, kind[at]]
        member = (blocks.key > 0) & (group >= 0)
        stream = blocks.key == 0
        # What is left of the stream without the keys that have references, and then their excess.
        rest, counted = np.zeros((len(starts), 3)), np.zeros(len(starts), dtype=np.int64)
        np.add.at(rest, at[stream], sums[stream])
        np.add.at(counted, at[stream], blocks.records[stream])
        if member.any():
            keyed = blocks.key > 0
            np.subtract.at(rest, at[keyed], sums[keyed])
            np.subtract.at(counted, at[keyed], blocks.records[keyed])
        own = references.group_of[0, kind]
        excess = rest - counted[:, np.newaxis] * references.rows.center[own]
        expected = blocks.records[member, np.newaxis] * references.rows.center[group[member]]
        np.add.at(excess, at[member], sums[member] - expected)
        np.add.at(counted, at[member], blocks.records[member])
        shares = p_value_shares(alpha, 1.0)
        scale = 10**9
        flag = block_sums(np.array(scale), np.rint(shares * scale).astype(np.int64)) / scale
        return cls(
            blocks.key * len(starts) + at,
            blocks.records,
            sums,
            kind,
            excess,
            counted,
            max(1, round(blocks.block_ms / max(decorrelation_ms, 1.0))),
            flag,
        )

    def at(
        self, key: NDArray[np.int64], time: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The records (..., C) and sums (..., C, 3) of keys at times; 0 without a block."""
        code = key * len(self.kind) + time
        place = np.minimum(np.searchsorted(self.code, code), len(self.code) - 1)
        is_there = self.code[place] == code
        return (
            np.where(is_there, self.records[place], 0),
            np.where(is_there[..., np.newaxis], self.sums[place], 0.0),
        )


def _delays(
    plan: BlockPlan,
    stretch: _Stretch,
    spread: Spread,
    *,
    strength: float,
    streams: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Delays in blocks, float64 (streams,), infinity beyond the horizon."""
    known = [plan.references.number(name) for name in plan.references.known]
    chosen = min(spread.keys, MOST_KEYS)
    at_once = max(1, _ROWS // (chosen + 1))
    parts = []
    for first in range(0, streams, at_once):
        size = min(at_once, streams - first)
        keys = np.array(
            [rng.choice(known, chosen, replace=False) for _ in range(size)], np.int64
        ).reshape(size, chosen)
        parts.append(_Streams(plan, stretch, keys, rng).run(strength))
    return np.concatenate(parts)


class _Streams:
    """R streams in which C keys each become faulty; all records where C is 0.

    Row 0 of each stream's detectors is that of the stream.
    """

    def __init__(
        self,
        plan: BlockPlan,
        stretch: _Stretch,
        keys: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        references = plan.references
        numbers = np.arange(len(references.keys))
        kinds = range(references.kinds.count)
        is_new = np.zeros(len(numbers), dtype=np.bool_)
        # Keys without a reference of their own at some time are judged by the pooled one then.
        self._row_of = np.stack([plan.rows(numbers, is_new, kind) for kind in kinds], axis=1)
        self._group_of, self._references = references.group_of, references.rows
        self._rates = plan.rates
        self._log_thresholds = plan.log_threshold(np.minimum(np.arange(keys.shape[1] + 1), 1))
        self._stretch, self._keys, self._rng = stretch, keys, rng
        streams = len(keys)
        self._time = rng.integers(len(stretch.kind), size=streams)
        self._begins = rng.random(streams)
        self._state = initial_state(block_bets(self._rates[0]), (streams, keys.shape[1] + 1))

    def run(self, strength: float) -> NDArray[np.float64]:
        """The delay of each stream in blocks, float64 (R,), infinity for none in the horizon."""
        delays = np.full(len(self._keys), np.inf)
        waiting = np.arange(len(self._keys))
        for _ in range(WARM_UP_BLOCKS):
            self._step(np.zeros(len(waiting)), strength)
        for step in range(HORIZON_BLOCKS):
            faulty = np.ones(len(waiting)) if step else 1 - self._begins[waiting]
            fires = self._step(faulty, strength)
            delays[waiting[fires]] = step + 1 - self._begins[waiting[fires]]
            waiting = waiting[~fires]
            if not len(waiting):
                break
            self._keys, self._time = self._keys[~fires], self._time[~fires]
            kept = (getattr(self._state, name)[~fires] for name in STATE_ARRAYS)
            self._state = SequentialState(*kept)
        return delays

    def _step(self, faulty: NDArray[np.float64], strength: float) -> NDArray[np.bool_]:
        """Judge the next block, of which so much, float64 (R,), is faulty; give which fire."""
        stretch, time = self._stretch, self._time
        kind = stretch.kind[time]
        units = stretch.units
        records, sums = stretch.at(self._keys, time[:, np.newaxis])
        share = self._rng.binomial(units, strength, self._keys.shape) / units
        turned = (share * faulty[:, np.newaxis])[..., np.newaxis]
        change = turned * (records[..., np.newaxis] * stretch.turned - sums)
        row = self._row_of[self._keys, kind[:, np.newaxis]]
        excess = sums + change - records[..., np.newaxis] * self._references.center[row]
        in_stream = self._group_of[self._keys, kind[:, np.newaxis]] >= 0
        stream = stretch.stream_excess[time] + (change * in_stream[..., np.newaxis]).sum(axis=1)
        counted = stretch.stream_records[time]
        own = self._row_of[0, kind]
        if not self._keys.shape[1]:
            share = self._rng.binomial(units, strength, len(time)) / units * faulty
            all_of_it = stream + counted[:, np.newaxis] * self._references.center[own]
            stream = stream + share[:, np.newaxis] * (
                counted[:, np.newaxis] * stretch.turned - all_of_it
            )
        rows = np.concatenate((own[:, np.newaxis], row), axis=1)
        counted = np.concatenate((counted[:, np.newaxis], records), axis=1)
        excess = np.concatenate((stream[:, np.newaxis], excess), axis=1)
        fires = self._judged(rows, counted, excess)
        self._time = (time + 1) % len(stretch.kind)
        return fires

    def _judged(
        self,
        rows: NDArray[np.int64],
        counted: NDArray[np.int64],
        excess: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        references = self._references
        judged = (rows >= 0) & (counted > 0)
        # Any group will do where nothing is judged; a pooled row without groups has no rate.
        rows = np.where(judged, rows, 0)
        statistics = shrunk(excess, counted, references.prior[rows])
        hits = hits_of(statistics, references.thresholds[rows]) * judged[..., np.newaxis]
        with np.errstate(divide="ignore"):  # no block is no observation
            self._state = update(
                self._state,
                block_bets(self._rates[rows]),
                judged.astype(np.int64),
                hits,
                np.zeros(rows.shape, dtype=np.int64),
            )
        fires: NDArray[np.bool_] = log_mixture(self._state) >= self._log_thresholds
        any_fires: NDArray[np.bool_] = np.any(fires, axis=1)
        return any_fires


def _summed_up(
    spread: Spread, strength: float, delays: NDArray[np.float64], horizon_ms: int
) -> BlockDelay:
    block_ms = horizon_ms / HORIZON_BLOCKS
    streams, seen = len(delays), delays[np.isfinite(delays)] * block_ms
    ordered = np.sort(delays) * block_ms
    median, late = (float(np.quantile(ordered, q, method="higher")) for q in (0.5, 0.95))
    all_seen = len(seen) == streams
    return BlockDelay(
        spread,
        strength,
        streams,
        len(seen),
        horizon_ms,
        float(seen.mean()) if all_seen else None,
        float(seen.std(ddof=1)) / math.sqrt(streams) if all_seen and streams > 1 else None,
        median if math.isfinite(median) else None,
        late if math.isfinite(late) else None,
    )
