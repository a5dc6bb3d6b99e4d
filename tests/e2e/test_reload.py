"""Another calibration and other settings for a monitor that runs, under load.

Run it with ``-s`` to see how long partitions paused meanwhile.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nap_stream.scored_log.events import EventKind, read_events
from tests.e2e.calibrated import calibrated
from tests.e2e.monitor import Monitor, model_section, new_monitor, streaming
from tests.e2e.on_ray import RayHead, running
from tests.e2e.processes import Program, listener_pid, nap_stream
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

RATE = 60.0
DEADLINE_S = 8.0
"""Of a stop in which something hangs for good: it is killed then."""
BEGINS = '"reload_begins"'


def test_a_monitor_takes_up_another_calibration_and_settings_while_images_come(
    apache_kafka: ApacheKafka,
    calibration: Path,
    ray_head: RayHead,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    monitor = new_monitor(apache_kafka.bootstrap, tmp_path / "monitor", calibration)
    other = calibrated(tmp_path / "other", model_section(), first_seed=200_000)
    images = write_images(tmp_path / "images", 60)

    @contextmanager
    def reload(name: str) -> Iterator[Program]:
        command = nap_stream("reload", "--config", monitor.config, "--address", ray_head.address)
        with Program(command, tmp_path / name, ray_head.environ) as asked:
            asked.wait()
            yield asked
        _wait_for_rows(monitor, 60)

    with running(monitor, ray_head, tmp_path / "run") as run:
        with streaming(monitor, images, RATE) as sent:
            _wait_for_rows(monitor, 60)

            # A model of which a worker alone would have found that it is another.
            monitor.change(model=model_section() | {"kwargs": {"seed": 1}})
            with reload("refused") as asked:
                assert asked.wait() == 1, asked.tail
                assert "the calibration was made with model" in asked.stderr

            monitor.change(model=model_section(), calibration=str(other))
            with reload("taken") as asked:
                assert asked.wait() == 0, asked.tail
                assert "calibration_fingerprint: " in asked.stdout

            monitor.change(worker={"count": 1, "num_gpus": 0})
            run.send(signal.SIGHUP)
            wait_until(lambda: run.stderr.count('"reload_in_force"') == 2, lambda: run.tail)
            _wait_for_rows(monitor, 60)
        wait_until(lambda: len(monitor.rows()) >= sent.messages, "all rows")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    monitor.assert_complete(sent.messages)
    assert '"worker_failed"' not in run.stderr
    events = list(read_events(monitor.store))
    told = [event.data for event in events if event.kind == EventKind.RUN_STARTED]
    judged = [each["calibration_fingerprint"] for each in told]
    assert len(judged) == 3
    assert judged[0] != judged[1] == judged[2]
    assert len({each["settings_sha256"] for each in told}) == 3
    reasons = [e.data["reason"] for e in events if e.kind == EventKind.RUN_STOPPED]
    assert [reason.partition(",")[0] for reason in reasons] == ["reload", "reload", "stopped"]
    assert [e.kind for e in events].count(EventKind.RELOAD_REFUSED) == 1
    footers = monitor.footers()
    for chain in footers.values():
        by = [footer.calibration_fingerprint for footer in chain]
        assert by == sorted(by, key=judged.index), "the one of before, then the new one"
        assert set(by) == set(judged)
    _tell_pauses(footers, record_property)


def test_a_reload_ends_with_a_word_whoever_dies_or_hangs_in_its_midst(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    """Workers while the old ones leave; the new coordinator as it starts, then the old one.

    Of the last reload the run alone has a word: a signal asks for it.
    """
    port = free_port()
    monitor = new_monitor(
        apache_kafka.bootstrap,
        tmp_path / "monitor",
        calibration,
        metrics={"port": port},
    )
    images = write_images(tmp_path / "images", 60)

    @contextmanager
    def reload(run: Program, window: int) -> Iterator[None]:
        _write_window(monitor, window, DEADLINE_S)
        command = nap_stream("reload", "--config", monitor.config, "--address", ray_head.address)
        begun = run.stderr.count(BEGINS)
        with Program(command, tmp_path / f"{window}", ray_head.environ) as asked:
            wait_until(lambda: run.stderr.count(BEGINS) > begun, lambda: f"{asked} {run.tail}")
            yield
            assert asked.wait() == 0, asked.tail
            assert f"drift.window_records: {window - 10} → {window}" in asked.stdout
        _wait_for_rows(monitor, 60)

    with running(monitor, ray_head, tmp_path / "run") as run:
        with streaming(monitor, images, RATE) as sent:
            _wait_for_rows(monitor, 60)

            _, victim = _last_writer(monitor)
            os.kill(victim, signal.SIGSTOP)  # so that it cannot have left before it is killed
            # Nothing is killed by this stop's deadline: it is not DEADLINE_S yet.
            with reload(run, 210):
                wait_until(lambda: '"worker_finished"' in run.stderr, lambda: run.tail)
                os.kill(victim, signal.SIGKILL)
            assert run.stderr.count('"worker_failed_at_stop"') == 1
            assert '"worker_killed_at_deadline"' not in run.stderr
            assert '"coordinator_did_not_finish"' not in run.stderr

            name, hangs = _last_writer(monitor)
            os.kill(hangs, signal.SIGSTOP)
            started = run.stderr.count('"monitor_started"')
            with reload(run, 220):
                wait_until(
                    lambda: run.stderr.count('"monitor_started"') > started, lambda: run.tail
                )
                os.kill(listener_pid(port), signal.SIGKILL)
            # The other one, too, where the machine is so slow.
            killed = run.events("worker_killed_at_deadline")
            assert name in [each["worker"] for each in killed]

            # It hangs before this reload begins: stopped afterwards, it may have finished by then.
            # It could not answer `reload`, so a signal asks.
            os.kill(listener_pid(port), signal.SIGSTOP)
            _write_window(monitor, 230, PATIENCE_S)
            in_force = run.stderr.count('"reload_in_force"')
            late = run.stderr.count('"coordinator_did_not_finish"')
            run.send(signal.SIGHUP)
            wait_until(lambda: run.stderr.count('"reload_in_force"') > in_force, lambda: run.tail)
            assert run.stderr.count('"coordinator_did_not_finish"') == late + 1
            _wait_for_rows(monitor, 60)
        wait_until(lambda: len(monitor.rows()) >= sent.messages, "all rows")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail

    monitor.assert_complete(sent.messages)
    told = [e.data for e in read_events(monitor.store) if e.kind == EventKind.RUN_STARTED]
    windows_told = [each["settings"]["drift"]["window_records"] for each in told]
    # The coordinator that was killed as it started had told of itself.
    assert windows_told == [200, 210, 220, 220, 230]
    assert '"reload_failed"' not in run.stderr


def _last_writer(monitor: Monitor) -> tuple[str, int]:
    """The worker that has written the newest segment: its name and its process."""
    newest = max(
        (chain[-1] for chain in monitor.footers().values()), key=lambda one: one.created_time_ms
    )
    incarnation, _, place = newest.writer_id.partition("@")
    return incarnation.partition(".")[0], int(place.split(":")[-2])


def _write_window(monitor: Monitor, window: int, deadline_s: float) -> None:
    """What the next run is by; the deadline of its own stop."""
    monitor.change(drift={"window_records": window}, driver={"shutdown_deadline_s": deadline_s})


def _wait_for_rows(monitor: Monitor, count: int) -> None:
    before = len(monitor.rows())
    wait_until(lambda: len(monitor.rows()) >= before + count, f"{count} more rows")


def _tell_pauses(
    footers: dict[int, list[Any]], record_property: Callable[[str, object], None]
) -> None:
    """The longest time without a row, of any partition, at each change of workers."""
    changes = [
        (after.created_time_ms - before.created_time_ms) / 1000
        for chain in footers.values()
        for before, after in pairwise(chain)
        if before.writer_id != after.writer_id
    ]
    record_property("longest pause of a reload", max(changes))
    sys.stdout.write(f"\npauses at changes of workers: {sorted(changes)} s")
