import pytest

from nap_stream.metrics import Metrics
from nap_stream.monitor.status import WorkerTable
from tests.support.summaries import report


def test_totals_are_counted_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics)
    table.take(report(sent_at_ms=1, images_scored=10, dead_letters=1, rebalances=2), 1.0)
    table.take(report(sent_at_ms=1, images_scored=10, dead_letters=1, rebalances=2), 1.0)
    table.take(report(sent_at_ms=3, images_scored=25, dead_letters=1, rebalances=2), 3.0)
    # A report that was lost and comes after a newer one.
    assert not table.take(report(sent_at_ms=2, images_scored=20), 3.1)
    table.take(report("worker-1", sent_at_ms=1, images_scored=5), 3.2)
    assert table.totals["images_scored"] == 30
    value = metrics.registry.get_sample_value
    assert value("nap_stream_images_scored_total") == 30
    assert value("nap_stream_dead_letters_total") == 1
    assert value("nap_stream_rebalances_total") == 2
    assert table.reports()["worker-0"].sent_at_ms == 3


def test_an_incarnation_starts_from_zero() -> None:
    table = WorkerTable(Metrics("1"))
    table.take(report(sent_at_ms=1, segments_published=4), 1.0)
    table.take(report(incarnation=1, sent_at_ms=5, segments_published=2), 5.0)
    # The last words of the one before.
    assert not table.take(report(sent_at_ms=2, segments_published=5), 5.1)
    table.take(report(incarnation=1, sent_at_ms=6, segments_published=3), 6.0)
    assert table.totals["segments_published"] == 8
    assert table.reports()["worker-0"].incarnation == 1


def test_disagreements_are_counted_by_kind_and_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics)
    for sent_at_ms in (1, 2):
        table.take(report(sent_at_ms=sent_at_ms, offsets_ahead=1, offsets_behind=2), 1.0)
    table.take(report("worker-1", offsets_missing=3), 1.0)

    value = metrics.registry.get_sample_value
    counted = {
        kind: value("nap_stream_offset_disagreements_total", {"kind": kind})
        for kind in ("ahead", "behind", "missing")
    }
    assert counted == {"ahead": 1, "behind": 2, "missing": 3}


def test_only_workers_that_were_heard_lately_wait() -> None:
    table = WorkerTable(Metrics("1"))
    table.take(report("worker-0", waiting_for="the broker"), 1.0)
    table.take(report("worker-1", waiting_for="the scored log"), 8.0)
    table.take(report("worker-2"), 8.0)

    assert table.waiting(5.0, 10.0) == {"worker-1": "the scored log"}


def test_memory_does_not_grow_with_restarts() -> None:
    table = WorkerTable(Metrics("1"))
    for incarnation in range(100):
        table.take(report(incarnation=incarnation, images_scored=1), float(incarnation))
    assert table.totals["images_scored"] == 100
    assert len(table._counted) == 2


def test_rate_is_that_of_the_last_reports() -> None:
    table = WorkerTable(Metrics("1"))
    assert table.images_per_second(0.0) == 0.0
    for second in range(21):
        images = 100 * second if second < 10 else 1_000 + 10 * (second - 10)
        table.take(report(sent_at_ms=second, images_scored=images), float(second))
        table.take(report("worker-1", sent_at_ms=second, images_scored=2 * second), float(second))
    assert table.images_per_second(20.0) == pytest.approx(12.0)
    assert table.images_per_second(29.5) == 0.0


def test_rate_is_unharmed_by_a_restart() -> None:
    table = WorkerTable(Metrics("1"))
    table.take(report(images_scored=1_000), 1.0)
    table.take(report(incarnation=1, images_scored=0), 2.0)
    table.take(report(incarnation=1, sent_at_ms=1, images_scored=10), 3.0)
    assert table.images_per_second(3.0) == pytest.approx(10.0)


def test_silence_is_noticed() -> None:
    table = WorkerTable(Metrics("1"))
    table.take(report(), 0.0)
    table.take(report("worker-1"), 4.0)
    assert [each.worker for each in table.heard_within(5.0, 6.0)] == ["worker-1"]
    assert len(table.heard_within(5.0, 5.0)) == 2


def test_stage_times_reach_the_histograms_and_are_not_kept() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics)
    table.take(report(stage_seconds=(("poll", 0.5), ("batch", 0.25))), 0.0)
    value = metrics.registry.get_sample_value
    assert value("nap_stream_stage_duration_seconds_sum", {"stage": "poll"}) == 0.5
    assert value("nap_stream_batch_duration_seconds_sum") == 0.25
    assert table.reports()["worker-0"].stage_seconds == ()


def test_the_newest_commit_is_shown() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics)
    table.take(report(last_commit_ms=5_000), 0.0)
    table.take(report("worker-1", last_commit_ms=4_000), 0.0)
    assert metrics.registry.get_sample_value("nap_stream_last_commit_timestamp_seconds") == 5
