"""A real scored log of a stream that drifts and comes back, and summaries as workers send them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from nap_stream.clock import ManualClock
from nap_stream.records import Origin, SegmentSummary, TopicPartition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import SummaryShape
from tests.scored_log.builders import scored
from tests.support.scored_records import RecordLog, ScoredRecord, summarise_records

START_MS = 1_767_268_800_000
"""2026-01-01T12:00:00Z."""
STEP_MS = 20
"""Between the records of a partition."""


def record(partition: TopicPartition, offset: int, p_value: float) -> ScoredRecord:
    time_ms = START_MS + offset * STEP_MS + partition.partition
    key = f"camera-{partition.partition}-{offset % 3}".encode()
    where = Origin(partition, offset, 0, key, time_ms, time_ms + 40)
    class_id = offset % 2
    row = scored(where, p_value=p_value, class_id=class_id, class_name=("cat", "dog")[class_id])
    return replace(row, scored_time_ms=time_ms + 60)


def drifting(partition: TopicPartition, count: int, drift: range) -> list[ScoredRecord]:
    """Uniform p-values; while it drifts, those of every third record, one camera, are low."""
    p_values = np.random.default_rng(partition.partition).uniform(0.001, 1, count)
    return [
        record(partition, i, float(p) / 50 if i in drift and i % 3 == 0 else float(p))
        for i, p in enumerate(p_values)
    ]


class Publisher:
    """A worker's end of the log: publishes a partition's records and summarises them.

    Args:
        store: Where the log lies.
        calibration_fingerprint: That the footers name.
        shape: Of the summaries.
    """

    def __init__(
        self, store: SegmentStore, calibration_fingerprint: str, shape: SummaryShape
    ) -> None:
        self._shape = shape
        self._log = RecordLog(
            store,
            WriterIdentity("worker-0", "a1" * 32, calibration_fingerprint),
            ManualClock(START_MS),
        )

    def publish(
        self, partition: TopicPartition, records: Sequence[ScoredRecord], sizes: Sequence[int]
    ) -> Iterator[SegmentSummary]:
        """Publish the records that the chain has not, as segments of these sizes by turns."""
        position = self._log.end(partition) or self._log.begin(partition, 0)
        turn = 0
        while rest := records[position.offset : position.offset + sizes[turn % len(sizes)]]:
            end = position.offset + len(rest)
            published = self._log.publish(partition, position, end, rest)
            yield summarise_records(published, rest, self._shape)
            position, turn = published.position, turn + 1

    def declare_gap(self, partition: TopicPartition, end: int, reason: str) -> SegmentSummary:
        """Publish that offsets up to ``end`` are gone."""
        position = self._log.end(partition) or self._log.begin(partition, 0)
        published = self._log.publish(partition, position, end, [], gap=reason)
        return summarise_records(published, [], self._shape, reason)
