"""A coordinator that is killed, or hangs, in mid-stream: rows, alerts and events."""

import json
import os
import signal
import urllib.parse
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from nap_stream.scored_log.events import EventKind, alert_id, read_events
from nap_stream.scored_log.stores.local import LocalStore
from tests.e2e.monitor import Monitor, metrics_url, new_monitor, producing, scrape, streaming
from tests.e2e.on_ray import RayHead, running
from tests.e2e.processes import Program, listener_pid, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.otlp import Span, SpanReceiver
from tests.support.ports import free_port
from tests.support.topics import read_to_end
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

BEFORE, OOD, AFTER = 700, 450, 600
RATE = 150.0
WINDOW = 200
STALL_S = 20.0
"""Longer than a worker without a fault makes no progress on a busy machine."""


def test_kill_9_of_the_coordinator_loses_no_row_and_every_alert_comes_once(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    """Once while all is well, and once when it has just sent that it is not. All is traced."""
    traces = SpanReceiver()
    with traces.listening():
        _run_and_kill(apache_kafka, calibration, ray_head, tmp_path, traces)
    # What a coordinator that was killed had not sent is lost, and a new one knows no trace of
    # segments that it reads from the log.
    by_trace: dict[str, dict[str, Span]] = defaultdict(dict)
    for span in traces.spans():
        by_trace[span.trace][span.name] = span
    assert any("alert" in steps for steps in by_trace.values())
    whole = [steps for steps in by_trace.values() if {"segment", "decide"} <= set(steps)]
    assert whole
    for steps in whole:
        assert {"poll", "decode", "score", "publish", "commit", "submit"} <= set(steps)
        assert steps["decide"].service == "coordinator"
        assert steps["segment"].service.startswith("worker-")
        assert {s.parent for n, s in steps.items() if n != "segment"} == {steps["segment"].span}


def _run_and_kill(
    apache_kafka: ApacheKafka,
    calibration: Path,
    ray_head: RayHead,
    tmp_path: Path,
    traces: SpanReceiver,
) -> None:
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        drift={"window_records": WINDOW},
        tracing={"endpoint": traces.url},
        metrics={"port": free_port(), "discovery_file": str(tmp_path / "targets" / "nap.json")},
    )
    before, later = write_images(tmp_path / "before", BEFORE), tmp_path / "later"
    write_images(later / "1-ood", OOD, first_seed=BEFORE, flat=True)
    write_images(later / "2-after", AFTER, first_seed=BEFORE + OOD)
    total = BEFORE + OOD + AFTER
    with running(monitor, ray_head, tmp_path / "run", "--max-records", str(total)) as run:
        url = metrics_url(run)
        with producing(monitor, before, RATE):
            wait_until(lambda: len(monitor.rows()) >= WINDOW + 50, "more than a window's rows")
            _signal_coordinator(url, signal.SIGKILL)
            _wait_for_lines(run, "coordinator_restarted", 1)
            _wait_for_lines(run, "monitor_restored", 1)
            assert scrape(url)["nap_stream_window_records", ()] > 0
            (group,) = json.loads((tmp_path / "targets" / "nap.json").read_bytes())
            assert group["targets"] == [urllib.parse.urlsplit(url).netloc]
            assert group["labels"]["nap_stream_topic"] == monitor.kafka.topic
        with producing(monitor, later, RATE):
            run.wait_for_line("alert_published")
            _signal_coordinator(url, signal.SIGKILL)
            _wait_for_lines(run, "coordinator_restarted", 2)
            # While it runs: what Ray has not told by its end, it never will.
            _wait_for_lines(run, "monitor_restored", 2)
        assert run.wait() == 0, run.tail
        assert "worker_failed" not in run.stderr
    assert json.loads((tmp_path / "targets" / "nap.json").read_bytes()) == []

    monitor.assert_complete(total)
    assert set(monitor.pids()) == {"worker-0.0", "worker-1.0"}
    replayed = _replayed(monitor, tmp_path / "replay")
    reasons = [event["data"]["reason"] for event in replayed]
    assert (reasons[0], reasons[-1]) == ("began", "ended")
    sent = [json.loads(each.value) for each in read_to_end(monitor.kafka, monitor.alert_topic)]
    ids = [event["id"] for event in replayed]
    assert [event["id"] for event in sent] == ids
    events = list(read_events(LocalStore(monitor.log)))
    assert [alert_id(event) for event in events if event.kind == EventKind.ALERT] == ids
    *starts, stop = [event for event in events if event.kind != EventKind.ALERT]
    assert [event.kind for event in starts] == [EventKind.RUN_STARTED] * 3
    assert len({event.by for event in starts}) == 3
    assert len({event.data["settings_sha256"] for event in starts}) == 1
    assert (stop.by, stop.data["reason"]) == (starts[-1].by, "enough_records")
    assert stop.data["rows_by_status"] == {"ok": total}


def test_a_coordinator_that_hangs_holds_no_row_up_and_is_replaced_where_it_goes_on(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    """Stopped for a moment, and continued; then stopped for good."""
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        drift={"window_records": WINDOW},
        driver={"stall_timeout_s": PATIENCE_S},
        metrics={"port": free_port()},
    )
    first, later = write_images(tmp_path / "first", 100), tmp_path / "later"
    write_images(later / "1-ood", OOD, first_seed=BEFORE, flat=True)
    write_images(later / "2-after", AFTER, first_seed=BEFORE + OOD)
    with running(monitor, ray_head, tmp_path / "run") as run:
        url = metrics_url(run)
        with streaming(monitor, first, RATE) as sent:
            wait_until(lambda: len(monitor.rows()) >= WINDOW, "a window's rows")
            stopped = _signal_coordinator(url, signal.SIGSTOP)
            logged = len(monitor.rows())
            wait_until(lambda: len(monitor.rows()) >= logged + 150, "rows that nobody judges")
            os.kill(stopped, signal.SIGCONT)
            wait_until(lambda: _window(url) == WINDOW, "a full window")
        assert "coordinator_replaced" not in run.stderr
        # Until here a moment may be as long as a busy machine makes it.
        monitor.change(driver={"stall_timeout_s": STALL_S})
        run.send(signal.SIGHUP)
        run.wait_for_line('"reload_in_force"')
        with producing(monitor, later, RATE):
            run.wait_for_line("alert_published")
            _signal_coordinator(url, signal.SIGSTOP)
            run.wait_for_line("coordinator_replaced")
            _wait_for_lines(run, "coordinator_restarted", 1)
        total = sent.messages + OOD + AFTER
        wait_until(lambda: len(monitor.rows()) >= total, "all rows")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail
        assert "worker_failed" not in run.stderr

    monitor.assert_complete(total)
    ids = [event["id"] for event in _replayed(monitor, tmp_path / "replay")]
    alerts = read_to_end(monitor.kafka, monitor.alert_topic)
    assert [json.loads(each.value)["id"] for each in alerts] == ids
    assert len(ids) >= 2


def _signal_coordinator(url: str, number: signal.Signals) -> int:
    port = urllib.parse.urlsplit(url).port
    assert port is not None
    pid = listener_pid(port)
    os.kill(pid, number)
    return pid


def _window(url: str) -> float:
    return scrape(url)["nap_stream_window_records", ()]


def _wait_for_lines(run: Program, text: str, count: int) -> None:
    def enough() -> bool:
        assert run.running or text in run.stderr, run.tail
        return run.stderr.count(text) >= count

    wait_until(enough, f"{count} times {text}")


def _replayed(monitor: Monitor, folder: Path) -> list[dict[str, Any]]:
    command = nap_stream("replay", "--config", monitor.config, "--json")
    with Program(command, folder) as replay:
        assert replay.wait() == 0, replay.tail
        return [json.loads(line) for line in replay.stdout.splitlines()]
