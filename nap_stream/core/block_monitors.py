"""One e-detector of blocks for the stream and each of its keys, as a `BlockPlan` sets them.

Each is the one of `nap_stream.core.sequential`, over the blocks of its key: a block is one
observation, and its events are those of `nap_stream.core.blocks`.

Keys that the baseline does not know are judged by the pooled references, as far as there is room
for new keys; those beyond it wait, and `BlockMonitors.waiting_count` says how many. A new key
learns references of its own (`nap_stream.core.learned_references`) while it has no alarm. What it
has learned before one is forgotten with it: the change may have begun before.

Forgetting and silence are as in `nap_stream.core.key_monitors`: they cost power, and add no false
alarm.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.block_detectors import BlockDetectors, hits_of
from nap_stream.core.block_plan import NO_ROW, BlockPlan
from nap_stream.core.block_readings import BlockReading, BlockReadings, JudgedBy
from nap_stream.core.blocks import STATISTICS, block_sums, shrunk
from nap_stream.core.key_monitors import ActiveKeys, chosen_keys, excess_keys
from nap_stream.core.learned_references import NEEDED_BLOCKS, LearnedReferences
from nap_stream.core.panes import NO_KEY, ClosedPane
from nap_stream.core.sequential import AlarmStep
from nap_stream.core.tails import BIN_COUNT

_EVER_MS = np.iinfo(np.int64).min
_CHUNK = 4_096
"""So many keys are judged at once, which bounds what that takes in memory."""


class BlockMonitors:
    """The monitors of the stream and of all keys that are remembered.

    What they say depends on the panes alone. A block is judged when a pane comes that begins after
    it, or with `advance`.

    Args:
        plan: What they are set to.
        max_keys: So many are remembered between blocks, besides the stream and accepted keys; see
            `nap_stream.core.key_monitors.KeyMonitors`.
        silence_ms: A key is silent in a block that begins so long after its last one, or longer;
            two blocks at least, which the attribute of that name tells.

    Raises:
        ValueError: There is no room for a key.
    """

    def __init__(self, plan: BlockPlan, max_keys: int, silence_ms: int) -> None:
        if max_keys < 1 or silence_ms < 1:
            raise ValueError(
                f"expected max_keys >= 1 and silence_ms >= 1, got {max_keys}, {silence_ms}"
            )
        references = plan.references
        self._plan, self._max_keys = plan, max_keys
        self._block_ms = references.block_ms
        self.silence_ms = max(silence_ms, 2 * self._block_ms)
        self._watches_keys = references.knows_keys
        self._table = BlockDetectors(self._block_ms, _columns())
        self._learned = LearnedReferences(references.kinds.count)
        self._active = ActiveKeys()
        self._block: int | None = None
        self.evicted = 0
        self._stream = int(self._slots_of((NO_KEY,))[0])

    def __len__(self) -> int:
        """How many keys are remembered, without the stream."""
        return len(self._table) - 1

    def __contains__(self, key: str) -> bool:
        """Whether it is remembered."""
        return key in self._table

    @property
    def active_count(self) -> int:
        """How many keys have an active monitor; the stream is one."""
        return len(self._active)

    @property
    def new_count(self) -> int:
        """How many new keys have a place."""
        return len(self._learned)

    @property
    def waiting_count(self) -> int:
        """How many new keys have none."""
        homes = self._table["home"][self._table.slots(self._table.names)]
        return int((homes == NO_ROW).sum()) - len(self._learned)

    def update(self, pane: ClosedPane) -> tuple[BlockReadings, ...]:
        """Take the next pane; give the readings of the blocks that end before it, one at most.

        Raises:
            ValueError: It has keys, and not their bins.
        """
        readings = self.advance(pane.start_ms)
        self._block = pane.start_ms // self._block_ms
        if not self._watches_keys or not pane.keys:
            self._count(self._stream, pane.records, pane.flagged, pane.bins)
            return readings
        if pane.key_bins.shape != (len(pane.keys), BIN_COUNT):
            raise ValueError(f"expected bins of {len(pane.keys)} keys, got {pane.key_bins.shape}")
        slots = self._slots_of(pane.keys)
        begun = self._table["from_ms"][slots] <= pane.start_ms
        self._count(
            slots[begun], pane.key_records[begun], pane.key_flagged[begun], pane.key_bins[begun]
        )
        # Of the stream, records without a key are counted here; see `_judge`.
        self._count(
            self._stream,
            pane.records - int(pane.key_records.sum()),
            pane.flagged - int(pane.key_flagged.sum()),
            pane.bins - pane.key_bins.sum(axis=0),
        )
        # A block may be long, and bring any number of names.
        if len(self) > 2 * self._max_keys:
            self._forget(self._max_keys)
        return readings

    def advance(self, until_ms: int) -> tuple[BlockReadings, ...]:
        """Judge the open block if it ends at or before ``until_ms``: nothing earlier will come."""
        block = self._block
        if block is None or (block + 1) * self._block_ms > until_ms:
            return ()
        self._block = None
        return (self._judge(block * self._block_ms),)

    def accept(self, key: str, from_ms: int) -> None:
        """Begin anew with a key, as a new one, with its panes from ``from_ms`` on.

        It ends an alarm, and takes the key out of the stream's monitor. Until it has learned, it is
        compared with nothing: known keys need not be as it is now.

        Raises:
            ValueError: It is the whole stream: that needs another baseline.
        """
        if key == NO_KEY:
            raise ValueError("the whole stream cannot be accepted: make another baseline")
        slot = int(self._table.slots((key,))[0])
        if slot >= 0:
            self._active.remove([key] if self._table["active"][slot] else [])
            self._learned.remove((key,))
            self._table.remove((key,))
        slots = self._added((key,), NO_ROW)
        self._table.write(slots, {"from_ms": from_ms, "last_ms": from_ms})
        if len(self._learned) < self._plan.new_keys:
            self._table.write(slots, {"place": self._learned.add((key,))})

    def reading(self, key: str) -> BlockReading:
        """Give where the monitor of a key stands; one that is not remembered has seen nothing."""
        slot = int(self._table.slots((key,))[0])
        home = int(self._table["home"][slot]) if slot >= 0 else self._plan.references.number(key)
        place = int(self._table["place"][slot]) if slot >= 0 else NO_ROW
        judged_by, share, learned = self._basis(slot, home, place)
        threshold = self._plan.log_threshold(np.array([home]))[0]
        if slot < 0:
            nothing = -math.inf, float(threshold), False, 0, 0, 0, 0
            return BlockReading(*nothing, STATISTICS[0], share, judged_by, learned)
        since, records, flagged = self._table.since(slot)
        return BlockReading(
            float(self._table["log_value"][slot]),
            float(threshold),
            bool(self._table["active"][slot]),
            since.start_ms,
            since.records,
            records,
            flagged,
            STATISTICS[since.event // 2],
            share,
            judged_by,
            learned,
        )

    def _basis(self, slot: int, home: int, place: int) -> tuple[JudgedBy, float, int]:
        """What a key is judged by, the OOD fraction there, and how many blocks are learned."""
        references = self._plan.references
        last_ms = np.array([self._table["last_ms"][slot] if slot >= 0 else 0])
        kind = int(references.kinds.kind_of(last_ms + self._block_ms // 2)[0])
        if home >= 0:
            share = float(references.shares[home, kind])
            if references.group_of[home, kind] >= 0:
                return JudgedBy.OWN, share, 0
            is_pooled = home > 0 and references.has_pooled[kind]
            return JudgedBy.POOLED if is_pooled else JudgedBy.WAITING, share, 0
        pooled_share = float(references.pooled.center[kind, 0])
        if place < 0:
            return JudgedBy.WAITING, pooled_share, 0
        places = np.array([place])
        blocks = self._learned.blocks(places)[0]
        if blocks[kind] >= NEEDED_BLOCKS:
            share = float(self._learned.shares(places, kind)[0])
            return JudgedBy.LEARNED, share, int(blocks.min())
        accepted = self._table["from_ms"][slot] != _EVER_MS
        judged_by = JudgedBy.ACCEPTED if accepted else JudgedBy.LEARNING
        return judged_by, pooled_share, int(blocks.min())

    def names(self) -> tuple[str, ...]:
        """Give the keys in the order of `arrays`, the stream among them."""
        return self._table.names

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give the state of all, to be exact: by key in the order of `names`, and of new keys."""
        rows = self._table.rows()
        # Where a place is does not matter: others have places from 0 on.
        place = rows.pop("place")
        block = np.array([] if self._block is None else [self._block], dtype=np.int64)
        return {
            **rows,
            **self._learned.rows(place[place >= 0]),
            "has_place": place >= 0,
            "block": block,
            "evicted": np.array([self.evicted]),
        }

    def restore(self, names: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up where others of the same plan were; their arrays are copied.

        Raises:
            ValueError: The two do not belong together.
            KeyError: An array is missing.
        """
        has_place, block = arrays["has_place"], arrays["block"]
        damaged = has_place.shape != (len(names),) or block.shape not in {(0,), (1,)}
        if damaged or arrays["evicted"].shape != (1,) or NO_KEY not in names:
            raise ValueError("the state of the monitors of blocks is damaged")
        place = np.where(has_place, np.cumsum(has_place) - 1, NO_ROW)
        self._table.restore(names, {**arrays, "place": place})
        self._learned.restore(tuple(chosen_keys(names, has_place)), arrays)
        self.evicted = int(arrays["evicted"][0])
        self._block = int(block[0]) if len(block) else None
        self._stream = int(self._table.slots((NO_KEY,))[0])
        active = self._table["active"]
        last_ms = self._table["last_ms"][active].tolist()
        self._active = ActiveKeys(zip(chosen_keys(names, active), last_ms, strict=True))

    def _count(
        self,
        slots: NDArray[np.int64] | int,
        records: NDArray[np.int64] | int,
        flagged: NDArray[np.int64] | int,
        bins: NDArray[np.int64],
    ) -> None:
        # No slot stands twice among them.
        self._table["open_records"][slots] += records
        self._table["open_flagged"][slots] += flagged
        self._table["open_bins"][slots] += bins

    def _slots_of(self, keys: tuple[str, ...]) -> NDArray[np.int64]:
        slots = self._table.slots(keys)
        unknown = np.flatnonzero(slots < 0)
        if len(unknown):
            names = tuple(keys[i] for i in unknown.tolist())
            homes = np.array([self._plan.references.number(name) for name in names])
            slots[unknown] = self._added(names, homes)
        return slots

    def _added(self, names: tuple[str, ...], home: NDArray[np.int64] | int) -> NDArray[np.int64]:
        slots = self._table.add(names)
        self._table.begin(slots)
        rows = {**dict.fromkeys(_columns(), 0), "home": home, "place": NO_ROW, "from_ms": _EVER_MS}
        self._table.write(slots, rows)
        return slots

    def _judge(self, start_ms: int) -> BlockReadings:
        middle = np.array([start_ms + self._block_ms // 2])
        kind = int(self._plan.references.kinds.kind_of(middle)[0])
        has_records = self._table["open_records"] > 0
        # The stream has records wherever a key has.
        found = [(name, slot) for name, slot in self._table.items() if has_records[slot]]
        by_name = sorted({(NO_KEY, self._stream), *found})
        keys = tuple(name for name, _ in by_name)
        slots = np.fromiter((slot for _, slot in by_name), dtype=np.int64, count=len(keys))
        # Before a key that returns is judged: what it was about is over.
        self._renew_silent(start_ms)
        self._give_places(keys, slots, start_ms)
        opened = self._opened(slots, kind)
        judged = np.flatnonzero(opened.is_judged)
        steps = [
            self._step(opened, part, start_ms, kind)
            for part in np.split(judged, np.arange(_CHUNK, len(judged), _CHUNK))
        ]
        names = tuple(keys[i] for i in judged.tolist())
        active = np.concatenate([step.active for step in steps])
        self._active.remove(chosen_keys(names, np.concatenate([step.ended for step in steps])))
        # A key that sends is not silent, though a kind of time has no reference to judge it by.
        sends = self._table["active"][slots] & (opened.records > 0)
        sends[0] = self._table["active"][self._stream] & opened.records.any()
        self._active.see(chosen_keys(keys, sends), start_ms)
        self._learn(opened, kind)
        for column in ("open_records", "open_flagged", "open_bins"):
            self._table[column][slots] = 0
        self._table["last_ms"][slots] = start_ms
        self._forget(self._max_keys)
        return BlockReadings(
            start_ms,
            start_ms + self._block_ms,
            names,
            np.concatenate([step.log_value for step in steps]),
            opened.log_threshold[judged],
            active,
        )

    def _opened(self, slots: NDArray[np.int64], kind: int) -> "_Opened":
        table, plan = self._table, self._plan
        records, flagged, home, place = (
            table[name][slots].astype(np.int64)
            for name in ("open_records", "open_flagged", "home", "place")
        )
        sums = block_sums(flagged, table["open_bins"][slots].astype(np.int64))
        pooled = (place >= 0) & (table["from_ms"][slots] == _EVER_MS)
        row = plan.rows(home, pooled, kind)
        references = plan.references.rows
        center, prior = references.center[row], references.prior[row]
        has_learned = place >= 0
        has_learned[has_learned] = self._learned.knows(place[has_learned], kind)
        if has_learned.any():
            own = self._learned.references(place[has_learned], kind)
            center[has_learned], prior[has_learned] = own.center, own.prior
        excess = sums - records[:, np.newaxis] * center
        members = plan.in_stream(home, kind)
        counted = records.copy()
        excess[0] += excess[members].sum(axis=0)
        counted[0] += counted[members].sum()
        flags = flagged.copy()
        flags[0] += flagged[members].sum()
        is_judged = ((row >= 0) | has_learned) & (counted > 0)
        return _Opened(
            slots,
            row,
            has_learned,
            is_judged,
            records,
            sums,
            counted,
            flags,
            shrunk(excess, counted, prior),
            plan.log_threshold(home),
        )

    def _step(
        self, opened: "_Opened", part: NDArray[np.int64], start_ms: int, kind: int
    ) -> AlarmStep:
        """Judge the keys at places ``part``, int64 (P,), of the opened ones."""
        slots, row = opened.slots[part], opened.row[part]
        plan = self._plan
        thresholds = plan.references.rows.thresholds[row]
        rates = plan.event_rates[plan.rate_of[row]]
        has_learned = opened.has_learned[part]
        if has_learned.any():
            place = self._table["place"][slots[has_learned]].astype(np.int64)
            thresholds[has_learned] = self._learned.references(place, kind).thresholds
            rates[has_learned] = plan.learned_rates
        return self._table.step(
            slots,
            rates,
            hits_of(opened.statistics[part], thresholds),
            log_threshold=opened.log_threshold[part],
            start_ms=start_ms,
            records=opened.counted[part],
            flagged=opened.flagged[part],
        )

    def _learn(self, opened: "_Opened", kind: int) -> None:
        place = self._table["place"][opened.slots].astype(np.int64)
        active = self._table["active"][opened.slots]
        self._learned.forget_unfinished(place[(place >= 0) & active])
        quiet = (place >= 0) & ~active
        self._learned.learn(place[quiet], kind, opened.records[quiet], opened.sums[quiet])

    def _give_places(self, keys: tuple[str, ...], slots: NDArray[np.int64], start_ms: int) -> None:
        table = self._table
        asking = np.flatnonzero(
            (table["home"][slots] == NO_ROW) & (table["place"][slots] == NO_ROW)
        )
        if not len(asking):
            return
        if self._plan.new_keys - len(self._learned) < len(asking):
            self._take_places(start_ms - self.silence_ms)
        # Accepted keys come first: nothing else watches them.
        waits = table["from_ms"][slots[asking]] == _EVER_MS
        first = asking[np.argsort(waits, kind="stable")][
            : max(0, self._plan.new_keys - len(self._learned))
        ]
        table["place"][slots[first]] = self._learned.add(tuple(keys[i] for i in first.tolist()))

    def _take_places(self, until_ms: int) -> None:
        """Take the places of keys whose last block began at ``until_ms`` or before."""
        table = self._table
        silent = (table["place"] >= 0) & ~table["active"] & (table["last_ms"] <= until_ms)
        names = [name for name, slot in table.items() if silent[slot]]
        self._learned.remove(names)
        table["place"][table.slots(names)] = NO_ROW

    def _renew_silent(self, start_ms: int) -> None:
        silent = self._active.remove_silent(start_ms - self.silence_ms)
        if silent:
            self._table.renew(self._table.slots(silent))

    def _forget(self, max_keys: int) -> None:
        if len(self) <= max_keys:
            return
        names = np.array(self.names(), dtype=object)
        slots = self._table.slots(names)
        kept = (names == NO_KEY) | (self._table["from_ms"][slots] != _EVER_MS)
        names, slots = names[~kept], slots[~kept]
        if len(names) <= max_keys:
            return
        last_ms, active = (self._table[name][slots] for name in ("last_ms", "active"))
        gone, gone_active = excess_keys(names, last_ms, active, max_keys)
        self._active.remove(gone_active)
        self._learned.remove((*gone, *gone_active))
        self._table.remove((*gone, *gone_active))
        self.evicted += len(gone) + len(gone_active)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """The open blocks of K keys, the stream's first.

    ``records`` and ``sums`` are the key's own, of the stream those without a key; ``counted`` and
    ``flagged`` are those judged.
    """

    slots: NDArray[np.int64]
    row: NDArray[np.int64]
    has_learned: NDArray[np.bool_]
    is_judged: NDArray[np.bool_]
    records: NDArray[np.int64]
    sums: NDArray[np.float64]
    counted: NDArray[np.int64]
    flagged: NDArray[np.int64]
    statistics: NDArray[np.float64]
    log_threshold: NDArray[np.float64]


def _columns() -> dict[str, NDArray[Any]]:
    """What is known of a key besides its detector, without rows."""
    types: dict[str, tuple[type, tuple[int, ...]]] = {
        "open_records": (np.int64, ()),
        "open_flagged": (np.int64, ()),
        "open_bins": (np.int64, (BIN_COUNT,)),
        "last_ms": (np.int64, ()),
        "from_ms": (np.int64, ()),
        "home": (np.int32, ()),
        "place": (np.int32, ()),
    }
    return {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in types.items()}
