"""What goes on beside the display: sending the stream, and following the alert topic."""

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from nap_stream.alert.consume import ReadAlert, read_alerts
from nap_stream.clock import Clock
from nap_stream.dev.demo.stream import CAMERA_HEADER
from nap_stream.dev.produce import produce
from nap_stream.settings import KafkaSettings

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
