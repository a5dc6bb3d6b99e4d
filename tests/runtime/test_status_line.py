import io
from dataclasses import replace

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState, Severity
from nap_stream.monitor.status import status_display, status_text
from tests.runtime.test_driver import status

BUSY = replace(
    status(),
    rows=12_345,
    images_per_second=99.94,
    ood_fraction=0.0512,
    bound=0.0801,
    max_lag=7,
    window_records=1_000,
)


def test_line_tells_rates_fraction_bound_and_lag() -> None:
    line = status_text(BUSY).plain

    for part in ("INACTIVE", "12,345 rows", "99.9 images/s", "OOD 5.1% (bound 8.0%)", "lag 7"):
        assert part in line
    assert "dead letters" not in line
    assert "keys" not in line


def test_line_tells_what_needs_attention() -> None:
    firing = replace(BUSY, alert_state=AlertState.FIRING, severity=Severity.CRITICAL)
    line = status_text(
        replace(firing, keys=1_000, keys_firing=2, dead_letters=3, alerts_waiting=1)
    ).plain

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
    line = status_text(replace(status(), window_records=40, window_size=1_000)).plain

    assert "window 40/1,000" in line
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
