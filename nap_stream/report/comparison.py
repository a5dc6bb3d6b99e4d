"""Two periods or two models side by side: effects with intervals, and no test.

With enough images any change is significant; what counts is how large it is, and how sure. Images
of a camera depend on each other, so that an interval comes from how days differ (hours or less,
where a side has too few days), as `nap_stream.core.blocks` has it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from nap_stream.core.blocks import (
    MIN_DAYS,
    Blocks,
    Effect,
    coarser,
    effect,
    shift,
    stream_blocks,
)
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import DAY_MS
from nap_stream.report.counts import MAX_KEYS, Count, Tally, quantile
from nap_stream.report.gather import Figures
from nap_stream.report.words import interval, lasting
from nap_stream.text import duration, number, percent

_ONE_UNIT = "not known: one unit alone"
_Unit = tuple[int, Count, list[int]]
"""Start, counts, and records by bin of p-value."""


@dataclass(frozen=True, slots=True)
class _Side:
    """What is compared of one side: a count, and its units where it has any."""

    count: Count
    units: Blocks | None = None


def tables_of(f: Figures) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Tables of a comparison: their captions, and rows of name, both shares, and difference."""
    if f.comparison is None:
        return []
    first, second = f.comparison.first, f.comparison.second
    slow = [quantile(tally.delays, 0.99) for tally in (first, second)]
    flagged, unscored = (
        [_whole(tally, meant) for tally in (first, second)] for meant in (None, _unscored)
    )
    whole = [
        ("Images", number(first.all.rows), number(second.all.rows), "", ""),
        ("Flagged, of scored images", *_difference(*flagged)[0]),
        ("Without scores, of all", *_difference(*unscored)[0]),
        ("Reading to score, p99", *("none" if s is None else lasting(s) for s in slow), "", ""),
        ("Of two scored images, one of each side, the more anomalous is of", *_order(*flagged)),
    ]
    sides = (first, second)
    keys = _in_days([_by_name(t.keys, t.key_units, t.named_ms) for t in sides], flagged)
    classes = _in_days([_by_name(t.classes, t.class_units, t.named_ms) for t in sides], flagged)
    by_key = f"Flagged by {f.key_by}"
    told_apart = first.keys is not None and second.keys is not None
    return [
        ("In all", whole),
        *(
            _named(by_key, *keys)
            if told_apart
            else [(f"{by_key}: more than {number(MAX_KEYS)} keys, not told apart", [])]
        ),
        *_named("Flagged by predicted class", *classes),
    ]


def _named(
    caption: str, one: Mapping[str, _Side], other: Mapping[str, _Side]
) -> list[tuple[str, list[tuple[str, ...]]]]:
    both = {n for n in one.keys() & other.keys() if one[n].units and other[n].units}
    alone = (one.keys() | other.keys()) - both
    return [
        (caption, _differences(one, other, both)),
        (f"{caption}, with scores on one side at most", _differences(one, other, alone)),
    ]


def _in_days(
    sides: Sequence[Mapping[str, _Side]], whole: Sequence[_Side]
) -> list[dict[str, _Side]]:
    """Both sides in units of one length: days of a key that is there on few days of many.

    Its hours depend on each other, and would make it look surer than what is there on each day.
    """
    has_days = all(_has_days(side) for side in whole)

    def shared(name: str) -> tuple[_Side, _Side]:
        a, b = (side.get(name, _Side(Count())) for side in sides)
        if a.units is None or b.units is None:
            return a, b
        unit_ms = max(a.units.block_ms, b.units.block_ms)
        if has_days and not (_has_days(a) and _has_days(b)):
            unit_ms = DAY_MS
        return replace(a, units=coarser(a.units, unit_ms)), replace(
            b, units=coarser(b.units, unit_ms)
        )

    both = {name: shared(name) for name in sides[0].keys() | sides[1].keys()}
    return [{name: both[name][place] for name in side} for place, side in enumerate(sides)]


def _has_days(side: _Side) -> bool:
    return side.units is not None and len(set(side.units.start_ms // DAY_MS)) >= MIN_DAYS


def unit_of(f: Figures) -> str:
    """How long the units of a comparison's first row are."""
    assert f.comparison is not None
    sides = [_whole(tally).units for tally in (f.comparison.first, f.comparison.second)]
    if sides[0] is None or sides[1] is None:
        return ""
    return duration(effect(sides[0], sides[1]).unit_ms)


def months_of(f: Figures) -> list[tuple[str, ...]]:
    """Rows of the stream by calendar month, beside the baseline."""
    found = ((each, each.effect) for each in f.months)
    return [
        (str(each.month), number(each.records), *_told(beside))
        for each, beside in found
        if beside is not None
    ]


def _unscored(count: Count) -> Count:
    """Those without scores as if they were the flagged ones."""
    return Count(count.rows, count.rows, count.rows - count.scored)


def _whole(tally: Tally, meant: Callable[[Count], Count] | None = None) -> _Side:
    """All images of a side, by what is meant of them, in units with their bins."""
    totals, bins = defaultdict[int, Count](Count), defaultdict[int, list[int]](_no_bins)
    for (start, place), count in tally.units.items():
        totals[start] += count
        if place is not None:
            bins[start][place] += count.scored
    units = {start: count if meant is None else meant(count) for start, count in totals.items()}
    held = [(start, count, bins[start]) for start, count in units.items()]
    return _side(tally.all if meant is None else meant(tally.all), held, tally.unit_ms)


def _no_bins() -> list[int]:
    return [0] * BIN_COUNT


def _side(count: Count, units: Iterable[_Unit], unit_ms: int | None) -> _Side:
    held = sorted(((s, c.scored, c.ood, b) for s, c, b in units if c.scored), key=itemgetter(0))
    if not held or unit_ms is None:
        return _Side(count)
    starts, scored, ood, bins = (np.array(column, np.int64) for column in zip(*held, strict=True))
    return _Side(count, stream_blocks(starts, scored, ood, unit_ms, bins))


def _by_name(
    counts: Mapping[str, Count] | None,
    units: Mapping[tuple[str, int], Count],
    unit_ms: int | None,
) -> dict[str, _Side]:
    own = defaultdict[str, list[_Unit]](list)
    for (name, start), count in units.items():
        own[name].append((start, count, _no_bins()))
    return {name: _side(count, own[name], unit_ms) for name, count in (counts or {}).items()}


def _differences(
    first: Mapping[str, _Side], second: Mapping[str, _Side], names: Iterable[str]
) -> list[tuple[str, ...]]:
    """The surest differences first; see `_doubt`."""
    rows, nothing = [], _Side(Count())
    for name in names:
        a, b = first.get(name, nothing), second.get(name, nothing)
        texts, doubt = _difference(a, b)
        rows.append((doubt, -(a.count.rows + b.count.rows), name, texts))
    return [(name, *texts) for _, _, name, texts in sorted(rows)]


def _difference(a: _Side, b: _Side) -> tuple[tuple[str, ...], tuple[int, float]]:
    """Both shares, their difference and its interval; and how doubtful it is."""
    if a.units is None or b.units is None:
        shares = (percent(s.count.share) if s.count.scored else _missing(s.count) for s in (a, b))
        return (*shares, "", ""), (2, 0.0)
    found = effect(a.units, b.units)
    share, baseline, *rest = _told(found)
    return (baseline, share, *rest), _doubt(found)


def _doubt(found: Effect) -> tuple[int, float]:
    """An order: intervals beside 0 first, the furthest before; then by difference over width."""
    nearest = found.low if found.difference >= 0 else -found.high
    if nearest > 0:
        return 0, -nearest
    return 1, -abs(found.difference) / max(abs(found.difference) - nearest, 1e-12)


def _told(found: Effect) -> tuple[str, ...]:
    """The share, that of the baseline, the difference, and its interval."""
    ends = _ONE_UNIT
    if np.isfinite(found.high):
        low, high = max(-1.0, found.low), min(1.0, found.high)
        ends = f"{100 * low:+.3g} to {100 * high:+.3g}"
    change = f"{100 * found.difference:+.3g} points"
    return percent(found.share), percent(found.baseline_share), change, ends


def _order(a: _Side, b: _Side) -> tuple[str, ...]:
    """With which probability the more anomalous of two images is of a side, and its interval."""
    if a.units is None or b.units is None:
        return "", "", "", ""
    found = shift(a.units, b.units)
    is_sure = min(found.units, found.baseline_units) > 1
    ends = interval((found.low, found.high)) if is_sure else _ONE_UNIT
    return percent(1 - found.probability), percent(found.probability), "", ends


def _missing(count: Count) -> str:
    return "no scores" if count.rows else "no images"
