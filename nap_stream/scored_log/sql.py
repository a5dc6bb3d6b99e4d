"""SQL over the rows of the chains: one SELECT, which reads nothing else and writes nothing."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import duckdb
import pyarrow as pa

from nap_stream.errors import ChainBrokenError, ConfigError, ScoredLogError
from nap_stream.scored_log.engine import Engine, unreadable
from nap_stream.scored_log.files import SCAN_SCHEMA, LogFile, ReplacedError, read_rows
from nap_stream.scored_log.query import Query, listed
from nap_stream.scored_log.read import LISTINGS
from nap_stream.scored_log.stores import SegmentStore

_OFFSET = re.compile(r'(?<!")\boffset\b(?!")', re.IGNORECASE)
_AGAIN_S = 0.1
"""How long after an interrupt the next one comes."""


def run_sql(
    store: SegmentStore,
    text: str,
    query: Query,
    *,
    limit: int,
    seconds: float,
    memory_bytes: int,
    unread: list[ChainBrokenError],
) -> pa.Table:
    """Answer one SELECT to the view ``records`` of the files that a query's topic and times choose.

    The view has `SCAN_SCHEMA`; nothing else can be read, and nothing written. Files that cannot be
    read are left out and put into ``unread``.

    Returns:
        At most ``limit`` + 1 rows: one more than ``limit`` says that there are more.

    Raises:
        ConfigError: It is no SELECT, more than one, or DuckDB cannot answer it; it takes more than
            ``seconds`` or ``memory_bytes``.
        LogRootError, ScoredLogError: As `listed`.
    """
    bounds = ((">=", query.since_ms), ("<", query.until_ms))
    within = [f"epoch_ms(event_time) {sign} {ms}" for sign, ms in bounds if ms is not None]
    with Engine(store, unread, memory_bytes=memory_bytes) as engine:
        select = _one_select(engine, text)
        deadline = _Deadline(engine, seconds)
        try:
            with deadline:
                ask = partial(
                    engine.table,
                    sql=f"FROM (\n{select}\n)",
                    limit=limit + 1,
                    within=" AND ".join(within) or "true",
                    view="records",
                )
                return _sql_table(engine, query, ask, deadline.check)
        except duckdb.InterruptException as error:
            raise deadline.error() from error
        except duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"the memory does not suffice: {_first_line(error)}", "--memory", "Ask for less"
            ) from error
        except duckdb.Error as error:
            raise ConfigError(f"DuckDB: {_first_line(error)}", "the SQL") from error


class _Deadline:
    """Ends the questions of an engine once so many seconds are over. A context manager."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds
        self._end = time.monotonic() + seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._interrupt, name="deadline", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _interrupt(self) -> None:
        # DuckDB forgets an interrupt that comes before it begins to answer: so it comes again.
        wait_s = self._seconds
        while not self._done.wait(wait_s):
            self._engine.interrupt()
            wait_s = _AGAIN_S

    def check(self) -> None:
        """Raise the error where the time is over; for what DuckDB does not do."""
        if time.monotonic() >= self._end:
            raise self.error()

    def error(self) -> ConfigError:
        return ConfigError(
            f"no answer within {self._seconds:g} s", "--timeout", "Ask for less, or give more time"
        )


def _sql_table(
    engine: Engine,
    query: Query,
    ask: Callable[[Sequence[LogFile]], pa.Table],
    check: Callable[[], None],
) -> pa.Table:
    left_out: set[str] = set()
    for _ in range(LISTINGS + 1):
        files = []
        for file in listed(engine.store, query, engine.unread):
            check()
            if file.path not in left_out:
                files.append(file)
        try:
            return ask(files)
        except ReplacedError:
            continue
        except duckdb.Error as error:
            # It may be the question's fault, or a file's.
            named = [file for file in files if file.path in str(error)]
            damaged = [unreadable(file, str(error)) for file in named]
            if not damaged and not isinstance(error, _QUESTIONS):
                damaged = _damaged(engine, files, check)
            if not damaged:
                raise
            for each in damaged:
                engine.leave_out(each)
                left_out.add(each.where)
    raise ScoredLogError(
        "the log changed as often as it was read", engine.store.root, "Ask again later"
    )


_QUESTIONS = (
    *(duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException),
    *(duckdb.DataError, duckdb.NotSupportedError, duckdb.PermissionException),
    *(duckdb.InterruptException, duckdb.OutOfMemoryException),
)
"""What DuckDB raises of a question, whatever is in the files."""


def _damaged(
    engine: Engine, files: Sequence[LogFile], check: Callable[[], None]
) -> list[ChainBrokenError]:
    found = []
    for file in files:
        try:
            for _ in read_rows(engine.store, file, SCAN_SCHEMA.names):
                check()
        except ChainBrokenError as error:
            found.append(error)
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _one_select(engine: Engine, text: str) -> str:
    try:
        statements = engine.statements(text)
    except duckdb.Error as error:
        hint = (
            'The column offset is a word of SQL too: write "offset"' if _OFFSET.search(text) else ""
        )
        raise ConfigError(f"no SQL: {_first_line(error)}", "the SQL", hint) from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        told = ", ".join(kind.name for kind in kinds) or "nothing"
        raise ConfigError(f"expected one SELECT, got {told}", "the SQL", "The log is only read")
    return str(statements[0].query).strip().rstrip(";")
