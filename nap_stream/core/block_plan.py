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
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.blocks import STATISTICS, Blocks, block_sums
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

    ``center`` float64 (R, 3) and ``prior`` float64 (R,) are those of `block_statistics`;
    ``thresholds`` float64 (R, EVENTS): event e is that statistic e // 2 is above it.
    """

    center: NDArray[np.float64]
    prior: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.prior)


@dataclass(frozen=True, slots=True, eq=False)
class BlockReferences:
    """The references of a baseline of N keys at K kinds of time, in G groups.

    ``keys`` are those of the `Blocks`, ``kinds`` and ``block_ms`` theirs too. ``group_of`` int64
    (N, K) is the group of each key and kind, -1 where it has none. ``own`` are the references of
    the groups, ``sizes`` int64 (G,) their baseline blocks, ``ranks`` int64 (G, EVENTS). ``pooled``
    are K references for keys without their own, where ``has_pooled``, bool (K,). ``shares`` float64
    (N,) are the OOD fractions of the keys in the baseline.
    """

    keys: tuple[str, ...]
    kinds: TimeKinds
    block_ms: int
    group_of: NDArray[np.int64]
    own: References
    sizes: NDArray[np.int64]
    ranks: NDArray[np.int64]
    pooled: References
    has_pooled: NDArray[np.bool_]
    shares: NDArray[np.float64]

    def blocks_by_kind(self, name: str) -> tuple[int, ...]:
        """How many baseline blocks a key's references have, by kind of time; 0 for none."""
        groups = self.group_of[self.keys.index(name)].tolist()
        return tuple(int(self.sizes[group]) if group >= 0 else 0 for group in groups)

    @property
    def known(self) -> tuple[str, ...]:
        """The keys, without the stream, that have references of their own at some time."""
        return tuple(
            name
            for name, groups in zip(self.keys, self.group_of, strict=True)
            if name != NO_KEY and (groups >= 0).any()
        )

    @property
    def without(self) -> tuple[str, ...]:
        """The keys that have no reference of their own: they have too few blocks."""
        return tuple(sorted(set(self.keys) - set(self.known) - {NO_KEY}))


def event_ranks(size: int) -> tuple[int, int]:
    """Give the ranks of both events of a statistic, from the largest of ``size`` blocks on."""
    return 1, max(2, size // _EIGHTH)


def thresholds_of(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the thresholds, float64 (EVENTS,), of the statistics of baseline blocks, float64 (M, 3).

    None is below 0: a block that is not above the baseline's mean is no hit, however few records it
    has.
    """
    ordered = np.sort(statistics, axis=0)
    first, second = event_ranks(len(ordered))
    ranked = np.stack((ordered[-first], ordered[-second]), axis=1).ravel()
    thresholds: NDArray[np.float64] = np.maximum(ranked, 0.0)
    return thresholds


def references_of(blocks: Blocks, kinds: TimeKinds) -> BlockReferences:
    """Give what later blocks of each key and of the stream are compared with.

    Blocks with less than half the median number of records of their key and kind do not count:
    they are those at the edges of the stretch, or of outages. A key without `MIN_BLOCKS` others of
    a kind has no reference of its own there.
    """
    kind = kinds.kind_of(blocks.middle_ms)
    sums = block_sums(blocks.flagged, blocks.bins)
    group_of = np.full((len(blocks.keys), kinds.count), -1, dtype=np.int64)
    excess = np.zeros_like(sums)
    covered = np.zeros(len(blocks), dtype=np.bool_)
    made: list[tuple[NDArray[np.float64], float, NDArray[np.float64], int]] = []
    of_keys = np.flatnonzero(blocks.key > 0)
    for part in _grouped(blocks.key[of_keys] * kinds.count + kind[of_keys]):
        rows = of_keys[part]
        full = rows[2 * blocks.records[rows] >= np.median(blocks.records[rows])]
        if len(full) < MIN_BLOCKS:
            continue
        group_of[blocks.key[rows[0]], kind[rows[0]]] = len(made)
        center = sums[full].sum(axis=0) / blocks.records[full].sum()
        excess[rows] = sums[rows] - blocks.records[rows, np.newaxis] * center
        covered[rows] = True
        made.append(_reference(excess[full], blocks.records[full], center))
    for number, reference in _of_stream(blocks, kind, sums, excess, covered):
        group_of[0, number] = len(made)
        made.append(reference)
    own = References(
        np.array([center for center, *_ in made]).reshape(-1, len(STATISTICS)),
        np.array([prior for _, prior, *_ in made], dtype=np.float64),
        np.array([thresholds for _, _, thresholds, _ in made]).reshape(-1, EVENTS),
    )
    sizes = np.array([size for *_, size in made], dtype=np.int64)
    ranks = np.array([event_ranks(size) * len(STATISTICS) for size in sizes.tolist()], np.int64)
    pooled, has_pooled = _pooled(own, group_of[1:])
    return BlockReferences(
        blocks.keys,
        kinds,
        blocks.block_ms,
        group_of,
        own,
        sizes,
        ranks.reshape(-1, EVENTS),
        pooled,
        has_pooled,
        _shares(blocks),
    )


def _reference(
    excess: NDArray[np.float64], records: NDArray[np.int64], center: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64], int]:
    prior = float(np.median(records))
    return center, prior, thresholds_of(excess / (records[:, np.newaxis] + prior)), len(records)


def _of_stream(
    blocks: Blocks,
    kind: NDArray[np.int64],
    sums: NDArray[np.float64],
    excess: NDArray[np.float64],
    covered: NDArray[np.bool_],
) -> Iterable[tuple[int, tuple[NDArray[np.float64], float, NDArray[np.float64], int]]]:
    """The references of the whole stream, each with the number of its kind.

    What it is made of: the excess of the keys with references, and that of records without a key;
    where no key has references, all records are taken so.
    """
    stream = np.flatnonzero(blocks.key == 0)
    starts = blocks.start_ms[stream]
    place = np.searchsorted(starts, blocks.start_ms)
    is_key = (blocks.key > 0) & covered.any()
    rest, rest_records = sums[stream].copy(), blocks.records[stream].copy()
    np.subtract.at(rest, place[is_key], sums[is_key])
    np.subtract.at(rest_records, place[is_key], blocks.records[is_key])
    keyed, keyed_records = np.zeros_like(rest), np.zeros_like(rest_records)
    np.add.at(keyed, place[covered], excess[covered])
    np.add.at(keyed_records, place[covered], blocks.records[covered])
    for part in _grouped(kind[stream]):
        records = rest_records[part] + keyed_records[part]
        full = part[2 * records >= max(1.0, float(np.median(records)))]
        if len(full) < MIN_BLOCKS:
            continue
        center = rest[full].sum(axis=0) / max(1, int(rest_records[full].sum()))
        total = keyed[full] + rest[full] - rest_records[full, np.newaxis] * center
        reference = _reference(total, rest_records[full] + keyed_records[full], center)
        yield int(kind[stream[part[0]]]), reference


def _grouped(group: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    """The rows of each group, in the order of the groups."""
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    return [rows for rows in np.split(order, cuts) if len(rows)]


def _pooled(own: References, group_of: NDArray[np.int64]) -> tuple[References, NDArray[np.bool_]]:
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


def _shares(blocks: Blocks) -> NDArray[np.float64]:
    size = len(blocks.keys)
    flagged = np.bincount(blocks.key, blocks.flagged, minlength=size)
    shares: NDArray[np.float64] = flagged / np.maximum(
        np.bincount(blocks.key, blocks.records, minlength=size), 1
    )
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class BlockPlan:
    """How blocks are judged, so that one promise about false alarms holds.

    While the stream is as in the baseline, the probability of any false alarm within a time T is at
    most T / ``run_time_ms``, for every T, with ``confidence`` over the draw of the baseline. A
    third of it is for the whole stream, one for its known keys, one for up to ``new_keys`` new keys
    at once; all of it is the stream's where there are no known keys.

    ``rates`` float64 (G, EVENTS) are the highest rates of the events of each group,
    ``pooled_rates`` float64 (K, EVENTS) those of pooled references, ``learned_rates`` float64
    (EVENTS,) those of new keys that have learned their own. The ``..._log_threshold`` are those of
    the e-detectors.
    """

    references: BlockReferences
    run_time_ms: int
    confidence: float
    new_keys: int
    rates: NDArray[np.float64]
    pooled_rates: NDArray[np.float64]
    learned_rates: NDArray[np.float64]
    stream_log_threshold: float
    key_log_threshold: float
    new_log_threshold: float

    @property
    def run_blocks(self) -> float:
        """The run time in blocks of one key."""
        return self.run_time_ms / self.references.block_ms

    @property
    def fewest_blocks(self) -> int:
        """Baseline blocks of the group that has fewest; 0 where there is none."""
        return int(self.references.sizes.min(initial=np.iinfo(np.int64).max)) * bool(
            len(self.references.sizes)
        )


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
    rates = np.ones((len(references.sizes), EVENTS))
    for groups in (stream_groups, key_groups):
        rates[groups] = _upper_rates(references.sizes[groups], left)
    pooled_rates = np.full((references.kinds.count, EVENTS), np.nan)
    for kind in np.flatnonzero(references.has_pooled).tolist():
        groups = of_keys[of_keys[:, kind] >= 0, kind]
        pooled_rates[kind] = rates[groups].max(axis=0)
    learned = np.full(max(1, room * references.kinds.count), GOOD_BLOCKS, dtype=np.int64)
    run = parts * run_time_ms / references.block_ms
    return BlockPlan(
        references,
        run_time_ms,
        confidence,
        room,
        rates,
        pooled_rates,
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


@dataclass(frozen=True, slots=True, eq=False)
class PlanRows:
    """The plan by row: a reference of a group, or the pooled one of a kind; -1 for none."""

    references: References
    rates: NDArray[np.float64]
    group_of: NDArray[np.int64]
    row_of: NDArray[np.int64]
    pooled_row: NDArray[np.int64]
    log_thresholds: NDArray[np.float64]

    @classmethod
    def of(cls, plan: BlockPlan) -> "PlanRows":
        """Lay out a plan."""
        known = plan.references
        pooled = np.where(known.has_pooled, len(known.own) + np.arange(known.kinds.count), NO_ROW)
        row_of = np.where(known.group_of >= 0, known.group_of, pooled)
        row_of[0] = known.group_of[0]
        return cls(
            References(
                np.concatenate((known.own.center, known.pooled.center)),
                np.concatenate((known.own.prior, known.pooled.prior)),
                np.concatenate((known.own.thresholds, known.pooled.thresholds)),
            ),
            np.concatenate((plan.rates, plan.pooled_rates)),
            known.group_of,
            row_of,
            pooled,
            np.array([plan.stream_log_threshold, plan.key_log_threshold, plan.new_log_threshold]),
        )

    def rows(
        self, home: NDArray[np.int64], pooled: NDArray[np.bool_], kind: int
    ) -> NDArray[np.int64]:
        """The row of each key, int64 (K,): by its number in the baseline, or where ``pooled``."""
        new = np.where(pooled, self.pooled_row[kind], NO_ROW)
        return np.where(home >= 0, self.row_of[home, kind], new)

    def in_stream(self, home: NDArray[np.int64], kind: int) -> NDArray[np.bool_]:
        """Which keys, bool (K,), the stream's monitor takes in."""
        members: NDArray[np.bool_] = (home > 0) & (self.group_of[home, kind] >= 0)
        return members

    def log_threshold(self, home: NDArray[np.int64]) -> NDArray[np.float64]:
        """The logarithm of the run length of each key, float64 (K,)."""
        part = np.where(home == 0, 0, np.where(home > 0, 1, 2))
        found: NDArray[np.float64] = self.log_thresholds[part]
        return found
