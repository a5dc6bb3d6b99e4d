"""The files of the chains: listed, opened only where they still are those, and read by rows.

Nothing here looks at a file's statistics: all values of the columns that are wanted are read.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import SCHEMA, SCHEMAS, parse_segment_path
from nap_stream.scored_log.read import LOOK_BACK, bases_from, walk
from nap_stream.scored_log.segment import SegmentFile, typed_errors
from nap_stream.scored_log.stores import SegmentStore

SCAN_SCHEMA = pa.schema(
    [pa.field("topic", pa.string()), pa.field("partition", pa.int32()), *SCHEMA]
)
"""The columns of a scan: the hive keys of the folders, then the columns of a file of the newest
version. What a file of an earlier one lacks is null."""
_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a chain, of which the rows are wanted with ``start <= offset < end``.

    ``mark`` tells it from another one that has taken its name.
    """

    path: str
    partition: TopicPartition
    start: int
    end: int
    footer: SegmentFooter
    size: int
    mark: bytes

    @property
    def is_whole(self) -> bool:
        """Whether all its rows are wanted."""
        return self.start <= self.footer.base_offset and self.footer.end_offset <= self.end


class ReplacedError(Exception):
    """A file is not the one that was listed, or is gone: a compaction was in between."""


def files_of(
    store: SegmentStore,
    partition: TopicPartition,
    start: int = 0,
    end: int = 2**63 - 1,
    *,
    unread: list[ChainBrokenError] | None,
) -> Iterator[LogFile]:
    """The files that hold a partition's offsets ``[start, end)``, in order.

    A file that cannot be read is left out and put into ``unread``; None raises its error.
    """
    position = _begin(store, partition, start)
    while position is not None:
        try:
            for file, wanted in walk(store, partition, position):
                if wanted >= end:
                    return
                position = file.footer.end_offset
                if position > start:
                    yield _listed(file, partition, max(start, wanted), min(end, position))
        except ChainBrokenError as error:
            if unread is None:
                raise
            position = _after(store, partition, error)
            unread.append(error)
        else:
            return


def _begin(store: SegmentStore, partition: TopicPartition, start: int) -> int | None:
    """From where to walk to an offset: None where there are no files.

    The last file that begins before it may be one that a sleeping writer left in the midst of a
    compacted one. Whoever comes from a few files before passes over it.
    """
    bases = bases_from(store, partition) if start else [0]
    return bases[max(0, bisect_right(bases, start) - LOOK_BACK)] if bases else None


def _listed(file: SegmentFile, partition: TopicPartition, start: int, end: int) -> LogFile:
    mark = _mark(file.source, file.size_bytes)
    return LogFile(file.path, partition, start, end, file.footer, file.size_bytes, mark)


def _mark(file: Any, size: int) -> bytes:
    # The end of a file has the digest of its rows, or the end of the footers that it merged.
    file.seek(max(0, size - _TAIL_BYTES))
    return hashlib.sha256(b"%d:" % size + file.read(_TAIL_BYTES)).digest()


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
            own = None
            if wanted is not None:
                own = wanted[(wanted >= begin) & (wanted < begin + count)] - begin
            begin += count
            if own is not None and not len(own):
                continue
            read = names if wanted is not None or file.is_whole else [*names, "offset"]
            rows = parquet.read_row_group(group, columns=list(dict.fromkeys(read or ["offset"])))
            if own is not None:
                rows = rows.take(pa.array(own))
            elif not file.is_whole:
                offset = rows.column("offset").to_numpy()
                rows = rows.filter(pa.array((offset >= file.start) & (offset < file.end)))
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
