import math
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nap_stream.metrics import Metrics
from nap_stream.records import Disagreement
from tests.support.summaries import partition

SERIES = {
    "nap_stream_records_total",
    "nap_stream_images_scored_total",
    "nap_stream_dead_letters_total",
    "nap_stream_segments_published_total",
    "nap_stream_segment_conflicts_total",
    "nap_stream_rebalances_total",
    "nap_stream_offset_disagreements_total",
    "nap_stream_out_of_memory_total",
    "nap_stream_decode_warnings_total",
    "nap_stream_evidence_images_total",
    "nap_stream_evidence_bytes_total",
    "nap_stream_worker_restarts_total",
    "nap_stream_late_records_total",
    "nap_stream_untimely_records_total",
    "nap_stream_duplicate_summaries_total",
    "nap_stream_gaps_total",
    "nap_stream_gap_offsets_total",
    "nap_stream_alerts_published_total",
    "nap_stream_alert_failures_total",
    "nap_stream_alerts_refused_total",
    "nap_stream_alerts_undelivered",
    "nap_stream_batch_duration_seconds_bucket",
    "nap_stream_stage_duration_seconds_bucket",
    "nap_stream_scoring_seconds_total",
    "nap_stream_images_per_second",
    "nap_stream_workers",
    "nap_stream_workers_expected",
    "nap_stream_start_time_seconds",
    "nap_stream_clock_skew_seconds",
    "nap_stream_workers_waiting",
    "nap_stream_last_commit_timestamp_seconds",
    "nap_stream_partition_lag_offsets",
    "nap_stream_partition_time_lag_seconds",
    "nap_stream_partition_watermark_seconds",
    "nap_stream_ood_fraction",
    "nap_stream_ood_fraction_bound",
    "nap_stream_ood_fraction_expected",
    "nap_stream_window_age_seconds",
    "nap_stream_unscored_fraction",
    "nap_stream_unscored_fraction_bound",
    "nap_stream_unscored_alert_firing",
    "nap_stream_window_records",
    "nap_stream_window_fill_ratio",
    "nap_stream_detector_statistic",
    "nap_stream_detector_threshold",
    "nap_stream_detector_active",
    "nap_stream_alert_firing",
    "nap_stream_watermark_delay_seconds",
    "nap_stream_topics_left_out",
    "nap_stream_keys",
    "nap_stream_keys_active",
    "nap_stream_keys_firing",
    "nap_stream_keys_forgotten_total",
    "nap_stream_keys_new",
    "nap_stream_keys_waiting",
    "nap_stream_deciding_monitor",
    "nap_stream_block_seconds",
    "nap_stream_blocks_judged_until_seconds",
    "nap_stream_changes_accepted",
    "nap_stream_month_ood_fraction_change",
    "nap_stream_checkpoint_failures_total",
    "nap_stream_last_checkpoint_timestamp_seconds",
    "nap_stream_signed_checkpoint_failing",
    "nap_stream_events_lost_total",
    "nap_stream_signed_checkpoint_failures_total",
    "nap_stream_last_signed_checkpoint_timestamp_seconds",
    "nap_stream_build_info",
}


def names(metrics: Metrics) -> set[str]:
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_sum", "_count"))
    }


def test_every_series_has_its_name() -> None:
    metrics = Metrics("1.2.3")
    metrics.observe_stage("decode", 0.01)
    metrics.add_sink("kafka")
    metrics.set_partition(partition(0), 5, 1_500)
    metrics.set_watermark(partition(0), 1_500)
    assert names(metrics) == SERIES


def test_two_runs_do_not_meet() -> None:
    first, second = Metrics("1"), Metrics("1")
    first.dead_letters.inc()
    assert second.registry.get_sample_value("nap_stream_dead_letters_total") == 0


def test_nothing_is_registered_on_import() -> None:
    code = (
        "import prometheus_client as p; before = set(p.REGISTRY._names_to_collectors);"
        "import nap_stream.metrics;"
        "assert set(p.REGISTRY._names_to_collectors) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not any(name.startswith("nap_stream") for name in REGISTRY._names_to_collectors)


def test_known_labels_start_at_zero() -> None:
    metrics = Metrics("1")
    metrics.add_sink("kafka")
    value = metrics.registry.get_sample_value
    assert value("nap_stream_records_total", {"status": "corrupt"}) == 0
    for state in ("firing", "resolved", "gap"):
        labels = {"sink": "kafka", "state": state}
        assert value("nap_stream_alerts_published_total", labels) == 0
    assert value("nap_stream_alert_failures_total", {"sink": "kafka"}) == 0
    assert value("nap_stream_alerts_refused_total", {"sink": "kafka"}) == 0
    assert value("nap_stream_alerts_undelivered", {"sink": "kafka"}) == 0
    for kind in Disagreement:
        assert value("nap_stream_offset_disagreements_total", {"kind": kind.value}) == 0
    assert value("nap_stream_build_info", {"version": "1"}) == 1


def test_what_is_judged_is_unknown_at_first() -> None:
    value = Metrics("1").registry.get_sample_value
    for name in (
        "ood_fraction",
        "ood_fraction_bound",
        "ood_fraction_expected",
        "watermark_delay_seconds",
    ):
        assert math.isnan(value(f"nap_stream_{name}") or 0)
    for detector in ("ood-window", "ood-sequential", "score-shift", "unscored-images"):
        labels = {"detector": detector}
        assert math.isnan(value("nap_stream_detector_statistic", labels) or 0)
        assert math.isnan(value("nap_stream_detector_threshold", labels) or 0)
        assert value("nap_stream_detector_active", labels) == 0
    for severity in ("warning", "critical"):
        assert value("nap_stream_alert_firing", {"severity": severity}) == 0


def test_batches_have_a_histogram_of_their_own() -> None:
    metrics = Metrics("1")
    metrics.observe_stage("batch", 0.2)
    metrics.observe_stage("score", 0.1)
    value = metrics.registry.get_sample_value
    assert value("nap_stream_batch_duration_seconds_sum") == pytest.approx(0.2)
    assert value("nap_stream_stage_duration_seconds_sum", {"stage": "score"}) == pytest.approx(0.1)
    assert value("nap_stream_stage_duration_seconds_count", {"stage": "batch"}) is None


def test_series_of_a_partition_come_and_go() -> None:
    metrics = Metrics("1")
    value = metrics.registry.get_sample_value
    labels = {"topic": "images", "partition": "3"}
    metrics.set_partition(partition(3), 7, None)
    assert value("nap_stream_partition_lag_offsets", labels) == 7
    assert value("nap_stream_partition_time_lag_seconds", labels) is None
    metrics.set_partition(partition(3), None, 1_500)
    assert value("nap_stream_partition_lag_offsets", labels) is None
    assert value("nap_stream_partition_time_lag_seconds", labels) == 1.5
    metrics.remove_partition(partition(3))
    metrics.remove_partition(partition(3))
    assert value("nap_stream_partition_time_lag_seconds", labels) is None
