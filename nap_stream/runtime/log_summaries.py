"""Summaries from the scored log: what nobody sent, or was sent to a coordinator that is gone."""

from collections.abc import Iterator

import numpy as np

from nap_stream.core.panes import count_panes
from nap_stream.records import SegmentSummary, TopicPartition
from nap_stream.runtime.intake import LAST_OFFSET
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.layout import segment_path
from nap_stream.scored_log.reader import partitions
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.summary import summarise_chain, summary_shape
from nap_stream.scored_log.walk import parts_backwards
from nap_stream.settings import Settings

TAIL_WINDOWS = 10
"""How many windows' records a tail holds, over all partitions; each has one at least."""


class LogSummaries:
    """The log of a monitor's topic; implements `nap_stream.runtime.intake.SummaryLog`.

    Args:
        store: Where the log lies.
        settings: Of the monitor.
        calibration_fingerprint: Tails hold nothing that another calibration has judged.
    """

    def __init__(
        self, store: SegmentStore, settings: Settings, calibration_fingerprint: str
    ) -> None:
        self._store, self._topic = store, settings.kafka.topic
        self._window, self._pane_ms = settings.drift.window_records, settings.drift.pane_ms
        self._shape = summary_shape(settings)
        self._fingerprint = calibration_fingerprint

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that the log has."""
        return partitions(self._store, self._topic)

    def end(self, partition: TopicPartition) -> int | None:
        """Say where a partition's chain ends; None while it has no segment."""
        newest = next(parts_backwards(self._store, partition), None)
        return None if newest is None else newest.end_offset

    def read(self, partition: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        """Summaries of the segments that begin within ``[start, end)``, in order."""
        return summarise_chain(self._store, partition, start, end, self._shape)

    def tail(self, partition: TopicPartition) -> Iterator[SegmentSummary]:
        """Summaries of the newest segments: a window's records at least, more where it is cheap.

        It begins after what another calibration has judged: those p-values mean something else.
        """
        share = TAIL_WINDOWS * self._window // max(1, len(self.partitions()))
        wanted = max(self._window, share)
        start, found, newest = None, 0, None
        for part in parts_backwards(self._store, partition):
            newest = newest or part
            if found >= wanted or part.calibration_fingerprint != self._fingerprint:
                break
            start, found = part.base_offset, found + part.scored_rows
        if start is not None:
            return self.read(partition, start, LAST_OFFSET)
        return iter(()) if newest is None else iter((self._uncounted(newest),))

    def _uncounted(self, footer: SegmentFooter) -> SegmentSummary:
        """Where the chain ends, and nothing of what its last segment holds."""
        none = np.zeros(0)
        return SegmentSummary(
            partition=footer.partition,
            base_offset=footer.base_offset,
            end_offset=footer.end_offset,
            rows_by_status={},
            panes=count_panes(
                none.astype(np.int64), none, none.astype(np.bool_), pane_ms=self._pane_ms
            ),
            max_event_time_ms=None,
            path=segment_path(footer.partition, footer.base_offset),
        )
