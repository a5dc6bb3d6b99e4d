"""Ray itself: a session on a cluster or this machine, what it has, and its errors in a line."""

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import structlog
from ray.exceptions import RayError

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import ReloadError, WorkerError
from nap_stream.monitor.fleet import Node, Repeated
from nap_stream.monitor.mailbox import Answer, ReloadRequest, await_answer
from nap_stream.process import available_cpus, noted_signals
from nap_stream.settings.schema import Settings
from nap_stream.settings.topics import TopicSelection
from nap_stream.text import listed

LOOK_AT_NODES_EVERY_S = 1.0
NAMESPACE = "nap-stream"
"""Of the named actors of all monitors of a cluster: their coordinators."""
COORDINATOR = "nap-stream-coordinator-"
"""How their names begin; the consumer group follows."""
GONE_WITHIN_S, GONE_EVERY_S, GONE_QUIETLY_S = 60.0, 0.05, 2.0
"""How long a coordinator that is ended keeps name and port at most, how often one looks, and from
when on it is told."""
HEAD_WITHIN_S, HEAD_EVERY_S = 30.0, 2.0
"""How long a head of Ray may take to come up, and how often one looks."""
CONNECT_S = 1.0
ANSWER_S = 5.0
"""How long an answer may take that is normally there within a millisecond."""
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP2_FRAME, _HTTP2_SETTINGS = 9, b"\4"
"""How gRPC begins, as the head speaks it: settings from both sides (RFC 9113, 3.4). The fourth byte
of a frame is its kind."""
CLAIMS_S = 30.0
"""How long another monitor may take to say what it has: it may have begun just now."""
BACK_WITHIN_S = GONE_WITHIN_S + 3 * CLAIMS_S
"""How long a monitor may be away between two runs: one coordinator goes, the next asks others."""


@contextmanager
def ray_session(address: str | None, cpus: int) -> Iterator[bool]:
    """Connect to a cluster, or start Ray on this machine; disconnect at the end.

    ``address`` is of a cluster; where None, RAY_ADDRESS (set within a Ray job), else local.
    ``cpus`` is what a local Ray must count at least, whatever the machine has. Yields whether Ray
    was started here, for this monitor alone.

    Raises:
        WorkerError: If the cluster does not answer, or Ray does not start on this machine.
    """
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    by_default = {
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    }
    with noted_signals() as signals:
        _connect(address, cpus)
        lost = signals() & by_default
    try:
        _require_none(lost)
        yield not address
    finally:
        ray.shutdown()


def _connect(address: str | None, cpus: int) -> None:
    if address:
        _require_head(address)
    try:
        if address:
            ray.init(address=address)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            if "RAY_AUTH_TOKEN_PATH" not in os.environ:
                # Else Ray keeps one in the home folder, which need not be there.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            ray.init(address="local", num_cpus=max(available_cpus(), cpus), include_dashboard=False)
    except Exception as error:  # Ray raises no narrower one where a node does not come up in time
        if address:
            raise WorkerError(
                f"cannot connect to Ray: {brief(error)}",
                f"address {address}",
                "Check --address and that `ray status` answers there",
            ) from error
        folder = ray_folder()
        is_slow = "timed out during startup" in str(error)
        raise WorkerError(
            f"Ray did not start on this machine: {brief(error)}",
            f"its logs in {folder}/ray/session_latest/logs",
            "Start again, with less at work beside it: Ray gives its processes 15 s to come up"
            if is_slow
            else f"See these logs. Ray needs room and the right to write in {folder}",
        ) from error


def _require_head(address: str) -> None:
    """Wait for a head of Ray at an address of a host and a port, as for one that comes up again.

    Ray itself would ask for 100 s, say nothing, and heed no signal meanwhile.

    Raises:
        WorkerError: Nobody listens there for a while, or somebody else does.
    """
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if "://" not in place and not (host and port.isdecimal()):
        return
    clock = SystemClock()
    deadline = Deadline(clock, HEAD_WITHIN_S)
    while True:
        try:
            is_head = "://" not in place and _is_head(host.strip("[]"), int(port))
            problem = "what listens there is no head of Ray"
        except (UnicodeError, OverflowError) as error:
            is_head, problem = False, str(error)
        except OSError as error:
            is_head, problem = None, (error.strerror or str(error)).lower()
        if is_head:
            return
        if is_head is False or deadline.expired():
            raise WorkerError(
                f"cannot connect to Ray: {problem}",
                f"address {address}",
                "Check --address or RAY_ADDRESS, the head's HOST:PORT (6379 unless it was started "
                "with another; 8265 is its dashboard's), and that `ray status` answers there",
            )
        seconds_left = round(deadline.remaining_s(), 1)
        structlog.get_logger().warning(
            "waiting_for_ray", address=address, cause=problem, seconds_left=seconds_left
        )
        clock.sleep(HEAD_EVERY_S)


def _is_head(host: str, port: int) -> bool:
    """Whether somebody there speaks gRPC; whoever speaks TLS counts, where Ray does.

    A head that only takes long to answer is left to Ray, which is more patient.

    Raises:
        OSError: Nobody is there.
    """
    with socket.create_connection((host, port), ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in {"1", "true"}:
            return True
        connection.sendall(_HTTP2_GREETING)
        try:
            with connection.makefile("rb") as answer:
                return answer.read(_HTTP2_FRAME)[3:4] == _HTTP2_SETTINGS
        except TimeoutError:
            return True


def _require_none(signals: set[int]) -> None:
    """End the program as a signal would have that came while Ray started, and was lost there.

    Ray's handlers raise, and so does Python's own of SIGINT; what is raised while Ray runs code
    that lets nothing out is gone.
    """
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    if signal.SIGTERM in signals:
        raise SystemExit(128 + signal.SIGTERM)


def cluster_resources(address: str | None) -> dict[str, float]:
    """What a cluster, or Ray on this machine, has: "CPU", "GPU" and the like.

    Raises:
        WorkerError: If the cluster does not answer.
    """
    with ray_session(address, cpus=1):
        return resources()


def ray_folder() -> Path:
    """Where Ray keeps its files on this machine, unless it was started otherwise."""
    return Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))


def resources() -> dict[str, float]:
    """What the cluster has now: "CPU", "GPU" and the like."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # ray leaves it untyped


def resources_in_time(timeout_s: float) -> dict[str, float] | None:
    """What the cluster has now; None where its head does not say so in time.

    Ray waits for a head that is away for as long as it may be, minutes where it may be replaced.
    """
    answers: list[dict[str, float]] = []

    def ask() -> None:
        with suppress(Exception):  # Ray's errors here have no type in common
            answers.append(resources())

    asked = threading.Thread(target=ask, name="ray-resources", daemon=True)
    asked.start()
    asked.join(timeout_s)
    return answers[0] if answers else None


def gpus_a_worker(settings: Settings) -> float:
    """The GPUs that Ray is to give a worker: what is asked for, else one where there are any."""
    if settings.worker.num_gpus is not None:
        return settings.worker.num_gpus
    if settings.model.elsewhere is not None:
        return 0.0
    return 1.0 if resources().get("GPU", 0) > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Claims:
    """What a monitor has for itself: its group, the topics of its log, whose alerts it tells.

    What it ``reads`` may grow where that is a pattern.
    """

    group: str
    root: str
    reads: TopicSelection
    writes: frozenset[str]
    servers: frozenset[str]
    alerts: str

    def clash(self, other: "Claims") -> tuple[str, str] | None:
        """The key of what both have, and what that is; None where they can be side by side."""
        if self.group == other.group:
            return "kafka.group_id", f"the group {self.group}"
        if self.root == other.root and (both := self._both(other)):
            return "log.root", f"the log {both}"
        if self.alerts == other.alerts:
            return "alerts.monitor", f"the alerts of {self.alerts}"
        if self.servers & other.servers:
            if fed := self.reads.among(other.writes):
                return self.reads.key, f"{', '.join(fed)} to write, which this one reads"
            if fed := other.reads.among(self.writes):
                return self.reads.key, f"{', '.join(fed)} to read, which this one writes"
        return None

    def _both(self, other: "Claims") -> str:
        """Which topics both could read of one log, in words; empty where there is none."""
        if self.reads.pattern is not None and other.reads.pattern is not None:
            return f"in {self.root}, and topics that appear later could fit both patterns"
        named = {*self.reads.names, *other.reads.names}
        both = other.reads.among(self.reads.among(named))
        return f"of {', '.join(both)} in {self.root}" if both else ""


def claims(settings: Settings) -> Claims:
    """What a monitor has for itself."""
    kafka, alerts = settings.kafka, settings.alerts
    servers = ",".join(sorted(kafka.bootstrap_servers))
    return Claims(
        kafka.group_id,
        str(settings.log.root),
        settings.reads,
        frozenset(settings.written),
        frozenset(kafka.bootstrap_servers),
        f"the monitor {alerts.monitor} of {kafka.topic}, in {alerts.topic} on {servers}",
    )


def coordinator_name(group: str) -> str:
    """The name of a monitor's coordinator, by its consumer group."""
    return f"{COORDINATOR}{group}"


def wait_until_gone(group: str, metrics_url: str | None, clock: Clock) -> None:
    """Wait until a coordinator that was ended is gone, so that another may have name and port.

    ``metrics_url`` is where it served metrics; None for nowhere. A process that hangs has its port
    for seconds after Ray has forgotten it.

    Raises:
        WorkerError: One is still there after a while, or there again.
    """
    deadline = Deadline(clock, GONE_WITHIN_S)
    while True:
        try:
            ray.get_actor(coordinator_name(group), namespace=NAMESPACE)
        except ValueError:
            _wait_for_port(metrics_url, deadline, clock)
            return
        except Exception as error:  # noqa: BLE001  it may be back in time
            structlog.get_logger().warning("coordinator_not_looked_for", cause=brief(error))
        if deadline.expired():
            raise WorkerError("a coordinator of this name is still there", coordinator_name(group))
        clock.sleep(GONE_EVERY_S)


def _wait_for_port(url: str | None, deadline: Deadline, clock: Clock) -> None:
    """Where it does not go, the next start says whose port it is."""
    quiet, is_told = Deadline(clock, GONE_QUIETLY_S), False
    while url and _listens(url) and not deadline.expired():
        if quiet.expired() and not is_told:
            is_told = True
            seconds_left = round(deadline.remaining_s(), 1)
            structlog.get_logger().warning(
                "waiting_for_port_of_old_coordinator", where=url, seconds_left=seconds_left
            )
        clock.sleep(GONE_EVERY_S)


def _listens(url: str) -> bool:
    """Whether a connection can be made to where a URL points."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port), CONNECT_S).close()
    except OSError:
        return False
    return True


def ask_reload(
    group: str,
    by: str,
    *,
    address: str | None,
    timeout_s: float,
    clock: Clock,
    on_answer: Callable[[Answer], None],
) -> Answer:
    """Have the monitor of a group read its settings again, and wait for what becomes of that.

    ``address`` is of a Ray cluster; None for RAY_ADDRESS, or one that runs on this machine.

    Raises:
        ReloadError: It refused, ended, or did not answer in time, or is not there.
        WorkerError: The cluster does not answer.
    """
    request = ReloadRequest(uuid.uuid4().hex, by)

    def poll() -> Answer | None:
        try:
            actor: Any = ray.get_actor(coordinator_name(group), namespace=NAMESPACE)
        except ValueError as error:
            raise LookupError(group) from error
        except Exception:  # noqa: BLE001  Ray's errors where its head is away have no type in common
            return None
        if not hasattr(actor, "reload"):
            raise ReloadError(
                "this monitor is of a version that cannot reload", group, "Stop and start it"
            )
        try:
            answer: Answer | None = ray.get(actor.reload.remote(request), timeout=ANSWER_S)
        except RayError as error:
            if isinstance(cause := getattr(error, "cause", None), ReloadError):
                raise cause from None
            return None
        return answer

    with _joined(address):
        try:
            return await_answer(*(poll, clock, timeout_s, on_answer), back_within_s=BACK_WITHIN_S)
        except LookupError as error:
            named = ray.util.list_named_actors(all_namespaces=True)
            there = [str(one["name"]) for one in named if one["namespace"] == NAMESPACE]
            groups = sorted(name.removeprefix(COORDINATOR) for name in there)
            raise ReloadError(
                "no monitor of this consumer group runs on this Ray cluster, "
                f"but those of {listed(groups, 10)}"
                if groups
                else "no monitor runs on this Ray cluster",
                f"kafka.group_id = {group}",
                "Check --config, and --address: without it any Ray of this machine is asked",
            ) from error


@contextmanager
def _joined(address: str | None) -> Iterator[None]:
    """A session on a cluster that is there already."""
    if address or os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        with ray_session(address, cpus=1):
            yield
        return
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises no narrower one
        raise WorkerError(
            f"no Ray cluster on this machine lets this program in: {brief(error)}",
            "without --address",
            "Give --address. A run that has started Ray by itself has a token of its own: send its "
            "process a SIGHUP, and see its log; or start it with RAY_AUTH_TOKEN set, and have the "
            "same here",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def clash_error(key: str, what: str, other: str) -> WorkerError:
    """That ``what``, which the settings' ``key`` says, is that of a monitor called ``other``."""
    return WorkerError(
        f"another monitor on this Ray cluster has {what}",
        key,
        f"Stop {other} first, or give this monitor one of its own",
    )


def require_no_clash(mine: Claims, own: str = "") -> None:
    """Refuse to run beside a monitor of this cluster that has the same log, or the same alerts.

    ``own`` is the name of this monitor's actor. One that does not answer is told of, and not
    counted.

    Raises:
        WorkerError: Naming what they would share.
    """
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] != NAMESPACE or one["name"] == own:
            continue
        name = str(one["name"])
        try:
            actor: Any = ray.get_actor(name, namespace=NAMESPACE)
            asked: Any = actor.claims.remote()
            theirs: Claims = ray.get(asked, timeout=CLAIMS_S)
        except Exception as error:  # noqa: BLE001  Ray's errors here have no type in common
            structlog.get_logger().warning("monitor_not_asked", monitor=name, cause=brief(error))
            continue
        if (clash := mine.clash(theirs)) is not None:
            raise clash_error(*clash, name)


class NodeWatch:
    """The cluster's nodes as of the last second, asked for in a thread of its own.

    A head that is away is waited for there, and the last answer stays in force.
    """

    def __init__(self) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.drained: frozenset[str] = frozenset()
        """The ids of all nodes that were seen to be drained."""
        self._repeated = Repeated(
            self._look,
            LOOK_AT_NODES_EVERY_S,
            name="ray-nodes",
            failed="nodes_not_looked_at",
            words=brief,
        )
        self.start, self.close = self._repeated.start, self._repeated.close
        self._look()

    def _look(self) -> None:
        # Not ray.nodes: that would start another Ray once this one is gone.
        state = ray._private.state.state  # noqa: SLF001  nothing else says which nodes are drained
        self.drained |= state.get_draining_nodes().keys()
        table = state.node_table()  # type: ignore[no-untyped-call]  # ray leaves it untyped
        self.nodes = tuple(
            Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in table
            if node["Alive"] and node["NodeID"] not in self.drained
        )


def brief(error: BaseException) -> str:
    """An error without the traceback that Ray puts into its text."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
