"""SQL over the rows of the chains: one SELECT, which reads nothing else and writes nothing."""

import threading
from collections import deque
from collections.abc import Sequence

import duckdb
import pyarrow as pa

from nap_stream.errors import ChainBrokenError, ConfigError, ScoredLogError
from nap_stream.scored_log.engine import Engine, unreadable
from nap_stream.scored_log.files import SCAN_SCHEMA, LogFile, ReplacedError, read_rows
from nap_stream.scored_log.query import Query, listed
from nap_stream.scored_log.read import LISTINGS
from nap_stream.scored_log.stores import SegmentStore


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
        bound = (
            "WITH records AS NOT MATERIALIZED (SELECT * EXCLUDE (_file, _row) FROM _rows "
            f"WHERE {' AND '.join(within) or 'true'}) FROM (\n{select}\n)"
        )
        timer = threading.Timer(seconds, engine.interrupt)
        timer.daemon = True
        timer.start()
        try:
            return _sql_table(engine, query, bound, limit + 1)
        except duckdb.InterruptException as error:
            raise ConfigError(
                f"no answer within {seconds:g} s", "--timeout", "Ask for less, or give more time"
            ) from error
        except duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"the memory does not suffice: {_first_line(error)}", "--memory", "Ask for less"
            ) from error
        except duckdb.Error as error:
            raise ConfigError(f"DuckDB: {_first_line(error)}", "the SQL") from error
        finally:
            timer.cancel()


def _sql_table(engine: Engine, query: Query, sql: str, limit: int) -> pa.Table:
    left_out: set[str] = set()
    for _ in range(LISTINGS + 1):
        files = [f for f in listed(engine.store, query, engine.unread) if f.path not in left_out]
        try:
            return engine.table(files, sql, limit=limit)
        except ReplacedError:
            continue
        except duckdb.Error as error:
            # It may be the question's fault, or a file's.
            named = [file for file in files if file.path in str(error)]
            damaged = [unreadable(file, str(error)) for file in named]
            if not damaged and not isinstance(error, _QUESTIONS):
                damaged = _damaged(engine, files)
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


def _damaged(engine: Engine, files: Sequence[LogFile]) -> list[ChainBrokenError]:
    found = []
    for file in files:
        try:
            deque(read_rows(engine.store, file, SCAN_SCHEMA.names), maxlen=0)
        except ChainBrokenError as error:
            found.append(error)
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _one_select(engine: Engine, text: str) -> str:
    try:
        statements = engine.statements(text)
    except duckdb.Error as error:
        raise ConfigError(f"no SQL: {_first_line(error)}", "the SQL") from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        told = ", ".join(kind.name for kind in kinds) or "nothing"
        raise ConfigError(f"expected one SELECT, got {told}", "the SQL", "The log is only read")
    return str(statements[0].query).strip().rstrip(";")
