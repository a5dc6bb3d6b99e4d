"""How many rows of the log there are by what: read, or taken from the index."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.core.shares import wilson
from nap_stream.errors import ChainBrokenError, ConfigError, ScoredLogError
from nap_stream.scored_log.engine import Engine, chunks
from nap_stream.scored_log.files import SCAN_SCHEMA, LogFile
from nap_stream.scored_log.format import storable_time_ms
from nap_stream.scored_log.index import HOUR_MS, IndexUse
from nap_stream.scored_log.query import Query, condition, listed
from nap_stream.scored_log.stores import SegmentStore

DAY_MS = 24 * HOUR_MS
MAX_SPANS = 100_000
"""The most hours or days of a count, with those that have no rows."""
_COUNTS = ("rows", "scored", "ood")


class GroupBy(StrEnum):
    """What to count by. Hours and days are of event time, UTC."""

    HOUR = "hour"
    DAY = "day"
    KEY = "key"
    CLASS = "class"
    STATUS = "status"
    MODEL = "model"
    CALIBRATION = "calibration"
    PARTITION = "partition"


_SPANS = {GroupBy.HOUR: HOUR_MS, GroupBy.DAY: DAY_MS}
_COLUMNS: dict[GroupBy, tuple[str, ...]] = {
    GroupBy.KEY: ("key",),
    GroupBy.CLASS: ("class_id", "class_name"),
    GroupBy.STATUS: ("status",),
    GroupBy.MODEL: ("model_fingerprint",),
    GroupBy.CALIBRATION: ("calibration_fingerprint",),
    GroupBy.PARTITION: ("topic", "partition"),
}


def aggregate(
    store: SegmentStore,
    query: Query,
    *by: GroupBy,
    now_ms: int | None = None,
    unread: list[ChainBrokenError] | None = None,
    use: IndexUse | None = None,
    held_counts: int = 2_000_000,
) -> pa.Table:
    """Count the rows that pass the filters.

    ``by`` are different from each other, and at most one of them is a span of time. ``now_ms``
    ends a stretch that has a beginning and no end of its own. ``use`` has the index asked
    too, and is told what it gave: files of which it has counts are not read then. Some
    ``held_counts`` of these are held before they are added up.

    Returns:
        One row a group, ordered by its keys: ``hour`` or ``day`` (timestamp, UTC), ``key``,
        ``class_id`` and ``class_name`` (null for rows without scores), ``status``,
        ``model_fingerprint``, ``calibration_fingerprint``, or ``topic`` and ``partition``; then
        ``rows``, ``scored`` (rows with scores), ``ood`` (those of them that are flagged), int64,
        ``ood_fraction`` = ood / scored, and ``ood_low`` and ``ood_high``, Wilson's interval of 95 %
        for it, float64, null where scored is 0. Hours and days without rows have 0, from the first
        to the last that has any, or as far as the filters go; with another key, for each of its
        values.

    Raises:
        ConfigError: There are more than `MAX_SPANS` groups with those without rows.
        LogRootError, ChainBrokenError: As `nap_stream.scored_log.query.listed`.
    """
    keys = [_key_column(each, name) for each in by for name in _COLUMNS.get(each, (each.value,))]
    text, values = condition(query)
    selected = ", ".join(key for key, _ in keys)
    sql = (
        f"SELECT {selected}, count(*) AS rows, count(is_ood) AS scored, "
        f"count(*) FILTER (is_ood) AS ood FROM _rows WHERE {text} GROUP BY ALL"
    )
    schema = pa.schema([*(field for _, field in keys), *((name, pa.int64()) for name in _COUNTS)])
    merged = schema.empty_table()
    indexed = _Indexed(query, selected, by, use, held_counts)
    with Engine(store, unread) as engine:
        for chunk in chunks(indexed.others(engine, listed(store, query, unread, use))):
            for _, found in engine.answers(chunk, sql, values):
                merged = _added(pa.concat_tables([merged, found.cast(schema)]))
        for found in indexed.answers(engine):
            merged = _added(pa.concat_tables([merged, found.cast(schema)]))
        for chunk in chunks(indexed.refused):
            for _, found in engine.answers(chunk, sql, values):
                merged = _added(pa.concat_tables([merged, found.cast(schema)]))
    names = [field.name for _, field in keys]
    for span in (each for each in by if each in _SPANS):
        until_ms = query.until_ms
        if until_ms is None and query.since_ms is not None:
            until_ms = now_ms
        merged = _with_empty(merged, names, span, (query.since_ms, until_ms))
    return _with_fractions(merged.sort_by([(name, "ascending") for name in names]))


class _Indexed:
    """Counts from the index, of the files that have them and need not be read.

    ``selected`` are the columns of the answer in SQL, ``most`` how many counts of files are held.
    ``refused`` are files whose counts could not be added up, and that must be read after all.
    """

    def __init__(
        self,
        query: Query,
        selected: str,
        by: Sequence[GroupBy],
        use: IndexUse | None,
        most: int,
    ) -> None:
        self._query, self._selected, self._use, self._most = query, selected, use, most
        self._by_key = bool(query.keys) or GroupBy.KEY in by
        self._with_place = GroupBy.PARTITION in by
        self._tables: dict[bool, list[pa.Table]] = {False: [], True: []}
        self._rows = 0
        self._answers: list[pa.Table] = []
        self._held: list[LogFile] = []
        self.refused: list[LogFile] = []

    def others(self, engine: Engine, files: Iterable[LogFile]) -> Iterator[LogFile]:
        """The files that must be read; the others are counted."""
        for file in files:
            is_within = self._is_within(file)
            if is_within is None or file.entry is None or self._use is None:
                yield file
                continue
            try:
                counts = file.entry.counts(by_key=self._by_key)
            except (ScoredLogError, ValueError):
                yield file
                continue
            self._use.counted += 1
            if self._with_place:
                place = pa.scalar(file.partition.topic), pa.scalar(file.partition.partition)
                for name, value in zip(("topic", "partition"), place, strict=True):
                    counts = counts.append_column(name, pa.repeat(value, counts.num_rows))
            self._tables[is_within].append(counts)
            self._held.append(file)
            self._rows += counts.num_rows
            if self._rows > self._most:
                self._add_up(engine)

    def _is_within(self, file: LogFile) -> bool | None:
        """Whether the whole file lies in the stretch of time; None where it must be read."""
        query = self._query
        asks_rows = (query.min_p_value, query.max_p_value) != (None, None) or bool(
            query.headers or query.sha256
        )
        low, high = file.footer.min_event_time_ms, file.footer.max_event_time_ms
        if file.entry is None or low is None or high is None or asks_rows or not file.is_whole:
            return None
        if not file.entry.has_counts(by_key=self._by_key):
            return None
        since_ms, until_ms = (
            None if ms is None else storable_time_ms(ms) for ms in (query.since_ms, query.until_ms)
        )
        if (since_ms is None or since_ms <= low) and (until_ms is None or until_ms > high):
            return True
        is_hours = all(ms is None or ms % HOUR_MS == 0 for ms in (since_ms, until_ms))
        return False if is_hours else None

    def answers(self, engine: Engine) -> list[pa.Table]:
        """The counts, once all files are given."""
        self._add_up(engine)
        return self._answers

    def _add_up(self, engine: Engine) -> None:
        try:
            self._answers += list(self._added_up(engine))
        except duckdb.Error:
            # Whatever stands in the index: the rows are there.
            self.refused += self._held
            if self._use is not None:
                self._use.counted -= len(self._held)
        for tables in self._tables.values():
            tables.clear()
        self._held.clear()
        self._rows = 0

    def _added_up(self, engine: Engine) -> Iterator[pa.Table]:
        for is_within, tables in self._tables.items():
            if not tables:
                continue
            query = replace(self._query, since_ms=None, until_ms=None) if is_within else self._query
            text, values = condition(query)
            sql = (
                f"SELECT {self._selected}, sum(n)::BIGINT AS rows, "
                "coalesce(sum(n) FILTER (is_ood IS NOT NULL), 0)::BIGINT AS scored, "
                "coalesce(sum(n) FILTER (is_ood), 0)::BIGINT AS ood "
                f"FROM _counts WHERE {text} GROUP BY ALL"
            )
            yield engine.of_table("_counts", pa.concat_tables(tables), sql, values)


def _key_column(by: GroupBy, name: str) -> tuple[str, Any]:
    if by not in _SPANS:
        return f'"{name}"', SCAN_SCHEMA.field(name).with_nullable(True).remove_metadata()
    # Not date_trunc, which knows time zones and takes five times as long.
    width, time = _SPANS[by], "epoch_ms(event_time)"
    start = f"{time} - (({time} % {width}) + {width}) % {width}"
    return f"{start} AS {name}", pa.field(name, pa.timestamp("ms", tz="UTC"))


def _added(counts: pa.Table) -> pa.Table:
    names = [name for name in counts.column_names if name not in _COUNTS]
    summed = counts.group_by(names).aggregate([(name, "sum") for name in _COUNTS])
    return summed.select([*names, *(f"{name}_sum" for name in _COUNTS)]).rename_columns(
        counts.column_names
    )


def _with_empty(
    counts: pa.Table, names: Sequence[str], by: GroupBy, ends_ms: tuple[int | None, int | None]
) -> pa.Table:
    """Counts of 0 for the spans of time that have no rows."""
    if not counts.num_rows:
        return counts
    width = _SPANS[by]
    starts = counts.column(by.value).cast(pa.int64()).to_numpy()
    first, last = int(starts.min()), int(starts.max())
    since_ms, until_ms = ends_ms
    if since_ms is not None:
        first = min(first, since_ms // width * width)
    if until_ms is not None:
        last = max(last, (until_ms - 1) // width * width)
    others = [name for name in names if name != by.value]
    rest = counts.select(others).group_by(others).aggregate([]) if others else None
    groups = ((last - first) // width + 1) * (1 if rest is None else rest.num_rows)
    if groups > MAX_SPANS:
        raise ConfigError(
            f"from the first to the last row are {groups:,} groups with those without rows, more "
            f"than {MAX_SPANS:,}",
            f"--by {by.value}",
            "Choose a stretch with --since and --until; event times may be wrong",
        )
    spans = pa.array(range(first, last + 1, width), pa.int64())
    kind = counts.schema.field(by.value).type
    if rest is None:
        columns = {by.value: spans.cast(kind)}
    else:
        place = pa.array(np.tile(np.arange(rest.num_rows), len(spans)))
        columns = {
            by.value: spans.take(pa.array(np.repeat(np.arange(len(spans)), rest.num_rows))).cast(
                kind
            ),
            **{name: rest.column(name).take(place) for name in others},
        }
    zeros = pa.array(np.zeros(groups, np.int64))
    none = pa.table({**columns, **dict.fromkeys(_COUNTS, zeros)}).select(counts.column_names)
    return _added(pa.concat_tables([counts, none.cast(counts.schema)]))


def _with_fractions(counts: pa.Table) -> pa.Table:
    scored = counts.column("scored").to_numpy().astype(np.float64)
    ood = counts.column("ood").to_numpy().astype(np.float64)
    low, high = wilson(ood, scored)
    shares = (ood / np.maximum(scored, 1.0), low, high)
    for name, value in zip(("ood_fraction", "ood_low", "ood_high"), shares, strict=True):
        counts = counts.append_column(name, pa.array(value, mask=scored == 0))
    return counts


def empty_spans(counts: pa.Table, by: GroupBy) -> list[tuple[int, int]]:
    """The stretches of time in which a count has no rows: from, to, milliseconds, in order.

    ``counts`` are what `aggregate` gave with ``by``, an hour or a day.
    """
    found = counts.group_by(by.value).aggregate([("rows", "sum")])
    empty = found.filter(pc.equal(found.column("rows_sum"), 0)).column(by.value)
    width = _SPANS[by]
    spans: list[tuple[int, int]] = []
    for start in sorted(empty.cast(pa.int64()).to_pylist()):
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], start + width)
        else:
            spans.append((start, start + width))
    return spans
