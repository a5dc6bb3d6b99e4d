"""Alerts on their way to several sinks, of which none waits for another."""

import threading
from collections.abc import Sequence

from nap_stream.alert.base import AlertEvent, AlertSink
from nap_stream.clock import Clock
from nap_stream.deadline import Deadline
from nap_stream.metrics import Metrics
from nap_stream.runtime.outbox import AlertOutbox

LOOK_AGAIN_S = 1.0
"""How soon a sink's own thread looks whether its patience is over."""
CLOSE_S = 5.0
"""How long `close` waits, of the machine's time, for an attempt that a thread is in."""


class Outboxes:
    """Delivers each alert to every sink.

    The first sink's are delivered by whoever calls `deliver`; those of every other by a thread of
    its own, from `put` on, so that one that is slow or down holds up neither callers nor others.

    Args:
        sinks: Where alerts go, at least one; they are closed with this.
        metrics: Counts deliveries and failures by sink.
        clock: Times the backoffs.
    """

    def __init__(self, sinks: Sequence[AlertSink], metrics: Metrics, clock: Clock) -> None:
        self._all = tuple(AlertOutbox(sink, metrics, clock) for sink in sinks)
        self._first = self._all[0]
        self._noting = threading.Lock()
        self._on_their_way: dict[str, AlertEvent] = {}
        self._deliverers = [_Deliverer(outbox) for outbox in self._all[1:]]

    def __len__(self) -> int:
        """How many alerts wait for the sink for which the most do."""
        return max(map(len, self._all))

    @property
    def failure(self) -> str | None:
        """Which sinks' last attempts failed, and why; None where none did."""
        failures = [(outbox.name, outbox.failure) for outbox in self._all]
        return "; ".join(f"{name}: {why}" for name, why in failures if why is not None) or None

    def pending(self) -> tuple[AlertEvent, ...]:
        """The alerts that wait for any sink, each once, in the order of `put`."""
        with self._noting:
            waiting = {alert.id for outbox in self._all for alert in outbox.pending()}
            for name in self._on_their_way.keys() - waiting:
                del self._on_their_way[name]
            return tuple(self._on_their_way.values())

    def read_back(self) -> None:
        """Ask each sink what it has received: `put` then leaves those ids out for that sink."""
        for outbox in self._all:
            outbox.read_back()

    def put(self, alert: AlertEvent) -> None:
        """Queue an alert for every sink."""
        with self._noting:
            self._on_their_way[alert.id] = alert
            for outbox in self._all:
                outbox.put(alert)
        self._wake()

    def deliver(self) -> None:
        """Deliver what waits for the first sink, and have the other sinks' threads look."""
        self._wake()
        self._first.deliver()

    def drain(self, deadline: Deadline) -> None:
        """Deliver all that waits by the deadline, to all sinks at once; try each at least once."""
        threads = [
            threading.Thread(target=outbox.drain, args=(deadline,), name=f"drain-{outbox.name}")
            for outbox in self._all
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Log what was not delivered, and close the sinks. Safe to call twice."""
        for deliverer in self._deliverers:
            deliverer.stop()
        for outbox in self._all:
            outbox.close()
        for deliverer in self._deliverers:
            deliverer.join(CLOSE_S)

    def _wake(self) -> None:
        for deliverer in self._deliverers:
            deliverer.wake()


class _Deliverer:
    """A thread that delivers what an outbox has."""

    def __init__(self, outbox: AlertOutbox) -> None:
        self._outbox = outbox
        self._woken, self._stopping = threading.Event(), False
        # A daemon: an attempt that does not end must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=f"alerts-{outbox.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait(LOOK_AGAIN_S if len(self._outbox) else None)
            self._woken.clear()
            if not self._stopping:
                self._outbox.deliver()
