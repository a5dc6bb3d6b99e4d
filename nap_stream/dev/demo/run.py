"""The demo: a broker, a monitor, a stream that changes, and what came of it.

Nothing in it is scripted but the input. The monitor is `nap-stream run` in a process of its own
with its defaults, but for a smaller window and a shorter segment age, which suit a stream of a
few seconds. The demo judges what is left in the alert topic and in the scored log.
"""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.deadline import Deadline
from nap_stream.dev.broker import embedded_broker, free_port
from nap_stream.dev.demo.configuration import PARTITIONS, write_configuration
from nap_stream.dev.demo.display import Display, StreamState
from nap_stream.dev.demo.folder import DemoFolder, demo_folder
from nap_stream.dev.demo.history import HistoryPoint, ood_history, read_images
from nap_stream.dev.demo.monitor_process import MonitorProcess, running_monitor
from nap_stream.dev.demo.network import one_torch_thread
from nap_stream.dev.demo.outcome import Evidence, judge, read_alert
from nap_stream.dev.demo.picture import Picture, write_png
from nap_stream.dev.demo.prepare import Input, make_calibration, make_model_and_images
from nap_stream.dev.demo.summary import (
    show_chart,
    show_counts,
    show_duration,
    show_outcome,
    show_places,
)
from nap_stream.dev.demo.threads import AlertFollower, Producer
from nap_stream.errors import WorkerError
from nap_stream.kafka_client import create_topics
from nap_stream.scored_log.verify import verify
from nap_stream.settings import Settings
from nap_stream.settings_loader import load_settings

START_S = 120.0
"""How long Ray and the workers may take to start on a busy machine."""
DRAIN_S = 30.0
"""How long the monitor may take for what is left after the last image was sent."""
LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a user may choose. ``rate`` is in images a second."""

    rate: float
    workers: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Streamed:
    """What was sent and what came of it outside of the log; times in ms since the epoch."""

    stream: Input
    alerts: Sequence[Mapping[str, Any]]
    started_ms: int
    phase_ends_ms: tuple[int, ...]
    exit_code: int


def run_demo(
    root: Path,
    options: DemoOptions,
    *,
    display: Display,
    clock: Clock,
    environ: Mapping[str, str],
) -> bool:
    """Run all of it. Must be called in the main thread.

    Args:
        root: The folder that is filled.
        options: What the user chose.
        display: Where it is shown.
        clock: The time.
        environ: Of the monitor's process.

    Returns:
        Whether everything was as it must be.

    Raises:
        NapStreamError: It could not be run to its end.
        KeyboardInterrupt: SIGINT or SIGTERM came; nothing is left running.
    """
    with demo_folder(root) as folder, one_torch_thread():
        stream = make_model_and_images(folder, options.seed, display)
        with _interrupted_by_sigterm(), embedded_broker(clock) as broker:
            port = free_port()
            write_configuration(folder, broker=broker, metrics_port=port, workers=options.workers)
            calibration = make_calibration(folder, display, clock)
            settings = load_settings(folder.config, environ={})
            _create_topics(settings)
            display.step(f"embedded broker at {broker}; topics created")
            with (
                running_monitor(folder.config, port, folder.monitor_output, environ) as monitor,
                _finishing_undisturbed(display),
            ):
                _wait_until_ready(monitor, options.workers, display, clock)
                scene = _Scene(folder, settings, stream, monitor, display, clock)
                streamed = scene.play(options.rate)
        succeeded = _sum_up(folder, settings, calibration, streamed, display.console)
    show_duration(display.seconds(), display.console)
    return succeeded


def _create_topics(settings: Settings) -> None:
    create_topics(settings.kafka, [settings.kafka.topic], PARTITIONS)
    create_topics(settings.kafka, [settings.alerts.topic, settings.dead_letters.topic], 1)


def _wait_until_ready(
    monitor: MonitorProcess, workers: int, display: Display, clock: Clock
) -> None:
    deadline = Deadline(clock, START_S)
    with display.waiting(
        f"starting the monitor: nap-stream run, on local Ray, {workers} worker(s)"
    ):
        while not monitor.ready(PARTITIONS):
            monitor.require_alive()
            if deadline.expired():
                raise WorkerError(f"the monitor was not ready within {START_S:g} s", "the demo")
            clock.sleep(LOOK_EVERY_S)
    display.step(f"the monitor is ready: all workers report, {PARTITIONS} partitions are read")


@dataclass(frozen=True, slots=True)
class _Scene:
    """Everything that is needed while the stream flows."""

    folder: DemoFolder
    settings: Settings
    stream: Input
    monitor: MonitorProcess
    display: Display
    clock: Clock

    def play(self, rate: float) -> _Streamed:
        """Send the stream, show what happens, stop the monitor when it has caught up."""
        kafka = self.settings.kafka
        follower = AlertFollower(kafka, self.settings.alerts.topic, self.clock)
        producer = Producer(kafka, self.folder.stream, self.stream.sizes, rate, self.clock)
        alerts: list[Mapping[str, Any]] = []
        started_ms = self.clock.now_ms()
        with follower, producer:
            with self.display.streaming():
                for _ in self._looks_until_drained(producer):
                    follower.check()
                    alerts += self._shown(follower.take())
            self.display.step("stopping the monitor with SIGTERM")
            exit_code = self.monitor.stop()
            follower.finish()
            alerts += self._shown(follower.take())
            self.display.step(f"the monitor ended with exit code {exit_code}")
        lines = [json.dumps(event) + "\n" for event in alerts]
        self.folder.alerts.write_text("".join(lines), encoding="utf-8")
        return _Streamed(self.stream, alerts, started_ms, producer.ended_ms, exit_code)

    def _shown(self, events: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        for event in events:
            self.display.alert(event)
        return events

    def _looks_until_drained(self, producer: Producer) -> Iterator[None]:
        """Look again and again, until the log holds all that was sent or the patience ends."""
        phases, total = self.stream.phases, sum(self.stream.sizes)
        announced, patience = -1, None
        while True:
            self.monitor.require_alive()
            producer.check()
            sending = producer.is_alive()
            if producer.phase != announced:
                announced = producer.phase
                number = f"phase {announced + 1} of {len(phases)}"
                self.display.step(f"{number}: {phases[announced].description()}", "bold")
            view = self.monitor.view()
            state = StreamState(phases[announced].title, producer.sent, total, view)
            self.display.update(state)
            yield
            if not sending:
                patience = patience or Deadline(self.clock, DRAIN_S)
                if patience.expired() or (view is not None and view.rows >= total):
                    return
            self.clock.sleep(LOOK_EVERY_S)


def _sum_up(
    folder: DemoFolder,
    settings: Settings,
    calibration: Calibration,
    streamed: _Streamed,
    console: Console,
) -> bool:
    images = read_images(folder.log, settings.kafka.topic)
    picture = _picture(streamed, ood_history(images, settings.drift, calibration))
    write_png(picture, folder.picture)
    changed_ms, returned_ms, _ = streamed.phase_ends_ms
    evidence = Evidence(
        alerts=streamed.alerts,
        changed_ms=changed_ms,
        returned_ms=returned_ms,
        sent=streamed.stream.names,
        logged=images,
        report=verify(folder.log, deep=True),
        exit_code=streamed.exit_code,
    )
    checks = judge(evidence)
    show_chart(picture, console)
    show_counts(folder.log, images, console)
    show_outcome(checks, console)
    show_places(folder, console)
    return all(check.holds for check in checks)


def _picture(streamed: _Streamed, history: Sequence[HistoryPoint]) -> Picture:
    alerts = [read_alert(event) for event in streamed.alerts]
    titles = [phase.title for phase in streamed.stream.phases]
    return Picture(
        history=history,
        started_ms=streamed.started_ms,
        phases=list(zip(titles, streamed.phase_ends_ms, strict=True)),
        alerts=[(alert.state, alert.time_ms) for alert in alerts if alert.time_ms is not None],
    )


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does; the handlers from before come back at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _finishing_undisturbed(display: Display) -> Iterator[None]:
    """From the end of the block on, signals are ignored: what was started must be ended first."""
    try:
        yield
    except KeyboardInterrupt:
        display.step("interrupted: ending the broker and the monitor", "bold")
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
