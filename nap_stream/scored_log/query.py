"""Which rows of the log pass.

Each answer is of the chains as `nap_stream.scored_log.engine` reads them: a prefix of each chain,
each row once, also while workers publish and while compaction exchanges files.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nap_stream.errors import ChainBrokenError, ConfigError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.engine import Engine, chunks
from nap_stream.scored_log.files import (
    SCAN_SCHEMA,
    LogFile,
    ReplacedError,
    Seek,
    files_of,
    read_rows,
)
from nap_stream.scored_log.format import storable_text, storable_time_ms
from nap_stream.scored_log.index import IndexUse
from nap_stream.scored_log.read import partitions
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import printable

FIRST_ROWS = 250_000
"""Of how many rows the first question of a scan is: who looks for one row does not read many."""
SHOWN_NAME = 100
"""Characters of a name that an error shows."""
_PLACE = ("topic", "partition", "offset", "index")


@dataclass(frozen=True, slots=True)
class Query:
    """Filters on the log's rows; a row must pass all that are given.

    ``since_ms`` and ``until_ms`` bound the event time, ``since_ms <= t < until_ms``, in
    milliseconds since the epoch, UTC. ``classes`` are names or, where all digits, also ids.
    ``min_p_value`` and ``max_p_value`` are inclusive. ``headers`` are names with the value that
    one of the headers has, or None for any. ``offsets`` are the first and the last one.
    ``models`` and ``calibrations`` are fingerprints, or how they begin. A row without scores passes
    no filter on classes, flag or p-value. Empty tuples and None do not filter. ``hashes`` are of
    ``keys`` and of headers' values, in pairs: a row passes that has either (see
    `nap_stream.core.hidden_keys`).
    """

    topic: str | None = None
    partitions: tuple[int, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None
    classes: tuple[str, ...] = ()
    is_ood: bool | None = None
    min_p_value: float | None = None
    max_p_value: float | None = None
    statuses: tuple[Status, ...] = ()
    keys: tuple[bytes, ...] = ()
    headers: tuple[tuple[str, bytes | None], ...] = ()
    offsets: tuple[int, int] | None = None
    sha256: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    calibrations: tuple[str, ...] = ()
    hashes: tuple[tuple[bytes, bytes], ...] = ()

    def forms(self, value: bytes) -> tuple[bytes, ...]:
        """A value in clear, and its hash where that is known."""
        return (value, *(hashed for clear, hashed in self.hashes if clear == value))

    @property
    def stored_keys(self) -> tuple[bytes, ...]:
        """The keys, in each form in which a row can have them."""
        return tuple(form for key in self.keys for form in self.forms(key))


def condition(query: Query) -> tuple[str, list[Any]]:
    """The filters on columns in SQL, and its parameters; ``true`` where there are none.

    Topic, partitions and offsets are not in it: they choose files, and what is wanted of them.
    """
    bounds = (
        ("epoch_ms(event_time) >= ?", _storable(query.since_ms)),
        ("epoch_ms(event_time) < ?", _storable(query.until_ms)),
        ("is_ood = ?", query.is_ood),
        ("ood_p_value >= ?", query.min_p_value),
        ("ood_p_value <= ?", query.max_p_value),
    )
    found: list[tuple[str, list[Any]]]
    found = [(text, [value]) for text, value in bounds if value is not None]
    if query.classes:
        found.append(_is_class(query.classes))
    lists = (("status", query.statuses), ("key", query.stored_keys), ("sha256", query.sha256))
    found += [_one_of(column, names) for column, names in lists if names]
    for kind, prefixes in (("model", query.models), ("calibration", query.calibrations)):
        if prefixes:
            begins = [f"starts_with({kind}_fingerprint, ?)"] * len(prefixes)
            found.append((f"({' OR '.join(begins)})", list(prefixes)))
    found += [_has_header(query, *header) for header in query.headers]
    texts = [text for text, _ in found] or ["true"]
    return " AND ".join(texts), [each for _, values in found for each in values]


def _storable(time_ms: int | None) -> int | None:
    return None if time_ms is None else storable_time_ms(time_ms)


def _has_header(query: Query, name: str, value: bytes | None) -> tuple[str, list[Any]]:
    if value is None:
        return "list_contains([h.name for h in headers], ?)", [name]
    forms = query.forms(value)
    one = "list_contains(headers, {'name': ?::VARCHAR, 'value': ?::BLOB})"
    texts = " OR ".join([one] * len(forms))
    return f"({texts})", [each for form in forms for each in (name, form)]


def _one_of(column: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    return f"{column} IN ({', '.join('?' * len(values))})", [
        value.value if isinstance(value, Status) else value for value in values
    ]


def _is_class(classes: Sequence[str]) -> tuple[str, list[Any]]:
    by_name, names = _one_of("class_name", [storable_text(name) for name in classes])
    ids = [int(name) for name in classes if name.isascii() and name.isdigit()]
    small = [number for number in ids if number < 2**63]
    if not small:
        return by_name, names
    by_id, numbers = _one_of("class_id", small)
    return f"({by_name} OR {by_id})", [*names, *numbers]


def listed(
    store: SegmentStore,
    query: Query,
    unread: list[ChainBrokenError] | None,
    use: IndexUse | None = None,
) -> Iterator[LogFile]:
    """The files that can have rows that pass, as far as names and footers tell, in order.

    ``use`` has the index asked too, and is told what it gave; None leaves the index out.

    Raises:
        LogRootError: There is no log at the root.
        ConfigError: No topic can have that name.
        ChainBrokenError: A segment cannot be read, and ``unread`` is None.
    """
    first, last = query.offsets or (0, 2**63 - 2)
    seek = None if use is None else Seek(use, query.stored_keys, query.sha256)
    for partition in partitions(store, query.topic):
        if query.partitions and partition.partition not in query.partitions:
            continue
        for file in files_of(store, partition, first, last + 1, unread=unread, seek=seek):
            low, high = file.footer.min_event_time_ms, file.footer.max_event_time_ms
            if low is None or high is None:
                continue
            is_before = query.since_ms is not None and high < storable_time_ms(query.since_ms)
            is_after = query.until_ms is not None and low >= storable_time_ms(query.until_ms)
            if not (is_before or is_after):
                yield file


def scan(
    store: SegmentStore,
    query: Query,
    columns: Sequence[str] | None = None,
    *,
    unread: list[ChainBrokenError] | None = None,
    use: IndexUse | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows that pass the filters, batch by batch, in order of (topic, partition, offset, index).

    Memory does not grow with the log. In each partition the scan ends with the segment that was
    the newest when the scan came there.

    ``columns`` are names of `SCAN_SCHEMA`; None for all. ``unread`` takes the errors of segments
    that cannot be read and are left out; None raises them. ``use`` is as in `listed`.

    Yields:
        Non-empty batches with those columns of `SCAN_SCHEMA`.

    Raises:
        As `listed`.
    """
    names = SCAN_SCHEMA.names if columns is None else list(columns)
    text, values = condition(query)
    sql = f"SELECT _file, _row FROM _rows WHERE {text}"
    with Engine(store, unread) as engine:
        for chunk in chunks(listed(store, query, unread, use), FIRST_ROWS):
            if text == "true":
                yield from _all_rows(engine, chunk, names)
            else:
                yield from engine.rows(chunk, names, sql, values)


def _all_rows(
    engine: Engine, files: Sequence[LogFile], names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for number, file in enumerate(files):
        try:
            for batch in read_rows(engine.store, file, names):
                if batch.num_rows:
                    yield batch
        except ReplacedError:
            yield from _all_rows(engine, list(engine.listed_anew(files[number:], 0)), names)
            return
        except ChainBrokenError as error:
            engine.leave_out(error)


def most_anomalous(
    store: SegmentStore,
    query: Query,
    limit: int,
    *,
    files: Iterable[LogFile] | None = None,
    unread: list[ChainBrokenError] | None = None,
    use: IndexUse | None = None,
) -> pa.Table:
    """The rows that pass with the smallest p-values, the earlier one of equals first.

    ``files`` are those that can have them, where they are `listed` already.

    Returns:
        At most ``limit`` rows of `SCAN_SCHEMA`, ascending; rows without a p-value are not among
        them.

    Raises:
        As `listed`.
    """
    order = [(name, "ascending") for name in ("ood_p_value", *_PLACE)]
    text, values = condition(query)
    best, bound = SCAN_SCHEMA.empty_table(), 2.0
    with Engine(store, unread) as engine:
        for chunk in chunks(listed(store, query, unread, use) if files is None else files):
            columns = ", ".join(f'"{name}"' for name, _ in order)
            sql = (
                f"SELECT _file, _row FROM _rows WHERE {text} AND ood_p_value <= ? "
                f"ORDER BY {columns} LIMIT {limit}"
            )
            found = engine.rows(chunk, SCAN_SCHEMA.names, sql, [*values, bound])
            best = pa.Table.from_batches([*best.to_batches(), *found], SCAN_SCHEMA)
            best = best.sort_by(order).slice(0, limit)
            if best.num_rows == limit:
                bound = best.column("ood_p_value")[-1].as_py()
    return best


def require_partitions(store: SegmentStore, query: Query) -> tuple[TopicPartition, ...]:
    """The partitions that a query means.

    Raises:
        LogRootError: There is no log at the root.
        ConfigError: It has no chain, or no such topic or partition.
    """
    found = partitions(store)
    if not found:
        raise ConfigError("there is no chain here", store.root, "Name the folder of log.root")
    topics = sorted({partition.topic for partition in found})
    if query.topic is not None:
        require_among("topic", "--topic", [query.topic], topics)
        found = tuple(each for each in found if each.topic == query.topic)
    numbers = sorted({each.partition for each in found})
    wanted = [str(number) for number in query.partitions]
    require_among("partition", "--partition", wanted, [str(number) for number in numbers])
    return tuple(p for p in found if not query.partitions or p.partition in query.partitions)


def require_among(what: str, option: str, wanted: Iterable[str], held: Sequence[str]) -> None:
    """Refuse names that are not among those that are held, and tell those that are near.

    Raises:
        ConfigError: One is not.
    """
    for name in wanted:
        if name not in held:
            near = difflib.get_close_matches(name, held, n=5) or list(held[:10])
            told = ", ".join(map(_shown, near)) or "none"
            rest = f", and {len(held) - len(near):,} more" if len(held) > len(near) else ""
            raise ConfigError(
                f"the log has no {what} '{_shown(name)}'; it has {told}{rest}",
                option,
                "Name one of them",
            )


def _shown(name: str) -> str:
    """A name that may hold anything, on one line and not longer than one."""
    text = printable(name)
    return text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}…"
