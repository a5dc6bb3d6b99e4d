"""The chain of segments, over any store that can create a file exclusively."""

from collections.abc import Sequence

import pyarrow as pa

from nap_stream.clock import Clock
from nap_stream.errors import ChainBrokenError, SegmentConflictError
from nap_stream.records import ChainPosition, PublishedSegment, ScoredRecord, TopicPartition
from nap_stream.scored_log.chain_end import ChainEnds, sha256_hex
from nap_stream.scored_log.digest import rows_sha256
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.genesis import Genesis, encode_genesis
from nap_stream.scored_log.layout import (
    genesis_path,
    partition_folder,
    segment_path,
)
from nap_stream.scored_log.schema import to_table
from nap_stream.scored_log.segment import (
    count_scored,
    encode_segment,
    event_time_range,
)
from nap_stream.scored_log.store import SegmentStore


class ChainedScoredLog:
    """The write side of the log; implements `nap_stream.scored_log.base.ScoredLog`.

    Args:
        store: Where the files lie.
        writer_id: Who writes, for people who read the footers.
        model_fingerprint: The model that scores all records of this writer.
        calibration_fingerprint: The calibration that judges all records of this writer.
        clock: Tells when files were made.
    """

    def __init__(
        self,
        store: SegmentStore,
        *,
        writer_id: str,
        model_fingerprint: str,
        calibration_fingerprint: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._ends = ChainEnds(store)
        self._writer_id = writer_id
        self._model_fingerprint = model_fingerprint
        self._calibration_fingerprint = calibration_fingerprint
        self._clock = clock

    def end(self, partition: TopicPartition, hint: int | None = None) -> ChainPosition | None:
        """Where the chain ends now; see `nap_stream.scored_log.chain_end.ChainEnds.end`."""
        return self._ends.end(partition, hint)

    def begin(
        self, partition: TopicPartition, offset: int, topic_id: str | None = None
    ) -> ChainPosition:
        """Fix where a chain starts, by an exclusively created genesis marker.

        Returns:
            The chain's end: that of the winner where another writer was first.

        Raises:
            ChainBrokenError: As `end`.
            ScoredLogError: The marker could not be written.
            ValueError: The offset is negative.
        """
        if offset < 0:
            raise ValueError(f"a chain cannot start at offset {offset} of {partition}")
        existing = self.end(partition)
        if existing is not None:
            return existing
        marker = Genesis(
            partition.topic,
            partition.partition,
            offset,
            self._writer_id,
            self._clock.now_ms(),
            topic_id,
        )
        content = encode_genesis(marker)
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
        records: Sequence[ScoredRecord],
        *,
        gap: str | None = None,
    ) -> PublishedSegment:
        """Make the segment ``[position.offset, end_offset)`` durable, or nothing at all.

        See `nap_stream.scored_log.base.ScoredLog.publish`.

        Raises:
            SegmentConflictError: Another writer has published this base offset.
            ScoredLogError: The segment could not be written. To publish the same base offset
                again is safe: where the failure came too late to take the name back, that ends
                in `SegmentConflictError`, and `end` says what holds.
            ValueError: The records are not within the range or not in order, or the range is
                empty.
        """
        _check_rows(partition, position.offset, end_offset, records)
        low, high = event_time_range(records)
        table = self._rows(records)
        footer = SegmentFooter(
            partition=partition,
            base_offset=position.offset,
            end_offset=end_offset,
            model_fingerprint=self._model_fingerprint,
            calibration_fingerprint=self._calibration_fingerprint,
            rows=len(records),
            scored_rows=count_scored(records),
            min_event_time_ms=low,
            max_event_time_ms=high,
            writer_id=self._writer_id,
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
        if self._ends.is_compacted(partition, position):
            self._store.remove([path])
            raise _conflict(path, f"base offset {position.offset} is in a compacted file")
        end = ChainPosition(end_offset, segment_sha256(footer), position.offset, position.topic_id)
        return PublishedSegment(partition, position.offset, end, len(records), len(content), path)

    def _rows(self, records: Sequence[ScoredRecord]) -> pa.Table:
        return to_table(
            records,
            model_fingerprint=self._model_fingerprint,
            calibration_fingerprint=self._calibration_fingerprint,
        )


def _conflict(path: str, problem: str) -> SegmentConflictError:
    return SegmentConflictError(
        problem, path, "Drop these rows, read the chain's end and go on from there"
    )


def _check_rows(
    partition: TopicPartition, base_offset: int, end_offset: int, records: Sequence[ScoredRecord]
) -> None:
    last = (base_offset, -1)
    for record in records:
        origin = record.origin
        here = (origin.offset, origin.index)
        if origin.partition != partition or origin.offset >= end_offset or origin.index < 0:
            raise ValueError(f"{origin} is not in [{base_offset}, {end_offset}) of {partition}")
        if here <= last:
            raise ValueError(f"{origin} does not come after {last} of {partition}")
        last = here
