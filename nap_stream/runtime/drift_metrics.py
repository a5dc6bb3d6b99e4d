"""Puts the drift monitor's state into metrics."""

from nap_stream.core.alert_state import AlertState
from nap_stream.drift.monitor import DriftSnapshot
from nap_stream.metrics import Metrics


def show_drift(
    metrics: Metrics, before: DriftSnapshot, now: DriftSnapshot, window_size: int
) -> None:
    """Set the gauges to ``now``; count what has grown since ``before``."""
    unknown = float("nan")
    metrics.ood_fraction.set(unknown if now.fraction is None else now.fraction)
    metrics.ood_fraction_bound.set(unknown if now.bound is None else now.bound)
    metrics.window_records.set(now.window_records)
    metrics.window_fill.set(min(1.0, now.window_records / window_size))
    metrics.alert_firing.set(int(now.state is AlertState.FIRING))
    metrics.late_records.inc(now.late_records - before.late_records)
    metrics.future_records.inc(now.future_records - before.future_records)
    metrics.duplicate_summaries.inc(now.duplicates - before.duplicates)
