import io
from dataclasses import replace

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState, Severity
from nap_stream.drift.records import UnscoredShare
from nap_stream.monitor.status import (
    CoordinatorStatus,
    first_wait,
    status_display,
    status_text,
)
from nap_stream.records import PartitionProgress, Status
from tests.monitor.test_driver import CALM, status
from tests.support.summaries import partition, report

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
    parts = [(PartitionProgress(partition(n), 0, 0, None),) for n in range(2)]
    one, two = (report(f"worker-{n}", partitions=parts[n]) for n in range(2))
    heard = status(*(report(f"worker-{n}", partitions=()) for n in range(2)))
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
