"""Workers and coordinator as Ray actors. With `cluster` and `session`, all that imports ray."""

import os
import threading
from collections.abc import Mapping
from typing import Any

import ray
import structlog
from prometheus_client import disable_created_metrics
from ray.util import get_node_ip_address

from nap_stream.alert.sinks import TracedSink, open_sinks
from nap_stream.clock import Deadline, StopRequest, SystemClock
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import NapStreamError
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.journal import Journal, failed_words
from nap_stream.monitor.mailbox import Answer, Mailbox, ReloadRequest
from nap_stream.monitor.session import Claims
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.process import adopt_store_environment, configure_logging
from nap_stream.records import SegmentSummary, WorkerReport
from nap_stream.scored_log.acceptances import AcceptanceReader
from nap_stream.scored_log.read import require_root
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.summary import LogEnds, LogSummaries
from nap_stream.settings.schema import Settings
from nap_stream.tracing import OFF, open_tracing

DELIVERY_SHARE = 0.8
"""Of the time in which a coordinator must finish: what is left is for the last checkpoint."""


class _ActorReporter:
    """Sends summaries and reports to the coordinator actor, without waiting."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def submit(self, summary: SegmentSummary) -> None:
        self._coordinator.submit.remote(summary)

    def report(self, report: WorkerReport) -> None:
        self._coordinator.report.remote(report)


def check_model(settings: Settings, environment: Mapping[str, str]) -> None:
    """Load the model in a process of its own: what its code may do there, it does to no other."""
    from nap_stream.monitor.worker import require_model  # noqa: PLC0415  as in `WorkerActor.run`

    configure_logging(for_people=False)
    adopt_store_environment(environment, os.environ)
    require_model(settings)


class WorkerActor:
    """One worker in a process of its own; `stop` is answered while `run` is at work."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        incarnation: int,
        share: tuple[int, float],
        *,
        coordinator: Any,
        environment: Mapping[str, str],
        calibration: str | None = None,
    ) -> None:
        self._environment, self._calibration = environment, calibration
        self._settings, self._name, self._incarnation = settings, name, incarnation
        (self._num_cpus, self._num_gpus), self._coordinator = share, coordinator
        self._stop = StopRequest(SystemClock())

    def ready(self) -> str:
        """The id of its node, as soon as the actor has a process."""
        return str(ray.get_runtime_context().get_node_id())

    def run(self) -> None:
        """Work until `stop`."""
        # Here and not above: the coordinator and the driver's start need not wait for torch.
        from nap_stream.monitor.worker import run_worker  # noqa: PLC0415

        configure_logging(for_people=False)
        structlog.contextvars.bind_contextvars(worker=self._name)
        adopt_store_environment(self._environment, os.environ)
        try:
            run_worker(
                self._settings,
                self._name,
                self._incarnation,
                num_cpus=self._num_cpus,
                num_gpus=self._num_gpus,
                reporter=_ActorReporter(self._coordinator),
                calibration=self._calibration,
                stop=self._stop,
                clock=SystemClock(),
            )
        except NapStreamError:
            raise
        except Exception:
            # The driver says in one line what it was; only here is where it came from.
            structlog.get_logger().exception("worker_failed_unexpectedly")
            raise

    def stop(self) -> None:
        """Ask `run` to end in good order."""
        self._stop.make()


class CoordinatorActor:
    """The coordinator in a process of its own.

    Its parts are opened by `start`, or a worker's call that came first, and again by the first
    call after Ray has restarted it.
    """

    def __init__(
        self,
        settings: Settings,
        calibration: CalibrationFacts,
        since: LogEnds | None,
        environment: Mapping[str, str],
        claimed: Claims,
    ) -> None:
        self._claims = claimed
        configure_logging(for_people=False)
        adopt_store_environment(environment, os.environ)
        # When a series began is of no use for rates, and half of what would be scraped.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types
        self._settings, self._calibration, self._since = settings, calibration, since
        self._lock = threading.Lock()
        self._opened: Coordinator | None = None
        self._journal: Journal | None = None
        self._mailbox, self._tracing = Mailbox(), OFF

    @ray.method(concurrency_group="claims")
    def claims(self) -> Claims:
        """What no other monitor may have, also before it has started."""
        return self._claims

    @ray.method(concurrency_group="claims")
    def reload(self, request: ReloadRequest) -> Answer | None:
        """Leave a request for the driver, and give its answer so far."""
        return self._mailbox.ask(request)

    @ray.method(concurrency_group="claims")
    def exchange(self, answers: Mapping[str, Answer]) -> tuple[ReloadRequest, ...]:
        """Take the driver's answers to requests, and give it those without one."""
        return self._mailbox.exchange(answers)

    def reload_refused(self, by: str, cause: str) -> None:
        """Have the chain of events say so."""
        self._coordinator()
        if self._journal is not None:
            self._journal.refused(by, cause)

    def start(self) -> str:
        """Open everything; return the address of /metrics."""
        return self._coordinator().metrics_url

    @ray.method(concurrency_group="line")
    def submit(self, summary: SegmentSummary) -> None:
        """Take a summary."""
        coordinator = self._coordinator()
        self._tracing.remember(summary)
        with self._tracing.span("decide", summary.trace):
            coordinator.submit(summary)

    @ray.method(concurrency_group="line")
    def report(self, report: WorkerReport) -> None:
        """Take a report."""
        self._coordinator().report(report)

    @ray.method(concurrency_group="tick")
    def tick(self, fleet: Fleet) -> None:
        """Move the watermark on, deliver alerts."""
        self._coordinator().tick(fleet)

    def worker_restarted(self, name: str) -> None:
        """Count a restart."""
        self._coordinator().worker_restarted(name)

    def status(self) -> CoordinatorStatus:
        """The present view."""
        return self._coordinator().status()

    def finish(self, timeout_s: float, *, input_ended: bool, reason: str) -> CoordinatorStatus:
        """Take what is left, deliver alerts, say why the run ended, close."""
        deadline, coordinator = Deadline(SystemClock(), timeout_s), self._coordinator()
        coordinator.flush(timeout_s * DELIVERY_SHARE, input_ended=input_ended)
        coordinator.stopped(reason, deadline.remaining_s())
        status = coordinator.status()
        coordinator.close()
        self._tracing.close()
        return status

    def _coordinator(self) -> Coordinator:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Coordinator:
        """A coordinator that knows from checkpoint and log where it is, and can alert.

        Raises:
            NapStreamError: What keeps it from starting.
        """
        settings, clock = self._settings, SystemClock()
        store = store_at(settings.log.root)
        require_root(store)
        self._tracing = open_tracing(settings, "coordinator", clock)
        self._journal = Journal(store, settings, clock)
        coordinator = Coordinator(
            settings,
            self._calibration,
            [TracedSink(sink, self._tracing) for sink in open_sinks(settings, clock)],
            summaries=LogSummaries(store, settings, self._calibration.fingerprint),
            checkpoints=CheckpointStore(store, settings.alerts.monitor, settings.kafka.topic),
            journal=self._journal,
            clock=clock,
            acceptances=AcceptanceReader(store, settings.kafka.topic, clock),
            node=str(get_node_ip_address()),  # type: ignore[no-untyped-call]  # ray has no types
        )
        try:
            coordinator.start(self._since)
        except BaseException as error:
            coordinator.stopped(failed_words(error))
            coordinator.close()
            raise
        return coordinator
