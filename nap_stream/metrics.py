"""Every metric of a run. Nothing is registered on import."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from nap_stream.core.alert_state import Detector, Severity, Transition
from nap_stream.records import EVIDENCE_OUTCOMES, TIME_PARTS, Disagreement, Status, TopicPartition

STAGE_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""From one small image to a commit that waits for its broker."""
GAP_STATE = "gap"
"""The state of an alert that a gap was declared; the others are those of drift."""
DECIDING = ("records", "blocks")
"""What can decide."""
BOUNDS = ("estimate", "low", "high")
"""Of an effect: itself, and its interval."""
WHY_LEFT_OUT = ("refused", "absent", "gone")
"""Why nothing is read of a topic."""
BATCH_STAGE = "batch"
"""The stage of a whole batch: from the arrival of its first image to its scores."""


class Metrics:
    """The metrics of one run of this version of the program, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"nap_stream_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"nap_stream_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, labels: Iterable[str] = ()) -> Histogram:
            return Histogram(
                f"nap_stream_{name}", text, labels, registry=self.registry, buckets=STAGE_BUCKETS_S
            )

        self.records = counter("records", "Rows published to the scored log.", ["status"])
        self.images_scored = counter("images_scored", "Images that the model has scored.")
        self.dead_letters = counter("dead_letters", "Messages sent to the dead-letter topic.")
        self.segments_published = counter("segments_published", "Segments made durable.")
        self.segment_conflicts = counter(
            "segment_conflicts", "Segments that another writer had published."
        )
        self.rebalances = counter("rebalances", "Changes of the partitions that a worker owns.")
        self.offset_disagreements = counter(
            "offset_disagreements",
            "Partitions taken over whose committed offset was not where the log ends.",
            ["kind"],
        )
        self.out_of_memory, self.decode_warnings = (
            counter(
                "out_of_memory",
                "Batches that did not fit a GPU's memory; the next ones are smaller.",
            ),
            counter("decode_warnings", "Images of which the decoder warned; the log says what of."),
        )
        self.evidence_images, self.evidence_bytes = (
            counter(
                "evidence_images",
                "Images that were to be kept as evidence, by what became of them.",
                ["outcome"],
            ),
            counter("evidence_bytes", "Bytes of images kept as evidence."),
        )
        self.worker_restarts = counter("worker_restarts", "Workers that were replaced.")
        self.late_records = counter(
            "late_records", "Scored records counted in a later pane than their event time's."
        )
        self.untimely_records = counter(
            "untimely_records",
            "Records whose event time cannot be true; they count at their ingest time.",
        )
        self.duplicate_summaries = counter(
            "duplicate_summaries", "Summaries of segments that were known already."
        )
        self.gaps = counter("gaps", "Offset ranges that the log or the monitor had to do without.")
        self.gap_offsets = counter("gap_offsets", "Offsets in those ranges.")
        self.alerts_published = counter(
            "alerts_published",
            "Alerts delivered, of drift, of images without scores and of gaps.",
            ["sink", "state"],
        )
        self.alert_failures = counter(
            "alert_failures", "Failed attempts to deliver an alert.", ["sink"]
        )
        self.alerts_refused = counter(
            "alerts_refused", "Alerts given up because the sink will never take them.", ["sink"]
        )
        self.alerts_undelivered = gauge(
            "alerts_undelivered", "Alerts that wait for delivery.", ["sink"]
        )

        self.batch_duration = histogram(
            "batch_duration_seconds", "From the arrival of a batch's first image to its scores."
        )
        self.stage_duration = histogram(
            "stage_duration_seconds", "Time of one step of a stage.", ["stage"]
        )

        self.scoring_seconds = counter(
            "scoring_seconds",
            "Seconds of the threads that score: waiting for messages, for their decoding, for a "
            "slow log, or at work on a batch (model).",
            ["part"],
        )
        self.start_time = gauge("start_time_seconds", "Unix time when this coordinator started.")
        self._add_workers(gauge)
        self.topics_left_out = gauge(
            "topics_left_out",
            "Topics, of several, that are not read, or in part: refused (replaced, cut, or this "
            "user may not), absent (named, and not there), or gone (the log has it, and a pattern "
            "finds it no more).",
            ["why"],
        )
        # The others are known once the broker was asked.
        self.topics_left_out.labels(WHY_LEFT_OUT[0])
        self.last_commit = gauge(
            "last_commit_timestamp_seconds", "Unix time of the last offset commit."
        )
        self.partition_lag = gauge(
            "partition_lag_offsets",
            "Offsets between the position and the high watermark.",
            ["topic", "partition"],
        )
        self.partition_time_lag = gauge(
            "partition_time_lag_seconds",
            "Age of the last published record's event time when it was published.",
            ["topic", "partition"],
        )
        self.partition_watermark = gauge(
            "partition_watermark_seconds",
            "Unix time of the newest event of a partition that has been taken into account.",
            ["topic", "partition"],
        )
        self._add_fractions(gauge)
        self.window_records = gauge("window_records", "Scored records in the rolling window.")
        self.window_fill = gauge("window_fill_ratio", "Fill of the rolling window, 1 = full.")
        self.detector_statistic = gauge(
            "detector_statistic",
            "Where a detector stands: flags in the window, or the statistic of an e-detector.",
            ["detector"],
        )
        self.detector_threshold = gauge(
            "detector_threshold", "The statistic from which on it is active.", ["detector"]
        )
        self.detector_active = gauge(
            "detector_active", "1 while the detector is active, else 0.", ["detector"]
        )
        self.alert_firing = gauge(
            "alert_firing",
            "1 while the drift alert fires with this severity, else 0.",
            ["severity"],
        )
        self.watermark_delay = gauge(
            "watermark_delay_seconds",
            "Age of the event time up to which the stream has been judged.",
        )
        self.keys = gauge("keys", "Keys that are remembered.")
        self.keys_active = gauge("keys_active", "Keys whose detector is active.")
        self.keys_firing = gauge("keys_firing", "Keys whose alert fires.")
        self.keys_forgotten = counter("keys_forgotten", "Keys forgotten to bound memory.")
        self._add_checkpoints(counter, gauge)
        self._add_blocks(gauge)
        self._start_series(version)

    def _add_workers(self, gauge: Callable[..., Gauge]) -> None:
        self.images_per_second = gauge(
            "images_per_second", "Images scored a second, over the last reports of all workers."
        )
        self.workers = gauge("workers", "Workers that have reported lately.")
        self.workers_expected = gauge("workers_expected", "Workers that are to report now.")
        self.clock_skew = gauge(
            "clock_skew_seconds",
            "How far the clock of a worker's machine is from the coordinator's, at most.",
        )
        self.workers_waiting = gauge(
            "workers_waiting", "Workers that wait for the log, the dead-letter topic or the broker."
        )

    def _add_fractions(self, gauge: Callable[..., Gauge]) -> None:
        self.ood_fraction = gauge("ood_fraction", "OOD fraction of the rolling window.")
        self.ood_fraction_bound = gauge(
            "ood_fraction_bound", "OOD fraction that fires; NaN until the window is full."
        )
        self.ood_fraction_expected = gauge(
            "ood_fraction_expected", "Highest OOD fraction of an in-distribution stream, p_U."
        )
        self.window_age = gauge(
            "window_age_seconds",
            "Age of the newest scored record in the rolling window, of which the OOD fraction is.",
        )
        self.unscored_fraction = gauge(
            "unscored_fraction", "Share of the newest images that have no scores."
        )
        self.unscored_fraction_bound = gauge(
            "unscored_fraction_bound", "The highest share that is in order; NaN if not watched."
        )
        self.unscored_alert_firing = gauge(
            "unscored_alert_firing",
            "1 while the alert of images without scores fires with this severity, else 0.",
            ["severity"],
        )

    def _add_checkpoints(
        self, counter: Callable[..., Counter], gauge: Callable[..., Gauge]
    ) -> None:
        self.checkpoint_failures = counter(
            "checkpoint_failures", "Checkpoints of the drift monitor that were not written."
        )
        self.last_checkpoint = gauge(
            "last_checkpoint_timestamp_seconds", "Unix time of the drift monitor's last checkpoint."
        )
        self.events_lost = counter(
            "events_lost", "Events that the log's chain of events lacks for good."
        )
        self.signed_checkpoint_failures = counter(
            "signed_checkpoint_failures",
            "Signed checkpoints of the log that were not written, sent or time-stamped.",
        )
        self.signed_checkpoint_failing = gauge(
            "signed_checkpoint_failing",
            "1 where the newest signed checkpoint is not whole: not written, sent or time-stamped.",
        )
        self.last_signed_checkpoint = gauge(
            "last_signed_checkpoint_timestamp_seconds",
            "Unix time of the log's last signed checkpoint.",
        )

    def _add_blocks(self, gauge: Callable[..., Gauge]) -> None:
        self.deciding_monitor = gauge(
            "deciding_monitor",
            "1 for what decides: single records, or blocks against a baseline.",
            ["monitor"],
        )
        self.block_seconds = gauge("block_seconds", "Length of a block; NaN without a baseline.")
        self.blocks_judged_until = gauge(
            "blocks_judged_until_seconds", "Unix time of the end of the last block that was judged."
        )
        self.keys_new = gauge("keys_new", "Keys that the baseline does not know, with a place.")
        self.keys_waiting = gauge("keys_waiting", "New keys that nothing judges, for want of room.")
        self.changes_accepted = gauge("changes_accepted", "Acceptances that have taken effect.")
        self.month_change = gauge(
            "month_ood_fraction_change",
            "OOD fraction of the newest calendar month less that of the baseline, and its 95 % "
            "interval; NaN while the month is new, and without a baseline.",
            ["bound"],
        )

    def add_sink(self, sink: str) -> None:
        """Start the series of a sink of alerts at zero."""
        for state in (*(transition.value for transition in Transition), GAP_STATE):
            self.alerts_published.labels(sink, state)
        self.alert_failures.labels(sink)
        self.alerts_refused.labels(sink)
        self.alerts_undelivered.labels(sink)

    def set_detector(
        self, detector: Detector, statistic: float, threshold: float, *, active: bool
    ) -> None:
        """Show where a detector stands; NaN for what is not known."""
        self.detector_statistic.labels(detector.value).set(statistic)
        self.detector_threshold.labels(detector.value).set(threshold)
        self.detector_active.labels(detector.value).set(int(active))

    def _start_series(self, version: str) -> None:
        """Have every series whose labels are known, from the beginning."""
        Info("nap_stream_build", "The program.", registry=self.registry).info({"version": version})
        unknown = float("nan")
        fractions = (self.ood_fraction, self.ood_fraction_bound, self.ood_fraction_expected)
        unscored = (self.unscored_fraction, self.unscored_fraction_bound)
        of_blocks = (self.block_seconds, self.blocks_judged_until)
        of_month = [self.month_change.labels(bound) for bound in BOUNDS]
        later = (*fractions, *unscored, *of_blocks, *of_month)
        for known_later in (*later, self.watermark_delay, self.window_age):
            known_later.set(unknown)
        for monitor in DECIDING:
            self.deciding_monitor.labels(monitor)
        for detector in Detector:
            self.set_detector(detector, unknown, unknown, active=False)
        for severity in Severity:
            self.alert_firing.labels(severity.value)
            self.unscored_alert_firing.labels(severity.value)
        for status in Status:
            self.records.labels(status.value)
        for part in TIME_PARTS:
            self.scoring_seconds.labels(part)
        for outcome in EVIDENCE_OUTCOMES:
            self.evidence_images.labels(outcome)
        for kind in Disagreement:
            self.offset_disagreements.labels(kind.value)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Put one measurement into the histogram of its stage, or of batches."""
        if stage == BATCH_STAGE:
            self.batch_duration.observe(seconds)
        else:
            self.stage_duration.labels(stage).observe(seconds)

    def set_partition(
        self, partition: TopicPartition, lag: int | None, time_lag_ms: int | None
    ) -> None:
        """Set the lags of a partition; what is unknown has no series."""
        seconds = None if time_lag_ms is None else time_lag_ms / 1000
        _set_or_remove(self.partition_lag, partition, lag)
        _set_or_remove(self.partition_time_lag, partition, seconds)

    def set_watermark(self, partition: TopicPartition, watermark_ms: int) -> None:
        """Set how far in event time, in milliseconds since the epoch, a partition has come."""
        _set_or_remove(self.partition_watermark, partition, watermark_ms / 1000)

    def remove_partition(self, partition: TopicPartition) -> None:
        """Drop the series of a partition that no worker has any more."""
        self.set_partition(partition, None, None)


def _set_or_remove(gauge: Gauge, partition: TopicPartition, value: float | None) -> None:
    labels = (partition.topic, str(partition.partition))
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
