"""The files of the chains: listed, opened only where they still are those, and read by rows.

Nothing here looks at a file's statistics: all values of the columns that are wanted are read.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import SegmentFooter, span_from_metadata
from nap_stream.scored_log.format import SCHEMA, SCHEMAS, parse_segment_path, segment_path
from nap_stream.scored_log.index import (
    TAIL_BYTES,
    IndexEntry,
    IndexUse,
    entry_at,
    indexed,
    mark_of,
)
from nap_stream.scored_log.read import LOOK_BACK, bases_from, walk_with
from nap_stream.scored_log.segment import open_segment, typed_errors
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore

SCAN_SCHEMA = pa.schema(
    [pa.field("topic", pa.string()), pa.field("partition", pa.int32()), *SCHEMA]
)
"""The columns of a scan: the hive keys of the folders, then the columns of a file of the newest
version. What a file of an earlier one lacks is null."""
_PARQUET_END_BYTES = 8
"""How long its footer is, and Parquet's mark."""
PROTOCOL = "scored-log"
"""How DuckDB addresses the files of a log."""
READ_AHEAD = 16
"""How many files are looked at before they are asked for, in as many threads."""
_LOCAL_READERS = 4
"""Of these threads where files lie in a folder: on a local disk more wait for each other."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a chain, of which the rows are wanted with ``start <= offset < end``.

    ``mark`` tells it from another one that has taken its name. ``entry`` is its index, where it was
    asked for and there is one: its footer is from there then.
    """

    path: str
    partition: TopicPartition
    start: int
    end: int
    footer: SegmentFooter
    size: int
    mark: bytes
    entry: IndexEntry | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all its rows are wanted."""
        return self.start <= self.footer.base_offset and self.footer.end_offset <= self.end


@dataclass(frozen=True, slots=True)
class Seek:
    """What the index is asked for: files with one of the keys and one of the digests, if given.

    ``use`` is told what the answer takes from the index.
    """

    use: IndexUse
    keys: tuple[bytes, ...] = ()
    sha256: tuple[str, ...] = ()


class ReplacedError(Exception):
    """A file is not the one that was listed, or is gone: a compaction was in between."""


def files_of(
    store: SegmentStore,
    partition: TopicPartition,
    start: int = 0,
    end: int = 2**63 - 1,
    *,
    unread: list[ChainBrokenError] | None,
    seek: Seek | None = None,
) -> Iterator[LogFile]:
    """The files that hold a partition's offsets ``[start, end)``, in order.

    A file that cannot be read is left out and put into ``unread``; None raises its error. ``seek``
    asks the index of the log; None leaves it out.
    """
    position = _begin(store, partition, start)
    with _Heads(store, partition, seek, end) as heads:
        while position is not None:
            try:
                for file, wanted in walk_with(heads.opened, store, partition, position):
                    if wanted >= end:
                        return
                    position = file.footer.end_offset
                    if position > start and heads.may_hold(file):
                        first, last = max(start, wanted), min(end, position)
                        yield LogFile(
                            *(file.path, partition, first, last, file.footer),
                            *(file.size_bytes, file.mark, file.entry),
                        )
                    if position >= end:
                        return
            except ChainBrokenError as error:
                if unread is None:
                    raise
                position = _after(store, partition, error)
                unread.append(error)
            else:
                return


@dataclass(frozen=True, slots=True)
class _Head:
    """What is known of a file that is not open."""

    path: str
    footer: SegmentFooter
    size_bytes: int
    mark: bytes
    entry: IndexEntry | None = None
    may_hold: bool = True


class _Heads:
    """The heads of a partition's files, which are read ahead in threads. A context manager.

    None is read ahead that begins at ``end`` or after it.
    """

    def __init__(
        self, store: SegmentStore, partition: TopicPartition, seek: Seek | None, end: int
    ) -> None:
        self._store, self._partition, self._seek = store, partition, seek
        self._last = segment_path(partition, end)
        self._indexed = frozenset[str]()
        if seek is not None:
            # Whatever is the matter with it, the files themselves are asked then.
            with suppress(ScoredLogError):
                bases = indexed(store, partition)
                self._indexed = frozenset(segment_path(partition, base) for base in bases)
        self._paths: list[str] = []
        self._waiting: dict[str, Future[_Head | None]] = {}
        self._taken: set[str] = set()
        readers = _LOCAL_READERS if isinstance(store, LocalStore) else READ_AHEAD
        self._pool = ThreadPoolExecutor(readers, "heads")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def may_hold(self, head: _Head) -> bool:
        """Whether it can have what is looked for; notes that the index says it has not."""
        if self._seek is not None:
            self._seek.use.passed_over += not head.may_hold
        return head.may_hold

    @contextmanager
    def opened(self, path: str) -> Iterator[_Head | None]:
        """The head of a file; those that follow it are begun to be read."""
        if not self._paths:
            _, base = parse_segment_path(path)
            bases = bases_from(self._store, self._partition, base)
            self._paths = [segment_path(self._partition, each) for each in bases]
        place = bisect_left(self._paths, path)
        for each in self._paths[place : place + READ_AHEAD]:
            if each not in self._waiting and each < self._last:
                self._waiting[each] = self._pool.submit(self._head, each)
        # What is asked for again may be another file.
        head = self._waiting.pop(path, None)
        found = self._head(path) if head is None else head.result()
        if self._seek is not None and found is not None and found.entry is not None:
            self._seek.use.files += path not in self._taken
            self._taken.add(path)
        yield found

    def _head(self, path: str) -> _Head | None:
        if path in self._indexed and (head := self._noted(path)) is not None:
            return head
        with open_segment(self._store, path) as file:
            if file is None:
                return None
            mark = _mark(file.source, file.size_bytes)
            return _Head(path, file.footer, file.size_bytes, mark)

    def _noted(self, path: str) -> _Head | None:
        """What the index says, where it is of the file that is there now."""
        found = self._store.read_part(path, -TAIL_BYTES, TAIL_BYTES)
        if found is None or self._seek is None:
            return None
        mark = mark_of(*found)
        entry = entry_at(self._store, path, mark)
        if entry is None:
            return None
        try:
            may_hold = entry.may_hold(self._seek.keys, self._seek.sha256)
        except (ScoredLogError, ValueError):
            return None
        if not self._fits(path, entry.footer, found, is_read=may_hold):
            return None
        return _Head(path, entry.footer, found[1], mark, entry, may_hold)

    def _fits(
        self, path: str, footer: SegmentFooter, found: tuple[bytes, int], *, is_read: bool
    ) -> bool:
        """Whether a footer is the file's own, by its end and size.

        What it says of the file's rows decides whether they are read. Of a file that is passed over
        all that matters is that it ends where the next one begins.
        """
        place = bisect_right(self._paths, path)
        following = segment_path(self._partition, footer.end_offset)
        follows = place < len(self._paths) and self._paths[place] == following
        if follows and not is_read:
            return True
        try:
            return self._own_footer(path, *found) == footer
        except ChainBrokenError:
            return False

    def _own_footer(self, path: str, tail: bytes, size: int) -> SegmentFooter | None:
        """The footer that stands at a file's end, which is read whole; None where there is none."""
        length = _footer_bytes(tail)
        if length > size:
            return None
        if length > len(tail):
            found = self._store.read_part(path, -length, length)
            if found is None or found[1] != size or not found[0].endswith(tail):
                return None
            tail = found[0]
        return _footer_in(tail, path)


def _footer_bytes(tail: bytes) -> int:
    """How many bytes at a file's end its footer takes, as the last of them say."""
    at = len(tail) - _PARQUET_END_BYTES
    return _PARQUET_END_BYTES + int.from_bytes(tail[max(at, 0) : at + 4], "little")


def _footer_in(tail: bytes, path: str) -> SegmentFooter:
    with typed_errors(path):
        metadata = pq.read_metadata(pa.BufferReader(tail))
    return span_from_metadata(metadata.metadata, path)


def _begin(store: SegmentStore, partition: TopicPartition, start: int) -> int | None:
    """From where to walk to an offset: None where there are no files.

    The last file that begins before it may be one that a sleeping writer left in the midst of a
    compacted one. Whoever comes from a few files before passes over it.
    """
    bases = bases_from(store, partition) if start else [0]
    return bases[max(0, bisect_right(bases, start) - LOOK_BACK)] if bases else None


def _mark(file: Any, size: int) -> bytes:
    file.seek(max(0, size - TAIL_BYTES))
    return mark_of(file.read(TAIL_BYTES), size)


def _after(store: SegmentStore, partition: TopicPartition, error: ChainBrokenError) -> int | None:
    """Where the file after one that cannot be read begins; None where it is the last."""
    try:
        _, base = parse_segment_path(error.where)
    except ValueError:
        raise error from None
    return min(bases_from(store, partition, base + 1), default=None)


def open_listed(store: SegmentStore, listed: LogFile) -> BinaryIO:
    """Open a file that was listed; the caller closes it.

    Raises:
        ReplacedError: It is gone, or another one has its name.
        ScoredLogError: The store cannot be read.
    """
    file = store.open(listed.path)
    if file is None:
        raise ReplacedError(listed.path)
    if _mark(file, file.seek(0, 2)) != listed.mark:
        file.close()
        raise ReplacedError(listed.path)
    return file


def read_rows(
    store: SegmentStore,
    file: LogFile,
    columns: Sequence[str],
    wanted: NDArray[np.int64] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows of a file with those columns of `SCAN_SCHEMA`; page checksums are verified.

    ``wanted`` int64 (N,) are their places in the file, ascending; None for all that it is to give.

    Raises:
        ReplacedError: The file is not the one that was listed.
        ChainBrokenError: It cannot be read.
    """
    schema = pa.schema([SCAN_SCHEMA.field(name) for name in columns])
    stored = SCHEMAS[file.footer.schema_version].names
    names = [name for name in columns if name in stored]
    with open_listed(store, file) as source, _parquet(source, file) as parquet:
        begin = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if wanted is not None:
                own = wanted[(wanted >= begin) & (wanted < begin + count)] - begin
            elif not file.is_whole:
                # By the values, which say more than what the file says of them.
                read = parquet.read_row_group(group, columns=["offset"], use_threads=False)
                offset = read.column("offset").to_numpy()
                own = np.flatnonzero((offset >= file.start) & (offset < file.end))
            else:
                own = None
            begin += count
            if own is not None and not len(own):
                continue
            # A thread of Arrow's that lets go of a Python file while the program ends aborts it.
            rows = parquet.read_row_group(group, columns=names or ["offset"], use_threads=False)
            if own is not None and len(own) < count:
                # A slice holds the whole group in memory for as long as it lives.
                is_most = own[-1] - own[0] + 1 == len(own) and 2 * len(own) >= count
                rows = rows.slice(own[0], len(own)) if is_most else rows.take(pa.array(own))
            yield from _with_keys(rows, file.partition, schema).to_batches()


@contextmanager
def _parquet(source: BinaryIO, file: LogFile) -> Iterator[Any]:
    with (
        typed_errors(file.path),
        pq.ParquetFile(source, page_checksum_verification=True) as parquet,
    ):
        missing = set(SCHEMAS[file.footer.schema_version].names) - set(parquet.schema_arrow.names)
        if missing:
            raise pa.ArrowInvalid(f"columns are missing: {', '.join(sorted(missing))}")
        yield parquet


def _with_keys(rows: pa.Table, partition: TopicPartition, schema: pa.Schema) -> pa.Table:
    keys = {"topic": partition.topic, "partition": partition.partition}

    def column(field: pa.Field) -> Any:
        if field.name in keys:
            return pa.repeat(pa.scalar(keys[field.name], field.type), rows.num_rows)
        if field.name in rows.column_names:
            return rows.column(field.name).cast(field.type)
        return pa.nulls(rows.num_rows, field.type)

    return pa.Table.from_arrays([column(field) for field in schema], schema=schema)
