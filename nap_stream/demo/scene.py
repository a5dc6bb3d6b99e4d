"""What goes on beside the display: sending the stream, and following the alert topic.

Before the stream: a trained model, its calibration, image files.

While the stream flows: what is sent, what the monitor shows, which alerts come.
"""

import json
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file

from nap_stream.alert.kafka import ReadAlert, read_alerts
from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import Clock, Deadline
from nap_stream.core.conformal import Rule
from nap_stream.demo.digits import (
    CAMERA_HEADER,
    Phase,
    accuracy,
    load_splits,
    plan_stream,
    train,
    write_digits,
    write_stream,
)
from nap_stream.demo.display import Display, StreamState
from nap_stream.demo.folder import ALPHA, PARTITIONS, DemoFolder
from nap_stream.demo.processes import MonitorProcess
from nap_stream.demo.produce import produce
from nap_stream.errors import WorkerError
from nap_stream.settings.load import load_model_settings, load_scoring_settings
from nap_stream.settings.schema import KafkaSettings, LimitSettings, Settings

LAST_LOOKS = 3
"""Polls of the alert topic, of half a second, after the monitor has delivered its last alert."""
JOIN_S = 5.0
"""A client whose broker is gone may wait for minutes; its thread ends with the process then."""


class _Stopped(Exception):  # noqa: N818  no error: how the producer is told to end
    """The demo is breaking off."""


class _Task(threading.Thread, ABC):
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


class Producer(_Task):
    """Sends the stream at a steady rate and notes when each phase was over.

    Args:
        settings: The topic.
        stream: A Parquet file as for `produce`.
        sizes: Images of each phase.
        rate: Images a second.
        clock: For the pace and the times.
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


class AlertFollower(_Task):
    """Consumes the alert topic from its beginning.

    Args:
        settings: How to connect.
        topic: The alert topic.
        clock: For the consumer.
    """

    def __init__(self, settings: KafkaSettings, topic: str, clock: Clock) -> None:
        super().__init__("alerts")
        self._settings, self._topic, self._clock = settings, topic, clock
        self._arrived: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._last = threading.Event()
        self._looks_left = LAST_LOOKS

    def take(self) -> list[Mapping[str, Any]]:
        """The events that have come since the last call."""
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    def finish(self) -> None:
        """Read what is there, and end: no more alerts will be sent."""
        self._last.set()
        self.join()
        self.check()

    def work(self) -> None:
        """Follow the topic."""
        for alert in read_alerts(
            self._settings,
            self._topic,
            clock=self._clock,
            follow=True,
            from_beginning=True,
            should_stop=self._over,
        ):
            self._arrived.put(_event(alert))

    def _over(self) -> bool:
        if self._last.is_set():
            self._looks_left -= 1
        return self._halt.is_set() or self._looks_left < 0


def _event(alert: ReadAlert) -> Mapping[str, Any]:
    """The event; what is no alert at all is shown, and judged, as it is."""
    return alert.event if alert.event is not None else {"data": {"state": alert.problem}}


CALIBRATION_BATCH = 50


@dataclass(frozen=True, slots=True)
class Input:
    """The stream that will be sent, phase by phase."""

    phases: tuple[Phase, ...]

    @property
    def names(self) -> list[str]:
        """Of all images, in sending order."""
        return [image.name for phase in self.phases for image in phase.images]

    @property
    def sizes(self) -> list[int]:
        """Images of each phase."""
        return [len(phase.images) for phase in self.phases]


def make_model_and_images(folder: DemoFolder, seed: int, display: Display) -> Input:
    """Deal out the digits, write them as files, train the network and save it."""
    splits = load_splits(seed)
    phases = plan_stream(splits.stream, seed)
    write_digits(splits.training, folder.images / "training")
    write_digits(splits.calibration, folder.images / "calibration")
    write_stream(phases, folder.images / "stream", folder.stream)
    counts = " / ".join(f"{len(s):,}" for s in (splits.training, splits.calibration, splits.stream))
    display.step(f"handwritten digits dealt out: {counts} to train, calibrate, stream")
    network = train(splits.training.pixels, splits.training.label, seed)
    held_out = accuracy(network, splits.calibration.pixels, splits.calibration.label)
    save_file(network.state_dict(), folder.weights)
    display.step(f"small CNN trained: {held_out:.1%} of the calibration digits told right")
    return Input(phases)


def make_calibration(folder: DemoFolder, display: Display, clock: Clock) -> Calibration:
    """Calibrate the configured model on its held-out digits, as `nap-stream calibrate` does."""
    request = CalibrationRequest(
        model=load_model_settings(folder.config, environ={}),
        scoring=load_scoring_settings(folder.config, environ={}),
        images=folder.images / "calibration",
        fit_images=folder.images / "training",
        rule=Rule(ALPHA),
        weight=None,
        batch_size=CALIBRATION_BATCH,
        limits=LimitSettings(),
    )
    calibration = calibrate(
        request,
        device=torch.device("cpu"),
        clock=clock,
    )
    write_calibration(calibration, folder.calibration)
    low, high = calibration.flag_rate_interval
    display.step(
        f"calibrated on {calibration.size} held-out digits: flags at p <= {calibration.alpha:g}, "
        f"true flag rate {low:.1%} to {high:.1%} ({calibration.document.flag_rate_confidence:.0%})"
    )
    return calibration


START_S = 120.0
"""How long Ray and the workers may take to start on a busy machine."""
DRAIN_S = 30.0
"""How long the monitor may take for what is left after the last image was sent."""
LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Streamed:
    """What was sent and what came of it outside of the log; times in ms since the epoch."""

    stream: Input
    alerts: Sequence[Mapping[str, Any]]
    started_ms: int
    phase_ends_ms: tuple[int, ...]
    exit_code: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that is needed while the stream flows."""

    folder: DemoFolder
    settings: Settings
    stream: Input
    monitor: MonitorProcess
    display: Display
    clock: Clock

    def wait_until_ready(self) -> None:
        """Return when all workers report and all partitions are read.

        Raises:
            WorkerError: The monitor ended, or was not ready in time.
        """
        deadline = Deadline(self.clock, START_S)
        workers = self.settings.worker.count
        number = "1 worker" if workers == 1 else f"{workers} workers"
        with self.display.waiting(f"starting the monitor: nap-stream run, on local Ray, {number}"):
            while not self.monitor.ready(PARTITIONS):
                self.monitor.require_alive()
                if deadline.expired():
                    raise WorkerError(
                        f"the monitor was not ready within {START_S:g} s",
                        str(self.folder.monitor_output),
                    )
                self.clock.sleep(LOOK_EVERY_S)
        self.display.step(
            f"the monitor is ready: all workers report, {PARTITIONS} partitions are read"
        )

    def play(self, rate: float) -> Streamed:
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
        return Streamed(self.stream, alerts, started_ms, producer.ended_ms, exit_code)

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
