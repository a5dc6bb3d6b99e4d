"""The demo: a broker, a monitor, a stream that changes, and what came of it.

Nothing in it is scripted but the input. The monitor is `nap-stream run` in a process of its own
with its defaults, but for a smaller window, a shorter segment age and shorter time-outs of its
consumer group, which suit a stream of a few seconds. The demo checks what is left in the alert
topic and in the scored log.
"""

import json
import queue
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from nap_stream.alert.kafka import read_alerts
from nap_stream.clock import Clock, Deadline
from nap_stream.demo.digits import CAMERA_HEADER, Phase, one_torch_thread
from nap_stream.demo.display import (
    Display,
    StreamState,
    show_counts,
    show_outcome,
    show_places,
)
from nap_stream.demo.outcome import Check, LoggedImage, Outcome, check_outcome, read_images
from nap_stream.demo.processes import MonitorProcess, embedded_broker, free_port, running_monitor
from nap_stream.demo.produce import produce
from nap_stream.demo.setup import (
    PARTITIONS,
    DemoFolder,
    demo_folder,
    make_calibration,
    make_model_and_images,
    write_configuration,
)
from nap_stream.errors import WorkerError
from nap_stream.files import publish
from nap_stream.kafka.client import create_topics
from nap_stream.report.gather import Asked, gather
from nap_stream.report.page import render
from nap_stream.report.pictures import kept_in
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.events import EventKind, read_events
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import KafkaSettings, Settings

READY_S = 300.0
"""How long Ray and the workers may take to start on a busy machine."""
DRAIN_S = 60.0
"""How long the monitor may take for what is left after the last image was sent."""
LOOK_EVERY_S = 0.25
LAST_LOOKS = 3
"""Polls of the alert topic, of half a second, once all alerts are there that the log tells of."""
JOIN_S = 5.0
"""A client whose broker is gone may wait for minutes; its thread ends with the process then."""


def run_demo(
    root: Path,
    *,
    rate: float,
    workers: int,
    seed: int,
    display: Display,
    clock: Clock,
    environ: Mapping[str, str],
) -> bool:
    """Run all of it, and say whether everything was as it must be. For the main thread only.

    It fills the folder ``root`` at ``rate`` images a second.

    Raises:
        NapStreamError: It could not be run to its end.
        KeyboardInterrupt: SIGINT or SIGTERM came; nothing is left running.
    """
    with demo_folder(root) as folder, one_torch_thread():
        phases = make_model_and_images(folder, seed, display)
        with interrupted_by_sigterm(), embedded_broker(clock) as broker:
            port = free_port()
            write_configuration(folder, broker=broker, metrics_port=port, workers=workers)
            make_calibration(folder, display, clock)
            settings = load_settings(folder.config, environ={})
            create_topics(settings.kafka, [settings.kafka.topic], PARTITIONS)
            create_topics(settings.kafka, [settings.alerts.topic, settings.dead_letters.topic], 1)
            display.step(f"embedded broker at {broker}; topics created")
            with (
                running_monitor(folder.config, port, folder.monitor_output, environ) as monitor,
                finishing_undisturbed(display),
            ):
                show = Show(folder, settings, phases, monitor, display, clock)
                show.wait_until_ready()
                streamed = show.play(rate)
        succeeded = show.sum_up(streamed)
    display.console.print(f"\nThe demo took {display.seconds():.1f} s.", highlight=False)
    return succeeded


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of the stream outside of the log; times in milliseconds since the epoch."""

    alerts: Sequence[Mapping[str, Any]]
    started_ms: int
    phase_ends_ms: tuple[int, ...]
    exit_code: int


@dataclass(frozen=True, slots=True)
class Show:
    """The stream, from the monitor's start to its end."""

    folder: DemoFolder
    settings: Settings
    phases: Sequence[Phase]
    monitor: MonitorProcess
    display: Display
    clock: Clock

    def wait_until_ready(self) -> None:
        """Return when all workers report and all partitions are read.

        Raises:
            WorkerError: The monitor ended, or was not ready in time.
        """
        deadline = Deadline(self.clock, READY_S)
        workers = self.settings.worker.count
        number = "1 worker" if workers == 1 else f"{workers} workers"
        with self.display.waiting(f"starting the monitor: nap-stream run, on local Ray, {number}"):
            while not self.monitor.ready(PARTITIONS):
                self.monitor.require_alive()
                if deadline.expired():
                    raise WorkerError(
                        f"the monitor was not ready within {READY_S:g} s",
                        str(self.folder.monitor_output),
                    )
                self.clock.sleep(LOOK_EVERY_S)
        self.display.step(
            f"the monitor is ready: all workers report, {PARTITIONS} partitions are read"
        )

    def play(self, rate: float) -> Streamed:
        """Send the stream, show what happens, stop the monitor when it has caught up."""
        kafka = self.settings.kafka
        sizes = [len(phase.images) for phase in self.phases]
        follower = AlertFollower(kafka, self.settings.alerts.topic, self.clock)
        producer = Producer(kafka, self.folder.stream, sizes, rate, self.clock)
        alerts: list[Mapping[str, Any]] = []
        started_ms = self.clock.now_ms()
        with follower, producer:
            with self.display.streaming():
                for _ in self._looks_until_drained(producer, sum(sizes)):
                    follower.check()
                    alerts += self._shown(follower.take())
            self.display.step("stopping the monitor with SIGTERM")
            exit_code = self.monitor.stop()
            events = read_events(store_at(self.settings.log.root))
            follower.finish(sum(event.kind == EventKind.ALERT for event in events))
            alerts += self._shown(follower.take())
            self.display.step(f"the monitor ended with exit code {exit_code}")
        lines = [json.dumps(event) + "\n" for event in alerts]
        self.folder.alerts.write_text("".join(lines), encoding="utf-8")
        return Streamed(alerts, started_ms, producer.ended_ms, exit_code)

    def _shown(self, events: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        for event in events:
            self.display.alert(event)
        return events

    def _looks_until_drained(self, producer: "Producer", total: int) -> Iterator[None]:
        """Look again and again, until the log holds all that was sent or the patience ends."""
        announced, patience = -1, None
        while True:
            self.monitor.require_alive()
            producer.check()
            sending = producer.is_alive()
            phase = self.phases[producer.phase]
            if producer.phase != announced:
                announced = producer.phase
                number = f"phase {announced + 1} of {len(self.phases)}"
                self.display.step(f"{number}: {phase.description()}", "bold")
            view = self.monitor.view()
            self.display.update(StreamState(phase.title, producer.sent, total, view))
            yield
            if not sending:
                patience = patience or Deadline(self.clock, DRAIN_S)
                if patience.expired() or (view is not None and view.rows >= total):
                    return
            self.clock.sleep(LOOK_EVERY_S)

    def images(self) -> list[LoggedImage]:
        """All rows of the log."""
        return read_images(self.settings.log.root, self.settings.kafka.topic)

    def checks(self, streamed: Streamed, images: Sequence[LoggedImage]) -> tuple[Check, ...]:
        """Look whether everything was as it must be; ``images`` is what the log holds."""
        changed_ms, returned_ms, _ = streamed.phase_ends_ms
        return check_outcome(
            Outcome(
                alerts=streamed.alerts,
                changed_ms=changed_ms,
                returned_ms=returned_ms,
                sent=[image.name for phase in self.phases for image in phase.images],
                logged=images,
                report=verify(store_at(self.settings.log.root), deep=True),
                exit_code=streamed.exit_code,
            )
        )

    def sum_up(self, streamed: Streamed) -> bool:
        """Show what is left, and whether everything was as it must be."""
        store, console = LocalStore(self.folder.log), self.display.console
        images = self.images()
        checks = self.checks(streamed, images)
        show_counts(aggregate(store, Query(), GroupBy.CLASS), images, console)
        show_outcome(checks, console)
        pictures = kept_in(LocalStore(self.folder.evidence), self.settings)
        figures = gather(store, Asked(), now_ms=self.clock.now_ms(), pictures=pictures)
        publish(self.folder.report, render(figures).encode())
        folder = self.folder
        show_places(folder.root, folder.contents(), folder.config, folder.report, console)
        return all(check.holds for check in checks)


class _Stopped(Exception):  # noqa: N818  no error: how the producer is told to end
    """The demo is breaking off."""


class Task(threading.Thread, ABC):
    """A thread that the end of a block stops and joins; its error comes out of `check`."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._halt = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self.join(JOIN_S)

    def run(self) -> None:
        """Work, and keep what ends it badly for `check`."""
        try:
            self.work()
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001  it is raised again by `check`
            self._failure = error

    @abstractmethod
    def work(self) -> None:
        """Do what the thread is for; raise `_Stopped` to end early."""

    def check(self) -> None:
        """Raise what ended the thread badly."""
        if self._failure is not None:
            raise self._failure


class Producer(Task):
    """Sends the stream at a steady rate and notes when each phase was over.

    ``stream`` is a Parquet file as for `produce`, ``sizes`` the images of each phase, ``rate`` in
    images a second.
    """

    def __init__(
        self, settings: KafkaSettings, stream: Path, sizes: Sequence[int], rate: float, clock: Clock
    ) -> None:
        super().__init__("producer")
        self._settings, self._path, self._rate, self._clock = settings, stream, rate, clock
        self._ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        self._ended_ms: list[int] = []
        self.sent = 0

    @property
    def phase(self) -> int:
        """Number of the phase that is being sent, from 0."""
        return min(len(self._ended_ms), len(self._ends) - 1)

    @property
    def ended_ms(self) -> tuple[int, ...]:
        """When the last image of each phase that is over was sent, milliseconds since the epoch.

        Every image of the next phase bears this time or a later one.
        """
        return tuple(self._ended_ms)

    def work(self) -> None:
        """Send all."""
        produce(
            self._settings,
            self._path,
            rate=self._rate,
            label_header=CAMERA_HEADER,
            clock=self._clock,
            progress=self._progress,
        )

    def _progress(self, sent: int, _total: int | None) -> None:
        self.sent = sent
        if sent in self._ends:
            self._ended_ms.append(self._clock.now_ms())
        if self._halt.is_set():
            raise _Stopped


class AlertFollower(Task):
    """Consumes the alert topic from its beginning."""

    def __init__(self, settings: KafkaSettings, topic: str, clock: Clock) -> None:
        super().__init__("alerts")
        self._settings, self._topic, self._clock = settings, topic, clock
        self._arrived: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._read = self._told = 0
        self._last: Deadline | None = None
        self._looks_left = LAST_LOOKS

    def take(self) -> list[Mapping[str, Any]]:
        """The events that have come since the last call."""
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    def finish(self, told: int) -> None:
        """Read the ``told`` alerts that there are to be, and end: no more will be sent."""
        self._told, self._last = told, Deadline(self._clock, DRAIN_S)
        self.join()
        self.check()

    def work(self) -> None:
        """Follow the topic. What is no alert at all is shown, and judged, as it is."""
        for alert in read_alerts(
            self._settings,
            self._topic,
            clock=self._clock,
            follow=True,
            from_beginning=True,
            should_stop=self._over,
        ):
            self._read += 1
            none = {"data": {"state": alert.problem}}
            self._arrived.put(none if alert.event is None else alert.event)

    def _over(self) -> bool:
        last = self._last
        if last is not None and (self._read >= self._told or last.expired()):
            self._looks_left -= 1
        return self._halt.is_set() or self._looks_left < 0


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does; the handlers from before come back at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # SIGINT too: a shell that starts a program in the background has it ignored.
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def finishing_undisturbed(display: Display) -> Iterator[None]:
    """From the end of the block on, signals are ignored: what was started must be ended first."""
    try:
        yield
    except KeyboardInterrupt:
        display.step("interrupted: ending the broker and the monitor", "bold")
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
