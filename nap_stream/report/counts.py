"""The rows of a period, counted.

Each file is asked once for all counts, so that they agree with each other, also where a file cannot
be read. Memory grows with what is told apart, not with rows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.core.panes import key_text
from nap_stream.core.shares import wilson
from nap_stream.core.tails import EDGES
from nap_stream.errors import ChainBrokenError
from nap_stream.report.history import Run, Span
from nap_stream.scored_log.counting import DAY_MS
from nap_stream.scored_log.engine import Engine, chunks
from nap_stream.scored_log.files import LogFile
from nap_stream.scored_log.format import storable_text, storable_time_ms
from nap_stream.scored_log.index import HOUR_MS
from nap_stream.scored_log.query import Query, condition
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import EARLIEST_MS, LATEST_MS

MAX_KEYS = 10_000
"""More different keys name images, not cameras: they are not told apart then."""
MAX_UNITS = MAX_KEYS * 7 * 24
"""So many stretches of keys, or of classes, are held; where there are more, days of them."""
RUNS_A_QUESTION = 50
"""Each run is two columns of an answer."""
MAX_BINS = 120
"""Stretches of time that a chart shows."""
_WIDTHS_S = (1, 5, 15, 60, 300, 900, 3_600, 10_800, 21_600, 43_200, 86_400)
_SETS: dict[str, tuple[str, ...]] = {
    "times": ("topic", "time"),
    "scored_times": ("topic", "scored_time"),
    "statuses": ("status",),
    "keys": ("key",),
    "classes": ("class_name",),
    "judged": ("topic", "model", "calibration"),
    "lags": ("lag",),
    "delays": ("delay",),
    "units": ("unit", "bin"),
}
_COMPARED = {
    "key_units": ("key", "unit"),
    "class_units": ("class_name", "unit"),
}
"""What is counted too where stretches of time are to be compared."""
_COLUMNS = (
    *("topic", "time", "scored_time", "status", "key", "class_name"),
    *("model", "calibration", "lag", "delay", "unit", "bin"),
)
_COUNTS = {"rows": "sum", "scored": "sum", "ood": "sum", "first": "min", "last": "max"}
_LONGEST_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Count:
    """Rows, those with scores, and the flagged ones of these.

    ``first_ms`` and ``last_ms`` are their event times, milliseconds since the epoch.
    """

    rows: int = 0
    scored: int = 0
    ood: int = 0
    first_ms: int = 2**63
    last_ms: int = -(2**63)

    def __add__(self, other: Self) -> "Count":
        return Count(
            self.rows + other.rows,
            self.scored + other.scored,
            self.ood + other.ood,
            min(self.first_ms, other.first_ms),
            max(self.last_ms, other.last_ms),
        )

    @property
    def share(self) -> float:
        """The OOD fraction; 0 without scored rows."""
        return self.ood / max(1, self.scored)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % for it, as if rows were independent."""
        low, high = wilson(np.array([float(self.ood)]), np.array([float(self.scored)]))
        return float(low[0]), float(high[0])


def total(counts: Iterable[Count]) -> Count:
    """All of them together."""
    return sum(counts, start=Count())


@dataclass(frozen=True)
class Tally:
    """Counts of the same rows by different things.

    ``times`` are by topic and start of a stretch of ``width_ms``, ``scored_times`` by that in
    which rows were scored, ``judged`` by topic, model and calibration. ``keys`` are as
    `nap_stream.core.panes.key_text` gives them; None where there are more than `MAX_KEYS`.
    ``lags`` counts rows by milliseconds from event time to scored time, ``delays`` from reading to
    scored time, rounded up to three digits; -1 stands for all that are negative.

    Where stretches are to be compared, ``units`` are by start of a unit of ``unit_ms`` and bin of
    p-value (`nap_stream.core.tails`), None for rows without one; ``key_units`` by key and
    ``class_units`` by class, then start of a unit of ``named_ms``. Else all are empty.
    """

    width_ms: int
    times: Mapping[tuple[str, int], Count]
    scored_times: Mapping[tuple[str, int], Count]
    statuses: Mapping[str, Count]
    keys: Mapping[str, Count] | None
    classes: Mapping[str, Count]
    judged: Mapping[tuple[str, str, str], Count]
    lags: Mapping[int, int]
    delays: Mapping[int, int]
    unit_ms: int | None = None
    named_ms: int | None = None
    units: Mapping[tuple[int, int | None], Count] = field(default_factory=dict)
    key_units: Mapping[tuple[str, int], Count] = field(default_factory=dict)
    class_units: Mapping[tuple[str, int], Count] = field(default_factory=dict)

    @cached_property
    def all(self) -> Count:
        """All rows."""
        return total(self.statuses.values())


def quantile(counts: Mapping[int, int], share: float) -> int | None:
    """The least value that at least a share of what is counted does not exceed; None of nothing."""
    # What a product of floats exceeds a whole number by is rounding.
    left = math.ceil(share * sum(counts.values()) - 1e-6)
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return None


def chart_width_ms(span_ms: int) -> int:
    """How wide the stretches are of which a chart shows no more than `MAX_BINS`."""
    least = span_ms / MAX_BINS
    width = next((1_000 * s for s in _WIDTHS_S if 1_000 * s >= least), None)
    day_ms = 24 * HOUR_MS
    return width or -(-int(least) // day_ms) * day_ms


def tally(
    store: SegmentStore,
    files: Sequence[LogFile],
    query: Query,
    *,
    width_ms: int,
    key_by: str,
    unread: list[ChainBrokenError],
    unit_ms: int | None = None,
) -> Tally:
    """Count the rows of some files that pass a query.

    ``key_by`` is as in `nap_stream.settings.drift.KeySettings`. ``unread`` takes the errors of
    files that cannot be read. ``unit_ms`` is given where stretches are to be compared.

    Raises:
        ScoredLogError: The store cannot be read, or the memory does not suffice.
    """
    merged: pa.Table | None = None
    told_apart, named_ms = True, unit_ms
    with Engine(store, unread) as engine, Engine(store, []) as looking:
        for chunk in chunks(files):
            told_apart = told_apart and _few_keys(looking, chunk, query, key_by)
            sql, values = _question(query, width_ms, key_by if told_apart else None, unit_ms)
            for _, found in engine.answers(chunk, sql, values):
                merged = _merged(found if merged is None else pa.concat_tables([merged, found]))
                most = max(_part(merged, name).num_rows for name in _COMPARED)
                if unit_ms == HOUR_MS and (named_ms == DAY_MS or most > MAX_UNITS):
                    named_ms, merged = DAY_MS, _merged(_in_days(merged))
            if merged is not None and _part(merged, "keys").num_rows > MAX_KEYS:
                told_apart = False
    counts = {name: {} if merged is None else _counts(merged, name) for name in _SETS | _COMPARED}
    keys: dict[str, Count] = {}
    for (key,), count in counts["keys"].items():
        text = key_text(key)
        keys[text] = keys.get(text, Count()) + count
    key_units: dict[tuple[str, int], Count] = {}
    for (key, start), count in counts["key_units"].items():
        unit = key_text(key), start
        key_units[unit] = key_units.get(unit, Count()) + count
    single = {name: _singles(counts[name]) for name, columns in _SETS.items() if len(columns) == 1}
    return Tally(
        width_ms=width_ms,
        times=counts["times"],
        scored_times=counts["scored_times"],
        statuses=single["statuses"],
        keys=keys if told_apart else None,
        classes=single["classes"],
        judged=counts["judged"],
        lags={value: count.rows for value, count in single["lags"].items()},
        delays={value: count.rows for value, count in single["delays"].items()},
        unit_ms=unit_ms,
        named_ms=named_ms,
        units={} if unit_ms is None else counts["units"],
        key_units=key_units if told_apart else {},
        class_units={each: n for each, n in counts["class_units"].items() if each[0] is not None},
    )


def worked(
    store: SegmentStore,
    files: Sequence[LogFile],
    runs: Sequence[Run],
    period: Span,
    unread: list[ChainBrokenError],
) -> Iterator[Run]:
    """Tell of each run how many images of a period it judged, and when its last row was scored.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    with Engine(store, unread) as engine:
        for start in range(0, len(runs), RUNS_A_QUESTION):
            some = runs[start : start + RUNS_A_QUESTION]
            sql, values = _work(some, period)
            told = [
                answer.to_pylist()[0]
                for chunk in chunks(files)
                for _, answer in engine.answers(chunk, sql, values)
            ]
            for place, run in enumerate(some):
                times = [row[f"seen_{place}"] for row in told]
                seen_ms = max((time for time in times if time is not None), default=None)
                judged = sum(row[f"judged_{place}"] for row in told)
                yield replace(run, seen_ms=seen_ms, judged=judged)


def _work(runs: Sequence[Run], period: Span) -> tuple[str, list[Any]]:
    columns: list[str] = []
    values: list[Any] = []
    for place, run in enumerate(runs):
        topics = sorted(run.topics or {run.started.topic})
        ends = (*topics, run.start_ms, run.followed_ms or LATEST_MS)
        marks = ", ".join("?" * len(topics))
        passes = f"FILTER (topic IN ({marks}) AND scored_ms >= ? AND scored_ms < ?"
        within = "is_ood IS NOT NULL AND event_ms >= ? AND event_ms < ?"
        columns.append(f"max(scored_ms) {passes}) AS seen_{place}")
        columns.append(f"count(*) {passes} AND {within}) AS judged_{place}")
        values += [*ends, *ends, *map(storable_time_ms, period)]
    sql = (
        f"SELECT {', '.join(columns)} FROM (SELECT topic, is_ood, "
        "epoch_ms(event_time) AS event_ms, epoch_ms(scored_time) AS scored_ms FROM _rows)"
    )
    return sql, values


def first_image_ms(
    store: SegmentStore, files: Sequence[LogFile], unread: list[ChainBrokenError]
) -> tuple[int, int] | None:
    """When the first row was scored, and the first event time from an hour before that on.

    Images of long before may have been sent again, or have a wrong clock. None where all are so.
    ``files`` are the first ones of their chains.

    Raises:
        ScoredLogError: The store cannot be read.
    """

    def least(column: str, since_ms: int) -> int | None:
        sql = (
            f"SELECT min(epoch_ms({column}_time)) AS first FROM _rows "
            "WHERE epoch_ms(event_time) >= ?"
        )
        with Engine(store, unread) as engine:
            answers = (a for c in chunks(files) for a in engine.answers(c, sql, [since_ms]))
            times = [found.column("first")[0].as_py() for _, found in answers]
        return min((time for time in times if time is not None), default=None)

    scored_ms = least("scored", storable_time_ms(EARLIEST_MS))
    event_ms = None if scored_ms is None else least("event", scored_ms - HOUR_MS)
    return None if scored_ms is None or event_ms is None else (scored_ms, event_ms)


def _few_keys(engine: Engine, files: Sequence[LogFile], query: Query, key_by: str) -> bool:
    """Whether there are hardly more keys than can be told apart, before memory is taken for them.

    The number is an estimate, some per cent off.
    """
    key, header = _key(key_by)
    where, parameters = condition(query)
    sql = f"SELECT approx_count_distinct({key}) AS keys FROM _rows WHERE {where}"
    answers = engine.answers(files, sql, [*header, *parameters])
    return all(found.column("keys")[0].as_py() <= 2 * MAX_KEYS for _, found in answers)


def _key(key_by: str | None) -> tuple[str, list[str]]:
    """What names a key in SQL, and its parameters."""
    if key_by is None or key_by == "key":
        return "NULL::BLOB" if key_by is None else "key", []
    return "[h.value for h in headers if h.name = ?][-1]", [storable_text(key_by.partition(":")[2])]


def _question(
    query: Query, width_ms: int, key_by: str | None, unit_ms: int | None
) -> tuple[str, list[Any]]:
    event, read, scored = (f"epoch_ms({name}_time)" for name in ("event", "ingest", "scored"))
    key, header = _key(key_by)
    values = {
        "topic": "topic",
        "time": _start(event, width_ms),
        "scored_time": _start(scored, width_ms),
        "status": "status",
        "key": key,
        "class_name": "class_name",
        "model": "model_fingerprint",
        "calibration": "calibration_fingerprint",
        "lag": _rounded(f"({scored} - {event})"),
        "delay": _rounded(f"({scored} - {read})"),
        "unit": "0" if unit_ms is None else _start(event, unit_ms),
        "bin": "NULL::INTEGER" if unit_ms is None else _bin("ood_p_value"),
    }
    assert tuple(values) == _COLUMNS
    where, parameters = condition(query)
    sets = _SETS if unit_ms is None else _SETS | _COMPARED
    grouped = ", ".join(f"({', '.join(names)})" for names in sets.values())
    sql = (
        f"SELECT grouping_id({', '.join(_COLUMNS)}) AS part, {', '.join(_COLUMNS)}, "
        "count(*) AS rows, count(is_ood) AS scored, count(*) FILTER (is_ood) AS ood, "
        "min(event_ms) AS first, max(event_ms) AS last "
        f"FROM (SELECT {', '.join(f'{text} AS {name}' for name, text in values.items())}, "
        f"is_ood, {event} AS event_ms FROM _rows WHERE {where}) "
        f"GROUP BY GROUPING SETS ({grouped})"
    )
    return sql, [*header, *parameters]


def _number(name: str) -> int:
    """How DuckDB's ``grouping_id`` names a set: a bit for each column that is not in it."""
    return sum(
        1 << place
        for place, column in enumerate(reversed(_COLUMNS))
        if column not in (_SETS | _COMPARED)[name]
    )


def _start(time: str, width_ms: int) -> str:
    return f"{time} - (({time} % {width_ms}) + {width_ms}) % {width_ms}"


def _bin(p_value: str) -> str:
    """The number of a p-value's bin, as `nap_stream.core.tails.bins_of` gives it."""
    steps = " ".join(f"WHEN {p_value} <= {edge} THEN {place}" for place, edge in enumerate(EDGES))
    return f"CASE WHEN {p_value} IS NULL THEN NULL {steps} ELSE {len(EDGES)} END"


def _rounded(time: str) -> str:
    """A time rounded up to three digits, in whole numbers, so that it has few values."""
    steps = " ".join(
        f"WHEN {time} < {10**digits} THEN "
        f"({time} + {10 ** (digits - 3) - 1}) // {10 ** (digits - 3)} * {10 ** (digits - 3)}"
        for digits in range(4, _LONGEST_DIGITS)
    )
    return f"CASE WHEN {time} < 1000 THEN greatest({time}, -1) {steps} END"


def _merged(counts: pa.Table) -> pa.Table:
    names = [name for name in counts.column_names if name not in _COUNTS]
    found = counts.group_by(names).aggregate(list(_COUNTS.items()))
    found = found.select([*names, *(f"{name}_{how}" for name, how in _COUNTS.items())])
    return found.rename_columns(counts.column_names).cast(counts.schema)


def _in_days(counts: pa.Table) -> pa.Table:
    """Counts of which the units of keys and classes are days."""
    place, unit = counts.column_names.index("unit"), counts.column("unit")
    days = pc.multiply(pc.floor(pc.divide(unit.cast(pa.float64()), float(DAY_MS))), float(DAY_MS))
    numbers = pa.array([_number(name) for name in _COMPARED], counts.column("part").type)
    is_named = pc.is_in(counts.column("part"), value_set=numbers)
    return counts.set_column(
        place, counts.schema.field(place), pc.if_else(is_named, days.cast(unit.type), unit)
    )


def _part(counts: pa.Table, name: str) -> pa.Table:
    return counts.filter(pc.equal(counts.column("part"), _number(name)))


def _counts(counts: pa.Table, name: str) -> dict[Any, Count]:
    names = (_SETS | _COMPARED)[name]
    values = _part(counts, name).select((*names, *_COUNTS)).to_pydict()
    width = len(names)
    rows = zip(*values.values(), strict=True)
    return {tuple(row[:width]): Count(*row[width:]) for row in rows}


def _singles(counts: Mapping[Any, Count]) -> dict[Any, Count]:
    """Those of a set of one column, without nulls, which are rows that have no such thing."""
    return {key: count for (key,), count in counts.items() if key is not None}
