"""Whether the log has the names that a question has, and else which are near.

Where large files have their index, it says which names they hold; what has none is read, a column
of it, and that is told where it is much.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from nap_stream.core.hidden_keys import is_hash
from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.scored_log.engine import CHUNK_ROWS, Engine, chunks
from nap_stream.scored_log.files import LogFile
from nap_stream.scored_log.index import IndexUse
from nap_stream.scored_log.output import bytes_as_text
from nap_stream.scored_log.query import Query, condition, listed, require_among
from nap_stream.scored_log.stores import SegmentStore

MAX_NAMES = 100_000
"""So many names are looked at for those that are near a mistyped one."""
TOLD_ROWS = 2_000_000
"""From so many rows on that have to be read it is said."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of a question: what it is of, and how rows that have it are found.

    ``alone`` asks for it and nothing else, ``column`` is where all names of its kind are, in SQL,
    with ``parameters``. ``noted`` are the columns of an index that have them; none for headers.
    """

    what: str
    name: str | bytes
    alone: Query
    column: str
    noted: tuple[str, ...] = ()
    parameters: list[Any] = field(default_factory=list)

    def is_among(self, held: set[Any]) -> bool:
        """Whether what an index notes has it."""
        if isinstance(self.name, bytes):
            return not held.isdisjoint(self.alone.forms(self.name))
        if self.what != "class":
            return any(each.startswith(self.name) for each in held if each is not None)
        is_id = self.name.isascii() and self.name.isdigit() and int(self.name) in held
        return is_id or self.name in held


def require_names(
    store: SegmentStore,
    query: Query,
    *,
    use: IndexUse | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> list[ChainBrokenError]:
    """Refuse names in a query that no row of its partitions has, at any time.

    Statuses, offsets and digests are no names. Where all of them are there, and no row passes, the
    answer is honestly empty. ``use`` has the index asked, and ``tell`` is told what must be read
    for want of one, and which names are not there where some file could not be read.

    Returns:
        The errors of files that could not be read, where one of them may have a name that no other
        file has.

    Raises:
        ConfigError: All could be read, and no row has this class, key, header, model or
            calibration; it names those that are near.
    """
    everything = Query(topic=query.topic, partitions=query.partitions)
    unread: list[ChainBrokenError] = []
    is_unsure = False
    files = list(listed(store, everything, unread, use)) if any(_names_in(query)) else []
    with Engine(store, unread) as engine:
        for name in _names_in(query):
            held = _held_without(engine, files, name, tell)
            if held is None:
                continue
            if unread:
                tell(f"the {name.what} {_text(name.name)!r} is not found in what could be read")
                is_unsure = True
                continue
            names = {each for each in held if isinstance(each, type(name.name))}
            option = f"--{name.what.partition(' ')[0]}"
            if not query.hashes and any(isinstance(n, bytes) and is_hash(n) for n in names):
                option += " (hashes are stored: give the hash, --config or --key-secret)"
            if use is not None and use.files:
                told = "by their index, which verify --deep compares with the rows"
                tell(f"what {use.files:,} files hold is {told}")
            require_among(name.what, option, [_text(name.name)], sorted(map(_text, names)))
    return unread if is_unsure else []


def _names_in(query: Query) -> Iterator[_Name]:
    for name in query.classes:
        noted = ("class_name", "class_id")
        yield _Name("class", name, Query(classes=(name,)), "class_name", noted)
    for key in query.keys:
        yield _Name("key", key, Query(keys=(key,), hashes=query.hashes), "key", ("key",))
    for name in query.models:
        column = "model_fingerprint"
        yield _Name("model", name, Query(models=(name,)), column, (column,))
    for name in query.calibrations:
        column = "calibration_fingerprint"
        yield _Name("calibration", name, Query(calibrations=(name,)), column, (column,))
    for name, value in query.headers:
        any_value = Query(headers=((name, None),))
        yield _Name("header", name, any_value, "unnest([h.name for h in headers])")
        if value is not None:
            column = "unnest([h.value for h in headers if h.name = ?])"
            one = Query(headers=((name, value),), hashes=query.hashes)
            yield _Name(f"header {name} with", value, one, column, parameters=[name])


def _held_without(
    engine: Engine, files: Sequence[LogFile], name: _Name, tell: Callable[[str], object]
) -> set[Any] | None:
    """The names that are there in the place of one that is not; None where it is there."""
    held: set[Any] = set()
    unsure: list[LogFile] = []
    for file in files:
        noted = _noted(file, name)
        if noted is None:
            unsure.append(file)
        else:
            held |= noted
    if name.noted and name.is_among(held):
        return None
    can = [file for file in unsure if _can_have(file, name)]
    rows = sum(file.footer.rows for file in can)
    if rows >= TOLD_ROWS:
        why = "`nap-stream compact` makes an index that tells" if name.noted else "no index tells"
        tell(
            f"{rows:,} rows in {len(can):,} files are looked through for the "
            f"{name.what} {_text(name.name)!r} ({why})"
        )
    if any(_values(engine, can, "1", *condition(name.alone))):
        return None
    near = _first(unsure)
    if len(near) < len(unsure):
        tell(f"names are told of the first {sum(file.footer.rows for file in near):,} of them")
    for some in _values(engine, near, name.column, "true", name.parameters):
        held |= some
    return held


def _noted(file: LogFile, name: _Name) -> set[Any] | None:
    """The names of a kind that the index of a file counts rows by; None where it has no counts."""
    by_key = "key" in name.noted
    if not name.noted or file.entry is None or not file.entry.has_counts(by_key=by_key):
        return None
    try:
        counts = file.entry.counts(by_key=by_key)
    except (ScoredLogError, ValueError):
        return None
    columns = (counts.column(column).unique().to_pylist() for column in name.noted)
    return {value for values in columns for value in values}


def _can_have(file: LogFile, name: _Name) -> bool:
    if file.entry is None or name.what != "key":
        return True
    try:
        return file.entry.may_hold(name.alone.stored_keys, ())
    except (ScoredLogError, ValueError):
        return True


def _first(files: Sequence[LogFile]) -> list[LogFile]:
    """As many of the first files as are read for names that are near."""
    rows = list(accumulate(file.footer.rows for file in files))
    return list(files[: max(1, bisect_right(rows, CHUNK_ROWS))])


def _text(name: str | bytes) -> str:
    return bytes_as_text(name) if isinstance(name, bytes) else name


def _values(
    engine: Engine,
    files: Sequence[LogFile],
    column: str,
    condition: str,
    parameters: Sequence[Any] = (),
) -> Iterator[set[Any]]:
    """The different values of a column, chunk by chunk."""
    sql = f"SELECT DISTINCT {column} AS name FROM _rows WHERE {condition} LIMIT {MAX_NAMES}"
    for chunk in chunks(files):
        for _, answer in engine.answers(chunk, sql, parameters):
            yield set(answer.column("name").to_pylist())
