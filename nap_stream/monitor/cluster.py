"""The driver's end of the Ray cluster: workers and coordinator are started, asked and ended."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nap_stream.clock import SystemClock
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import ModelError, NapStreamError, WorkerError
from nap_stream.files import full_disk
from nap_stream.monitor.actors import CoordinatorActor, WorkerActor, check_model
from nap_stream.monitor.fleet import Fleet, Needs, PartitionCount, gpu_room, require_room, wanted
from nap_stream.monitor.journal import failed_words
from nap_stream.monitor.mailbox import Answer, ReloadRequest
from nap_stream.monitor.session import (
    ANSWER_S,
    NAMESPACE,
    NodeWatch,
    brief,
    claims,
    clash_error,
    coordinator_name,
    gpus_a_worker,
    ray_folder,
    require_no_clash,
    resources,
    resources_in_time,
)
from nap_stream.monitor.setup import Setup, clouds_of
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.process import store_environment
from nap_stream.scored_log.summary import LogEnds
from nap_stream.settings.run import cpus_a_worker
from nap_stream.settings.schema import Settings

UNPLACED_S = 15.0
"""How long a worker may wait for a place before the log says so, again and again."""
UNKNOWN = "unknown"
"""A node, of a worker whose process is gone."""
START_S = 120.0
"""How long an actor may take to be placed and to import torch on a cold machine."""


class RayWorker:
    """The driver's end of a worker actor, on one of the nodes that are watched."""

    def __init__(self, actor: Any, watch: NodeWatch) -> None:
        self._actor, self._watch = actor, watch
        self.node, self._preempted = "", False
        """The node's id, as far as `placed` knows it."""
        self._ready = actor.ready.remote()
        self._run = actor.run.remote()

    def placed(self) -> bool:
        """Whether it has, or had, a process: Ray has found room for it."""
        if not self.node and _is_done(self._ready):
            try:
                self.node = str(ray.get(self._ready))
            except RayError:
                self.node = UNKNOWN
        return bool(self.node)

    def evicted(self) -> bool:
        """Whether its node is being drained, or was ended in good order, as `error` may tell."""
        return self._preempted or (self.placed() and self.node in self._watch.drained)

    def ended(self) -> bool:
        """Whether its run is over, well or badly."""
        return _is_done(self._run)

    def error(self) -> Exception | None:
        """What ended it; None where it ended well."""
        try:
            ray.get(self._run)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, NapStreamError):
                return cause
            failure = WorkerError(brief(error))
            failure.__cause__ = cause
            return failure
        except RayError as error:
            self._preempted = getattr(error, "preempted", False)
            # Ray needs room in its folder for each process that it starts.
            room = full_disk(ray_folder())
            return WorkerError(f"the worker's process died: {brief(error)}", action=room)
        finally:
            ray.kill(self._actor)
        return None

    def stop(self) -> None:
        """Ask it to publish, commit and leave; one without a process has nothing to publish."""
        if self.placed():
            self._actor.stop.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """End its process at once."""
        ray.kill(self._actor)


class RayCluster:
    """A driver's view of the Ray cluster that it is connected to.

    ``partitions`` tells how many there are to be read now, one where it is None.
    ``since`` is where the chains ended when the monitor began, where it ends after so many rows:
    each coordinator counts from there. None where nobody waits for rows. With
    ``is_own``, Ray runs for this monitor alone: its workers divide the CPUs.

    Raises:
        WorkerError: If the cluster can never place the workers that are asked for.
    """

    def __init__(
        self,
        settings: Settings,
        calibration: CalibrationFacts,
        since: LogEnds | None = None,
        *,
        partitions: PartitionCount | None = None,
        is_own: bool = False,
    ) -> None:
        self._settings, self._count, self._is_own = settings, partitions, is_own
        self.may_wait = settings.worker.count == "auto" or settings.worker.autoscaled
        self._calibration = calibration.fingerprint
        # Actors have their nodes' environment. As arguments, secrets show in no dashboard.
        self._environment = store_environment(os.environ, clouds_of(settings))
        self._needs = _needs(settings, is_own=is_own)
        self.num_cpus, self.num_gpus = self._needs.cpus, self._needs.gpus
        self._watch = NodeWatch()
        require_room(settings.worker, self._needs, self._watch.nodes)
        claimed = claims(settings)
        require_no_clash(claimed)
        self._name = name = coordinator_name(settings.kafka.group_id)
        # Within a group calls keep their order, and none waits for those of another group.
        options = {"concurrency_groups": {"line": 1, "tick": 1, "claims": 1}}
        coordinator = ray.remote(**options)(CoordinatorActor).options(  # type: ignore[call-overload]  # not in its stub
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            # An actor that needs nothing is placed by a node that Ray draws. Where that has just
            # joined, and knows no other, it keeps it. A byte is something: the driver's node does.
            memory=1,
            # The driver counts them, and earns them back; Ray would not.
            max_restarts=-1,
            max_task_retries=-1,
            # Beside the driver, where people look for it; elsewhere only once that node is gone.
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            ),
        )
        try:
            self._coordinator: Any = coordinator.remote(
                settings, calibration, since, self._environment, claimed
            )
        except ValueError as error:
            group = f"the group {settings.kafka.group_id}"
            raise clash_error("kafka.group_id", group, name) from error
        try:
            # One that began at the same time was not there before: now one of both sees the other.
            require_no_clash(claimed, name)
        except WorkerError:
            ray.kill(self._coordinator)
            raise
        self._tick: Any = None
        self._exchanged: Any = None
        self._newest: RayWorker | None = None
        self._clock = SystemClock()
        # Workers that Ray has not placed yet, and when the log is to say so.
        self._unplaced: dict[str, tuple[RayWorker, float]] = {}
        self._has: dict[str, float] | str | None = None

    def start(self) -> str:
        """Start the coordinator; return the address of its /metrics.

        Raises:
            NapStreamError: What keeps it from starting.
        """
        try:
            metrics = str(_answer(self._coordinator.start.remote(), START_S))
        except (RayError, NapStreamError) as error:
            # Another run may come before this program's end: the name is to be free for it.
            ray.kill(self._coordinator)
            if isinstance(error, NapStreamError):
                raise
            raise WorkerError(
                f"the coordinator did not start: {brief(error)}", action=full_disk(ray_folder())
            ) from error
        self._watch.start()
        return metrics

    def wanted(self) -> int:
        """How many workers there are to be now."""
        room = sum(map(self._needs.room, self._watch.nodes))
        return wanted(self._settings.worker, self.partitions(), room)

    def at_least(self) -> int:
        """How many of them must have a place."""
        return self._settings.worker.at_least

    def partitions(self) -> int:
        """How many partitions there are to be read now."""
        return 1 if self._count is None else self._count()

    def start_worker(self, name: str, incarnation: int) -> RayWorker:
        """Start a worker actor; returns at once."""
        actor = ray.remote(WorkerActor).options(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_concurrency=3, max_restarts=0
        )
        share = self.num_cpus, self.num_gpus
        worker = RayWorker(
            actor.remote(
                *(self._settings, name, incarnation, share),
                coordinator=self._coordinator,
                environment=self._environment,
                calibration=self._calibration,
            ),
            self._watch,
        )
        self._unplaced[name] = worker, self._clock.monotonic() + UNPLACED_S
        self._newest = worker
        return worker

    def worker_restarted(self, name: str) -> None:
        """Have a restart counted."""
        self._coordinator.worker_restarted.remote(name)

    def replace_coordinator(self) -> None:
        """End the coordinator's process at once; Ray starts another one."""
        ray.kill(self._coordinator, no_restart=False)

    def tick(self, fleet: Fleet) -> None:
        """Have the coordinator tick, unless it still does; returns at once.

        One tick at a time: one that waits for the broker holds nothing else up.
        """
        topics = None if self._count is None else self._count.topics
        fleet = replace(fleet, unplaced=self._name_unplaced(fleet), topics=topics)
        if self._tick is not None:
            if not _is_done(self._tick):
                return
            try:
                ray.get(self._tick)
            except RayError as error:
                structlog.get_logger().error("coordinator_tick_failed", cause=brief(error))
        self._tick = self._coordinator.tick.remote(fleet)

    def exchange(self, answers: Mapping[str, Answer]) -> Sequence[ReloadRequest]:
        """Hand on answers to those who asked for a reload, give new requests; returns at once.

        One exchange at a time, as with `tick`.
        """
        asked: Sequence[ReloadRequest] = ()
        if self._exchanged is not None:
            if not _is_done(self._exchanged):
                return asked
            with suppress(RayError):  # whoever asked asks again
                asked = ray.get(self._exchanged)
        self._exchanged = self._coordinator.exchange.remote(answers)
        return asked

    def reload_refused(self, by: str, error: BaseException) -> None:
        """Have the chain of events say that a reload was refused; returns at once."""
        self._coordinator.reload_refused.remote(by, failed_words(error))

    def require_startable(self, setup: Setup, *, with_model: bool) -> None:
        """Refuse what a run by these settings would be refused for here, once this one has ended.

        With ``with_model``, the model is loaded where a worker runs, in a process of its own, on
        its CPU.

        Raises:
            NapStreamError: What is wrong.
        """
        settings = setup.settings
        require_room(settings.worker, _needs(settings, is_own=self._is_own), self._watch.nodes)
        require_no_clash(claims(settings), self._name)
        if with_model:
            self._require_model(settings)

    def _require_model(self, settings: Settings) -> None:
        node = self._newest.node if self._newest is not None and self._newest.placed() else UNKNOWN
        if node == UNKNOWN:
            node = ray.get_runtime_context().get_node_id()
        check: Any = ray.remote(max_calls=1)(check_model).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
        )
        timeout_s = settings.driver.start_timeout_s
        environment = store_environment(os.environ, clouds_of(settings))
        reference = check.remote(settings, environment)
        try:
            _answer(reference, timeout_s)
        except GetTimeoutError as error:
            ray.cancel(reference, force=True)
            raise ModelError(
                f"it was not loaded within driver.start_timeout_s, {timeout_s:g} s",
                settings.model.where,
            ) from error
        except RayError as error:
            raise ModelError(
                f"it could not be loaded: {brief(error)}",
                settings.model.where,
                full_disk(ray_folder()),
            ) from error

    def status(self) -> CoordinatorStatus | None:
        """The coordinator's view; None while it does not answer."""
        try:
            status: CoordinatorStatus = _answer(self._coordinator.status.remote(), ANSWER_S)
        except (NapStreamError, RayError) as error:
            if isinstance(error, NapStreamError) and not error.retriable:
                raise
            structlog.get_logger().warning("coordinator_silent", cause=brief(error))
            return None
        return status

    def finish(
        self, timeout_s: float, *, input_ended: bool, reason: str
    ) -> CoordinatorStatus | None:
        """Close the coordinator; None where it does not answer in time."""
        self._watch.close()
        try:
            finished = self._coordinator.finish.remote(
                timeout_s * 0.8, input_ended=input_ended, reason=reason
            )
            status: CoordinatorStatus = _answer(finished, timeout_s)
        except (RayError, NapStreamError) as error:
            structlog.get_logger().error("coordinator_did_not_finish", cause=brief(error))
            return None
        finally:
            ray.kill(self._coordinator)
        return status

    def _name_unplaced(self, fleet: Fleet) -> Mapping[str, str]:
        """Say which workers wait for room: after a node's death there may be too little of it.

        Nothing of those that may wait for good, while there are as many as there must be.
        """
        placed = [name for name, (worker, _) in self._unplaced.items() if worker.placed()]
        for name in {*placed, *(self._unplaced.keys() - set(fleet.names))}:
            del self._unplaced[name]
        if len(fleet.names) - len(self._unplaced) >= fleet.expected:
            return {}
        now_s = self._clock.monotonic()
        due = [name for name, (_, name_at_s) in self._unplaced.items() if now_s >= name_at_s]
        if due:
            self._has = _room()
        for name in due:
            self._unplaced[name] = self._unplaced[name][0], now_s + UNPLACED_S
            structlog.get_logger().warning(
                "worker_waits_for_place",
                worker=name,
                needs={"CPU": self.num_cpus, "GPU": self.num_gpus},
                cluster_has=self._has,
            )
        if self._has is None:
            return {}
        what = f"a node with {self._needs} free; the Ray cluster has {self._has} in all"
        return dict.fromkeys(self._unplaced, what)


def _needs(settings: Settings, *, is_own: bool) -> Needs:
    """What a worker takes. Those of a Ray of its own divide what it has."""
    shared = resources() if is_own else {}
    gpus = gpus_a_worker(settings)
    on_gpus = gpu_room(gpus, shared.get("GPU", 0.0))
    return Needs(cpus_a_worker(settings.worker, int(shared.get("CPU", 0.0)), on_gpus), gpus)


def _room() -> dict[str, float] | str:
    """The CPUs and GPUs of the cluster, for the log."""
    found = resources_in_time(ANSWER_S)
    if found is None:
        return "unknown: the head of the Ray cluster does not answer"
    return {name: found.get(name, 0.0) for name in ("CPU", "GPU")}


def _is_done(reference: Any) -> bool:
    done, _ = ray.wait([reference], timeout=0)
    return bool(done)


def _answer(reference: Any, timeout_s: float) -> Any:
    """The result of a call, with our own errors as themselves."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, NapStreamError):
            raise error.cause from None
        raise
