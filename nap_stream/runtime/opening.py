"""Puts the coordinator together from settings. Knows no Ray."""

from collections.abc import Iterator, Mapping

from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.clock import Clock
from nap_stream.records import CalibrationFacts, SegmentSummary, TopicPartition
from nap_stream.runtime.coordinator import Coordinator
from nap_stream.runtime.intake import LAST_OFFSET
from nap_stream.scored_log.reader import partitions, require_root, tail
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.summary import summarise_chain
from nap_stream.scored_log.walk import parts_backwards
from nap_stream.settings import Settings

ChainEnds = Mapping[TopicPartition, int]
"""The end offset of each chain of a topic; partitions without a segment are left out."""


def chain_ends(settings: Settings) -> ChainEnds:
    """Where the chains of the topic end now.

    Raises:
        ScoredLogError: The log cannot be read.
    """
    store = store_at(settings.log.root)
    return {
        partition: newest.end_offset
        for partition in partitions(store, settings.kafka.topic)
        if (newest := next(parts_backwards(store, partition), None)) is not None
    }


def open_coordinator(
    settings: Settings,
    calibration: CalibrationFacts,
    clock: Clock,
    since: ChainEnds | None = None,
) -> Coordinator:
    """A coordinator that has rebuilt its window from the log, serves metrics and can alert.

    Args:
        settings: Of the monitor.
        calibration: What flags are judged by.
        clock: The time.
        since: Where the chains ended when the run began, to count the rows that the log has got
            since then; None counts from now on.

    Raises:
        NapStreamError: What keeps it from starting.
    """
    require_root(store_at(settings.log.root))
    log = _LogSummaries(settings)
    sink = KafkaAlertSink(settings.kafka, settings.alerts.topic)
    coordinator = Coordinator(
        settings, calibration, sink, read_range=log.read_range, read_tail=log.read_tail, clock=clock
    )
    try:
        coordinator.start(since)
    except BaseException:
        coordinator.close()
        raise
    return coordinator


class _LogSummaries:
    """Summaries that nobody sent, or that were sent to a coordinator that is gone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = store_at(settings.log.root)

    def read_range(
        self, partition: TopicPartition, start: int, end: int
    ) -> tuple[SegmentSummary, ...]:
        return tuple(self._summaries(partition, start, end))

    def read_tail(self) -> tuple[SegmentSummary, ...]:
        window = self._settings.drift.window_records
        return tuple(
            summary
            for partition in partitions(self._store, self._settings.kafka.topic)
            if (start := tail(self._store, partition, window)) is not None
            for summary in self._summaries(partition, start, LAST_OFFSET)
        )

    def _summaries(
        self, partition: TopicPartition, start: int, end: int
    ) -> Iterator[SegmentSummary]:
        return summarise_chain(
            self._store,
            partition,
            start,
            end,
            pane_ms=self._settings.drift.pane_ms,
            example_count=self._settings.alerts.examples,
        )
