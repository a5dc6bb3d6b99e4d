"""The one HTTP server of a run: a page for people, /metrics for Prometheus, /healthz and probes."""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from types import MappingProxyType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from nap_stream.clock import Clock, SystemClock
from nap_stream.errors import ConfigError
from nap_stream.pages.html import policy
from nap_stream.settings.run import MetricsSettings

REQUEST_TIMEOUT_S = 10
"""A client that is slower than this is cut off."""
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - settings that mean all are recognised by it
PAGE_AGE_S = 1.0
"""A page that is no older is shown again, however many ask for it."""
POLL_S = 0.1
"""How often the server looks whether it is to stop."""


class MetricsServer:
    """Serves in a thread of its own from construction until `close`.

    ``registry`` is what /metrics shows. ``health`` and ``degraded`` are asked at each /healthz, on
    a thread of the server. ``health`` gives the reasons not to be healthy, which somebody may
    mend: the answer is 503. ``degraded`` gives what else whoever looks must know: the program is
    in order, and its verdicts are not what they seem. The answer tells it, and stays 200.
    ``decides`` says what decides where the answer is to tell. ``probes`` are further paths: each
    gives the reasons to answer 503. ``page`` writes the HTML of /, where the settings want one.
    ``node`` is this machine's address, for `url` where the settings name all of them.

    Raises:
        ConfigError: The address cannot be had.
    """

    def __init__(
        self,
        settings: MetricsSettings,
        registry: CollectorRegistry,
        health: Callable[[], Sequence[str]],
        *,
        degraded: Callable[[], Sequence[str]] = tuple,
        decides: Callable[[], str | None] = lambda: None,
        probes: Mapping[str, Callable[[], Sequence[str]]] = MappingProxyType({}),
        page: Callable[[], str] | None = None,
        node: str = "localhost",
        clock: Clock | None = None,
    ) -> None:
        self._host, self._node = settings.host, node
        self._server = _listen(settings)

        def healthz() -> tuple[HTTPStatus, dict[str, Any]]:
            return _health_answer(health(), degraded(), decides())

        answers = {"/healthz": healthz}
        answers |= {path: partial(_probe_answer, reasons) for path, reasons in probes.items()}
        kept = None if page is None or not settings.page else _Kept(page, clock or SystemClock())
        self._server.set_app(_application(registry, answers, kept))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use, also where the settings left it open."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Where metrics are, as http://host:port/metrics."""
        host = self._node if self._host in EVERY_ADDRESS else self._host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Kept:
    """Writes a page for one at a time, and shows it to those who ask soon after."""

    def __init__(self, write: Callable[[], str], clock: Clock) -> None:
        self._write, self._clock, self._lock = write, clock, threading.Lock()
        self._page, self._until_s = "", float("-inf")

    def __call__(self) -> str:
        with self._lock:
            if self._clock.monotonic() >= self._until_s:
                self._page = self._write()
                self._until_s = self._clock.monotonic() + PAGE_AGE_S
            return self._page


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for the host's name here, which can take seconds.
        TCPServer.server_bind(self)
        address = self.socket.getsockname()
        self.server_name, self.server_port = str(address[0]), int(address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: a scrape every few seconds is no event."""


def _listen(settings: MetricsSettings) -> _Server:
    kind = _ServerV6 if ":" in settings.host else _Server
    try:
        return kind((settings.host, settings.port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            "metrics.port",
            "Stop the program that has the port, set another one, or 0 for any free one; "
            "metrics.host must be an address of this machine",
        ) from error


def _application(
    registry: CollectorRegistry,
    answers: Mapping[str, Callable[[], tuple[HTTPStatus, dict[str, Any]]]],
    page: Callable[[], str] | None,
) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)
    paths = [*(["/"] if page else []), "/metrics", *answers]

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "HEAD":
            # Neither wsgiref nor prometheus_client knows that it wants the headers alone.
            application({**environ, "REQUEST_METHOD": "GET"}, start_response)
            return []
        if environ["REQUEST_METHOD"] != "GET":
            return _answer(start_response, HTTPStatus.METHOD_NOT_ALLOWED, {"error": "use GET"})
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/" and page is not None:
            return _send(start_response, HTTPStatus.OK, page().encode(), _page_headers())
        if (answer := answers.get(path)) is not None:
            return _answer(start_response, *answer())
        return _answer(start_response, HTTPStatus.NOT_FOUND, {"paths": paths})

    return application


def _health_answer(
    reasons: Sequence[str], degraded: Sequence[str], decides: str | None
) -> tuple[HTTPStatus, dict[str, Any]]:
    more: dict[str, Any] = {} if decides is None else {"decides": decides}
    more |= {"degraded": list(degraded)} if degraded else {}
    if reasons:
        tree = {"status": "unhealthy", "reasons": list(reasons), **more}
        return HTTPStatus.SERVICE_UNAVAILABLE, tree
    return HTTPStatus.OK, {"status": "degraded" if degraded else "ok", **more}


def _probe_answer(probe: Callable[[], Sequence[str]]) -> tuple[HTTPStatus, dict[str, Any]]:
    if reasons := probe():
        return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "failed", "reasons": list(reasons)}
    return HTTPStatus.OK, {"status": "ok"}


def _answer(
    start_response: StartResponse, status: HTTPStatus, tree: dict[str, Any]
) -> Iterable[bytes]:
    body = json.dumps(tree).encode() + b"\n"
    return _send(start_response, status, body, (("Content-Type", "application/json"),))


def _page_headers() -> Sequence[tuple[str, str]]:
    return (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", f"{policy()}; frame-ancestors 'none'"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    )


def _send(
    start_response: StartResponse,
    status: HTTPStatus,
    body: bytes,
    headers: Sequence[tuple[str, str]],
) -> Iterable[bytes]:
    of_all = (
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    )
    start_response(f"{status.value} {status.phrase}", [*headers, *of_all])
    return [body]
