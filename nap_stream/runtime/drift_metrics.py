"""Puts the drift monitor's state into metrics."""

from nap_stream.core.alert_state import Severity
from nap_stream.drift.monitor import DriftSnapshot
from nap_stream.metrics import Metrics

_UNKNOWN = float("nan")


def show_drift(
    metrics: Metrics, before: DriftSnapshot, now: DriftSnapshot, window_size: int, now_ms: int
) -> None:
    """Set the gauges to ``now``; count what has grown since ``before``.

    Args:
        metrics: To set.
        before: What was shown last.
        now: What is to be shown.
        window_size: Records of a full window.
        now_ms: The time, in milliseconds since the epoch.
    """
    metrics.ood_fraction.set(_UNKNOWN if now.fraction is None else now.fraction)
    metrics.ood_fraction_bound.set(_UNKNOWN if now.bound is None else now.bound)
    metrics.window_records.set(now.window_records)
    metrics.window_fill.set(min(1.0, now.window_records / window_size))
    for severity in Severity:
        metrics.alert_firing.labels(severity.value).set(int(now.severity is severity))
    for reading in now.readings:
        metrics.set_detector(
            reading.detector, reading.statistic, reading.threshold, active=reading.active
        )
    mark_ms = now.watermark_ms
    metrics.watermark_delay.set(_UNKNOWN if mark_ms is None else (now_ms - mark_ms) / 1000)
    for partition, partition_mark_ms in now.partition_watermarks_ms.items():
        metrics.set_watermark(partition, partition_mark_ms)
    metrics.keys.set(now.keys)
    metrics.keys_active.set(now.keys_active)
    metrics.keys_firing.set(now.keys_firing)
    metrics.keys_forgotten.inc(now.keys_forgotten - before.keys_forgotten)
    metrics.late_records.inc(now.late_records - before.late_records)
    metrics.untimely_records.inc(now.untimely_records - before.untimely_records)
    metrics.duplicate_summaries.inc(now.duplicates - before.duplicates)
