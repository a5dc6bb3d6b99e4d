"""A real S3 server (moto's, in its own process), and a proxy before it that fails on demand."""

import contextlib
import enum
import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until

ACCESS_KEY_ID = "AKIATESTTESTTESTTEST"
SECRET_ACCESS_KEY = "a-secret-that-no-message-may-hold"  # a stand-in, valid nowhere
BUCKET = "scored-logs"
HOST = "127.0.0.1"
_ERROR = (
    "<Error><Code>{code}</Code><Message>{message}</Message>"
    "<AWSAccessKeyId>{key}</AWSAccessKeyId></Error>"
)
MESSAGE = "volume 3 is full"


class Fault(enum.Enum):
    """What the proxy does with a request instead of passing it on."""

    LOSE_ANSWER = "it is done, and the connection closed without an answer"
    HANG_AFTER = "it is done, and never answered"
    HANG_BEFORE = "it is held back, unanswered, and done at `FaultProxy.release`"
    CONFLICT = "409 ConditionalRequestConflict"
    INTERNAL = "500 InternalError"
    SLOW_DOWN = "503 SlowDown"
    TOO_MANY = "429 TooManyRequests"
    TOO_LATE = "408 RequestTimeout"
    DENIED = "403 AccessDenied"
    SKEWED = "403 RequestTimeTooSkewed"
    NO_BUCKET = "404 NoSuchBucket"
    NO_CONTAINER = "404 ContainerNotFound"
    REMOVAL_DENIED = "202 or 200, with a refusal of each object within"
    REMOVAL_KEPT = "202, with 409 of each object within"
    CUT_BODY = "it is done, and half of the answer's body sent"


_CONDITIONS = {"if-none-match", "x-goog-if-generation-match"}
_UNANSWERED = {Fault.HANG_BEFORE, Fault.HANG_AFTER, Fault.LOSE_ANSWER}
_ANSWERS = {fault for fault in Fault if re.match(r"\d{3} \w+\Z", fault.value)}
_OF_REMOVALS = {
    Fault.REMOVAL_DENIED: "403 This request is not authorized to perform this operation.",
    Fault.REMOVAL_KEPT: "409 The blob is immutable due to a policy.",
}


def _removal_refused(body: bytes, status: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """The answer to a request that removes many: it is well, but each object is refused."""
    parts = re.findall(rb"Content-ID: (\d+)", body)
    if not parts:
        found = "".join(
            f"<Error><Key>{key.decode()}</Key><Code>AccessDenied</Code>"
            f"<Message>{MESSAGE}</Message></Error>"
            for key in re.findall(rb"<Key>([^<]*)", body)
        )
        whole = f'<?xml version="1.0" encoding="UTF-8"?><DeleteResult>{found}</DeleteResult>'
        return 200, [("Content-Type", "application/xml")], whole.encode()
    found = "".join(
        f"--batch\r\nContent-Type: application/http\r\nContent-ID: {part.decode()}\r\n\r\n"
        f"HTTP/1.1 {status}\r\nx-ms-request-id: 1\r\nContent-Length: 0\r\n\r\n\r\n"
        for part in parts
    )
    kind = [("Content-Type", "multipart/mixed; boundary=batch")]
    return 202, kind, f"{found}--batch--\r\n".encode()


@dataclass
class FaultProxy:
    """Passes requests on to the server, but for those that are to fail.

    ``requests`` holds the method and path of all that came. Writes are passed on one at a time:
    moto looks whether an object is there and then stores it, with no lock between, so that two
    conditional PUTs at once could both succeed. S3 itself lets one of them win.
    """

    target: int
    host: str = HOST
    requests: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0
    _faults: list[tuple[str, Fault | None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)
    late: list[int] = field(default_factory=list)
    """The server's answers to requests that were held back."""
    draw: Callable[[str], Fault | None] = lambda _: None
    """What is to happen to a request with this method for which `fail` has left no word."""
    unconditional: bool = False
    """Whether conditions are left out, as where a server knows none. Azure's are signed."""

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def fail(self, method: str, *faults: Fault | None) -> None:
        """The next requests with this method: a fault each, None to let one pass."""
        with self._lock:
            self._faults += [(method, fault) for fault in faults]

    def release(self) -> None:
        """Do what was held back, and end what hangs."""
        self._released.set()

    def forget(self) -> None:
        """Fail no more."""
        with self._lock:
            self._faults.clear()

    def pending(self) -> int:
        """Faults that no request has met yet."""
        return len(self._faults)

    def count(self, method: str) -> int:
        return sum(1 for asked, _ in list(self.requests) if asked == method)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for index, (wanted, fault) in enumerate(self._faults):
                if wanted == method:
                    del self._faults[index]
                    return fault
            return self.draw(method)

    def await_release(self) -> None:
        self._released.wait(PATIENCE_S)

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        if self.unconditional:
            headers = {k: v for k, v in headers.items() if k.lower() not in _CONDITIONS}
        lock = self._writing if method in {"PUT", "POST", "DELETE"} else contextlib.nullcontext()
        with lock:
            connection = http.client.HTTPConnection(HOST, self.target, timeout=PATIENCE_S)
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.next_fault(self.command, self.path)
        if fault in _ANSWERS:
            status, code = fault.value.split()
            text = _ERROR.format(code=code, message=MESSAGE, key=ACCESS_KEY_ID).encode()
            self._answer(int(status), [("Content-Type", "application/xml")], text)
            return
        if fault in _OF_REMOVALS:
            self._answer(*_removal_refused(body, _OF_REMOVALS[fault]))
            return
        if fault is Fault.HANG_BEFORE:
            proxy.await_release()
        answer = proxy.forward(self.command, self.path, dict(self.headers), body)
        if fault is Fault.HANG_BEFORE:
            proxy.late.append(answer[0])
        if fault is Fault.HANG_AFTER:
            proxy.await_release()
        if fault in _UNANSWERED:
            self.close_connection = True
            return
        self._answer(*answer, cut=fault is Fault.CUT_BODY)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
            elif self.command == "HEAD" and name.lower() == "content-length":
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 (the base class's names)


class _Server(ThreadingHTTPServer):
    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__((proxy.host, 0), _Handler)
        self.proxy = proxy

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that has timed out is no error here."""


@contextlib.contextmanager
def fault_proxy(target: int, host: str = HOST) -> Iterator[FaultProxy]:
    """A proxy before the server at a port of this machine, gone afterwards."""
    proxy = FaultProxy(target, host)
    server = _Server(proxy)
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release()
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_S)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """moto's server with one bucket, gone afterwards; its port. The folder takes its output."""
    port = free_port()
    with (
        (folder / "moto.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        ) as process,
    ):
        try:
            wait_until(lambda: _makes_bucket(port, process), "moto's server")
            yield port
        finally:
            process.kill()


def environment(endpoint: str) -> dict[str, str]:
    """What the object store's client reads."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


def _makes_bucket(port: int, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "moto's server has ended"
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.request("PUT", f"/{BUCKET}")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
