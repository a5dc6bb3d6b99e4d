"""While the stream flows: what is sent, what the monitor shows, which alerts come."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nap_stream.clock import Clock
from nap_stream.deadline import Deadline
from nap_stream.dev.demo.configuration import PARTITIONS
from nap_stream.dev.demo.display import Display, StreamState
from nap_stream.dev.demo.folder import DemoFolder
from nap_stream.dev.demo.monitor_process import MonitorProcess
from nap_stream.dev.demo.prepare import Input
from nap_stream.dev.demo.threads import AlertFollower, Producer
from nap_stream.errors import WorkerError
from nap_stream.settings import Settings

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
