"""Reading a chain by position: right while writers publish and compaction exchanges files.

Compaction puts a file of several segments in place of the first of them, and then removes the
others. So whoever reads keeps a position, takes the file with the greatest base offset at or
before it, and goes on from that file's end. A file that is gone has been merged: the folder is
listed anew. A segment that stands before the position is in the file before, and is passed over.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.layout import (
    parse_segment_name,
    partition_folder,
    segment_name,
    segment_path,
)
from nap_stream.scored_log.segment_file import SegmentFile, open_segment
from nap_stream.scored_log.store import SegmentStore

LISTINGS = 10
"""How often a folder is listed anew for one position; each time a compaction was in between."""

LOOK_BACK = 10
"""How many files are looked at for the one that holds a position, before it is given up."""


def bases_from(store: SegmentStore, partition: TopicPartition, first: int = 0) -> list[int]:
    """Base offsets of the segments from ``first`` on, in order, as one listing shows them."""
    names = store.names(partition_folder(partition), segment_name(first))
    bases = (parse_segment_name(name) for name in names)
    return sorted(base for base in bases if base is not None and base >= first)


def complete_bases(store: SegmentStore, partition: TopicPartition) -> list[int]:
    """Base offsets of a chain's segments, in order, without a hole that only the listing has.

    A single listing made while writers link may hold a segment and miss the one before it. The
    second listing has all that came before the newest segment of the first.
    """
    newest = max(bases_from(store, partition), default=-1)
    return [base for base in bases_from(store, partition) if base <= newest]


def walk(
    store: SegmentStore, partition: TopicPartition, start: int = 0
) -> Iterator[tuple[SegmentFile, int]]:
    """The files that hold a chain's rows, in order, up to the newest one of now.

    A file is open until the next one is asked for. Offsets that no file has are passed over
    with a warning in the log: `nap-stream verify` names them.

    Args:
        store: Where the log lies.
        partition: Whose chain.
        start: 0, or where a segment begins or ends.

    Yields:
        A file, and the offset from which on its rows are wanted: not those before it.

    Raises:
        ChainBrokenError: A segment cannot be read.
        ScoredLogError: The store cannot be read.
    """
    bases = _bases_around(store, partition, start)
    if not bases:
        return
    newest, position, base = bases[-1], max(start, bases[0]), -1
    steps = _Steps(store, partition, bases)
    while position <= newest:
        with steps.file_at(position) as file:
            base = file.footer.base_offset
            position = max(position, base)
            yield file, position
            position = file.footer.end_offset
    if base < newest:
        # What a writer left that slept through a compaction and died may end amid a segment.
        with open_segment(store, segment_path(partition, newest)) as last:
            if last is not None and last.footer.end_offset > position:
                yield last, position


def parts_backwards(store: SegmentStore, partition: TopicPartition) -> Iterator[SegmentFooter]:
    """Footers of a chain's segments, from the newest to the oldest, merged ones one by one.

    Ends early where offsets are missing.

    Raises:
        ChainBrokenError: A segment cannot be read.
        ScoredLogError: The store cannot be read.
    """
    position: int | None = None
    bases = complete_bases(store, partition)
    relistings = 0
    while bases:
        with open_segment(store, segment_path(partition, bases[-1])) as file:
            found = None if file is None else file.parts()
        if found is None:
            _refuse_after(relistings, partition)
            relistings += 1
            bases = [
                b for b in complete_bases(store, partition) if position is None or b < position
            ]
            continue
        bases.pop()
        parts = [part for part in found if position is None or part.end_offset <= position]
        if parts and position in {None, parts[-1].end_offset}:
            relistings = 0
            yield from reversed(parts)
            position = parts[0].base_offset


def _bases_around(store: SegmentStore, partition: TopicPartition, start: int) -> list[int]:
    """Base offsets from the file on that holds ``start``.

    Where the first listing does not begin with it, a compacted file may hold it that begins
    before. Also, a listing that is made while writers link may have a segment and lack the one
    before it. The second one has all that came before the newest of the first.
    """
    bases = bases_from(store, partition, start)
    return bases if not bases or bases[0] == start else bases_from(store, partition)


def _refuse_after(listings: int, partition: TopicPartition) -> None:
    if listings >= LISTINGS:
        raise _gone(partition)


def _gone(partition: TopicPartition) -> ChainBrokenError:
    return ChainBrokenError(
        "segments were listed and are gone",
        partition_folder(partition),
        "Let nothing but nap-stream change the log's folder",
    )


class _Steps:
    """Finds the file at a position; lists anew when what it knows has become old."""

    def __init__(self, store: SegmentStore, partition: TopicPartition, bases: list[int]) -> None:
        self._store, self._partition, self._bases = store, partition, bases

    @contextmanager
    def file_at(self, position: int) -> Iterator[SegmentFile]:
        """The file that holds ``position``; the next one, where none does."""
        is_fresh = False
        for relistings in range(LISTINGS + 1):
            for base in self._bases_before(position, LOOK_BACK if is_fresh else 1):
                with open_segment(self._store, segment_path(self._partition, base)) as file:
                    if file is not None and file.footer.end_offset > position:
                        yield file
                        return
                if file is None:
                    break
            else:
                if is_fresh:
                    position = self._pass_over(position)
                    continue
            _refuse_after(relistings, self._partition)
            self._bases = bases_from(self._store, self._partition)
            is_fresh = True

    def _bases_before(self, position: int, count: int) -> list[int]:
        """The greatest base offsets at or before a position, from the greatest on.

        As a rule the first file holds it. Where that is one which a writer has left that slept
        through a compaction and died, the compacted file stands a little before it.
        """
        end = bisect_right(self._bases, position)
        return self._bases[max(end - count, 0) : end][::-1]

    def _pass_over(self, position: int) -> int:
        """Where the next file begins."""
        after = bisect_right(self._bases, position)
        if after == len(self._bases):
            raise _gone(self._partition)
        end = self._bases[after]
        structlog.get_logger().warning(
            "segments_missing", partition=str(self._partition), start=position, end=end
        )
        return end
