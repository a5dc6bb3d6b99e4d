"""Puts the coordinator together from settings. Knows no Ray."""

from collections.abc import Mapping

from nap_stream.alert.opening import open_sinks
from nap_stream.clock import Clock
from nap_stream.records import CalibrationFacts, TopicPartition
from nap_stream.runtime.checkpoints import CheckpointStore
from nap_stream.runtime.coordinator import Coordinator
from nap_stream.runtime.log_summaries import LogSummaries
from nap_stream.scored_log.reader import partitions, require_root
from nap_stream.scored_log.stores import store_at
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
    """A coordinator that knows from checkpoint and log where it is, serves metrics and can alert.

    Args:
        settings: Of the monitor.
        calibration: What flags are judged by.
        clock: The time.
        since: Where the chains ended when the run began, to count the rows that the log has got
            since then; None counts from now on.

    Raises:
        NapStreamError: What keeps it from starting.
    """
    store = store_at(settings.log.root)
    require_root(store)
    coordinator = Coordinator(
        settings,
        calibration,
        open_sinks(settings, clock),
        summaries=LogSummaries(store, settings, calibration.fingerprint),
        checkpoints=CheckpointStore(store, settings.alerts.monitor, settings.kafka.topic),
        clock=clock,
    )
    try:
        coordinator.start(since)
    except BaseException:
        coordinator.close()
        raise
    return coordinator
