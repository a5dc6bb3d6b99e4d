import io
from dataclasses import replace

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState, Severity
from nap_stream.drift.records import UnscoredShare
from nap_stream.metrics import Metrics
from nap_stream.monitor.status import (
    CoordinatorStatus,
    PartitionTable,
    WorkerTable,
    first_wait,
    status_display,
    status_text,
)
from nap_stream.records import PartitionProgress, Status, TopicPartition, WorkerReport
from tests.monitor.test_driver import CALM, status
from tests.support.summaries import partition, report

STALL_S, START_S = 60.0, 600.0


def progress(number: int, position: int, lag: int | None = 0) -> PartitionProgress:
    return PartitionProgress(partition(number), position, lag, None)


def told(worker: str, *partitions: PartitionProgress) -> WorkerReport:
    return report(worker, partitions=partitions)


def logged(ends: dict[int, int]) -> dict[TopicPartition, int]:
    return {partition(number): end for number, end in ends.items()}


def test_a_partition_with_a_lag_is_expected_to_bring_more() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5, lag=3), progress(1, 5), progress(2, 5, lag=None)), 0.0)
    ends = logged({0: 5, 1: 5, 2: 5})
    assert table.expected(0.0, ends.get) == [partition(0), partition(2)]


def test_a_partition_with_unpublished_rows_is_expected_to_bring_more() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5), progress(1, 5)), 0.0)
    assert table.expected(0.0, logged({0: 5, 1: 4}).get) == [partition(1)]


def test_tells_which_are_new() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    assert table.take(told("a", progress(0, 5), progress(1, 5)), 0.0) == [
        partition(0),
        partition(1),
    ]
    assert table.take(told("b", progress(1, 5), progress(2, 0)), 1.0) == [partition(2)]


def test_where_nothing_is_logged_the_first_position_counts() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5)), 0.0)
    assert table.expected(0.0, logged({}).get) == []
    table.take(told("a", progress(0, 6)), 1.0)
    assert table.expected(1.0, logged({}).get) == [partition(0)]


def test_a_partition_that_is_stuck_is_not_waited_for_for_ever() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    for second in range(100):
        table.take(told("a", progress(0, 5, lag=3), progress(1, second, lag=3)), float(second))
    assert table.expected(99.0, logged({0: 5, 1: 0}).get) == [partition(1)]


def test_a_partition_without_a_worker_is_waited_for_a_while() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.take(told("a", progress(0, 5)), 0.0)
    ends = logged({0: 5})
    assert table.expected(5.0, ends.get) == []
    assert table.expected(6.0, ends.get) == [partition(0)]
    assert table.expected(59.0, ends.get) == [partition(0)]
    assert table.expected(60.0, ends.get) == []


def test_what_the_log_has_is_waited_for_until_a_worker_reports_it() -> None:
    table = PartitionTable(Metrics("1"), STALL_S, START_S)
    table.wait_for([partition(0), partition(1)], 100.0)
    ends = logged({0: 5, 1: 5})
    assert table.expected(100.0 + STALL_S, ends.get) == [partition(0), partition(1)]
    table.take(told("a", progress(0, 5)), 180.0)
    assert table.expected(181.0, ends.get) == [partition(1)]
    assert table.expected(100.0 + START_S, ends.get) == []


def test_series_follow_the_partition() -> None:
    metrics = Metrics("1")
    table = PartitionTable(metrics, STALL_S, START_S)

    def lag(number: int) -> float | None:
        labels = {"topic": "images", "partition": str(number)}
        return metrics.registry.get_sample_value("nap_stream_partition_lag_offsets", labels)

    table.take(told("a", progress(0, 5, lag=1), progress(1, 5, lag=2)), 0.0)
    assert (lag(0), lag(1), table.max_lag()) == (1, 2, 2)
    # It moves to b, which says so before a does.
    table.take(told("b", progress(1, 6, lag=4)), 1.0)
    table.take(told("a", progress(0, 5, lag=1)), 1.1)
    assert (lag(0), lag(1), table.max_lag()) == (1, 4, 4)
    # b gives it back; nobody has it.
    table.take(told("b"), 2.0)
    assert (lag(0), lag(1), table.max_lag()) == (1, None, 1)
    # a falls silent.
    table.expected(10.0, logged({}).get)
    assert (lag(0), table.max_lag()) == (None, None)


def test_totals_are_counted_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics)
    table.take(report(sent_at_ms=1, images_scored=10, dead_letters=1, rebalances=2), 1.0)
    table.take(report(sent_at_ms=1, images_scored=10, dead_letters=1, rebalances=2), 1.0)
    table.take(report(sent_at_ms=3, images_scored=25, rebalances=2, out_of_memory=3), 3.0)
    # A report that was lost and comes after a newer one.
    assert not table.take(report(sent_at_ms=2, images_scored=20), 3.1)
    table.take(report("worker-1", sent_at_ms=1, images_scored=5, decode_warnings=4), 3.2)
    assert table.totals["images_scored"] == 30
    value = metrics.registry.get_sample_value
    assert value("nap_stream_images_scored_total") == 30
    assert value("nap_stream_dead_letters_total") == 1
    assert value("nap_stream_rebalances_total") == 2
    assert value("nap_stream_out_of_memory_total") == 3
    assert value("nap_stream_decode_warnings_total") == 4
    assert table.reports()["worker-0"].sent_at_ms == 3


def test_the_time_of_scoring_threads_is_counted_once() -> None:
    metrics = Metrics("1")
    table = WorkerTable(metrics)
    table.take(report(sent_at_ms=1, time_parts=(1.0, 0.0, 2.5, 0.25)), 1.0)
    table.take(report(sent_at_ms=3, time_parts=(1.5, 0.0, 4.5, 0.25)), 3.0)
    table.take(report(sent_at_ms=2, time_parts=(1.25, 0.0, 3.0, 0.25)), 3.1)
    table.take(report("worker-1", sent_at_ms=1, time_parts=(0.0, 0.5, 1.0, 0.0)), 3.2)

    def seconds(part: str) -> float | None:
        return metrics.registry.get_sample_value("nap_stream_scoring_seconds_total", {"part": part})

    assert [seconds(part) for part in ("messages", "decode", "model", "log")] == [
        *(1.5, 0.5, 5.5, 0.25)
    ]


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

    assert table.waiting(10.0, 5.0) == {"worker-1": "the scored log"}


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


BUSY = replace(
    status(rows=12_345),
    images_per_second=99.94,
    max_lag=7,
    drift=replace(CALM, window_records=1_000, window_flagged=51, firing_limit=80),
)


def test_line_tells_rates_fraction_bound_and_lag() -> None:
    line = status_text(BUSY).plain

    for part in ("INACTIVE", "12,345 rows", "99.9 images/s", "OOD 5.1% (bound 8.0%)", "lag 7"):
        assert part in line
    assert "dead letters" not in line
    assert "keys" not in line


def test_line_tells_what_needs_attention() -> None:
    drift = replace(
        BUSY.drift,
        state=AlertState.FIRING,
        severity=Severity.CRITICAL,
        keys=1_000,
        keys_firing=2,
    )
    line = status_text(replace(BUSY, drift=drift, dead_letters=3, alerts_waiting=1)).plain

    for part in (
        "FIRING CRITICAL",
        "keys firing 2 of 1,000",
        "dead letters 3",
        "alerts waiting 1",
    ):
        assert part in line


def test_line_tells_what_workers_wait_for_in_yellow() -> None:
    waiting = {"worker-1": "the broker", "worker-0": "the scored log: the disk is full"}
    text = status_text(replace(BUSY, waiting_for=waiting))

    assert "waiting: worker-0: the scored log: the disk is full (and 1 more)" in text.plain
    styles = {
        str(span.style) for span in text.spans if "waiting" in text.plain[span.start : span.end]
    }
    assert styles == {"yellow"}
    assert "waiting" not in status_text(BUSY).plain


def test_line_tells_how_full_the_window_is_while_there_is_no_verdict() -> None:
    drift = replace(CALM, window_records=40)
    line = status_text(replace(status(), drift=drift, window_size=1_000)).plain

    assert "40 of 1,000 images until the window is full" in line
    assert "OOD - (bound -)" in line


def test_without_a_terminal_an_event_comes_every_ten_seconds() -> None:
    clock = ManualClock()
    with capture_logs() as events, status_display(Console(file=io.StringIO()), clock) as show:
        for _ in range(100):
            show(BUSY)
            clock.advance(0.25)

    assert [event["event"] for event in events] == ["status"] * 3
    assert events[0]["rows"] == 12_345


def test_on_a_terminal_the_line_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    with status_display(Console(file=screen, force_terminal=True, width=200)) as show:
        show(BUSY)

    assert "12,345 rows" in screen.getvalue()


NOON_MS = 1_767_268_800_000
"""2026-01-01 12:00:00 UTC."""
READABLE = UnscoredShare(NOON_MS - 20_000, NOON_MS, 1_000, (), 0.01, None)


def blind(severity: Severity | None = Severity.CRITICAL, end_ms: int = NOON_MS) -> UnscoredShare:
    by_status = ((Status.UNSUPPORTED, 400), (Status.CORRUPT, 12))
    return UnscoredShare(NOON_MS - 20_000, end_ms, 1_000, by_status, 0.01, severity)


def seen(
    share: UnscoredShare | None, window_end_ms: int | None, now_ms: int = NOON_MS + 1_000
) -> CoordinatorStatus:
    drift = replace(
        BUSY.drift, unscored=share, unscored_since_ms=NOON_MS - 9_000, window_end_ms=window_end_ms
    )
    return replace(BUSY, drift=drift, now_ms=now_ms, stale_after_s=60.0)


def test_line_tells_of_images_without_scores() -> None:
    text = status_text(seen(blind(), NOON_MS))
    assert "UNSCORED IMAGES CRITICAL: 412 of 1,000 (41.2%)" in text.plain
    assert "unscored 412 of 1,000" in status_text(seen(blind(None), NOON_MS)).plain
    assert "nscored" not in status_text(seen(READABLE, NOON_MS)).plain


def test_an_old_fraction_is_shown_as_of_its_time() -> None:
    old = seen(blind(), NOON_MS - 5 * 60_000)
    assert "OOD 5.1% as of 2026-01-01 11:55:00 UTC, 5 min 1 s ago (bound 8.0%)" in (
        status_text(old).plain
    )
    firing, as_of = old.degraded()
    assert firing == (
        "unscored-images fires since 2026-01-01 11:59:51 UTC (critical): 412 of the last 1,000 "
        "images have no scores (unsupported 400, corrupt 12)"
    )
    assert as_of == (
        "the OOD fraction of 5.1% is as of 2026-01-01 11:55:00 UTC: none of the images since could "
        "be scored"
    )
    assert "as of" not in status_text(seen(READABLE, NOON_MS)).plain
    assert seen(READABLE, NOON_MS).degraded() == ()


@pytest.mark.parametrize("ahead_ms", [-60_000, 0, 60_000])
def test_a_fraction_of_now_is_no_old_one_whatever_the_clocks(ahead_ms: int) -> None:
    assert seen(READABLE, NOON_MS, NOON_MS - ahead_ms).stale_since_ms is None


def test_a_stream_that_stands_still_is_told_from_one_that_cannot_be_read() -> None:
    behind = seen(READABLE, NOON_MS, NOON_MS + 61_000)
    (words,) = behind.degraded()
    assert words.endswith("UTC: no later one was scored yet, with 7 offsets still to be read")
    still = replace(behind, max_lag=0)
    assert still.degraded() == (
        "the OOD fraction of 5.1% is as of 2026-01-01 12:00:00 UTC: no image came since",
    )
    unwatched = seen(None, NOON_MS, NOON_MS + 61_000)
    assert unwatched.degraded()[0].endswith("no image was scored since")
    none = replace(seen(blind(), None), drift=replace(CALM, unscored=blind()))
    assert "no image was scored yet: nothing is known of drift" in none.degraded()


def test_the_first_minute_says_what_is_waited_for() -> None:
    begun = replace(status(), workers_expected=2, window_size=1_000)
    assert first_wait(begun) == "waiting for 2 of 2 workers to load the model"
    one, two = (told(f"worker-{n}", progress(n, 0, lag=0)) for n in range(2))
    heard = status(told("worker-0"), told("worker-1"))
    loaded = replace(heard, workers_expected=2, window_size=1_000)
    assert first_wait(loaded) == "waiting to join the group"
    joined = replace(status(one, two), workers_expected=2, window_size=1_000)
    assert first_wait(joined) == "waiting for the first images"
    assert first_wait(replace(joined, max_lag=40)) == "scoring the first images"
    logged = replace(joined, rows_by_status={Status.OK: 25})
    assert first_wait(logged) == "waiting for the first images with scores to be judged"
    filling = replace(logged, drift=replace(CALM, window_records=612))
    assert first_wait(filling) == "612 of 1,000 images until the window is full"
    assert "612 of 1,000 images until the window is full" in status_text(filling).plain
    assert first_wait(BUSY) == ""
