import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError
from nap_stream.http_server import MetricsServer
from nap_stream.settings.run import MetricsSettings
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

FREE = MetricsSettings(port=0)


class Patient:
    """What is asked for its health."""

    def __init__(self) -> None:
        self.health: tuple[str, ...] = ()

    def __call__(self) -> tuple[str, ...]:
        return self.health


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def server(patient: Patient) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    server = MetricsServer(FREE, registry, patient)
    yield server
    server.close()


def get(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.port}{path}"
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics(server: MetricsServer) -> None:
    status, text = get(server, "/metrics")
    assert status == 200
    assert "things_total 3.0" in text
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"


def test_health(server: MetricsServer, patient: Patient) -> None:
    status, text = get(server, "/healthz")
    assert (status, json.loads(text)) == (200, {"status": "ok"})
    patient.health = ("no worker",)
    status, text = get(server, "/healthz")
    assert (status, json.loads(text)) == (503, {"status": "unhealthy", "reasons": ["no worker"]})


def test_a_page_is_written_once_a_second_however_many_ask() -> None:
    written, clock = iter(range(9)), ManualClock(0)
    server = MetricsServer(
        FREE, CollectorRegistry(), tuple, page=lambda: f"page {next(written)}", clock=clock
    )
    try:
        assert [get(server, "/")[1] for _ in range(3)] == ["page 0"] * 3
        clock.advance(1)
        assert get(server, "/") == (200, "page 1")
    finally:
        server.close()


def test_probes_answer_for_themselves() -> None:
    asked: dict[str, Sequence[str]] = {"/livez": (), "/readyz": ("0 of 2 workers",)}
    server = MetricsServer(
        MetricsSettings(host="0.0.0.0", port=0),
        CollectorRegistry(),
        lambda: ("an alert waits",),
        probes={path: partial(asked.__getitem__, path) for path in asked},
        node="127.0.0.1",
    )
    try:
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
        assert get(server, "/livez") == (200, '{"status": "ok"}\n')
        status, text = get(server, "/readyz")
        assert (status, json.loads(text)) == (
            503,
            {"status": "failed", "reasons": ["0 of 2 workers"]},
        )
        paths = ["/metrics", "/healthz", "/livez", "/readyz"]
        assert json.loads(get(server, "/")[1]) == {"paths": paths}
        asked["/readyz"] = ()
        assert get(server, "/readyz")[0] == 200
        assert get(server, "/healthz")[0] == 503
    finally:
        server.close()


def test_head_has_the_status_alone(server: MetricsServer, patient: Patient) -> None:
    patient.health = ("worker-0 is silent",)
    for path, status in (("/metrics", 200), ("/healthz", 503), ("/nowhere", 404)):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
            connection.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(partial(connection.recv, 4096), b""))
        assert answer.startswith(f"HTTP/1.0 {status} ".encode())
        assert answer.endswith(b"\r\n\r\n")


def test_nothing_else(server: MetricsServer) -> None:
    assert get(server, "/")[0] == 404
    assert get(server, "/metrics/../etc/passwd")[0] == 404
    assert get(server, "/healthz", "POST")[0] == 405


def test_quiet(server: MetricsServer, capfd: pytest.CaptureFixture[str]) -> None:
    get(server, "/metrics")
    get(server, "/nowhere")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"\x00\xff nonsense\r\n\r\n")
        connection.recv(1_000)
    assert capfd.readouterr() == ("", "")


def test_a_slow_client_holds_nobody_up(server: MetricsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /metr")
        assert get(server, "/healthz")[0] == 200


def test_a_port_in_use_is_a_clear_error(server: MetricsServer) -> None:
    taken = MetricsSettings(port=server.port)
    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{server.port}") as error:
        MetricsServer(taken, CollectorRegistry(), tuple)
    assert error.value.where == "metrics.port"
    assert "0 for any free one" in error.value.action


def test_an_address_of_elsewhere_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        MetricsServer(MetricsSettings(host="192.0.2.1", port=0), CollectorRegistry(), tuple)


def test_ipv6() -> None:
    try:
        server = MetricsServer(MetricsSettings(host="::1", port=0), CollectorRegistry(), tuple)
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    try:
        assert server.url == f"http://[::1]:{server.port}/metrics"
        with urllib.request.urlopen(server.url, timeout=PATIENCE_S) as answer:
            assert answer.status == 200
    finally:
        server.close()


def test_close_frees_the_port_and_ends_the_thread() -> None:
    before, settings = set(threading.enumerate()), MetricsSettings(port=free_port())
    server = MetricsServer(settings, CollectorRegistry(), tuple)
    server.close()
    server.close()
    # One of an earlier test may have ended meanwhile.
    assert set(threading.enumerate()) <= before
    again = MetricsServer(settings, CollectorRegistry(), tuple)
    again.close()


def test_what_is_degraded_is_told_and_restarts_nothing(patient: Patient) -> None:
    degraded = ("unscored-images fires",)
    server = MetricsServer(FREE, CollectorRegistry(), patient, degraded=lambda: degraded)
    try:
        status, text = get(server, "/healthz")
        assert (status, json.loads(text)) == (
            200,
            {"status": "degraded", "degraded": ["unscored-images fires"]},
        )
        patient.health = ("0 of 1 workers reported in the last 30 s",)
        status, text = get(server, "/healthz")
        assert (status, json.loads(text)) == (
            503,
            {
                "status": "unhealthy",
                "reasons": ["0 of 1 workers reported in the last 30 s"],
                "degraded": ["unscored-images fires"],
            },
        )
    finally:
        server.close()
