"""Where a partition's chain ends, over any store."""

import hashlib

from nap_stream.errors import ChainBrokenError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.genesis import decode_genesis
from nap_stream.scored_log.layout import (
    genesis_path,
    parse_segment_name,
    partition_folder,
    segment_name,
    segment_path,
)
from nap_stream.scored_log.segment import decode_footer
from nap_stream.scored_log.segment_file import check_name
from nap_stream.scored_log.store import SegmentStore

HINT_REACHES = (10_000, 10_000_000)
"""How far before a hint listings begin, in offsets, before the whole chain is listed."""
LISTINGS = 5
"""How often a chain is listed anew whose last segment is gone, merged by a compaction."""


def sha256_hex(content: bytes) -> str:
    """The hexadecimal SHA-256 digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


class ChainEnds:
    """Finds the ends of chains.

    Args:
        store: Where the files lie.
    """

    def __init__(self, store: SegmentStore) -> None:
        self._store = store

    def end(self, partition: TopicPartition, hint: int | None = None) -> ChainPosition | None:
        """Where the chain ends now; None where the partition has no genesis marker yet.

        Reads the marker, a listing from near the hint, and the last segment's footer.

        Raises:
            ChainBrokenError: The marker or the last segment is missing, unreadable, or
                contradicts its name.
            ScoredLogError: The store cannot be read.
        """
        start = self._start(partition)
        for _ in range(LISTINGS):
            base = self._last_base(partition, hint)
            if start is None:
                _refuse_headless(partition, base)
                return None
            if base is None:
                return start
            position = self._after(partition, base, start)
            if position is not None:
                return position
        raise ChainBrokenError(
            f"a segment was listed and is gone, {LISTINGS} times",
            partition_folder(partition),
            "Let nothing but nap-stream change the log's folder",
        )

    def is_compacted(self, partition: TopicPartition, position: ChainPosition) -> bool:
        """Whether a name after ``position`` was free only because its segment has been merged.

        A writer can have slept so long that what it publishes was published, merged and removed.
        Compaction exchanges the file of a segment's predecessor before it removes the segment,
        so to look after the name was taken misses nothing. Where the predecessor is not what it
        was, the name must be found in a compacted file: others may have built on it otherwise.

        Raises:
            ChainBrokenError: The predecessor is gone, and nothing has merged it.
            ScoredLogError: The store cannot be read.
        """
        if position.base is None:
            return False
        before = self._footer(partition, position.base)
        if before is not None and _precedes(before, position):
            return False
        for base in sorted(self._bases(partition), reverse=True):
            footer = self._footer(partition, base) if base < position.offset else None
            if footer is not None and _precedes(footer, position):
                return False
            if footer is not None and footer.merged and footer.end_offset > position.offset:
                return True
        raise ChainBrokenError(
            f"the segment before offset {position.offset} is gone, and no file has merged it",
            partition_folder(partition),
            "Let nothing but nap-stream change the log's folder; run `nap-stream verify`",
        )

    def _start(self, partition: TopicPartition) -> ChainPosition | None:
        path = genesis_path(partition)
        content = self._store.read(path)
        if content is None:
            return None
        genesis = decode_genesis(content, partition, path)
        return ChainPosition(genesis.offset, sha256_hex(content), topic_id=genesis.topic_id)

    def _last_base(self, partition: TopicPartition, hint: int | None) -> int | None:
        for reach in HINT_REACHES if hint is not None else ():
            bases = self._bases(partition, max(0, (hint or 0) - reach))
            if bases:
                return max(bases)
        return max(self._bases(partition), default=None)

    def _bases(self, partition: TopicPartition, first: int = 0) -> list[int]:
        names = self._store.names(partition_folder(partition), segment_name(first))
        return [base for name in names if (base := parse_segment_name(name)) is not None]

    def _footer(self, partition: TopicPartition, base_offset: int) -> SegmentFooter | None:
        path = segment_path(partition, base_offset)
        file = self._store.open(path)
        if file is None:
            return None
        with file:
            return decode_footer(file, path)

    def _after(
        self, partition: TopicPartition, base_offset: int, start: ChainPosition
    ) -> ChainPosition | None:
        """Where the chain stands after a segment; None where its file is gone."""
        path = segment_path(partition, base_offset)
        footer = self._footer(partition, base_offset)
        if footer is None:
            return None
        check_name(path, footer)
        if base_offset < start.offset:
            raise ChainBrokenError(
                f"the segment lies before the chain's start at {start.offset}",
                path,
                "The genesis marker was replaced; run `nap-stream verify`",
            )
        last = footer.parts[-1]
        if last.rows_sha256 is None:
            content = self._store.read(path)
            if content is None:
                return None
            digest = sha256_hex(content)
        else:
            digest = segment_sha256(last)
        topic_id = footer.topic_id or start.topic_id
        return ChainPosition(footer.end_offset, digest, base_offset, topic_id)


def _precedes(footer: SegmentFooter, position: ChainPosition) -> bool:
    """Whether the chain stood at ``position`` after this file."""
    last = footer.parts[-1]
    # Before version 3 the digest is the file's. Such a file is never merged, nor its name free.
    is_same = last.rows_sha256 is None or segment_sha256(last) == position.previous_sha256
    return footer.end_offset == position.offset and is_same


def _refuse_headless(partition: TopicPartition, base: int | None) -> None:
    if base is not None:
        raise ChainBrokenError(
            f"the genesis marker is missing, and there are segments, the last at {base}",
            genesis_path(partition),
            "Restore the marker from a backup; run `nap-stream verify`",
        )
