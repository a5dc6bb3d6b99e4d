"""Puts the coordinator together from settings. Knows no Ray."""

from collections.abc import Iterator

from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.clock import Clock
from nap_stream.records import CalibrationFacts, SegmentSummary, TopicPartition
from nap_stream.runtime.coordinator import Coordinator
from nap_stream.scored_log.layout import segment_path
from nap_stream.scored_log.local import check_writable
from nap_stream.scored_log.reader import partitions, segments, tail
from nap_stream.scored_log.summary import summarise_segment
from nap_stream.settings import Settings


def open_coordinator(
    settings: Settings, calibration: CalibrationFacts, clock: Clock
) -> Coordinator:
    """A coordinator that has rebuilt its window from the log, serves metrics and can alert.

    Args:
        settings: Of the monitor.
        calibration: What flags are judged by.
        clock: The time.

    Raises:
        NapStreamError: What keeps it from starting.
    """
    check_writable(settings.log.root)
    log = _LogSummaries(settings)
    sink = KafkaAlertSink(settings.kafka, settings.alerts.topic)
    coordinator = Coordinator(
        settings, calibration, sink, read_range=log.read_range, read_tail=log.read_tail, clock=clock
    )
    try:
        coordinator.start()
    except BaseException:
        coordinator.close()
        raise
    return coordinator


class _LogSummaries:
    """Summaries that nobody sent, or that were sent to a coordinator that is gone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def read_range(
        self, partition: TopicPartition, start: int, end: int
    ) -> tuple[SegmentSummary, ...]:
        first, last = segment_path(partition, start), segment_path(partition, end)
        paths = segments(self._settings.log.root, partition)
        return tuple(self._summaries(path for path in paths if first <= path < last))

    def read_tail(self) -> tuple[SegmentSummary, ...]:
        root, window = self._settings.log.root, self._settings.drift.window_records
        return tuple(
            summary
            for partition in partitions(root, self._settings.kafka.topic)
            for summary in self._summaries(iter(tail(root, partition, window)))
        )

    def _summaries(self, paths: Iterator[str]) -> Iterator[SegmentSummary]:
        for path in paths:
            yield summarise_segment(
                self._settings.log.root,
                path,
                pane_ms=self._settings.drift.pane_ms,
                example_count=self._settings.alerts.examples,
            )
