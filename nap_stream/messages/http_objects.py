"""Objects over HTTP, from hosts that are allowed, within bounds on size and time.

Nothing is followed: a redirect is an answer like any other, and not an image. An address is checked
and connected to here, since a library that looks the name up again could be led elsewhere. A thread
ends connections whose time is over: a time-out of a socket alone starts anew with every byte.
"""

import base64
import http.client
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from nap_stream.clock import Clock, Deadline
from nap_stream.messages.addresses import AllowedHosts
from nap_stream.messages.pieces import Away, Flawed, Unreadable, secret_of, trusted
from nap_stream.records import Status
from nap_stream.settings.messages import FetchSettings

MAX_URL = 8 * 2**10
KEPT_IDLE_S = 20.0
"""How long a connection is kept for the next object: servers close them after about so long."""
_WATCH_S = 0.1
_PORTS = {"http": 80, "https": 443}
_TRY_AGAIN = (408, 425, 429)
_GONE = (404, 410)
_UNKNOWN_USER = 401
_OK, _FIRST_REDIRECT, _FIRST_ERROR, _FIRST_FAULT = 200, 300, 400, 500
_CONNECT_SHARE = 0.5
"""Of the time of an attempt: what connecting to one address may take."""


def shown_url(url: Url) -> str:
    """An address without its user, query and fragment, which may be secrets."""
    more = "?…" if url.query else ""
    return f"{url.scheme}://{url.netloc}{url.path or '/'}{more}"


def parsed_url(text: str) -> Url:
    """The parts of an address, in the form in which it is asked for.

    Raises:
        Unreadable: It is none.
    """
    if len(text) > MAX_URL:
        raise Unreadable(f"fetch: an address of {len(text)} characters", Status.FETCH_FAILED)
    try:
        url = parse_url(text)
    except (LocationParseError, ValueError):
        url = None
    if url is None or url.host is None or url.scheme not in _PORTS:
        raise Unreadable("fetch: not an address", Status.FETCH_FAILED)
    return url


@dataclass(slots=True, eq=False)
class _Connection:
    """``watched`` is the connection's socket once more, to end it by from another thread."""

    http: http.client.HTTPConnection
    watched: socket.socket
    used: bool = False
    idle_since: float = 0.0

    def close(self) -> None:
        self.http.close()
        self.watched.close()


class _Watch:
    """Shuts connections down whose time is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ends: dict[_Connection, float] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, connection: _Connection, deadline: Deadline) -> Iterator[None]:
        with self._lock:
            self._ends[connection] = self._clock.monotonic() + deadline.remaining_s()
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="fetch-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[connection]

    def close(self) -> None:
        self._closing.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._closing.wait(_WATCH_S)
            now = self._clock.monotonic()
            with self._lock:
                for connection, end in self._ends.items():
                    if is_over or end <= now:
                        with suppress(OSError):
                            connection.watched.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class _Idle:
    lock: threading.Lock = field(default_factory=threading.Lock)
    by_place: dict[tuple[str, str, int], deque[_Connection]] = field(default_factory=dict)
    is_closed: bool = False


class HttpObjects:
    """Fetches objects by address; called by several threads at once.

    Raises:
        ConfigError: The certificates cannot be read.
    """

    def __init__(
        self, settings: FetchSettings, hosts: AllowedHosts, max_bytes: int, clock: Clock
    ) -> None:
        self._settings, self._hosts, self._max_bytes = settings, hosts, max_bytes
        self._clock, self._watch, self._idle = clock, _Watch(clock), _Idle()
        self._trust: ssl.SSLContext | None = None
        if settings.ca_file is not None:
            self._trusted()

    def get(self, url: Url) -> bytes:
        """An object's bytes, in one attempt.

        Raises:
            Unreadable: It is not there, not allowed, too large, or not given.
            Flawed: Its answer broke off or took too long.
            Away: The host does not answer.
        """
        assert url.host is not None
        scheme, host = str(url.scheme), url.host.rstrip(".").lower()
        port = url.port or _PORTS[scheme]
        if not self._hosts.allows(host, port, is_default_port=port == _PORTS[scheme]):
            raise Unreadable(
                f"fetch: {host}:{port} is not in allow_hosts of messages.read", Status.NOT_ALLOWED
            )
        headers = _headers(url) | self._authorization(scheme, host, port)
        deadline = Deadline(self._clock, self._settings.timeout_s)
        place = scheme, host, port
        while (kept := self._kept(place)) is not None:
            try:
                return self._ask(kept, place, url, headers, deadline)
            except _StaleError:
                continue
        return self._ask(self._connected(place, deadline), place, url, headers, deadline)

    def close(self) -> None:
        """End what is under way, and close connections. Safe to call twice."""
        self._watch.close()
        with self._idle.lock:
            self._idle.is_closed = True
            for connections in self._idle.by_place.values():
                for connection in connections:
                    connection.close()
            self._idle.by_place.clear()

    def _authorization(self, scheme: str, host: str, port: int) -> dict[str, str]:
        """The header with a host's own token, in place of a user that a reference names."""
        files = self._settings.bearer_token_files
        by_name = files.get(host) if port == _PORTS[scheme] else None
        path = files.get(f"{host}:{port}", by_name)
        if path is None:
            return {}
        if scheme != "https":
            raise Unreadable(
                f"fetch: {host} has a bearer token, which is sent over https alone",
                Status.NOT_ALLOWED,
            )
        return {"Authorization": f"Bearer {secret_of(path, f'{scheme}://{host}:{port}')}"}

    def _trusted(self) -> ssl.SSLContext:
        # To read the system's certificates takes a while, which only TLS is worth.
        if self._trust is None:
            self._trust = trusted(self._settings.ca_file, "messages.read fetch.ca_file")
        return self._trust

    def _kept(self, place: tuple[str, str, int]) -> _Connection | None:
        with self._idle.lock:
            connections = self._idle.by_place.get(place)
            while connections:
                connection = connections.pop()
                if self._clock.monotonic() - connection.idle_since < KEPT_IDLE_S:
                    return connection
                connection.close()
        return None

    def _keep(self, place: tuple[str, str, int], connection: _Connection) -> None:
        connection.used, connection.idle_since = True, self._clock.monotonic()
        with self._idle.lock:
            connections = self._idle.by_place.setdefault(place, deque())
            connections.append(connection)
            if len(connections) > self._settings.threads or self._idle.is_closed:
                connections.popleft().close()

    def _connected(self, place: tuple[str, str, int], deadline: Deadline) -> _Connection:
        scheme, host, port = place
        what = f"{scheme}://{host}:{port}"
        try:
            addresses = self._hosts.addresses(host, port)
        except (OSError, UnicodeError):
            raise Away(what, "the host's name is not known") from None
        if not addresses:
            raise Unreadable(
                f"fetch: {host} leads to an address that is not public, and not in allow_networks "
                "of messages.read",
                Status.NOT_ALLOWED,
            )
        problem = "no time is left"
        for address in addresses:
            if deadline.expired():
                break
            try:
                return self._connection(place, address, deadline)
            except ssl.SSLCertVerificationError as error:
                problem = f"its certificate is not trusted: {error.verify_message}"
            except ssl.SSLError:
                problem = "no TLS connection"
            except TimeoutError:
                problem = "it cannot be reached in time"
            except OSError as error:
                problem = f"it cannot be reached ({error.strerror or type(error).__name__})"
        raise Away(what, problem)

    def _connection(
        self, place: tuple[str, str, int], address: str, deadline: Deadline
    ) -> _Connection:
        scheme, host, port = place
        timeout_s = max(
            0.001, min(deadline.remaining_s(), self._settings.timeout_s * _CONNECT_SHARE)
        )
        plain = socket.create_connection((address, port), timeout_s)
        connection = _Connection(http.client.HTTPConnection(host, port), plain.dup())
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                with self._watch.over(connection, deadline):
                    plain = self._trusted().wrap_socket(plain, server_hostname=host.strip("[]"))
            connection.http.sock = plain
        except BaseException:
            plain.close()
            connection.close()
            raise
        return connection

    def _ask(
        self,
        connection: _Connection,
        place: tuple[str, str, int],
        url: Url,
        headers: dict[str, str],
        deadline: Deadline,
    ) -> bytes:
        what, is_kept = f"{place[0]}://{place[1]}:{place[2]}", False
        response: http.client.HTTPResponse | None = None
        try:
            with self._watch.over(connection, deadline):
                connection.http.sock.settimeout(max(0.001, deadline.remaining_s()))
                connection.http.request("GET", url.request_uri, headers=headers)
                response = connection.http.getresponse()
                self._require_time(deadline)
                is_ours = headers.get("Authorization", "").startswith("Bearer ")
                self._require_object(response, what, with_token=is_ours)
                body = self._body(response, deadline)
                is_kept = not response.will_close
                return body
        # http.client raises these, ValueError where an answer is no HTTP, and what sockets raise.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if response is not None:
                raise Flawed(f"its answer breaks off ({type(error).__name__})") from None
            if isinstance(error, http.client.InvalidURL | UnicodeError):
                raise Unreadable("fetch: not an address", Status.FETCH_FAILED) from None
            if connection.used and not deadline.expired():
                raise _StaleError from None
            in_time = "" if not deadline.expired() else " in time"
            raise Away(what, f"it does not answer{in_time} ({type(error).__name__})") from None
        finally:
            if response is not None:
                response.close()
            if is_kept:
                self._keep(place, connection)
            else:
                connection.close()

    def _require_object(
        self, response: http.client.HTTPResponse, what: str, *, with_token: bool
    ) -> None:
        status = response.status
        if status == _UNKNOWN_USER and with_token:
            raise Away(what, "it answers 401: check its file of bearer_token_files")
        if status in _GONE:
            raise Unreadable(f"fetch: {what} answers {status}", Status.MISSING)
        if status in _TRY_AGAIN or status >= _FIRST_FAULT:
            raise Away(what, f"it answers {status}")
        if _FIRST_REDIRECT <= status < _FIRST_ERROR:
            raise Unreadable(
                f"fetch: {what} answers {status}, a redirect, which is not followed: references "
                "must be of the object itself",
                Status.FETCH_FAILED,
            )
        if status != _OK:
            raise Unreadable(f"fetch: {what} answers {status}", Status.FETCH_FAILED)
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise Unreadable(
                f"fetch: {what} answers with content-encoding {coding[:40]!r}, which was not asked "
                "for: what it would grow to is not known",
                Status.FETCH_FAILED,
            )
        # A connection that breaks off looks like the end of headers, and like that of such a body.
        if response.length is None and not response.chunked:
            raise Flawed("its answer does not say how long it is")
        if response.length is not None and response.length > self._max_bytes:
            raise self._too_large(str(response.length))

    def _require_time(self, deadline: Deadline) -> None:
        # What was read until now may end where its connection was ended.
        if deadline.expired():
            raise Flawed(f"it takes longer than timeout_s = {self._settings.timeout_s:g}")

    def _body(self, response: http.client.HTTPResponse, deadline: Deadline) -> bytes:
        parts: list[bytes] = []
        size = 0
        while part := response.read1(2**18):
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes}")
            parts.append(part)
            if deadline.expired():
                break
        self._require_time(deadline)
        if response.length:
            raise Flawed(f"its answer breaks off, {response.length} bytes are missing")
        return b"".join(parts)

    def _too_large(self, size: str) -> Unreadable:
        return Unreadable(
            f"fetch: {size} bytes, where {self._max_bytes} are the most that is fetched",
            Status.TOO_LARGE,
        )


class _StaleError(Exception):
    """A connection that was kept is closed on the other side."""


def _headers(url: Url) -> dict[str, str]:
    headers = {
        "Host": str(url.netloc),
        "Accept": "image/*, application/octet-stream;q=0.9, */*;q=0.1",
        "Accept-Encoding": "identity",
        "User-Agent": "nap-stream",
    }
    if url.auth:
        token = base64.b64encode(unquote(url.auth).encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    return headers
