"""A partition's log is a chain of segments, over any store that creates files exclusively.

A genesis marker fixes, once, where the chain starts. Each segment begins where the one before it
ends and names its digest. A name can be created once: that makes a writer harmless that slept
while another one took its partitions.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import structlog

from nap_stream.clock import Clock
from nap_stream.errors import ChainBrokenError, SegmentConflictError
from nap_stream.records import ChainPosition, PublishedSegment, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.format import (
    genesis_path,
    partition_folder,
    seal_path,
    segment_path,
    with_fingerprints,
)
from nap_stream.scored_log.read import bases_from
from nap_stream.scored_log.seals import last_span, read_seal, seal_paths
from nap_stream.scored_log.segment import (
    check_name,
    encode_segment,
    event_time_range,
    read_footer,
    rows_sha256,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS

KIND = "nap-stream scored log genesis"
VERSION = 2
HINT_REACHES = (10_000, 10_000_000)
"""How far before a hint listings begin, in offsets, before the whole chain is listed."""
LISTINGS = 5
"""How often a chain is listed anew whose last segment is gone, merged by a compaction."""

_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "version": (int,),
    "topic": (str,),
    "topic_id": (str, type(None)),
    "partition": (int,),
    "offset": (int,),
    "writer_id": (str,),
    "created_time_ms": (int,),
}


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first offset of a partition's chain; ``created_time_ms`` is since the epoch, UTC.

    ``topic_id`` is None where the broker has none.
    """

    topic: str
    partition: int
    offset: int
    writer_id: str
    created_time_ms: int
    topic_id: str | None = None


def encode_genesis(genesis: Genesis) -> bytes:
    """The marker's file: one line of JSON."""
    tree = {"kind": KIND, "version": VERSION, **asdict(genesis)}
    return (json.dumps(tree, ensure_ascii=True) + "\n").encode("ascii")


def decode_genesis(content: bytes, partition: TopicPartition, where: str) -> Genesis:
    """Read a marker back, strictly.

    Raises:
        ChainBrokenError: It is malformed, of another version, or of another partition.
    """
    try:
        tree = _checked_tree(json.loads(content.decode("utf-8")), partition)
    except (ValueError, RecursionError) as error:
        raise ChainBrokenError(
            f"the genesis marker is not valid: {error}",
            where,
            "Run `nap-stream verify`; restore the marker from a backup",
        ) from error
    return Genesis(**{name: tree[name] for name in _TYPES if name not in {"kind", "version"}})


def _checked_tree(tree: Any, partition: TopicPartition) -> dict[str, Any]:
    if not isinstance(tree, dict) or not {"kind", "version"} <= tree.keys():
        raise ValueError("expected a JSON object with kind and version")
    if (tree["kind"], tree["version"]) != (KIND, VERSION):
        raise ValueError(f"kind {tree['kind']!r}, version {tree['version']!r}")
    if tree.keys() != _TYPES.keys():
        raise ValueError(f"expected the keys {sorted(_TYPES)}")
    for name, allowed in _TYPES.items():
        if type(tree[name]) not in allowed:
            kinds = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{name} is not of type {kinds}: {tree[name]!r}")
    if (tree["topic"], tree["partition"]) != (partition.topic, partition.partition):
        raise ValueError(f"it belongs to {tree['topic']}/{tree['partition']}")
    if tree["offset"] < 0:
        raise ValueError(f"a negative offset: {tree['offset']}")
    return tree


def sha256_hex(content: bytes) -> str:
    """The hexadecimal SHA-256 digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


def chain_start(store: SegmentStore, partition: TopicPartition) -> ChainPosition | None:
    """Where the chain starts, by its genesis marker; None where it has none yet.

    Raises:
        ChainBrokenError: The marker is not valid.
        ScoredLogError: The store cannot be read.
    """
    path = genesis_path(partition)
    content = store.read(path)
    if content is None:
        return None
    genesis = decode_genesis(content, partition, path)
    return ChainPosition(genesis.offset, sha256_hex(content), topic_id=genesis.topic_id)


def chain_end(
    store: SegmentStore, partition: TopicPartition, hint: int | None = None
) -> ChainPosition | None:
    """Where the chain ends now; None where the partition has no genesis marker yet.

    Reads the marker, a listing from near the hint, and the last segment's footer. Where all of a
    chain's rows were pruned, it ends where its last seal says.

    ``hint`` is an offset near the end, such as the committed one: it saves listing the chain.

    Raises:
        ChainBrokenError: The marker or the last segment is missing, unreadable, or
            contradicts its name.
        ScoredLogError: The store cannot be read.
    """
    start = chain_start(store, partition)
    for _ in range(LISTINGS):
        base = _last_base(store, partition, hint)
        if base is None:
            return _pruned_end(store, partition, start)
        if start is None:
            raise ChainBrokenError(
                f"the genesis marker is missing, and there are segments, the last at {base}",
                genesis_path(partition),
                "Restore the marker from a backup; run `nap-stream verify`",
            )
        position = _end_of(store, partition, base, start)
        if position is not None:
            return position
    raise ChainBrokenError(
        f"a segment was listed and is gone, {LISTINGS} times",
        partition_folder(partition),
        "Let nothing but nap-stream change the log's folder",
    )


def _pruned_end(
    store: SegmentStore, partition: TopicPartition, start: ChainPosition | None
) -> ChainPosition | None:
    """Where a chain ends that has no segments."""
    seals = [] if start is None else seal_paths(store, partition)
    if start is None or not seals:
        return start
    newest = read_seal(store, seals[-1])
    topic_id = newest.parts[-1].topic_id or start.topic_id
    return ChainPosition(newest.span.end_offset, newest.span.sha256, topic_id=topic_id)


def _last_base(store: SegmentStore, partition: TopicPartition, hint: int | None) -> int | None:
    for reach in HINT_REACHES if hint is not None else ():
        bases = bases_from(store, partition, max(0, (hint or 0) - reach))
        if bases:
            return bases[-1]
    return max(bases_from(store, partition), default=None)


def _end_of(
    store: SegmentStore, partition: TopicPartition, base_offset: int, start: ChainPosition
) -> ChainPosition | None:
    """Where the chain is after a segment; None where its file is gone."""
    path = segment_path(partition, base_offset)
    footer = read_footer(store, path)
    if footer is None:
        return None
    check_name(path, footer)
    if base_offset < start.offset:
        raise ChainBrokenError(
            f"the segment lies before the chain's start at {start.offset}",
            path,
            "The genesis marker was replaced; run `nap-stream verify`",
        )
    digest = segment_sha256(footer.parts[-1])
    topic_id = footer.topic_id or start.topic_id
    return ChainPosition(footer.end_offset, digest, base_offset, topic_id)


def is_taken(store: SegmentStore, partition: TopicPartition, position: ChainPosition) -> bool:
    """Whether the name at ``position`` was free only because its segment was merged or pruned.

    A writer can have slept so long that another one has published the same offsets, and a
    compaction has merged and removed that segment. Then the exclusive create succeeds and must
    not count. Compaction replaces the file of a segment's predecessor before it removes the
    segment. So it is enough to look at the predecessor, after the name was taken. Where that has
    changed, a compacted file must hold the position: otherwise others may have built on the name.

    A prune seals what it removes, and then removes segments in their order: where the name was free
    by it, the predecessor is gone and a seal covers the position. The first segment of a chain has
    no predecessor; its seal has its base offset.

    Raises:
        ChainBrokenError: The predecessor is gone, and nothing has merged it.
        ScoredLogError: The store cannot be read.
    """
    if position.base is None:
        return store.read(seal_path(partition, position.offset)) is not None
    before = read_footer(store, segment_path(partition, position.base))
    if before is not None and _precedes(before, position):
        return False
    for base in reversed(bases_from(store, partition)):
        path = segment_path(partition, base)
        footer = read_footer(store, path) if base < position.offset else None
        if footer is not None and _precedes(footer, position):
            return False
        if footer is not None and footer.merged and footer.end_offset > position.offset:
            return True
    pruned = last_span(store, partition)
    if pruned is not None and pruned.end_offset > position.offset:
        return True
    raise ChainBrokenError(
        f"the segment before offset {position.offset} is gone, and no file has merged it, nor "
        "does a seal cover it",
        partition_folder(partition),
        "Let nothing but nap-stream change the log's folder; run `nap-stream verify`",
    )


def _precedes(footer: SegmentFooter, position: ChainPosition) -> bool:
    """Whether the chain was at ``position`` after this file."""
    is_same = segment_sha256(footer.parts[-1]) == position.previous_sha256
    return footer.end_offset == position.offset and is_same


@dataclass(frozen=True, slots=True)
class WriterIdentity:
    """Who writes to a log, as the footers name it.

    ``id`` is for people who read them. The fingerprints are those of the model that scores all of
    its records and of the calibration that judges them.
    """

    id: str
    model_fingerprint: str
    calibration_fingerprint: str


class ScoredLog:
    """The write side of the log. One instance may be used by several threads.

    It holds no state about the chains: the caller carries the `ChainPosition` from one publish to
    the next, and asks for it with `end` after an assignment or a conflict.

    The clock tells when files were made, and which temporary files are left over.
    """

    def __init__(self, store: SegmentStore, writer: WriterIdentity, clock: Clock) -> None:
        self._store, self._writer, self._clock = store, writer, clock

    @property
    def root(self) -> str:
        """Where it lies, for errors."""
        return self._store.root

    def end(self, partition: TopicPartition, hint: int | None = None) -> ChainPosition | None:
        """Where the chain ends now: see `chain_end`.

        Also clears away what writers that died have left.
        """
        before_ms = self._clock.now_ms() - LEFTOVER_AGE_MS
        removed = self._store.remove_leftovers(partition_folder(partition), before_ms)
        if removed:
            structlog.get_logger().info(
                "temporary_files_removed", partition=str(partition), files=removed
            )
        return chain_end(self._store, partition, hint)

    def begin(
        self, partition: TopicPartition, offset: int, topic_id: str | None = None
    ) -> ChainPosition:
        """Fix where a chain starts, by an exclusively created genesis marker.

        ``offset`` is the first segment's base offset; ``topic_id`` is None where the broker has
        none.

        Returns:
            The chain's end: that of the winner where another writer was first.

        Raises:
            ChainBrokenError: As `chain_end`.
            ScoredLogError: The marker could not be written.
            ValueError: The offset is negative.
        """
        if offset < 0:
            raise ValueError(f"a chain cannot start at offset {offset} of {partition}")
        existing = self.end(partition)
        if existing is not None:
            return existing
        topic, number, now_ms = partition.topic, partition.partition, self._clock.now_ms()
        content = encode_genesis(Genesis(topic, number, offset, self._writer.id, now_ms, topic_id))
        self._store.prepare(partition_folder(partition))
        if self._store.create(genesis_path(partition), content):
            return ChainPosition(offset, sha256_hex(content), topic_id=topic_id)
        winner = self.end(partition)
        if winner is None:
            raise ChainBrokenError(
                "the genesis marker was there and is gone",
                genesis_path(partition),
                "Let nothing but nap-stream change the log's folder",
            )
        return winner

    def publish(
        self,
        partition: TopicPartition,
        position: ChainPosition,
        end_offset: int,
        rows: pa.Table,
        *,
        gap: str | None = None,
    ) -> PublishedSegment:
        """Make the segment ``[position.offset, end_offset)`` durable, or nothing at all.

        Args:
            partition: Whose chain.
            position: Where the chain ends, as the caller knows it.
            end_offset: The next segment's base offset; greater than ``position.offset``.
            rows: Columns of `ROWS`, ordered by (offset, index), all within the range. May be
                empty only for offsets that the topic skips, or with ``gap``.
            gap: Why offsets are missing, for a segment without rows that retention forced.

        Raises:
            SegmentConflictError: Another writer has published this base offset.
            ScoredLogError: The segment could not be written. To publish the same base offset
                again is safe: where the failure came too late to take the name back, that ends
                in `SegmentConflictError`, and `end` says what holds.
            ValueError: The rows are not within the range or not in order, or the range is empty.
        """
        rows = rows.combine_chunks()
        _check_rows(partition, position.offset, end_offset, rows)
        low, high = event_time_range(rows)
        writer = self._writer
        table = with_fingerprints(rows, writer.model_fingerprint, writer.calibration_fingerprint)
        footer = SegmentFooter(
            partition=partition,
            base_offset=position.offset,
            end_offset=end_offset,
            model_fingerprint=writer.model_fingerprint,
            calibration_fingerprint=writer.calibration_fingerprint,
            rows=rows.num_rows,
            scored_rows=rows.num_rows - rows.column("class_id").null_count,
            min_event_time_ms=low,
            max_event_time_ms=high,
            writer_id=writer.id,
            created_time_ms=self._clock.now_ms(),
            previous_sha256=position.previous_sha256,
            rows_sha256=rows_sha256(table),
            topic_id=position.topic_id,
            gap=gap,
        )
        content = encode_segment(footer, table)
        path = segment_path(partition, position.offset)
        if not self._store.create(path, content):
            raise _conflict(path, f"another writer has published base offset {position.offset}")
        if is_taken(self._store, partition, position):
            self._store.remove([path])
            raise _conflict(
                path, f"base offset {position.offset} is in a compacted file, or was pruned"
            )
        end = ChainPosition(end_offset, segment_sha256(footer), position.offset, position.topic_id)
        return PublishedSegment(partition, position.offset, end, rows.num_rows, len(content), path)


def _conflict(path: str, problem: str) -> SegmentConflictError:
    return SegmentConflictError(
        problem, path, "Drop these rows, read the chain's end and go on from there"
    )


def _check_rows(
    partition: TopicPartition, base_offset: int, end_offset: int, rows: pa.Table
) -> None:
    offset, index = rows.column("offset").to_numpy(), rows.column("index").to_numpy()
    outside = (offset < base_offset) | (offset >= end_offset) | (index < 0)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"{partition}@{offset[row]}[{index[row]}] is not in [{base_offset}, {end_offset})"
        )
    ascends = (offset[1:] > offset[:-1]) | ((offset[1:] == offset[:-1]) & (index[1:] > index[:-1]))
    if not ascends.all():
        row = int((~ascends).argmax()) + 1
        raise ValueError(
            f"{partition}@{offset[row]}[{index[row]}] does not come after "
            f"{offset[row - 1]}[{index[row - 1]}]"
        )
