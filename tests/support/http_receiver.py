"""A real HTTP server that answers as it is told, and keeps what it is sent."""

import json
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

PIECE_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Answer:
    """One answer; ``hold`` keeps it back until it is set, ``pieces`` repeats the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: int = 1
    hold: threading.Event | None = None


@dataclass(frozen=True)
class Request:
    """What the server was sent."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def tree(self) -> Any:
        return json.loads(self.body)


class HttpReceiver:
    """Answers the next of ``answers`` to every POST, and 200 when there is none left."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: deque[Answer] = deque()
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v2/alerts"

    @contextmanager
    def listening(self, context: ssl.SSLContext | None = None) -> Iterator[None]:
        """Listen while the block runs: on a free port, later again on the same one."""
        # One of the kernel's choice could be anybody's by the time of the next block.
        self.port = self.port or free_port()
        server = _Server(("127.0.0.1", self.port), _handler(self))
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing: clients hang up, and refuse certificates."""


def _handler(receiver: HttpReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(Request(self.path, dict(self.headers), body))
            answer = receiver.answers.popleft() if receiver.answers else Answer()
            if answer.hold is not None:
                answer.hold.wait(PATIENCE_S)
            # Who does not want to hear it to its end hangs up.
            with suppress(ConnectionError):
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            length = len(answer.body) * answer.pieces
            for name, value in {"Content-Length": str(length), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for _ in range(answer.pieces):
                self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
