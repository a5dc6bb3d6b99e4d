"""DuckDB over the files of the chains, and over nothing else.

What DuckDB reads is the list of files that the chains give, never a folder. It reads them through
the log's store, as ``scored-log://<path from the root>``, so that a local log and one in a bucket
are read alike. Network, other files, extensions and settings are out of its reach.

A file's own statistics, page index and bloom filters say which of its rows cannot pass a filter.
Nothing proves that they are true: so they are not used, and all values of a column that is looked
at are read. The range of event times is in the chain's records, and is used to leave files out.

Compaction may exchange files at any moment. A file is read only where it still is the one that was
listed; where it is not, the chain is listed anew from there.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.scored_log.files import (
    PROTOCOL,
    SCAN_SCHEMA,
    LogFile,
    ReplacedError,
    files_of,
    read_rows,
)
from nap_stream.scored_log.format import SCHEMAS
from nap_stream.scored_log.read import LISTINGS
from nap_stream.scored_log.stores import SegmentStore

if TYPE_CHECKING:
    from nap_stream.scored_log.duck_files import StoreFiles

CHUNK_ROWS = 4_000_000
CHUNK_FILES = 2_000
"""Of how many rows and files one question to DuckDB is at most; more than one file's at least."""
ROWS = "_rows"
"""The view of a question of this program's own."""
_UNTRUSTED = (
    "filter_pushdown",
    "join_filter_pushdown",
    "statistics_propagation",
    "compressed_materialization",
    "row_group_pruner",
    "late_materialization",
    "top_n",
)
"""The steps of DuckDB's optimizer that look at a file's statistics, or let its reader do so."""
_MISSING = {pa.float64(): "DOUBLE", pa.string(): "VARCHAR"}


def chunks(files: Iterable[LogFile], most: int = CHUNK_ROWS) -> Iterator[list[LogFile]]:
    """Files in pieces for one question each: of one version, and bounded in rows and number.

    The first is of ``most`` rows, or of one file; each that follows may be four times as large.
    """
    held: list[LogFile] = []
    rows = 0
    for file in files:
        rows += file.footer.rows
        is_other = bool(held) and held[0].footer.schema_version != file.footer.schema_version
        if held and (is_other or rows > most or len(held) == CHUNK_FILES):
            yield held
            held, rows, most = [], file.footer.rows, min(4 * most, CHUNK_ROWS)
        held.append(file)
    if held:
        yield held


class Engine:
    """DuckDB over a log. A context manager; not for several threads.

    ``unread`` takes the errors of files that cannot be read and are left out; None raises them.
    ``memory_bytes`` is what DuckDB may use; nothing is written to disk.
    """

    def __init__(
        self,
        store: SegmentStore,
        unread: list[ChainBrokenError] | None = None,
        *,
        memory_bytes: int | None = None,
    ) -> None:
        self.store, self.unread = store, unread
        self._memory = "75%" if memory_bytes is None else f"{memory_bytes}B"

    @cached_property
    def _files(self) -> "StoreFiles":
        from nap_stream.scored_log.duck_files import StoreFiles  # noqa: PLC0415  as below

        return StoreFiles(self.store)

    @cached_property
    def _duck(self) -> Any:
        # A question that is answered without DuckDB does not wait for it.
        import duckdb  # noqa: PLC0415

        duck = duckdb.connect()
        duck.register_filesystem(self._files)
        settings = {
            "TimeZone": "UTC",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "enable_progress_bar": False,
            "disabled_optimizers": ",".join(_UNTRUSTED),
            # It would take a file that was replaced for the one before.
            "enable_external_file_cache": False,
            "temp_directory": "",
            "memory_limit": self._memory,
            "allowed_directories": [f"{PROTOCOL}://"],
            "enable_external_access": False,
            "lock_configuration": True,
        }
        for name, value in settings.items():
            duck.execute(f"SET {name} = {value!r}")
        return duck

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "_duck" in self.__dict__:
            self._duck.close()

    def interrupt(self) -> None:
        """End the question that is being answered; for another thread."""
        self._duck.interrupt()

    def statements(self, text: str) -> list[Any]:
        """The statements of a text of SQL.

        Raises:
            duckdb.Error: It is none.
        """
        return list(self._duck.extract_statements(text))

    def table(
        self,
        files: Sequence[LogFile],
        sql: str,
        parameters: Sequence[Any] = (),
        *,
        limit: int | None = None,
        within: str = "true",
        view: str = ROWS,
    ) -> pa.Table:
        """Answer a question to the ``view`` of these files, in one go.

        No more than the first ``limit`` rows are taken; None for all. The view has the rows of
        which ``within`` is true.

        Beside `SCAN_SCHEMA` `ROWS` has ``_row``, a row's place in its file, and ``_file``, the
        place of that in ``files`` where these are of one version.

        Raises:
            ReplacedError: The files are not those that were listed.
            ScoredLogError: The store cannot be read.
            ConfigError: The question names a path that is not of these files.
            duckdb.Error: What DuckDB says, of the question or of a file.
        """
        import duckdb  # noqa: PLC0415  as above

        if len({file.path for file in files}) < len({(file.path, file.mark) for file in files}):
            # A file took the name of one that was listed before it: it would be read for both.
            raise ReplacedError
        self._files.show(files)
        try:
            self._show(files, within, view)
            found = self._duck.sql(sql, params=list(parameters))
            # Not a reader of batches, whose errors are Arrow's and tell no kind.
            return (found if limit is None else found.limit(limit)).to_arrow_table()
        except duckdb.Error as error:
            if self._files.replaced:
                raise ReplacedError from error
            if self._files.failure is not None:
                raise self._files.failure from error
            raise
        finally:
            self._files.show(())

    def _show(self, files: Sequence[LogFile], within: str, view: str) -> None:
        rows = " UNION ALL ".join(_scans(files)) if files else self._no_rows()
        if within != "true":
            rows = f"SELECT * FROM ({rows}) WHERE {within}"
        if view != ROWS:
            rows = f"SELECT * EXCLUDE (_file, _row) FROM ({rows})"
        self._duck.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {rows}")

    def _no_rows(self) -> str:
        kinds = self._duck.from_arrow(SCAN_SCHEMA.empty_table()).types
        columns = [
            f'NULL::{kind} AS "{name}"' for name, kind in zip(SCAN_SCHEMA.names, kinds, strict=True)
        ]
        return f"SELECT {', '.join(columns)}, 0 AS _file, 0 AS _row WHERE false"

    def of_table(self, name: str, table: pa.Table, sql: str, parameters: Sequence[Any]) -> pa.Table:
        """Answer a question to a table that is called so in it."""
        self._duck.register(name, table)
        try:
            return self._duck.sql(sql, params=list(parameters)).to_arrow_table()
        finally:
            self._duck.unregister(name)

    def answers(
        self, files: Sequence[LogFile], sql: str, parameters: Sequence[Any] = (), tries: int = 0
    ) -> Iterator[tuple[Sequence[LogFile], pa.Table]]:
        """Answers to the same question, of these files in order, each of some of them.

        It is one answer as a rule. Where a file cannot be read, it is left out.

        Raises:
            ChainBrokenError: A file cannot be read, and ``unread`` is None.
            ScoredLogError: The store cannot be read.
        """
        import duckdb  # noqa: PLC0415  as above

        try:
            answer = self.table(files, sql, parameters)
        except ReplacedError:
            for chunk in chunks(self.listed_anew(files, tries)):
                yield from self.answers(chunk, sql, parameters, tries + 1)
        except duckdb.OutOfMemoryException as error:
            raise ScoredLogError(
                f"the memory does not suffice: {error}", self.store.root, "Ask for less at once"
            ) from error
        except duckdb.Error as error:
            if len(files) > 1:
                half = len(files) // 2
                yield from self.answers(files[:half], sql, parameters, tries)
                yield from self.answers(files[half:], sql, parameters, tries)
                return
            self.leave_out(unreadable(files[0], str(error)))
        else:
            yield files, answer

    def rows(
        self, files: Sequence[LogFile], columns: Sequence[str], sql: str, parameters: Sequence[Any]
    ) -> Iterator[pa.RecordBatch]:
        """The rows whose ``_file`` and ``_row`` a question gives, file by file and in order.

        Where they stand is asked first, and only those parts of files are read whole, with their
        checksums. ``columns`` are names of `SCAN_SCHEMA`.

        Raises:
            As `answers`.
        """
        for asked, places in self.answers(files, sql, parameters):
            number = places.column("_file").to_numpy()
            row = places.column("_row").to_numpy()
            for place in np.unique(number).tolist():
                wanted = np.sort(row[number == place])
                try:
                    yield from read_rows(self.store, asked[place], columns, wanted)
                except ReplacedError:
                    for chunk in chunks(self.listed_anew(asked[place:], 0)):
                        yield from self.rows(chunk, columns, sql, parameters)
                    break
                except ChainBrokenError as error:
                    self.leave_out(error)

    def listed_anew(self, files: Sequence[LogFile], tries: int) -> Iterator[LogFile]:
        """The files that hold now what these held.

        Raises:
            ScoredLogError: They have changed as often as no compaction does it.
        """
        if tries >= LISTINGS:
            raise ScoredLogError(
                "files were listed and are gone, again and again",
                self.store.root,
                "Let nothing but nap-stream change the log's folder",
            )
        # What lies between them was left out, or is counted already.
        runs: list[list[LogFile]] = []
        for file in files:
            last = runs[-1][-1] if runs else None
            if last is not None and (last.partition, last.end) == (file.partition, file.start):
                runs[-1].append(file)
            else:
                runs.append([file])
        for own in runs:
            start, end = own[0].start, own[-1].end
            yield from files_of(self.store, own[0].partition, start, end, unread=self.unread)

    def leave_out(self, error: ChainBrokenError) -> None:
        """Keep the error of a file for the end, or raise it."""
        if self.unread is None:
            raise error
        self.unread.append(error)


def unreadable(file: LogFile, problem: str) -> ChainBrokenError:
    """The error of a file of which DuckDB says that it cannot be read."""
    return ChainBrokenError(
        f"the segment cannot be read: {problem.splitlines()[0]}",
        file.path,
        "Run `nap-stream verify --deep`; restore the file from a backup",
    )


def _scans(files: Sequence[LogFile]) -> list[str]:
    """The rows of files in SQL, version by version."""
    ordered = sorted(files, key=lambda file: file.footer.schema_version)
    by_version = groupby(ordered, key=lambda file: file.footer.schema_version)
    return [_scan_of(version, list(found)) for version, found in by_version]


def _scan_of(version: int, files: Sequence[LogFile]) -> str:
    stored = SCHEMAS[version].names
    columns = [
        f'"{field.name}"'
        if field.name in {*stored, "topic", "partition"}
        else f'NULL::{_MISSING[field.type]} AS "{field.name}"'
        for field in SCAN_SCHEMA
    ]
    paths = [f"{PROTOCOL}://{file.path}" for file in files]
    cuts = [
        f'(file_index = {place} AND ("offset" < {file.start} OR "offset" >= {file.end}))'
        for place, file in enumerate(files)
        if not file.is_whole
    ]
    where = f" WHERE NOT ({' OR '.join(cuts)})" if cuts else ""
    return (
        f"SELECT {', '.join(columns)}, file_index AS _file, file_row_number AS _row "
        f"FROM read_parquet({paths}, hive_partitioning = true, "
        f"hive_types = {{topic: VARCHAR, partition: INTEGER}}){where}"
    )
