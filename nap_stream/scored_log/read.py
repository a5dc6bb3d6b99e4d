"""Reading the log, also while workers publish and while compaction exchanges files.

What a reader sees of a partition is always a prefix of its chain, each row once. Compaction puts a
file of several segments in place of the first of them, and then removes the others. So whoever
reads keeps a position, takes the file with the greatest base offset at or before it, and goes on
from that file's end. A file that is gone has been merged or pruned: the folder is listed anew. A
segment that begins before the position is in a file that was read already, and is passed over. A
prune may take the oldest files while they are read: then the answer has what was read before, and
what stays.

Paths are relative to the root. Everything here raises `LogRootError` where there is no log at the
root, and `ChainBrokenError` where a segment cannot be read.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from nap_stream.errors import ChainBrokenError, LogRootError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import (
    parse_partition_folder,
    parse_segment_name,
    parse_topic_folder,
    partition_folder,
    segment_name,
    segment_path,
    topic_folder,
)
from nap_stream.scored_log.seals import last_span
from nap_stream.scored_log.segment import SegmentFile, open_segment
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.topics import TopicSelection

LISTINGS = 10
"""How often a folder is listed anew for one position; each time a compaction was in between."""
LOOK_BACK = 10
"""How many files are looked at for the one that holds a position, before it is given up."""


def require_root(store: SegmentStore) -> None:
    """Refuse a root that is no folder. On an object store every prefix is one.

    Raises:
        LogRootError: There is no such folder.
    """
    if isinstance(store, LocalStore) and not Path(store.root).is_dir():
        raise LogRootError(
            "there is no scored log: no such folder", store.root, "Name the folder of log.root"
        )


def partitions(store: SegmentStore, topic: str | None = None) -> tuple[TopicPartition, ...]:
    """The partitions that have a folder in the log, in order; those of one topic if given.

    Raises:
        ConfigError: No topic can have that name.
    """
    require_root(store)
    wanted = store.names("") if topic is None else [topic_folder(topic)]
    return tuple(
        sorted(
            TopicPartition(found, number)
            for name in wanted
            if (found := parse_topic_folder(name)) is not None
            for child in store.names(name)
            if (number := parse_partition_folder(child)) is not None
        )
    )


def partitions_read(store: SegmentStore, reads: TopicSelection) -> tuple[TopicPartition, ...]:
    """The partitions in the log of the topics that a monitor reads, in order."""
    if reads.pattern is None:
        return tuple(found for name in sorted(reads.names) for found in partitions(store, name))
    return tuple(found for found in partitions(store) if found.topic in reads)


def stream_partitions(
    store: SegmentStore, topic: str, reads: TopicSelection | None
) -> tuple[TopicPartition, ...]:
    """The partitions in the log of all topics that a monitor ``reads``, in order; at least one.

    They are one stream, called ``topic``; without a monitor it is the topic itself.

    Raises:
        ConfigError: No topic can have that name.
        LogRootError: There is no log at the root, or it has none of the topics.
    """
    found = () if reads is None else partitions_read(store, reads)
    if found or reads is None or len(reads.names) == 1:
        return found or topic_partitions(store, topic)
    others = sorted({partition.topic for partition in partitions(store)})
    held = f"its topics are {', '.join(others)}" if others else "it holds no topics"
    raise LogRootError(f"the log has none of the {reads}; {held}", store.root, "Name another root")


def topic_partitions(store: SegmentStore, topic: str) -> tuple[TopicPartition, ...]:
    """The partitions of a topic that the log has, in order; at least one.

    Raises:
        ConfigError: No topic can have that name.
        LogRootError: There is no log at the root, or it has no partition of the topic.
    """
    found = partitions(store, topic)
    if not found:
        others = sorted({partition.topic for partition in partitions(store)})
        held = f"its topics are {', '.join(others)}" if others else "it holds no topics"
        raise LogRootError(
            f"the log has no partition of the topic {topic!r}; {held}",
            store.root,
            "Name another root or topic",
        )
    return found


def bases_from(store: SegmentStore, partition: TopicPartition, first: int = 0) -> list[int]:
    """Base offsets of the segments from ``first`` on, in order, as one listing shows them."""
    names = store.names(partition_folder(partition), segment_name(first))
    bases = (parse_segment_name(name) for name in names)
    return sorted(base for base in bases if base is not None and base >= first)


def complete_bases(store: SegmentStore, partition: TopicPartition) -> list[int]:
    """Base offsets of a chain's segments, in order, with none left out in between.

    A listing that is made while writers link may hold a segment and miss the one before it. The
    second listing has all that came before the newest segment of the first.
    """
    newest = max(bases_from(store, partition), default=-1)
    return [base for base in bases_from(store, partition) if base <= newest]


def segments(store: SegmentStore, partition: TopicPartition) -> tuple[str, ...]:
    """Paths of a partition's segments, in order of their base offsets, as the folder holds them.

    While a compaction exchanges files, or after one was interrupted, a segment's rows may be in
    a compacted file before it too. `walk` gives each row once.
    """
    return tuple(segment_path(partition, base) for base in complete_bases(store, partition))


def walk(
    store: SegmentStore, partition: TopicPartition, start: int = 0
) -> Iterator[tuple[SegmentFile, int]]:
    """As `walk_with`, opening each file."""
    return walk_with(partial(open_segment, store), store, partition, start)


class HasFooter(Protocol):
    """What is known of a file."""

    @property
    def footer(self) -> SegmentFooter:
        """Its footer; those that it has merged may be left out."""


File = TypeVar("File", bound=HasFooter)
Opened = Callable[[str], AbstractContextManager[File | None]]
"""From a path to what is known of the file there; None where it is gone."""


def walk_with(
    opened: Opened[File], store: SegmentStore, partition: TopicPartition, start: int = 0
) -> Iterator[tuple[File, int]]:
    """The files that hold a chain's rows, in order, up to the one that is the newest now.

    A file is open until the next one is asked for. Offsets that no file has are passed over. Unless
    they were pruned, the program's log has a warning: `nap-stream verify` names them.

    ``start`` is 0, or where a segment begins or ends.

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
    finder = _FileFinder(opened, store, partition, bases)
    while position <= newest:
        with finder.file_at(position) as file:
            base = file.footer.base_offset
            position = max(position, base)
            yield file, position
            position = file.footer.end_offset
    if base < newest:
        # A writer that slept through a compaction and then died may have left the newest file.
        # It begins within the file before it, and may end after it.
        with opened(segment_path(partition, newest)) as last:
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
            if relistings == LISTINGS:
                raise _vanished(partition)
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

    Where the first listing does not begin with it, a compacted file that begins before may hold
    it. Or the listing lacks a segment, as in `complete_bases`. A second listing helps in both.
    """
    bases = bases_from(store, partition, start)
    return bases if not bases or bases[0] == start else bases_from(store, partition)


def _vanished(partition: TopicPartition) -> ChainBrokenError:
    return ChainBrokenError(
        "segments were listed and are gone",
        partition_folder(partition),
        "Let nothing but nap-stream change the log's folder",
    )


class _FileFinder(Generic[File]):
    """Finds the file at a position, and lists the folder anew where its listing is out of date."""

    def __init__(
        self,
        opened: Opened[File],
        store: SegmentStore,
        partition: TopicPartition,
        bases: list[int],
    ) -> None:
        self._opened = opened
        self._store, self._partition, self._bases = store, partition, bases

    @contextmanager
    def file_at(self, position: int) -> Iterator[File]:
        """The file that holds ``position``; the next one, where none does."""
        is_fresh = False
        for _ in range(LISTINGS + 1):
            for base in self._bases_before(position, LOOK_BACK if is_fresh else 1):
                with self._opened(segment_path(self._partition, base)) as file:
                    if file is not None and file.footer.end_offset > position:
                        yield file
                        return
                if file is None:
                    break
            else:
                if is_fresh:
                    position = self._pass_over(position)
                    continue
            self._bases = bases_from(self._store, self._partition)
            is_fresh = True
        raise _vanished(self._partition)

    def _bases_before(self, position: int, count: int) -> list[int]:
        """The greatest base offsets at or before a position, the greatest first.

        As a rule its file holds the position. Where a writer that slept through a compaction and
        died has left that file, the compacted file begins a little before it.
        """
        end = bisect_right(self._bases, position)
        return self._bases[max(end - count, 0) : end][::-1]

    def _pass_over(self, position: int) -> int:
        """Where the next file begins."""
        after = bisect_right(self._bases, position)
        if after == len(self._bases):
            raise _vanished(self._partition)
        end = self._bases[after]
        pruned = last_span(self._store, self._partition)
        if pruned is None or pruned.end_offset < end:
            structlog.get_logger().warning(
                "segments_missing", partition=str(self._partition), start=position, end=end
            )
        return end
