"""What blocks are compared with, and how one promise about false alarms is shared among them.

Of m baseline blocks, "larger than the k-th largest of them" holds for a new block at a rate that is
at most Beta(k, m + 1 - k) over the draw of the baseline, as a flag of a record does
(`nap_stream.core.tails`); ties only make it rarer. Its upper quantile is the rate that
`nap_stream.core.sequential` bets against.

The statistic of the whole stream is that of the sums over its keys, each with the mean of its own:
which keys it has, and how many records of each, then does not matter to it.

Pooled references are for keys without a baseline of their own: of each the largest mean, prior,
threshold and rate of the known keys. A block that is above these is above the thresholds of all of
them, so that for a key that is no worse than the worst known one the rate holds.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.blocks import STATISTICS, Blocks, block_sums, shrunk
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.panes import NO_KEY
from nap_stream.core.time_kinds import TimeKinds

MIN_BLOCKS = 10
"""A key with fewer baseline blocks of a kind of time has no reference of its own there."""
GOOD_BLOCKS = 40
"""From so many on a reference is a good one: a new key has learned, and nothing warns."""
EVENTS = 2 * len(STATISTICS)
"""Event 2 s is "above all baseline blocks" of statistic s, 2 s + 1 "among the upper eighth"."""
_EIGHTH = 8
MIN_NEW_KEYS = 20
NO_ROW = -1
"""Where a key has no reference, or no place among the new ones."""


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """What blocks of R groups are compared with.

    ``center`` float64 (R, 3) and ``prior`` float64 (R,) are those of `shrunk`;
    ``thresholds`` float64 (R, EVENTS): event e is that statistic e // 2 is above it.
    """

    center: NDArray[np.float64]
    prior: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.prior)

    def chosen(self, which: NDArray[np.bool_] | slice) -> "References":
        """Those where ``which``, bool (R,), is true, or those in a slice."""
        return References(self.center[which], self.prior[which], self.thresholds[which])


def joined(*parts: References) -> References:
    """Put references one after another."""
    columns = ([getattr(part, name) for part in parts] for name in References.__slots__)
    return References(*map(np.concatenate, columns))


@dataclass(frozen=True, slots=True, eq=False)
class BlockReferences:
    """The references of a baseline of N keys at K kinds of time, in G groups.

    ``keys`` are those of the `Blocks`, ``kinds`` and ``block_ms`` theirs too. ``group_of`` int32
    (N, K) is the group of each key and kind, -1 where it has none. ``rows`` are G + K references:
    those of the groups, and then pooled ones, of each kind where ``has_pooled``, bool (K,).
    ``sizes`` int64 (G,) are the groups' baseline blocks. ``shares`` float64 (N, K) are the OOD
    fractions of the keys in the baseline; of all times where a key has no block of a kind.
    """

    keys: tuple[str, ...]
    kinds: TimeKinds
    block_ms: int
    group_of: NDArray[np.int32]
    rows: References
    sizes: NDArray[np.int64]
    has_pooled: NDArray[np.bool_]
    shares: NDArray[np.float64]

    @property
    def own(self) -> References:
        """The references of the G groups."""
        return self.rows.chosen(slice(len(self.sizes)))

    @property
    def pooled(self) -> References:
        """The K references for keys without their own."""
        return self.rows.chosen(slice(len(self.sizes), None))

    @property
    def ranks(self) -> NDArray[np.int64]:
        """The ranks of the events of each group, int64 (G, EVENTS)."""
        ranks = [event_ranks(size) * len(STATISTICS) for size in self.sizes.tolist()]
        return np.array(ranks, dtype=np.int64).reshape(-1, EVENTS)

    def number(self, name: str) -> int:
        """Give the place of a key, or of the stream, that has references, else -1."""
        place = bisect_left(self.keys, name)
        is_known = self.keys[place : place + 1] == (name,) and (
            name == NO_KEY or bool((self.group_of[place] >= 0).any())
        )
        return place if is_known else NO_ROW

    def blocks_by_kind(self, name: str) -> tuple[int, ...]:
        """How many baseline blocks a key's references have, by kind of time; 0 for none.

        Raises:
            ValueError: The baseline does not know the key.
        """
        place = bisect_left(self.keys, name)
        if self.keys[place : place + 1] != (name,):
            raise ValueError(f"the baseline has no key {name!r}")
        groups = self.group_of[place].tolist()
        return tuple(int(self.sizes[group]) if group >= 0 else 0 for group in groups)

    @property
    def blind_kinds(self) -> tuple[str, ...]:
        """The kinds of time at which the stream has no reference: it is not judged then."""
        names = self.kinds.names
        return tuple(names[kind] for kind in np.flatnonzero(self.group_of[0] < 0).tolist())

    @property
    def known(self) -> tuple[str, ...]:
        """The keys, without the stream, that have references of their own at some time."""
        places = np.flatnonzero((self.group_of >= 0).any(axis=1)).tolist()
        return tuple(self.keys[place] for place in places if self.keys[place] != NO_KEY)

    @property
    def knows_keys(self) -> bool:
        """Whether there are any such keys; it takes a look at no name."""
        return bool((self.group_of[1:] >= 0).any())

    @property
    def without(self) -> tuple[str, ...]:
        """The keys that have no reference of their own: they have too few blocks."""
        return tuple(sorted(set(self.keys) - set(self.known) - {NO_KEY}))


def event_ranks(size: int) -> tuple[int, int]:
    """Give the ranks of both events of a statistic, from the largest of ``size`` blocks on."""
    return 1, max(2, size // _EIGHTH)


def references_of(blocks: Blocks, kinds: TimeKinds) -> BlockReferences:
    """Give what later blocks of each key and of the stream are compared with.

    Blocks with less than half the median number of records of their key and kind do not count:
    they are those at the edges of the stretch, or of outages. A key without `MIN_BLOCKS` others of
    a kind has no reference of its own there.
    """
    kind = kinds.kind_of(blocks.middle_ms)
    sums = block_sums(blocks.flagged, blocks.bins)
    of_keys = np.flatnonzero(blocks.key > 0)
    found, group = np.unique(blocks.key[of_keys] * kinds.count + kind[of_keys], return_inverse=True)
    keyed = _Sums(blocks.records[of_keys], sums[of_keys])
    every, sizes, excess = _ranked(group, len(found), keyed)
    has = sizes >= MIN_BLOCKS
    covered = has[group]
    of_stream = _stream_sums(blocks, sums, of_keys, covered, excess)
    stream, stream_sizes, _ = _ranked(kind[blocks.key == 0], kinds.count, of_stream)
    has_stream = stream_sizes >= MIN_BLOCKS
    own = joined(every.chosen(has), stream.chosen(has_stream))
    group_of = np.full((len(blocks.keys), kinds.count), NO_ROW, dtype=np.int32)
    group_of.reshape(-1)[found[has]] = np.arange(has.sum())
    group_of[0, has_stream] = has.sum() + np.arange(has_stream.sum())
    pooled, has_pooled = _pooled(own, group_of[1:])
    return BlockReferences(
        blocks.keys,
        kinds,
        blocks.block_ms,
        group_of,
        joined(own, pooled),
        np.concatenate((sizes[has], stream_sizes[has_stream])),
        has_pooled,
        _shares(blocks, kind, kinds.count),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Of R blocks: records int64 (R,) and sums float64 (R, 3), whose means are the center.

    ``more_records`` and ``more_excess`` are added to what exceeds it.
    """

    records: NDArray[np.int64]
    sums: NDArray[np.float64]
    more_records: NDArray[np.int64] | int = 0
    more_excess: NDArray[np.float64] | float = 0.0


def _stream_sums(
    blocks: Blocks,
    sums: NDArray[np.float64],
    of_keys: NDArray[np.int64],
    covered: NDArray[np.bool_],
    excess: NDArray[np.float64],
) -> _Sums:
    """What the blocks of the stream are made of.

    The excess of the keys with references, and the records without a key; where no key has
    references, all records are taken for those. Blocks of keys are ``of_keys``, int64 (K,), and of
    them ``covered``, bool (K,), those with references, which have an ``excess``, float64 (K, 3).
    """
    stream = np.flatnonzero(blocks.key == 0)
    place = np.searchsorted(blocks.start_ms[stream], blocks.start_ms[of_keys])
    rest, rest_records = sums[stream].copy(), blocks.records[stream].copy()
    keyed, keyed_records = np.zeros_like(rest), np.zeros_like(rest_records)
    if covered.any():
        np.subtract.at(rest, place, sums[of_keys])
        np.subtract.at(rest_records, place, blocks.records[of_keys])
    np.add.at(keyed, place[covered], excess[covered])
    np.add.at(keyed_records, place[covered], blocks.records[of_keys][covered])
    return _Sums(rest_records, rest, keyed_records, keyed)


def _ranked(
    group: NDArray[np.int64], groups: int, counts: _Sums
) -> tuple[References, NDArray[np.int64], NDArray[np.float64]]:
    """The references of groups, how many blocks of each count, and the excess of all blocks.

    ``group`` is int64 (R,), of each block, in [0, groups).
    """
    records = counts.records + counts.more_records
    full = np.flatnonzero((2 * records >= _medians(group, records, groups)[group]) & (records > 0))
    of_full = group[full]
    sizes = np.bincount(of_full, minlength=groups)
    total = np.maximum(np.bincount(of_full, counts.records[full], minlength=groups), 1)
    columns = [np.bincount(of_full, column, minlength=groups) for column in counts.sums[full].T]
    center = np.stack(columns, axis=1) / total[:, np.newaxis]
    excess = counts.sums - counts.records[:, np.newaxis] * center[group] + counts.more_excess
    prior = np.maximum(_medians(of_full, records[full], groups), 1.0)
    statistics = shrunk(excess[full], records[full], prior[of_full])
    ends = np.cumsum(sizes)
    ranks = (np.ones_like(sizes), np.maximum(2, sizes // _EIGHTH))
    thresholds = np.zeros((groups, EVENTS))
    for column, values in enumerate(statistics.T):
        ordered = np.append(values[np.lexsort((values, of_full))], 0.0)
        for place, rank in enumerate(ranks):
            largest = ordered[np.where(sizes >= rank, ends - rank, -1)]
            # A block that is not above the mean is no hit, however few records it has.
            thresholds[:, 2 * column + place] = np.maximum(largest, 0.0)
    return References(center, prior, thresholds), sizes, excess


def _medians(
    group: NDArray[np.int64], values: NDArray[np.int64], groups: int
) -> NDArray[np.float64]:
    """The median of each group's values, int64 (R,); 0 of none."""
    sizes = np.bincount(group, minlength=groups)
    ordered = np.append(values[np.lexsort((values, group))], 0)
    starts = np.cumsum(sizes) - sizes
    low, high = starts + (sizes - 1) // 2, starts + sizes // 2
    return np.where(sizes > 0, (ordered[low] + ordered[high]) / 2, 0.0)


def _pooled(own: References, group_of: NDArray[np.int32]) -> tuple[References, NDArray[np.bool_]]:
    kinds = group_of.shape[1]
    center = np.zeros((kinds, len(STATISTICS)))
    prior, thresholds = np.ones(kinds), np.zeros((kinds, EVENTS))
    has: NDArray[np.bool_] = np.any(group_of >= 0, axis=0)
    for kind in np.flatnonzero(has).tolist():
        groups = group_of[group_of[:, kind] >= 0, kind]
        center[kind] = own.center[groups].max(axis=0)
        prior[kind] = own.prior[groups].max()
        thresholds[kind] = own.thresholds[groups].max(axis=0)
    return References(center, prior, thresholds), has


def _shares(blocks: Blocks, kind: NDArray[np.int64], kinds: int) -> NDArray[np.float64]:
    size = len(blocks.keys)
    cell = blocks.key * kinds + kind
    flagged, records = (
        np.bincount(cell, counts, minlength=size * kinds).reshape(size, kinds)
        for counts in (blocks.flagged, blocks.records)
    )
    ever = flagged.sum(axis=1, keepdims=True) / np.maximum(records.sum(axis=1, keepdims=True), 1)
    return np.where(records > 0, flagged / np.maximum(records, 1), ever)


@dataclass(frozen=True, slots=True, eq=False)
class BlockPlan:
    """How blocks are judged, so that one promise about false alarms holds.

    While the stream is as in the baseline, the probability of any false alarm within a time T is at
    most T / ``run_time_ms``, for every T, with ``confidence`` over the draw of the baseline. A
    third of it is for the whole stream, one for its known keys, one for the first ``new_keys`` new
    keys that learn; all of it is the stream's where there are no known keys.

    ``event_rates`` float64 (U, EVENTS) are highest rates of the events, and ``rate_of`` int32
    (G + K,) tells which are those of each of the references' rows. ``learned_rates`` float64
    (EVENTS,) are those of new keys that have learned their own. The ``..._log_threshold`` are those
    of the e-detectors.
    """

    references: BlockReferences
    run_time_ms: int
    confidence: float
    new_keys: int
    event_rates: NDArray[np.float64]
    rate_of: NDArray[np.int32]
    learned_rates: NDArray[np.float64]
    stream_log_threshold: float
    key_log_threshold: float
    new_log_threshold: float

    @property
    def rates(self) -> NDArray[np.float64]:
        """The highest rates of the events of each of the references' rows, (G + K, EVENTS)."""
        return self.event_rates[self.rate_of]

    @property
    def late_risk(self) -> float:
        """The probability that a new key, beyond the first ``new_keys``, learns too low rates."""
        return self._left / max(1, self.new_keys)

    @property
    def _left(self) -> float:
        """What each part has of what the confidence leaves of 1."""
        return (1 - self.confidence) / (3 if self.references.knows_keys else 1)

    def rates_at(self, blocks: int, kinds: int) -> NDArray[np.float64]:
        """Give the highest rates, (EVENTS,), if the known keys had so many blocks of each kind."""
        groups = max(1, len(self.references.known)) * kinds
        rates = _upper_rates(np.full(groups, blocks, dtype=np.int64), self._left)
        highest: NDArray[np.float64] = rates.max(axis=0)
        return highest

    @property
    def run_blocks(self) -> float:
        """The run time in blocks of one key."""
        return self.run_time_ms / self.references.block_ms

    def rows(
        self, home: NDArray[np.int64], pooled: NDArray[np.bool_], kind: int
    ) -> NDArray[np.int64]:
        """Give the row of the references of each of K keys at a kind of time, int64 (K,), or -1.

        ``home`` int64 (K,) is its number in the baseline, 0 of the stream, -1 of a new key, which
        has the pooled one where ``pooled``, bool (K,).
        """
        references = self.references
        stand_in = len(references.sizes) + kind if references.has_pooled[kind] else NO_ROW
        own = np.where(home >= 0, references.group_of[home, kind], NO_ROW)
        is_pooled = (own < 0) & ((home > 0) | pooled)
        return np.where(is_pooled, stand_in, own).astype(np.int64)

    def in_stream(self, home: NDArray[np.int64], kind: int) -> NDArray[np.bool_]:
        """Tell which keys, bool (K,), the stream's monitor takes in."""
        members: NDArray[np.bool_] = (home > 0) & (self.references.group_of[home, kind] >= 0)
        return members

    def log_threshold(self, home: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the logarithm of the run length of each key, float64 (K,)."""
        known = np.where(home == 0, self.stream_log_threshold, self.key_log_threshold)
        found: NDArray[np.float64] = np.where(home >= 0, known, self.new_log_threshold)
        return found

    @property
    def fewest_blocks(self) -> int:
        """Baseline blocks of the group that has fewest; 0 where there is none."""
        return min(self.references.sizes.tolist(), default=0)


def plan_blocks(
    references: BlockReferences,
    *,
    run_time_ms: int,
    confidence: float,
    new_keys: int | None = None,
) -> BlockPlan:
    """Share the promise out among the stream, the known keys and the new ones.

    Each monitor of a part with n of them bets up to n times the part's run length. What is left of
    1 by the confidence is shared in the same way, and in a part by all groups and events.

    Raises:
        ValueError: The run time is shorter than a block, or the confidence not in (0, 1).
    """
    if run_time_ms < references.block_ms or not 0 < confidence < 1:
        raise ValueError(
            f"expected a run time of at least {references.block_ms} ms and a confidence in (0, 1), "
            f"got {run_time_ms}, {confidence}"
        )
    known = len(references.known)
    room = 0 if not known else max(MIN_NEW_KEYS, known) if new_keys is None else new_keys
    parts = 3 if known else 1
    left = (1 - confidence) / parts
    of_stream, of_keys = references.group_of[0], references.group_of[1:]
    stream_groups, key_groups = of_stream[of_stream >= 0], of_keys[of_keys >= 0]
    rates = np.ones((len(references.rows), EVENTS))
    for groups in (stream_groups, key_groups):
        rates[groups] = _upper_rates(references.sizes[groups], left)
    for kind in np.flatnonzero(references.has_pooled).tolist():
        groups = of_keys[of_keys[:, kind] >= 0, kind]
        rates[len(references.sizes) + kind] = rates[groups].max(axis=0)
    event_rates, rate_of = np.unique(rates, axis=0, return_inverse=True)
    learned = np.full(max(1, room * references.kinds.count), GOOD_BLOCKS, dtype=np.int64)
    run = parts * run_time_ms / references.block_ms
    return BlockPlan(
        references,
        run_time_ms,
        confidence,
        room,
        event_rates,
        rate_of.reshape(-1).astype(np.int32),
        _upper_rates(learned, left)[0],
        math.log(run),
        math.log(run * max(1, known)),
        math.log(run * max(1, room)),
    )


def _upper_rates(sizes: NDArray[np.int64], left: float) -> NDArray[np.float64]:
    """The highest rates, float64 (G, EVENTS), that all hold but for a probability of ``left``."""
    each = 1 - left / max(1, len(sizes) * EVENTS)
    found, place = np.unique(sizes, return_inverse=True)
    rows = [
        [upper_flag_rate(rank, size, each) for rank in event_ranks(size) * len(STATISTICS)]
        for size in found.tolist()
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, EVENTS)[place]
