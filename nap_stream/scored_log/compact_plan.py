"""Which segments of a chain to merge, by their footers; and the merging of one group of them."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime

import pyarrow as pa

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import (
    SegmentFooter,
    may_merge,
    merged_footer,
    merged_slots,
    segment_sha256,
)
from nap_stream.scored_log.format import EARLIEST_TIME_MS, segment_path
from nap_stream.scored_log.index import (
    HOUR_MS,
    TAIL_BYTES,
    entry_at,
    index_path,
    indexed,
    mark_of,
    write_index,
)
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.segment import (
    SegmentFile,
    encode_segment,
    open_segment,
    read_segment,
    rows_sha256,
)
from nap_stream.scored_log.stores import SegmentStore


@dataclass(frozen=True, slots=True)
class ChainFile:
    """A file of a chain: its path, its whole footer, its size in bytes."""

    path: str
    footer: SegmentFooter
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What a compacted file may hold at most.

    ``max_bytes`` are those of the files that it merges, ``max_memory_bytes`` of their rows when
    decoded: keys that repeat are small in a file and large in memory.
    """

    max_rows: int
    max_bytes: int
    max_memory_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_bytes, self.max_memory_bytes) < 1:
            raise ValueError(f"expected positive limits, got {self}")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A segment that is still there although a compacted file has merged it.

    An interrupted compaction or a writer that died has left it.
    """

    compacted: ChainFile
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a chain.

    ``groups`` are files to merge, two at least, in order. ``leftovers`` are to be removed.
    """

    groups: tuple[tuple[ChainFile, ...], ...]
    leftovers: tuple[Leftover, ...]


def plan(
    files: Iterable[ChainFile],
    *,
    today: date,
    limits: FileLimits,
    before_ms: int = EARLIEST_TIME_MS,
) -> Plan:
    """Decide what to merge.

    The files of a group follow each other without a hole. They were published on one day before
    ``today`` (UTC), or in one hour of a later day that ended before ``before_ms``, in one version
    of the columns. A file of an hour becomes part of its day's file when the day is over; a file of
    a day stays as it is. So does the last segment of the chain, to which writers link.

    Files are a partition's, in order of their base offsets. Of the files of days only those with
    leftovers are kept: their footers are large. ``today`` is the day that is not over yet, UTC;
    ``before_ms`` is in milliseconds since the epoch.

    Raises:
        ChainBrokenError: The files are not a whole chain. Nothing may be merged then: it would
            hide what is wrong.
    """
    movable, leftovers = _divided(files)

    def span(file: ChainFile) -> tuple[date, int] | None:
        """What the file may share a file with; None for nothing yet."""
        published_ms = file.footer.parts[0].created_time_ms
        day, hour = _day(published_ms), published_ms // HOUR_MS
        if day < today:
            return day, -1
        is_over = (hour + 1) * HOUR_MS <= before_ms
        return (day, hour) if is_over and not file.footer.merged else None

    groups = [group for group in _groups(movable, limits, span) if len(group) > 1]
    return Plan(tuple(groups), tuple(leftovers))


def _groups(
    files: Sequence[ChainFile],
    limits: FileLimits,
    span: Callable[[ChainFile], tuple[date, int] | None],
) -> Iterator[tuple[ChainFile, ...]]:
    group: list[ChainFile] = []
    rows = size_bytes = 0
    for file in files:
        rows, size_bytes = rows + file.footer.rows, size_bytes + file.size_bytes
        fits = rows <= limits.max_rows and size_bytes <= limits.max_bytes
        if group and not (
            fits
            and span(file) is not None
            and span(group[-1]) == span(file)
            and may_merge(group[-1].footer.parts[-1], file.footer.parts[0])
        ):
            yield tuple(group)
            group, rows, size_bytes = [], file.footer.rows, file.size_bytes
        group.append(file)
    yield tuple(group)


def _day(time_ms: int) -> date:
    return datetime.fromtimestamp(time_ms / 1000, UTC).date()


def _is_of_a_day(file: ChainFile) -> bool:
    """Whether it was merged after the day of its segments, and not on that day, hour by hour."""
    merged = file.footer.merged
    return bool(merged) and _day(file.footer.created_time_ms) > _day(merged[0].created_time_ms)


def _divided(files: Iterable[ChainFile]) -> tuple[list[ChainFile], list[Leftover]]:
    """Files that may be merged, and leftovers. The chain's last segment is in neither."""
    movable: list[ChainFile] = []
    leftovers: list[Leftover] = []
    last: ChainFile | None = None
    slots: set[tuple[int, str]] = set()
    for file in files:
        if last is not None and file.footer.base_offset < last.footer.end_offset:
            _check_covered(last, slots, file)
            leftovers.append(Leftover(last, file.path))
            continue
        if last is not None:
            _check_link(last, file)
            if not _is_of_a_day(last):
                movable.append(last)
        last, slots = file, merged_slots(file.footer.merged)
    return movable, leftovers


def _check_covered(compacted: ChainFile, slots: set[tuple[int, str]], file: ChainFile) -> None:
    """Refuse to remove what the compacted file does not stand for.

    The compacted file must list this segment, or another one of the same base offset and the same
    predecessor. In that case a writer that had slept published this one, and died before it could
    take it back. A file of an hour must be in it part by part.
    """
    footer = file.footer
    is_in = (footer.base_offset, footer.previous_sha256) in slots
    if not is_in or not set(footer.merged) <= set(compacted.footer.merged):
        raise _broken(file, f"it overlaps {compacted.path}, which has not merged it")


def _check_link(before: ChainFile, file: ChainFile) -> None:
    expected, base = before.footer.end_offset, file.footer.base_offset
    if base != expected:
        raise _broken(file, f"offsets [{expected}, {base}) are in no segment")
    earlier, later = before.footer.parts[-1], file.footer.parts[0]
    if later.previous_sha256 != segment_sha256(earlier):
        raise _broken(file, f"it does not name the digest of {before.path}")


def _broken(file: ChainFile, problem: str) -> ChainBrokenError:
    return ChainBrokenError(
        problem, file.path, "Nothing is compacted here; run `nap-stream verify`"
    )


def merge(
    store: SegmentStore,
    group: Sequence[ChainFile],
    *,
    writer_id: str,
    now_ms: int,
    check_lock: Callable[[], None],
    max_memory_bytes: int,
) -> tuple[int, int]:
    """Put one file in the place of a group of segments, or of as many as memory allows.

    First the new file replaces that of the first segment, then the others are removed. At every
    moment each row is in a file; between the two steps, in two. A writer that has slept may find
    the name of a removed segment free. It relies on finding the predecessor's file replaced or
    gone then.

    ``group`` is of a `Plan`; ``check_lock`` raises where this compaction may not go on;
    ``max_memory_bytes`` bounds the decoded rows.

    One whose rows leave no room for the next is written anew alone: it is a file of its hour or day
    then, and not decoded again in vain by each run that follows.

    Returns:
        How many of the first of them were dealt with, and the new file's size in bytes.

    Raises:
        ChainBrokenError: A segment's rows are not those of its digest, or it has changed since
            it was put in the group. Nothing is exchanged then.
        ScoredLogError: The store failed, or the lock is lost.
    """
    tables = _checked_tables(store, group, max_memory_bytes)
    taken = group[: len(tables)]
    content = _merged_content(tables, taken, writer_id=writer_id, now_ms=now_ms)
    for file in taken:
        with _unchanged(store, file):
            pass
    check_lock()
    store.replace(taken[0].path, content)
    remove_segments(store, [file.path for file in taken[1:]])
    write_index(store, taken[0].path, content)
    return len(taken), len(content)


def remove_leftovers(
    store: SegmentStore, leftovers: Sequence[Leftover], *, check_lock: Callable[[], None]
) -> None:
    """Remove segments that stand in compacted files, once those are read and found right.

    Raises:
        ChainBrokenError: A compacted file's rows are not those of its digests. Nothing is removed.
        ScoredLogError: The store failed, or the lock is lost.
    """
    compacted = {leftover.compacted.path: leftover.compacted for leftover in leftovers}
    for file in compacted.values():
        with _unchanged(store, file) as segment:
            _check_parts(segment)
    check_lock()
    remove_segments(store, [leftover.path for leftover in leftovers])


def write_indexes(
    store: SegmentStore, partition: TopicPartition, paths: Iterable[str], *, anew: bool
) -> Iterator[str]:
    """Give those of the files that have none their index, and remove that of files that are gone.

    ``anew`` makes all of them again.

    Yields:
        The files that have been given one.

    Raises:
        ChainBrokenError: A file cannot be read.
        ScoredLogError: The store failed.
    """
    remove_stale_indexes(store, partition)
    for path in paths:
        tail = store.read_part(path, -TAIL_BYTES, TAIL_BYTES)
        if tail is None or (not anew and entry_at(store, path, mark_of(*tail)) is not None):
            continue
        content = store.read(path)
        if content is not None:
            write_index(store, path, content)
            yield path


def remove_stale_indexes(store: SegmentStore, partition: TopicPartition) -> None:
    """Remove the indexes of files that are gone: they can hold keys. Under the lock.

    Raises:
        ScoredLogError: The store failed.
    """
    have = {segment_path(partition, base) for base in indexed(store, partition)}
    gone = have.difference(segments(store, partition))
    store.remove([index_path(path) for path in sorted(gone)])


def remove_segments(store: SegmentStore, paths: Sequence[str]) -> None:
    """Remove segments that a compacted file holds, or a seal covers, in order.

    An object store removes in any order. So a writer that slept can take a name that is free again
    while the segment before is still there, and not notice. All of them are gone when the first
    removal has ended. The second one takes away what slipped in, and what that writer publishes
    next is refused.

    Their indexes go first: what an interrupted run leaves of them nobody would look for.
    """
    store.remove([index_path(path) for path in paths])
    for _ in range(2):
        store.remove(paths)


@contextmanager
def _unchanged(store: SegmentStore, file: ChainFile) -> Iterator[SegmentFile]:
    """Open a file, which must be the one that the plan was made of."""
    with open_segment(store, file.path) as segment:
        if segment is None or segment.parts() != file.footer.parts:
            raise ChainBrokenError(
                "the segment has changed while it was compacted",
                file.path,
                "Nothing is compacted here; let nothing but nap-stream change the log's folder",
            )
        yield segment


def _checked_tables(
    store: SegmentStore, group: Sequence[ChainFile], max_memory_bytes: int
) -> list[pa.Table]:
    """The rows of the first segments of a group, of one at least."""
    tables: list[pa.Table] = []
    size_bytes = 0
    for file in group:
        with _unchanged(store, file) as segment:
            rows = pa.concat_tables(list(checked_parts(segment)))
        size_bytes += rows.nbytes
        if tables and size_bytes > max_memory_bytes:
            break
        tables.append(rows)
    return tables


def _merged_content(
    tables: list[pa.Table], group: Sequence[ChainFile], *, writer_id: str, now_ms: int
) -> bytes:
    table = pa.concat_tables(tables)
    footer = merged_footer(
        [part for file in group for part in file.footer.parts],
        rows_sha256=rows_sha256(table),
        writer_id=writer_id,
        created_time_ms=now_ms,
    )
    content = encode_segment(footer, table)
    del table
    tables.clear()
    _check_content(content, footer, group[0].path)
    return content


def checked_parts(segment: SegmentFile) -> Iterator[pa.Table]:
    """The rows of each segment that a file holds, once they are found to be those of its digest.

    Raises:
        ChainBrokenError: They are not, or cannot be read.
    """
    for part, rows in segment.rows_of_parts():
        if rows.num_rows != part.rows or rows_sha256(rows) != part.rows_sha256:
            raise ChainBrokenError(
                f"the rows from offset {part.base_offset} on are not those of the footer's digest",
                segment.path,
                "Nothing is removed here; run `nap-stream verify --deep`",
            )
        yield rows


def _check_parts(segment: SegmentFile) -> None:
    for _ in checked_parts(segment):
        pass


def _check_content(content: bytes, footer: SegmentFooter, path: str) -> None:
    """Read the new file as anybody will, before it takes the place of what it merges."""
    segment = read_segment(io.BytesIO(content), path)
    if segment.parts() != footer.merged or segment.metadata.num_rows != footer.rows:
        raise ChainBrokenError("the merged file's footer reads back otherwise", path)
    _check_parts(segment)
