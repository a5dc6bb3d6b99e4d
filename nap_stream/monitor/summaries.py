"""Summaries from the scored log: what no worker sent, or sent to a coordinator that is gone."""

import heapq
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import structlog

from nap_stream.core.alert_state import Transition
from nap_stream.core.panes import count_panes
from nap_stream.drift.records import DriftAlert
from nap_stream.errors import ChainBrokenError, NapStreamError
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.read import partitions, parts_backwards
from nap_stream.scored_log.stores.base import SegmentStore
from nap_stream.scored_log.summary import summarise_chain, summary_shape
from nap_stream.settings.schema import Settings

LogEnds = Mapping[TopicPartition, int]
"""The end offset of each chain of a topic; partitions without a segment are left out."""
Chains = Mapping[TopicPartition, Iterator[SegmentSummary]]
"""Summaries of each partition, in order of offset."""

LAST_OFFSET = 2**63 - 1
TAIL_WINDOWS = 10
"""How many windows' records a tail holds, over all partitions; each has one at least."""
_BEFORE_ALL_MS = -(2**63)


def in_event_time(chains: Chains) -> Iterator[tuple[TopicPartition, SegmentSummary | None]]:
    """Read several chains side by side: always the one that is furthest behind in event time.

    So the panes that wait for the slowest partition stay few, however long the chains are. No chain
    is read further than needed. Yields a partition and its next summary, or None once where its
    chain has ended.
    """
    reached = [(_BEFORE_ALL_MS, partition) for partition in chains]
    heapq.heapify(reached)
    while reached:
        time_ms, partition = heapq.heappop(reached)
        summary = next(chains[partition], None)
        yield partition, summary
        if summary is not None:
            newest_ms = summary.max_event_time_ms
            time_ms = time_ms if newest_ms is None else max(time_ms, newest_ms)
            heapq.heappush(reached, (time_ms, partition))


class LogSummaries:
    """The log of a monitor's topic, as summaries of its segments.

    Tails hold only what the calibration of ``calibration_fingerprint`` has judged.
    """

    def __init__(
        self, store: SegmentStore, settings: Settings, calibration_fingerprint: str
    ) -> None:
        self._store, self._topic = store, settings.kafka.topic
        self._window, self._pane_ms = settings.drift.window_records, settings.drift.pane_ms
        self._shape = summary_shape(settings)
        self._fingerprint = calibration_fingerprint

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that the log has.

        Raises:
            ScoredLogError: The log cannot be read, here as in the other methods but `find`.
        """
        return partitions(self._store, self._topic)

    def ends(self) -> LogEnds:
        """Say where the chains end now."""
        return {
            partition: newest.end_offset
            for partition in self.partitions()
            if (newest := next(parts_backwards(self._store, partition), None)) is not None
        }

    def read(self, partition: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        """Summaries of the segments that begin within ``[start, end)``, in order."""
        return summarise_chain(self._store, partition, start, end, self._shape)

    def find(self, wanted: OffsetRange) -> Sequence[SegmentSummary] | None:
        """What `read` gives; None where the log cannot be read now, which is logged.

        Nothing where a segment can never be read, so that it is given up as missing.
        """
        try:
            return tuple(self.read(wanted.partition, wanted.start, wanted.end))
        except NapStreamError as error:
            structlog.get_logger().warning("log_not_read", range=str(wanted), cause=str(error))
            return () if isinstance(error, ChainBrokenError) else None

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
        no_times, no_p_values, no_flags = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_)
        return SegmentSummary(
            partition=footer.partition,
            base_offset=footer.base_offset,
            end_offset=footer.end_offset,
            rows_by_status={},
            panes=count_panes(no_times, no_p_values, no_flags, pane_ms=self._pane_ms),
            max_event_time_ms=None,
            path=segment_path(footer.partition, footer.base_offset),
        )


class CatchUpFilter:
    """Holds back the alerts of the past that a new monitor judges; tells what fires at its end.

    The past ends at ``until_ms``, milliseconds since the epoch. Some of it may be judged late: it
    waits for a partition that lags, or that brings nothing more.
    """

    def __init__(self, until_ms: int) -> None:
        self._until_ms = until_ms
        self._firing: dict[str | None, DriftAlert] = {}

    def take(
        self, alerts: Sequence[DriftAlert], judged_until_ms: int | None
    ) -> tuple[DriftAlert, ...] | None:
        """Take alerts in order; give those to be told, or None while the past goes on.

        Those are the newest alert of the stream and of each key that fires at the end of the past,
        and what came after. From then on the filter is of no more use. ``judged_until_ms`` is the
        end of the newest pane that was judged, None before the first.
        """
        past = [alert for alert in alerts if alert.time_ms <= self._until_ms]
        for alert in past:
            self._firing.pop(alert.key, None)
            if alert.change.transition is Transition.FIRING:
                self._firing[alert.key] = alert
        if judged_until_ms is None or judged_until_ms < self._until_ms:
            return None
        return (*self._firing.values(), *alerts[len(past) :])
