"""One HTTP server for the whole job: /metrics for Prometheus, /healthz for whoever restarts it."""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from nap_stream.errors import ConfigError
from nap_stream.settings.schema import MetricsSettings

REQUEST_TIMEOUT_S = 10
"""A client that is slower than this is cut off."""
POLL_S = 0.1
"""How often the server looks whether it is to stop."""


@dataclass(frozen=True, slots=True)
class Health:
    """Healthy exactly where there is no reason not to be."""

    reasons: tuple[str, ...] = ()


class MetricsServer:
    """Serves in a thread of its own from construction until `close`.

    ``registry`` is what /metrics shows. ``health`` is asked at each /healthz, on a thread of the
    server.

    Raises:
        ConfigError: The address cannot be had.
    """

    def __init__(
        self, settings: MetricsSettings, registry: CollectorRegistry, health: Callable[[], Health]
    ) -> None:
        self._host = settings.host
        self._server = _listen(settings)
        self._server.set_app(_application(registry, health))
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
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


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


def _application(registry: CollectorRegistry, health: Callable[[], Health]) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _answer(start_response, HTTPStatus.METHOD_NOT_ALLOWED, {"error": "use GET"})
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/healthz":
            return _health_answer(start_response, health())
        paths = ["/metrics", "/healthz"]
        return _answer(start_response, HTTPStatus.NOT_FOUND, {"paths": paths})

    return application


def _health_answer(start_response: StartResponse, health: Health) -> Iterable[bytes]:
    if health.reasons:
        tree = {"status": "unhealthy", "reasons": list(health.reasons)}
        return _answer(start_response, HTTPStatus.SERVICE_UNAVAILABLE, tree)
    return _answer(start_response, HTTPStatus.OK, {"status": "ok"})


def _answer(
    start_response: StartResponse, status: HTTPStatus, tree: dict[str, Any]
) -> Iterable[bytes]:
    body = json.dumps(tree).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
