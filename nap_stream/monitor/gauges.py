"""Where drift stands, as gauges and counters of the metrics."""

from nap_stream.core.alert_state import Severity
from nap_stream.drift.records import BlockSnapshot, DriftSnapshot
from nap_stream.metrics import BOUNDS, DECIDING, Metrics

_UNKNOWN = float("nan")


def show_drift(
    metrics: Metrics, before: DriftSnapshot, now: DriftSnapshot, window_size: int, now_ms: int
) -> None:
    """Set the gauges to ``now``; count what has grown since ``before``, which was shown last.

    ``window_size`` is the number of records in a full window, ``now_ms`` the time since the epoch.
    """
    metrics.ood_fraction.set(_UNKNOWN if now.fraction is None else now.fraction)
    metrics.ood_fraction_bound.set(_UNKNOWN if now.bound is None else now.bound)
    end_ms, unscored = now.window_end_ms, now.unscored
    metrics.window_age.set(_UNKNOWN if end_ms is None else max(0, now_ms - end_ms) / 1000)
    metrics.unscored_fraction.set(_UNKNOWN if unscored is None else unscored.share)
    metrics.unscored_fraction_bound.set(_UNKNOWN if unscored is None else unscored.bound)
    metrics.window_records.set(now.window_records)
    metrics.window_fill.set(min(1.0, now.window_records / window_size))
    for severity in Severity:
        metrics.alert_firing.labels(severity.value).set(int(now.severity is severity))
        is_firing = unscored is not None and unscored.severity is severity
        metrics.unscored_alert_firing.labels(severity.value).set(int(is_firing))
    of_unscored = () if now.unscored_reading is None else (now.unscored_reading,)
    of_blocks = () if now.blocks is None else (now.blocks.reading,)
    for reading in (*now.readings, *of_unscored, *of_blocks):
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
    metrics.untimely_records.inc(now.implausible_timestamps - before.implausible_timestamps)
    metrics.duplicate_summaries.inc(now.duplicates - before.duplicates)
    for monitor in DECIDING:
        decides = monitor == ("records" if now.blocks is None else "blocks")
        metrics.deciding_monitor.labels(monitor).set(int(decides))
    if now.blocks is not None:
        _show_blocks(metrics, now.blocks)


def _show_blocks(metrics: Metrics, now: BlockSnapshot) -> None:
    metrics.block_seconds.set(now.block_ms / 1000)
    until_ms = now.judged_until_ms
    metrics.blocks_judged_until.set(_UNKNOWN if until_ms is None else until_ms / 1000)
    metrics.keys_new.set(now.new_keys)
    metrics.keys_waiting.set(now.waiting_keys)
    metrics.changes_accepted.set(now.accepted)
    month = now.month
    bounds = (month.change, month.low, month.high) if month is not None else (_UNKNOWN,) * 3
    for bound, value in zip(BOUNDS, bounds, strict=True):
        metrics.month_change.labels(bound).set(value)
