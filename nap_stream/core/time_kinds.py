"""Kinds of time: parts of the day, and weekends, whose blocks are not compared with one another.

Blocks of one key are taken for exchangeable within a kind of time. Whether a stretch of blocks
speaks for kinds is tested by turning each of its days by a random angle, all keys together: if the
time of day does not matter, the turned stretch has the same law but for the seams, whatever the
dependence within a day and between keys. Weekends are tested by naming other days so.

A test that does not reject proves nothing: of a short stretch that is all that can be said, and
`KindEvidence` says so.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

HOUR_MS = 3_600_000
DAY_H = 24
DAY_MS = DAY_H * HOUR_MS
_QUARTER_MS = 900_000
_SATURDAY = 5
MAX_KINDS = 4
LEVEL = 0.01
"""Kinds are kept where chance alone explains as much at most this often."""
_TURNS = 999
_CELLS_AT_ONCE = 100_000
MIN_DAYS = 3
"""Fewer days cannot tell the time of day from a slow change."""
MIN_WEEKEND_DAYS = 4
_LEAST_GAIN = 0.02
"""A further cut of the day must explain at least this share of the variance of the blocks."""


@dataclass(frozen=True, slots=True)
class TimeKinds:
    """Parts of the day in local time, and whether weekends have parts of their own.

    ``boundaries_h`` are the hours at which a part begins, ascending, in [0, 24); the last part
    goes on past midnight to the first. None: the day is one part. ``timezone`` is an IANA name.

    Raises:
        ValueError: The hours are not ascending or out of range, or there is one alone.
    """

    boundaries_h: tuple[int, ...] = ()
    weekend_apart: bool = False
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        hours = self.boundaries_h
        if len(hours) == 1 or list(hours) != sorted({hour % DAY_H for hour in hours}):
            raise ValueError(
                f"expected no hours, or two or more of 0 to 23, ascending, got {hours}"
            )

    @property
    def parts(self) -> int:
        """Into how many parts a day is cut."""
        return max(1, len(self.boundaries_h))

    @property
    def count(self) -> int:
        """How many kinds there are."""
        return self.parts * (1 + self.weekend_apart)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each kind, such as ``06:00-18:00`` or ``weekend 18:00-06:00``."""
        hours = self.boundaries_h
        ends = (*hours[1:], *hours[:1])
        spans = [f"{a:02}:00-{b:02}:00" for a, b in zip(hours, ends, strict=True)] or ["all day"]
        if not self.weekend_apart:
            return tuple(spans)
        return (*(f"weekday {span}" for span in spans), *(f"weekend {span}" for span in spans))

    def kind_of(self, time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the kind of each time, in milliseconds since the epoch; int64 of its shape."""
        if self.count == 1:
            return np.zeros(time_ms.shape, dtype=np.int64)
        local = local_ms(time_ms, self.timezone)
        hour = local % DAY_MS // HOUR_MS
        part = (np.searchsorted(np.array(self.boundaries_h), hour, side="right") - 1) % self.parts
        if self.weekend_apart:
            part = part + self.parts * _is_weekend(local // DAY_MS)
        return part.astype(np.int64)


@dataclass(frozen=True, slots=True)
class KindEvidence:
    """What kinds of time rest on.

    ``days`` is how many local days the stretch touches. ``day_p_value`` and ``weekend_p_value`` are
    None where they were not tested, as it is too short. ``explained`` is the share of the blocks'
    variance within keys that the kinds explain, in [0, 1].

    ``wanted`` are the kinds that the blocks speak for where these would leave too few blocks of
    one, so that others are told apart; null where nothing was dropped. They explain
    ``wanted_explained``, and about ``wanted_days`` would have enough blocks of each.
    """

    days: int
    day_p_value: float | None
    weekend_p_value: float | None
    explained: float
    wanted: TimeKinds | None = None
    wanted_explained: float = 0.0
    wanted_days: int = 0


def local_ms(time_ms: NDArray[np.int64], timezone: str) -> NDArray[np.int64]:
    """Give the wall-clock time at ``timezone``, in milliseconds as if that were UTC.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: There is no such zone.
    """
    if timezone == "UTC":
        return time_ms
    quarters, place = np.unique(time_ms // _QUARTER_MS, return_inverse=True)
    zone = ZoneInfo(timezone)
    offsets = np.array([_offset_ms(quarter, zone) for quarter in quarters.tolist()], np.int64)
    return time_ms + offsets[place].reshape(time_ms.shape)


@lru_cache(maxsize=1 << 12)
def _offset_ms(quarter: int, zone: ZoneInfo) -> int:
    moment = datetime.fromtimestamp(quarter * _QUARTER_MS / 1000, UTC).astimezone(zone)
    offset = moment.utcoffset()
    return round(offset.total_seconds() * 1000) if offset is not None else 0


def _is_weekend(day: NDArray[np.int64]) -> NDArray[np.int64]:
    # 1 January 1970 was a Thursday: weekday 3, from Monday.
    return ((day + 3) % 7 >= _SATURDAY).astype(np.int64)


def find_kinds(
    key: NDArray[np.int64],
    middle_ms: NDArray[np.int64],
    values: NDArray[np.float64],
    *,
    timezone: str = "UTC",
    seed: int = 0,
    least: int = 1,
) -> tuple[TimeKinds, KindEvidence]:
    """Tell which kinds of time the blocks of a stretch speak for.

    Args:
        key: int64 (N,), number of each block's key.
        middle_ms: int64 (N,), the middle of each block.
        values: float64 (N, S), its statistics; each counts in units of its own spread within keys.
        timezone: In which days begin, an IANA name.
        seed: Of the random turns.
        least: So many blocks each kind must have, of the key with number 0 (the stream), and of the
            median other key with so many at all. Cuts and weekends that leave fewer are dropped,
            which the evidence tells.

    Returns:
        The kinds, at most `MAX_KINDS`, and what they rest on.
    """
    local = local_ms(middle_ms, timezone)
    day, hour = local // DAY_MS, local % DAY_MS // HOUR_MS
    days, day_number = np.unique(day, return_inverse=True)
    scaled = _scaled(key, values)
    grid = _Grid.of(day_number.astype(np.int64), hour, scaled, len(days))
    room = _Room.of(key, hour, _is_weekend(day), least)
    rng = np.random.default_rng(seed)
    day_p = _day_p_value(grid, rng)
    weekend_p = _weekend_p_value(grid, _is_weekend(days), rng)
    matters = [p is not None and p <= LEVEL for p in (day_p, weekend_p)]

    def explained(kinds: TimeKinds) -> float:
        label = kinds.kind_of(middle_ms)
        return _explained(key * kinds.count + label, scaled) if kinds.count > 1 else 0.0

    kinds = TimeKinds(*_chosen(grid, room, *matters), timezone)
    wanted = TimeKinds(*_chosen(grid, replace(room, least=0), *matters), timezone)
    found = KindEvidence(len(days), day_p, weekend_p, explained(kinds))
    if wanted != kinds:
        fewest = room.fewest(wanted.boundaries_h, apart=wanted.weekend_apart)
        needed = math.ceil(len(days) * least / max(1, fewest))
        found = replace(
            found, wanted=wanted, wanted_explained=explained(wanted), wanted_days=needed
        )
    return kinds, found


def _chosen(
    grid: "_Grid", room: "_Room", day_matters: bool, weekend_matters: bool
) -> tuple[tuple[int, ...], bool]:
    """The hours where a part of the day begins, and whether weekends have parts of their own."""
    cuts = _best_cuts(grid, room, MAX_KINDS, apart=False) if day_matters else ()
    if not weekend_matters:
        return cuts, False
    if room.fits(cuts, apart=True) and 2 * len(cuts) <= MAX_KINDS:
        return cuts, True
    fewer = _best_cuts(grid, room, MAX_KINDS // 2, apart=True) if cuts else ()
    # Where there is no room for both, the time of day is told apart.
    apart = room.fits(fewer, apart=True) and bool(fewer or not cuts)
    return (fewer if apart else cuts), apart


def _scaled(key: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the means of each key, each statistic with variance 1."""
    centred = values - group_means(key, values)
    spread = np.sqrt((centred**2).mean(axis=0))
    scaled: NDArray[np.float64] = centred / np.where(spread > 0, spread, 1.0)
    return scaled


def group_means(group: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each row of values, float64 (N, S), the mean of its group, int64 (N,) from 0."""
    size = int(group.max(initial=-1)) + 1
    counts = np.maximum(np.bincount(group, minlength=size), 1)
    sums = np.stack([np.bincount(group, column, minlength=size) for column in values.T], axis=1)
    means: NDArray[np.float64] = (sums / counts[:, np.newaxis])[group]
    return means


def _explained(group: NDArray[np.int64], scaled: NDArray[np.float64]) -> float:
    total = float((scaled**2).sum())
    _, dense = np.unique(group, return_inverse=True)
    means = group_means(dense.astype(np.int64), scaled)
    return float((means**2).sum()) / total if total else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Sums float64 (days, 24, S) of scaled values and counts float64 (days, 24), by local hour."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    total: float

    @classmethod
    def of(
        cls,
        day: NDArray[np.int64],
        hour: NDArray[np.int64],
        scaled: NDArray[np.float64],
        days: int,
    ) -> "_Grid":
        cell, size = day * DAY_H + hour, days * DAY_H
        sums = np.stack([np.bincount(cell, column, minlength=size) for column in scaled.T], axis=1)
        counts = np.bincount(cell, minlength=size).astype(np.float64)
        return cls(
            sums.astype(np.float64).reshape(days, DAY_H, -1),
            counts.reshape(days, DAY_H),
            float((scaled**2).sum()),
        )

    def profile(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.sums.sum(axis=0), self.counts.sum(axis=0)


@dataclass(frozen=True, slots=True, eq=False)
class _Room:
    """Blocks by local hour of the stream and other keys, int64 (K, 2, 24), weekends second.

    A kind of time must have ``least`` of them.
    """

    blocks: NDArray[np.int64]
    least: int

    @classmethod
    def of(
        cls,
        key: NDArray[np.int64],
        hour: NDArray[np.int64],
        weekend: NDArray[np.int64],
        least: int,
    ) -> "_Room":
        size = int(key.max(initial=0)) + 1
        cell = (key * 2 + weekend) * DAY_H + hour
        blocks = np.bincount(cell, minlength=size * 2 * DAY_H).reshape(size, 2, DAY_H)
        # Keys with few blocks have no reference, however the day is cut.
        counts = blocks.sum(axis=(1, 2)) >= least
        counts[0] = True
        return cls(blocks[counts].astype(np.int64), least)

    def fits(self, cuts: tuple[int, ...], *, apart: bool) -> bool:
        """Whether each kind has enough blocks of the stream and of the median key."""
        return self.fewest(cuts, apart=apart) >= self.least

    def fewest(self, cuts: tuple[int, ...], *, apart: bool) -> int:
        """The fewest blocks of a kind, of the stream or of the median key."""
        parts = max(1, len(cuts))
        part = _part_of(cuts) if cuts else np.zeros(DAY_H, dtype=np.int64)
        days = self.blocks if apart else self.blocks.sum(axis=1, keepdims=True)
        found = days @ (part[:, np.newaxis] == np.arange(parts)).astype(np.int64)
        stream, keys = found[0], found[1:]
        of_keys = np.median(keys, axis=0) if len(keys) else stream
        return int(min(of_keys.min(), stream.min() if stream.any() else of_keys.min()))


def _part_of(cuts: tuple[int, ...]) -> NDArray[np.int64]:
    """The part of each hour of the day, int64 (24,)."""
    part = (np.searchsorted(np.array(cuts), np.arange(DAY_H), side="right") - 1) % len(cuts)
    return part.astype(np.int64)


def _day_p_value(grid: _Grid, rng: np.random.Generator) -> float | None:
    """That of the time of day; None where the stretch is too short to tell."""
    # Blocks of several hours leave hours empty on all days.
    filled = (grid.counts > 0).sum(axis=1)
    whole = np.flatnonzero(2 * filled >= filled.max(initial=1))
    if len(whole) < MIN_DAYS or not grid.total:
        return None
    sums, counts = grid.sums[whole], grid.counts[whole]
    hours = np.flatnonzero(counts.sum(axis=0) > 0)
    if len(hours) < 2:  # noqa: PLR2004  blocks of a whole day
        return None
    sums, counts = sums[:, hours], counts[:, hours]
    seen = _between(sums.sum(axis=0), counts.sum(axis=0))
    turned = _turned(sums, counts, rng)
    # A turned stretch may be the stretch itself: ties count, to within rounding.
    return float((1 + (turned >= seen * (1 - 1e-9)).sum()) / (1 + _TURNS))


def _turned(
    sums: NDArray[np.float64], counts: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """What hours explain once each day was turned by a random angle, float64 (_TURNS,)."""
    days, hours = counts.shape
    row = np.arange(days)[:, np.newaxis]
    batch = max(1, _CELLS_AT_ONCE // (days * hours))
    found = []
    for done in range(0, _TURNS, batch):
        angles = rng.integers(0, hours, (min(batch, _TURNS - done), days, 1))
        place = (np.arange(hours) + angles) % hours
        found.append(_between(sums[row, place].sum(axis=1), counts[row, place].sum(axis=1)))
    return np.concatenate(found)


def _between(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of squares that groups explain, (...), from their sums (..., G, S), counts (..., G)."""
    squares = sums**2 / np.maximum(counts, 1.0)[..., np.newaxis]
    explained: NDArray[np.float64] = squares.sum(axis=(-2, -1))
    return explained


def _best_cuts(grid: _Grid, room: _Room, parts: int, *, apart: bool) -> tuple[int, ...]:
    """Cut the day greedily into at most so many parts, as long as a cut explains enough more.

    Each has enough blocks, also where weekends are ``apart``.
    """
    sums, counts = grid.profile()
    busy = np.flatnonzero(counts > 0).tolist()
    cuts: tuple[int, ...] = ()
    explained = 0.0
    while len(cuts) < parts:
        # A circle needs two cuts for the first split.
        first: list[tuple[int, ...]] = [(a, b) for i, a in enumerate(busy) for b in busy[i + 1 :]]
        more: list[tuple[int, ...]] = [
            tuple(sorted((*cuts, hour))) for hour in busy if hour not in cuts
        ]
        tried = [each for each in (more if cuts else first) if room.fits(each, apart=apart)]
        if not tried:
            break
        best = max(tried, key=lambda found: _explained_by(sums, counts, found))
        gained = _explained_by(sums, counts, best) / grid.total
        if cuts and gained - explained < _LEAST_GAIN:
            break
        cuts, explained = best, gained
    # Blocks of several hours have their middle in some hours alone: a part begins where one does.
    before = [busy[busy.index(hour) - 1] for hour in cuts]
    starts = [hour - (hour - last) % DAY_H // 2 for hour, last in zip(cuts, before, strict=True)]
    return tuple(sorted(start % DAY_H for start in starts))


def _explained_by(
    sums: NDArray[np.float64], counts: NDArray[np.float64], cuts: tuple[int, ...]
) -> float:
    part = _part_of(cuts)
    grouped = np.zeros((len(cuts), sums.shape[1]))
    np.add.at(grouped, part, sums)
    return float(
        _between(grouped, np.bincount(part, counts, minlength=len(cuts)).astype(np.float64))
    )


def _weekend_p_value(
    grid: _Grid, weekend: NDArray[np.int64], rng: np.random.Generator
) -> float | None:
    if min(weekend.sum(), (1 - weekend).sum()) < MIN_WEEKEND_DAYS or not grid.total:
        return None
    sums, counts = grid.sums.sum(axis=1), grid.counts.sum(axis=1)

    def between(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        groups = np.stack((1 - chosen, chosen), axis=-2).astype(np.float64)
        return _between(groups @ sums, groups @ counts)

    seen = float(between(weekend))
    permuted = between(rng.permuted(np.tile(weekend, (_TURNS, 1)), axis=1))
    return float((1 + (permuted >= seen * (1 - 1e-9)).sum()) / (1 + _TURNS))
