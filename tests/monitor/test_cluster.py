"""Workers as Ray actors, on logical GPUs: Ray counts two, torch sees none."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
import structlog
import torch
from structlog.testing import capture_logs

from nap_stream.errors import ConfigError, GpuUnavailableError, LogRootError, WorkerError
from nap_stream.monitor import cluster as ray_cluster
from nap_stream.monitor import session
from nap_stream.monitor.actors import CoordinatorActor, WorkerActor
from nap_stream.monitor.cluster import RayCluster, RayWorker
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.session import (
    Claims,
    claims,
    cluster_resources,
    ray_session,
    require_no_clash,
)
from nap_stream.settings.schema import Settings
from tests.e2e.on_ray import ray_up
from tests.support.leftovers import short_folder
from tests.support.ports import free_port
from tests.support.ray_here import ray_here
from tests.support.summaries import FACTS
from tests.support.summaries import settings as settings_of
from tests.support.topics import new_settings
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(torch.cuda.is_available(), reason="logical GPUs need a machine without any"),
]

CPUS, GPUS = 4, 2

MakeCluster = Callable[[Settings], RayCluster]


@pytest.fixture(scope="module", autouse=True)
def logical_gpus() -> Iterator[None]:
    """Ray in this process, with two GPUs that are not there."""
    with ray_here(cpus=CPUS, gpus=GPUS):
        yield


def _settings(group: str, **worker: float) -> Settings:
    return settings_of(kafka={"topic": f"images-{group}", "group_id": group}, worker=worker)


@pytest.fixture
def cluster_of() -> Iterator[MakeCluster]:
    """Makes clusters whose coordinators' processes are gone after the test."""
    made = []

    def make(settings: Settings) -> RayCluster:
        made.append(RayCluster(settings, FACTS))
        return made[-1]

    yield make
    for cluster in made:
        ray.kill(cluster._coordinator)


def _started(cluster: RayCluster, count: int) -> list[RayWorker]:
    return [cluster.start_worker(f"worker-{number}", 0) for number in range(count)]


def _place(worker: RayWorker) -> tuple[int, list[str]]:
    """The process of a worker, and the GPUs that Ray gave it."""

    def look(_actor: WorkerActor) -> tuple[int, list[str]]:
        return os.getpid(), ray.get_runtime_context().get_accelerator_ids().get("GPU", [])

    place: tuple[int, list[str]] = ray.get(
        worker._actor.__ray_call__.remote(look), timeout=PATIENCE_S
    )
    return place


def _gpus_and_errors(workers: list[RayWorker]) -> tuple[list[str], list[Exception | None]]:
    places = [_place(worker) for worker in workers]
    assert len({pid for pid, _ in places}) == len(workers)
    for worker in workers:
        wait_until(worker.ended, "the end of a worker that has no GPU")
    gpu_ids = [gpu_id for _, given in places for gpu_id in given]
    return gpu_ids, [worker.error() for worker in workers]


def test_two_workers_get_two_gpus_and_say_that_torch_sees_none(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(_settings("two", count=2, num_gpus=1))
    gpu_ids, errors = _gpus_and_errors(_started(cluster, 2))
    assert sorted(gpu_ids) == ["0", "1"]
    for error in errors:
        assert isinstance(error, GpuUnavailableError)
        assert "worker.num_gpus is 1" in error.problem
        assert "sees no GPU" in error.problem
        assert "CUDA_VISIBLE_DEVICES=" in error.where
        assert "worker.num_gpus: 0" in error.action


@pytest.mark.slow
def test_two_workers_with_half_a_gpu_share_one(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(_settings("half", count=2, num_gpus=0.5))
    gpu_ids, errors = _gpus_and_errors(_started(cluster, 2))
    assert len(gpu_ids) == 2
    assert len(set(gpu_ids)) == 1
    assert all("worker.num_gpus is 0.5" in str(error) for error in errors)


def test_a_worker_takes_a_gpu_by_default_where_ray_has_some(cluster_of: MakeCluster) -> None:
    assert cluster_of(_settings("default")).num_gpus == 1.0


def test_the_coordinator_needs_something_so_that_the_drivers_node_places_it(
    cluster_of: MakeCluster,
) -> None:
    """Of an actor that needs nothing, any node decides: one that has just joined knows itself."""

    def look(_actor: CoordinatorActor) -> dict[str, float]:
        context = ray.get_runtime_context()
        needs: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call]
        return needs

    coordinator = cluster_of(_settings("placed"))._coordinator
    assert ray.get(coordinator.__ray_call__.remote(look), timeout=PATIENCE_S) == {"memory": 1.0}


@pytest.mark.parametrize(
    ("worker", "cpus"),
    [
        ({"count": 1}, 4),
        ({"count": 2}, 2),
        ({"count": 3}, 1),
        ({"count": 1, "num_cpus": 3}, 3),
        ({"count": 2, "torch_threads": 2}, 2),
    ],
)
def test_the_workers_of_a_ray_of_their_own_divide_its_cpus(
    worker: dict[str, int], cpus: int
) -> None:
    name = "-".join(f"{key}{value}" for key, value in worker.items())
    cluster = RayCluster(_settings(name, num_gpus=0, **worker), FACTS, is_own=True)
    ray.kill(cluster._coordinator)
    assert cluster.num_cpus == cpus


@pytest.mark.parametrize(
    ("worker", "cpus"), [({}, 1), ({"torch_threads": 2}, 2), ({"num_cpus": 3}, 3)]
)
def test_a_worker_on_a_cluster_of_others_takes_what_it_needs(
    worker: dict[str, int], cpus: int, cluster_of: MakeCluster
) -> None:
    name = "-".join(["among", *(f"{key}{value}" for key, value in worker.items())])
    assert cluster_of(_settings(name, num_gpus=0, **worker)).num_cpus == cpus


def test_a_worker_takes_no_gpu_where_the_settings_say_so(cluster_of: MakeCluster) -> None:
    assert cluster_of(_settings("none", num_gpus=0)).num_gpus == 0.0


@pytest.mark.parametrize(
    ("worker", "problem"),
    [
        ({"count": 3, "num_gpus": 1}, "3 workers need 3 GPUs, the Ray cluster has 2"),
        ({"count": 2, "num_gpus": 1.5}, "2 workers need 3 GPUs, the Ray cluster has 2"),
        ({"count": 5, "num_gpus": 0}, "5 workers need 5 CPUs, the Ray cluster has 4"),
        ({"count": 1, "torch_threads": 8}, "1 workers need 8 CPUs, the Ray cluster has 4"),
    ],
)
def test_more_than_the_cluster_has_is_refused(worker: dict[str, float], problem: str) -> None:
    with pytest.raises(WorkerError) as caught:
        RayCluster(_settings("much", **worker), FACTS)
    assert caught.value.problem == problem
    assert "worker." in caught.value.where
    assert caught.value.action


@pytest.mark.parametrize(
    ("changed", "key", "problem"),
    [
        ({"kafka": {"topic": "other"}}, "kafka.group_id", "the group taken"),
        ({"kafka": {"group_id": "b"}}, "log.root", "the log of images in log"),
        (
            {"kafka": {"group_id": "b"}, "log": {"root": Path("another")}},
            "alerts.monitor",
            "the monitor ood-fraction of images",
        ),
        (
            {"kafka": {"group_id": "b", "topic": "all", "topic_pattern": "ima.*"}},
            "log.root",
            "the log of images in log",
        ),
        (
            {
                "kafka": {"group_id": "b", "topic": "all", "topic_pattern": ".*"},
                "log": {"root": Path("another")},
                "dead_letters": {"topic": "b-letters"},
                "alerts": {"topic": "b-alerts"},
            },
            "kafka.topic_pattern",
            "nap-stream-alerts, nap-stream-dead-letters to write, which this one reads",
        ),
        (
            {
                "kafka": {"group_id": "b", "topic": "other"},
                "dead_letters": {"topic": "images"},
            },
            "kafka.topic",
            "images to read, which this one writes",
        ),
    ],
)
def test_a_second_monitor_that_clashes_with_the_first_is_refused(
    changed: dict[str, dict[str, Any]], key: str, problem: str, cluster_of: MakeCluster
) -> None:
    first: dict[str, dict[str, Any]] = {
        "kafka": {"topic": "images", "group_id": "taken"},
        "worker": {"num_gpus": 0},
    }
    cluster_of(settings_of(**first))
    changed = changed | {"kafka": first["kafka"] | changed["kafka"]}
    with pytest.raises(WorkerError, match="another monitor on this Ray cluster has") as caught:
        RayCluster(settings_of(**(first | changed)), FACTS)
    assert problem in caught.value.problem
    assert caught.value.where == key
    assert "nap-stream-coordinator-taken" in caught.value.action


def test_two_monitors_that_begin_at_once_find_each_other(
    cluster_of: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that looks before the other is there, and the other is there before it is."""
    both = [
        settings_of(kafka={"topic": "once", "group_id": group}, worker={"num_gpus": 0})
        for group in ("once-a", "once-b")
    ]
    looked = require_no_clash

    def after_the_other(mine: Claims, own: str = "") -> None:
        if own:
            looked(mine, own)
        elif mine.group == "once-b":
            other = cluster_of(both[0])
            ray.get(other._coordinator.claims.remote(), timeout=PATIENCE_S)

    monkeypatch.setattr(ray_cluster, "require_no_clash", after_the_other)
    with pytest.raises(WorkerError, match="the log of once"):
        RayCluster(both[1], FACTS)
    monkeypatch.undo()

    def names() -> set[str]:
        return {str(one["name"]) for one in ray.util.list_named_actors(all_namespaces=True)}

    wait_until(lambda: "nap-stream-coordinator-once-b" not in names(), "its actor to be gone")


@pytest.mark.parametrize(
    ("mine", "theirs", "what"),
    [
        (
            {"topic_pattern": "a-.*"},
            {"topic_pattern": "b-.*"},
            "the log in log, and topics that appear later could fit both patterns",
        ),
        ({"topic_pattern": "a-.*"}, {"topics": ["a-1", "b-1"]}, "the log of a-1 in log"),
        ({"topics": ["a-1", "b-1"]}, {"topic_pattern": "a-.*"}, "the log of a-1 in log"),
        ({"topics": ["a-1", "b-1"]}, {"topics": ["b-1", "c-1"]}, "the log of b-1 in log"),
        ({"topic_pattern": "a-.*"}, {"topics": ["b-1", "c-1"]}, None),
    ],
)
def test_two_that_could_read_one_topic_do_not_share_a_log(
    mine: dict[str, Any], theirs: dict[str, Any], what: str | None
) -> None:
    def claimed(name: str, kafka: dict[str, Any], root: str = "log") -> Claims:
        return claims(
            settings_of(
                kafka={"topic": name, "group_id": name, **kafka},
                log={"root": root},
                dead_letters={"topic": f"dead-{name}"},
            )
        )

    found = claimed("one", mine).clash(claimed("two", theirs))
    assert found == (None if what is None else ("log.root", what))
    assert claimed("one", mine).clash(claimed("two", theirs, root="another")) is None


@pytest.mark.embedded
def test_two_monitors_share_a_cluster_a_broker_and_a_log_and_not_a_port(
    cluster_of: MakeCluster, embedded: str, tmp_path: Path
) -> None:
    kafka = new_settings(embedded)

    def made(name: str, port: int = 0) -> RayCluster:
        settings = settings_of(
            kafka={"bootstrap_servers": embedded, "topic": name, "group_id": f"both-{name}"},
            alerts={"topic": kafka.topic},
            worker={"num_gpus": 0},
            log={"root": tmp_path},
            metrics={"port": port},
        )
        return cluster_of(settings)

    both = made("one"), made("two")
    first, second = (urlsplit(cluster.start()).port for cluster in both)
    assert first is not None
    assert first != second
    with pytest.raises(ConfigError, match="cannot listen") as caught:
        made("three", first).start()
    assert caught.value.where == "metrics.port"
    for cluster in both:
        assert cluster.finish(PATIENCE_S, input_ended=False, reason="over") is not None
    found = {path.name for path in (tmp_path / "_monitors").rglob("*.checkpoint")}
    assert found >= {"one.checkpoint", "two.checkpoint"}


def test_a_coordinator_that_cannot_start_says_why_as_itself(
    cluster_of: MakeCluster, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = _settings("broken", num_gpus=0)
    log = settings.log.model_copy(update={"root": tmp_path / "file" / "log"})
    cluster = cluster_of(settings.model_copy(update={"log": log}))
    with pytest.raises(LogRootError, match="file"):
        cluster.start()


def test_a_killed_worker_is_an_error_of_its_process(cluster_of: MakeCluster) -> None:
    (worker,) = _started(cluster_of(_settings("killed", num_gpus=0)), 1)
    worker.kill()
    wait_until(worker.ended, "the end of a killed worker")
    error = worker.error()
    assert type(error) is WorkerError
    assert "process died" in error.problem


def test_a_worker_without_room_is_not_placed_and_ends_when_it_is_told_to_stop(
    cluster_of: MakeCluster,
) -> None:
    (first,) = _started(cluster_of(_settings("roomy", torch_threads=CPUS, num_gpus=0)), 1)
    wait_until(first.placed, "the place of a worker that has room")
    (late,) = _started(cluster_of(_settings("roomless", num_gpus=0)), 1)
    assert not late.placed()
    late.stop()
    wait_until(late.ended, "the end of a worker that never began")
    assert isinstance(late.error(), WorkerError)
    first.kill()


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_a_worker_that_waits_for_room_is_named_while_the_head_does_not_answer(
    fault: str, cluster_of: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def away() -> dict[str, float]:
        if fault == "hangs":
            over.wait()
        raise ConnectionError("no head")

    monkeypatch.setattr(ray_cluster, "UNPLACED_S", 0.0)
    cluster = cluster_of(_settings(f"unnamed-{fault}", torch_threads=CPUS, num_gpus=0))
    (first,) = _started(cluster, 1)
    wait_until(first.placed, "the place of a worker that has room")
    late = cluster.start_worker("worker-1", 0)
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.05)
    monkeypatch.setattr(ray, "cluster_resources", away)

    with capture_logs() as events:
        cluster.tick(Fleet(2, ("worker-0", "worker-1")))
    over.set()
    for worker in (first, late):
        worker.kill()

    (told,) = [event for event in events if event["event"] == "worker_waits_for_place"]
    assert told["worker"] == "worker-1"
    assert "does not answer" in told["cluster_has"]


def test_a_session_within_a_session_leaves_ray_running() -> None:
    with ray_session(None, 1):
        pass
    assert ray.is_initialized()
    assert cluster_resources(None)["GPU"] == GPUS


@pytest.mark.parametrize(
    ("address", "cause", "problem", "action"),
    [
        (None, "The current node timed out during startup.", "did not start", "Start again"),
        (None, "No space left on device", "did not start", "room and the right to write"),
        ("auto", "nobody answers", "cannot connect to Ray", "--address"),
        ("http://10.0.0.1:8265", "no head of Ray", "cannot connect to Ray", "--address"),
    ],
)
def test_a_ray_that_does_not_come_up_is_told_with_what_to_do(
    address: str | None, cause: str, problem: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_options: object) -> None:
        raise Exception(cause)  # noqa: TRY002  Ray's own is as bare

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/a/folder")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", failing)

    with pytest.raises(WorkerError) as caught, ray_session(address, 1):
        pass

    assert problem in caught.value.problem
    assert cause in caught.value.problem
    assert action in caught.value.action
    assert caught.value.where == (
        "its logs in /a/folder/ray/session_latest/logs" if address is None else f"address {address}"
    )


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses at which Ray is begun, which it only seems to be."""
    begun: list[str] = []

    def init(*, address: str) -> None:
        begun.append(address)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "HEAD_EVERY_S", 0.01)
    return begun


@contextmanager
def answering(answer: bytes, port: int = 0) -> Iterator[str]:
    """Somebody who answers one connection; their address."""
    with socket.create_server(("127.0.0.1", port)) as server, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        serving = pool.submit(serve)
        yield f"127.0.0.1:{server.getsockname()[1]}"
        serving.result(PATIENCE_S)


@pytest.mark.parametrize("answer", [b"", b"\0\0", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_somebody_else_at_the_heads_address_is_told_at_once(
    answer: bytes, no_ray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER_S", PATIENCE_S)
    with (
        answering(answer) as address,
        pytest.raises(WorkerError, match="is no head of Ray") as caught,
        ray_session(address, 1),
    ):
        pass
    assert (caught.value.where, no_ray) == (f"address {address}", [])
    assert "8265" in caught.value.action


def test_a_head_that_comes_up_is_waited_for_and_said_so(
    no_ray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HEAD_WITHIN_S", PATIENCE_S)
    port = free_port()
    with capture_logs() as told, ThreadPoolExecutor(1) as pool:

        def begin() -> None:
            with ray_session(f"127.0.0.1:{port}", 1):
                pass

        beginning = pool.submit(begin)
        wait_until(lambda: any(log["event"] == "waiting_for_ray" for log in told), "the word of it")
        with answering(b"\0\0\6\4\0\0\0\0\0", port):
            beginning.result(PATIENCE_S)
    assert no_ray == [f"127.0.0.1:{port}"]
    assert "refused" in told[0]["cause"]


def test_a_head_that_does_not_come_up_is_told(
    no_ray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HEAD_WITHIN_S", 0.0)
    with pytest.raises(WorkerError, match="refused"), ray_session(f"127.0.0.1:{free_port()}", 1):
        pass
    assert no_ray == []


def test_a_head_that_takes_long_to_answer_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert session._is_head("127.0.0.1", server.getsockname()[1])


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_that_ray_loses_while_it_starts_ends_the_program(
    number: signal.Signals, end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's handlers raise, and what is raised in a destructor is gone."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def losing(**_options: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(end):
            signal.raise_signal(number)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", losing)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        with pytest.raises(end), ray_session("auto", 1):
            pytest.fail("the run goes on")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_where_a_fault_in_a_worker_came_from_is_in_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_settings: object, **_parts: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("nap_stream.monitor.worker.run_worker", broken)
    monkeypatch.setattr("nap_stream.monitor.actors.configure_logging", lambda **_options: None)
    actor = WorkerActor(
        _settings("fault"), "worker-0", 0, (1, 0.0), coordinator=None, environment={}
    )

    with (
        structlog.contextvars.bound_contextvars(worker=""),
        capture_logs() as events,
        pytest.raises(ZeroDivisionError),
    ):
        actor.run()

    assert [(e["event"], e["exc_info"]) for e in events] == [("worker_failed_unexpectedly", True)]


@pytest.mark.slow
def test_ray_starts_without_a_home_folder_and_asks_for_a_token(tmp_path: Path) -> None:
    look = (
        "import os; from nap_stream.monitor.session import cluster_resources;"
        "print(cluster_resources(None)['CPU'], len(os.environ['RAY_AUTH_TOKEN']))"
    )
    with short_folder() as folder:
        environ = {"HOME": "/dev/null", "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(folder)}
        with ray_up(["python", "-c", look], tmp_path, lambda run: bool(run.stdout), environ) as run:
            assert run.wait() == 0, run.tail
    cpus, token = run.stdout.split()
    assert float(cpus) >= 1
    assert int(token) >= 32
