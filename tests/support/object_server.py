"""A real HTTP server of objects: it writes to the socket what a test says, as slow as it says."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.ports import free_port

HOST = "127.0.0.1"
Write = Callable[[socket.socket, threading.Event], None]
"""Writes an answer to a connection; the event is set when the server ends."""


def answer(body: bytes = b"", status: int = 200, *headers: str, length: int | None = None) -> Write:
    """An answer as servers give it; ``length`` is what it says of its body's length."""
    size = len(body) if length is None else length
    head = [f"HTTP/1.1 {status} Text", f"Content-Length: {size}", *headers]
    data = "\r\n".join([*head, "", ""]).encode() + body

    def write(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(data)
        if size != len(body):
            connection.shutdown(socket.SHUT_WR)

    return write


def raw(data: bytes) -> Write:
    """These bytes, and the end of the connection."""

    def write(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    return write


def again_and_again(head: bytes, part: bytes, pause_s: float = 0.0) -> Write:
    """A beginning, and then a part for ever."""

    def write(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(head)
        while not ended.wait(pause_s):
            connection.sendall(part)

    return write


def silence(_: socket.socket, ended: threading.Event) -> None:
    """Nothing, until the server ends."""
    ended.wait()


@dataclass
class ObjectServer:
    """Answers ``GET path`` with what ``objects`` has for the path; 404 where it has nothing.

    A list is answered one after the other, its last one from then on. ``requests`` holds the heads
    of all requests, ``connections`` counts connections.
    """

    objects: dict[str, Write | list[Write]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    port: int = 0
    connections: int = 0

    def url(self, path: str, host: str = HOST, scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    @contextmanager
    def listening(self, context: ssl.SSLContext | None = None) -> Iterator[None]:
        """Serve while the block runs: on a free port, later again on the same one."""
        ended = threading.Event()
        # One of the kernel's choice could be anybody's by the time of the next block.
        self.port = self.port or free_port()
        listener = socket.create_server((HOST, self.port))
        open_connections: list[socket.socket] = []
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                self.connections += 1
                open_connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection, ended, context))
                threads.append(thread)
                thread.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            accepting.join()
            for connection in open_connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for connection in open_connections:
                connection.close()

    def _serve(
        self, plain: socket.socket, ended: threading.Event, context: ssl.SSLContext | None
    ) -> None:
        with contextlib.suppress(OSError):
            connection = context.wrap_socket(plain, server_side=True) if context else plain
            with connection:
                while head := _head(connection):
                    self.requests.append(head)
                    self._next(head.split()[1])(connection, ended)

    def _next(self, path: str) -> Write:
        found = self.objects.get(path, answer(status=404))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found


def _head(connection: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            return ""
        head += part
    return head.decode("latin-1")
