"""Merges one group of segments: reads and checks them, exchanges their files."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from nap_stream.errors import ChainBrokenError
from nap_stream.scored_log.compact_plan import ChainFile, Leftover
from nap_stream.scored_log.digest import rows_sha256
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.memory import MemoryStore
from nap_stream.scored_log.merged import merged_footer
from nap_stream.scored_log.segment import encode_segment
from nap_stream.scored_log.segment_file import SegmentFile, open_segment
from nap_stream.scored_log.store import SegmentStore


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
    moment each row stands in a file; between the two steps, in two. Whoever finds a segment's
    name free afterwards finds its predecessor's file exchanged or gone: writers that have slept
    rely on it.

    Args:
        store: Where the log lies.
        group: Files that `nap_stream.scored_log.compact_plan.plan` has put together.
        writer_id: Who compacts.
        now_ms: Since the epoch, UTC.
        check_lock: Raises where this compaction may not go on.
        max_memory_bytes: Of the decoded rows of the segments that are merged.

    Returns:
        How many of the first of them were dealt with, and the new file's size in bytes. One alone
        stays as it is, and the size is 0.

    Raises:
        ChainBrokenError: A segment's rows are not those of its digest, or it has changed since
            it was put in the group. Nothing is exchanged then.
        ScoredLogError: The store failed, or the lock is lost.
    """
    tables = _checked_tables(store, group, max_memory_bytes)
    taken = group[: len(tables)]
    if len(taken) == 1:
        return 1, 0
    content = _merged_content(tables, taken, writer_id=writer_id, now_ms=now_ms)
    _check_unchanged(store, taken)
    check_lock()
    store.replace(taken[0].path, content)
    _remove(store, [file.path for file in taken[1:]])
    return len(taken), len(content)


def remove_leftovers(
    store: SegmentStore, leftovers: Sequence[Leftover], *, check_lock: Callable[[], None]
) -> None:
    """Remove segments that stand in compacted files, once those are read and found right.

    Raises:
        ChainBrokenError: A compacted file's rows are not those of its digests. Nothing is removed.
        ScoredLogError: The store failed, or the lock is lost.
    """
    for compacted in {
        leftover.compacted.path: leftover.compacted for leftover in leftovers
    }.values():
        _check_rows(store, compacted)
    check_lock()
    _remove(store, [leftover.path for leftover in leftovers])


def _remove(store: SegmentStore, paths: Sequence[str]) -> None:
    """Remove segments that a compacted file holds.

    An object store keeps no order: a writer that slept can take a name again while the one before
    is still there, and not notice. All those before are gone when the first removal has ended, so
    the second one takes away what slipped in, and what that writer publishes after it is refused.
    """
    for _ in range(2):
        store.remove(paths)


def _check_rows(store: SegmentStore, file: ChainFile) -> None:
    with open_segment(store, file.path) as segment:
        if segment is None or segment.parts() != file.footer.parts:
            raise _changed(file.path)
        for _ in _checked_parts(segment):
            pass


def _checked_tables(
    store: SegmentStore, group: Sequence[ChainFile], max_memory_bytes: int
) -> list[pa.Table]:
    """The rows of the first segments of a group, of one at least."""
    tables: list[pa.Table] = []
    size_bytes = 0
    for file in group:
        rows = _checked_rows(store, file)
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
        [file.footer for file in group],
        rows_sha256=rows_sha256(table),
        writer_id=writer_id,
        created_time_ms=now_ms,
    )
    content = encode_segment(footer, table)
    del table
    tables.clear()
    _check_content(content, footer, group[0].path)
    return content


def _checked_rows(store: SegmentStore, file: ChainFile) -> pa.Table:
    with open_segment(store, file.path) as segment:
        if segment is None or segment.parts() != file.footer.parts:
            raise _changed(file.path)
        return pa.concat_tables(list(_checked_parts(segment)))


def _checked_parts(segment: SegmentFile) -> Iterator[pa.Table]:
    for part, rows in segment.rows_of_parts():
        if rows.num_rows != part.rows or rows_sha256(rows) != part.rows_sha256:
            raise ChainBrokenError(
                f"the rows from offset {part.base_offset} on are not those of the footer's digest",
                segment.path,
                "Nothing is compacted here; run `nap-stream verify --deep`",
            )
        yield rows


def _check_content(content: bytes, footer: SegmentFooter, path: str) -> None:
    """Read the new file as anybody will, before it takes the place of what it merges."""
    written = MemoryStore()
    written.create(path, content)
    with open_segment(written, path) as segment:
        assert segment is not None
        if segment.parts() != footer.merged or segment.metadata.num_rows != footer.rows:
            raise ChainBrokenError("the merged file's footer reads back otherwise", path)
        for _ in _checked_parts(segment):
            pass


def _check_unchanged(store: SegmentStore, group: Sequence[ChainFile]) -> None:
    for file in group:
        with open_segment(store, file.path) as segment:
            if segment is None or segment.parts() != file.footer.parts:
                raise _changed(file.path)


def _changed(path: str) -> ChainBrokenError:
    return ChainBrokenError(
        "the segment has changed while it was compacted",
        path,
        "Nothing is compacted here; let nothing but nap-stream change the log's folder",
    )
