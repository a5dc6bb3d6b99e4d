"""How a reload is asked for on a real Ray cluster, and how another run takes a monitor's place."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock, SystemClock
from nap_stream.errors import CalibrationError, ReloadError, WorkerError
from nap_stream.monitor.cluster import RayCluster
from nap_stream.monitor.mailbox import Answer, ReloadRequest, Stage
from nap_stream.monitor.session import ask_reload, wait_until_gone
from nap_stream.monitor.setup import Setup
from nap_stream.settings.schema import Settings
from tests.cli.program import call
from tests.support.ports import free_port
from tests.support.ray_here import ray_here
from tests.support.summaries import FACTS, settings
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.ray

CLOCK = SystemClock()


def of_group(group: str, **worker: int) -> Settings:
    return settings(
        kafka={"topic": f"images-{group}", "group_id": group}, worker={"num_gpus": 0, **worker}
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A monitor's, whose coordinator has not started: it answers all the same."""
    with ray_here(cpus=1, gpus=0):
        yield RayCluster(of_group("asked"), FACTS)


def ask(group: str, heard: list[Stage]) -> Answer:
    return ask_reload(
        *(group, "ann@a"),
        address=None,
        timeout_s=PATIENCE_S,
        clock=CLOCK,
        on_answer=lambda answer: heard.append(answer.stage),
    )


def test_a_request_reaches_the_driver_and_its_answers_whoever_asked(cluster: RayCluster) -> None:
    heard: list[Stage] = []
    found: list[ReloadRequest] = []

    def arrived() -> bool:
        found.extend(cluster.exchange({}))
        return bool(found)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, "asked", heard)
        wait_until(arrived, "the request")
        name = found[0].id
        checking, over = (Answer(each, "x.yaml") for each in (Stage.CHECKING, Stage.UNCHANGED))

        def told(answer: Answer) -> bool:
            cluster.exchange({name: answer})
            return heard[-1:] == [answer.stage]

        wait_until(lambda: told(checking), "the first word")
        wait_until(lambda: told(over), "the last word")
        assert asked.result() == over
    assert found[0].by == "ann@a"
    assert heard == [Stage.CHECKING, Stage.UNCHANGED]


def test_the_command_says_what_changed_and_that_the_driver_reads_another_file(
    cluster: RayCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "monitor.yaml"
    config.write_text("kafka: {topic: images, group_id: asked}")
    changed = ("worker.count", "1", '"\x9bauto"')
    over = threading.Event()

    def answer() -> None:
        while not over.wait(0.1):
            for request in cluster.exchange(told):
                told[request.id] = Answer(
                    *(Stage.IN_FORCE, "/etc/other.yaml", (changed,), 0), warnings=("2 alerts fire",)
                )

    told: dict[str, Answer] = {}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(answer)
        try:
            ended = call(["reload", "--config", str(config)], monkeypatch, capfd)
        finally:
            over.set()
    assert ended.exit_code == 0, ended.err
    assert ended.out == (
        'in force since 1970-01-01 00:00:00 UTC:\n  worker.count: 1 → "\\x9bauto"\n'
    )
    assert f"the driver reads /etc/other.yaml again, not {config}" in ended.err
    assert ended.err.count("warning: 2 alerts fire\n") == 1


@pytest.mark.usefixtures("cluster")
def test_what_is_no_request_is_refused_where_it_is_left() -> None:
    with pytest.raises(ReloadError, match="a request needs texts"):
        ask_reload(
            *("asked", "a" * 1_000),
            address=None,
            timeout_s=PATIENCE_S,
            clock=CLOCK,
            on_answer=print,
        )


def test_a_monitor_that_is_not_there_is_refused_and_the_others_are_named(
    cluster: RayCluster,
) -> None:
    with pytest.raises(ReloadError, match=r"no monitor of this .* but those of asked") as caught:
        ask("mistyped", [])
    assert caught.value.where == "kafka.group_id = mistyped"
    assert cluster.exchange({}) == (), "it asked nobody else"


def test_what_could_not_start_is_refused_beside_the_run(
    cluster: RayCluster, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError, match="workers need 5 CPUs"):
        cluster.require_startable(
            Setup(of_group("asked", count=5), FACTS, (), {}), with_model=False
        )
    gone = of_group("asked").model_copy(update={"calibration": tmp_path / "gone"})
    with pytest.raises(CalibrationError, match="there is no calibration"):
        cluster.require_startable(Setup(gone, FACTS, (), {}), with_model=True)
    cluster.require_startable(Setup(gone, FACTS, (), {}), with_model=False)


@pytest.mark.usefixtures("cluster")
def test_another_run_takes_the_place_of_one_that_has_ended() -> None:
    first = RayCluster(of_group("again"), FACTS)
    with pytest.raises(WorkerError, match="another monitor"):
        RayCluster(of_group("again"), FACTS)

    port = free_port()

    def serve(actor: Any) -> int:
        actor.served = socket.create_server(("127.0.0.1", port))
        return os.getpid()

    pid = ray.get(first._coordinator.__ray_call__.remote(serve), timeout=PATIENCE_S)
    os.kill(pid, signal.SIGSTOP)  # so that its port outlives its name
    ray.kill(first._coordinator)
    wait_until_gone("again", f"http://127.0.0.1:{port}/metrics", CLOCK)
    socket.create_server(("127.0.0.1", port)).close()
    second = RayCluster(of_group("again"), replace(FACTS, fingerprint="d" * 64))
    ray.get(second._coordinator.claims.remote(), timeout=PATIENCE_S)
    ray.kill(second._coordinator)
    wait_until_gone("again", None, CLOCK)


@pytest.mark.usefixtures("cluster")
def test_a_port_that_is_waited_for_is_said_once() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/metrics"

    class UntilClosed(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.monotonic() > 3:
                server.close()

    with server, capture_logs() as logs:
        wait_until_gone("nobody", url, UntilClosed())
    event = "waiting_for_port_of_old_coordinator"
    assert [log["where"] for log in logs if log["event"] == event] == [url]


@pytest.mark.usefixtures("cluster")
def test_a_head_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    find, failures = ray.get_actor, [RuntimeError("the GCS is away")] * 2

    def sometimes(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return find(*args, **options)

    monkeypatch.setattr(ray, "get_actor", sometimes)
    # Whose time passes between two questions alone.
    clock = ManualClock()
    with pytest.raises(ReloadError, match="the last word was: none"):
        ask_reload(
            *("asked", "ann@a"), address=None, timeout_s=2, clock=clock, on_answer=lambda _: None
        )
    assert not failures
