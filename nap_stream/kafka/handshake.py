"""What a broker's port speaks, and what is wrong with its TLS, asked before the client is.

kafka-python says of every failed handshake that no broker answered, when its time is up. Here one
connection asks for `ApiVersions`, which brokers answer to anybody, and then what the client asks:
who may log in how (`SaslHandshake`) or, without a login, for `Metadata`. What goes wrong has a
name.
"""

import re
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from nap_stream.clock import Deadline, SystemClock
from nap_stream.errors import BrokerError, BrokerUnavailableError, ConfigError
from nap_stream.settings.schema import KafkaSettings
from nap_stream.text import listed, printable

_API_VERSIONS, _SASL_HANDSHAKE, _METADATA = (18, 0), (17, 1), (3, 1)
"""API keys and versions of Kafka's protocol."""
_NO_TOPICS = struct.pack(">i", 0)
_REQUEST = struct.Struct(">ihhih")
"""Size, API key and version, correlation id, and no client id."""
_HEAD = struct.Struct(">ii")
_SIZE = 4
"""Bytes of a size, which does not count itself, and of a correlation id."""
_HANDSHAKE = struct.Struct(">hi")
"""Error code, and how many mechanisms follow, each a string."""
_WELL, _NO_LOGIN_HERE, _NOT_THIS_MECHANISM = 0, 34, 33
"""Error codes."""
_LARGEST_ANSWER = 2**20
_MOST_MECHANISMS, _LONGEST_MECHANISM = 32, 40
"""That are read of an answer, and characters of each. Nobody knows yet who answers."""
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_EXPIRED, _NOT_YET = 10, 9
_OTHER_HOST = {62, 64}
"""X509_V_ERR_… of OpenSSL."""
_OF_CLIENT = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
"""In the names of alerts that may be about the client's certificate, or its absence."""


_PEM_END = "-----END CERTIFICATE-----"
_NO_END = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whose certificate it is, who issued it, and when it ends."""

    owner: str
    subject: str
    issuer: str
    ends: datetime

    def __str__(self) -> str:
        return f"{self.owner}: {self.subject}, issued by {self.issuer}, valid until {self.ends:%F}"


def greet(settings: KafkaSettings, timeout_s: float) -> tuple[Certificate, ...]:
    """Ask the brokers of ``bootstrap_servers`` in turn, until one answers as the settings expect.

    Each may take ``timeout_s`` seconds, without the time in which the system looks its name up.

    Returns:
        The certificates that took part: the broker's and the client's. None without TLS.

    Raises:
        ConfigError: A file of certificates or keys cannot be used.
        BrokerUnavailableError: None answers as it should, and one of them may yet: it is away.
        BrokerError: Every one of them speaks something else, or its TLS fails.
    """
    context = _context(settings) if settings.security_protocol.endswith("SSL") else None
    own = () if context is None else _own(settings)
    failures: list[BrokerError] = []
    for server in settings.bootstrap_servers:
        listener = _Listener(server, settings, context, Deadline(SystemClock(), timeout_s))
        try:
            if context is None:
                _greet_plainly(listener)
                return ()
            return (_greet_by_tls(listener), *own)
        except TimeoutError:
            failures.append(listener.away("does not answer"))
        except BrokerError as error:
            failures.append(error)
    refused = [error for error in failures if not error.retriable]
    if len(refused) == len(failures):
        raise refused[0]
    raise BrokerUnavailableError(
        "no broker answered: " + "; ".join(f"{error.where}: {error.problem}" for error in failures),
        ", ".join(settings.bootstrap_servers),
        failures[0].action,
    )


@dataclass(frozen=True, slots=True)
class _Listener:
    """A broker's address, what is expected of it, and until when all that is asked of it takes."""

    server: str
    settings: KafkaSettings
    context: ssl.SSLContext | None
    """None where it is expected to speak no TLS."""
    deadline: Deadline

    @property
    def host(self) -> str:
        return self.server.rpartition(":")[0].strip("[]").rstrip(".")

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        try:
            connection = self._connection()
        except OSError as error:
            raise self.away((error.strerror or str(error)).lower() or "no answer") from error
        except UnicodeError as error:
            raise self.away(f"no name of a host ({error})") from error
        with connection:
            yield connection

    def _connection(self) -> socket.socket:
        """A connection to the first of the host's addresses that takes one."""
        port = int(self.server.rpartition(":")[2])
        found = socket.getaddrinfo(self.host, port, type=socket.SOCK_STREAM)
        problem = OSError("no address")
        for tried, (*_, address) in enumerate(found):
            try:
                # One that is silent leaves time for those behind it.
                share_s = self.left_s() / (len(found) - tried)
                return socket.create_connection((str(address[0]), port), share_s)
            except OSError as error:
                problem = error
        raise problem

    def left_s(self) -> float:
        """Seconds that a wait may take.

        Raises:
            TimeoutError: None are left.
        """
        left = self.deadline.remaining_s()
        if left == 0.0:
            raise TimeoutError("timed out")
        return left

    @contextmanager
    def secured(self, connection: socket.socket) -> Iterator[socket.socket]:
        """The connection by TLS, where the settings have it."""
        if self.context is None:
            yield connection
            return
        connection.settimeout(self.left_s())
        with self.context.wrap_socket(connection, server_hostname=self.host) as wrapped:
            yield wrapped

    def away(self, problem: str) -> BrokerUnavailableError:
        return BrokerUnavailableError(
            problem,
            self.server,
            "Check kafka.bootstrap_servers, the network, and that the broker runs",
        )

    def refused(self, problem: str, action: str = "") -> BrokerError:
        return BrokerError(problem, self.server, action)


def _greet_plainly(listener: _Listener) -> None:
    with listener.connected() as connection:
        try:
            if _answers(connection, listener):
                _require_login(connection, listener)
                return
        except ConnectionError:
            pass
    protocol = listener.settings.security_protocol
    if _speaks_tls(listener):
        raise listener.refused(
            f"it speaks TLS, and kafka.security_protocol is {protocol}",
            f"Set it to {'SASL_SSL' if protocol.startswith('SASL') else 'SSL'}, or name a "
            "listener without TLS",
        )
    raise listener.away("it hangs up, or does not speak Kafka")


def _greet_by_tls(listener: _Listener) -> Certificate:
    with listener.connected() as connection:
        try:
            with listener.secured(connection) as wrapped:
                assert isinstance(wrapped, ssl.SSLSocket), "the listener has a context"
                certificate = _described(wrapped.getpeercert(binary_form=True), listener.server)
                # In TLS 1.3 a broker refuses a client's certificate only after the handshake.
                if _answers(wrapped, listener):
                    _require_login(wrapped, listener)
                    return certificate
        except ssl.SSLCertVerificationError as error:
            raise _not_trusted(error, listener) from error
        except (ssl.SSLError, ConnectionError) as error:
            raise _no_tls(error, listener) from error
    raise listener.away("it hangs up after the TLS handshake, or does not speak Kafka")


def _answers(connection: socket.socket, listener: _Listener) -> bool:
    """Whether Kafka's answer comes; a connection that ends before is none.

    Raises:
        SSLError: TLS ends it, with its reason.
        ConnectionError: The peer hangs up hard.
        TimeoutError: Nothing comes.
    """
    return _ask(connection, listener, _API_VERSIONS) is not None


def _require_login(connection: socket.socket, listener: _Listener) -> None:
    """Refuse a listener that wants a login that the settings have not, or has none that they have.

    What answers otherwise than Apache Kafka is left to the client.

    Raises:
        TimeoutError: It does not answer what the client would ask.
    """
    settings = listener.settings
    if not settings.security_protocol.startswith("SASL"):
        if _hangs_up_on_strangers(connection, listener):
            _refuse_where_it_logs_in(listener)
        return
    wanted = settings.sasl_mechanism or ""
    # Amazon's signer makes tokens for that mechanism.
    name = "OAUTHBEARER" if wanted == "AWS_MSK_IAM" else wanted
    code, mechanisms = _mechanisms(connection, listener, name)
    if code == _NO_LOGIN_HERE:
        raise listener.refused(
            f"it takes no login, and kafka.security_protocol is {settings.security_protocol}",
            "Name a listener with SASL, or set it to "
            + ("SSL" if settings.security_protocol == "SASL_SSL" else "PLAINTEXT"),
        )
    if code == _NOT_THIS_MECHANISM:
        raise listener.refused(
            f"it has not switched on {wanted}, but {_told(mechanisms)}",
            "Set kafka.sasl_mechanism to one that the listener has",
        )


def _hangs_up_on_strangers(connection: socket.socket, listener: _Listener) -> bool:
    """Whether the connection ends at what the client asks first; any answer will do.

    Only this tells: proxies that log in behind themselves, and listeners that take a certificate
    for a login, may well answer `SaslHandshake`.

    Raises:
        TimeoutError: It does neither.
    """
    try:
        _send(connection, listener, _METADATA, _NO_TOPICS)
        return _received(connection, listener, _HEAD.size) is None
    except TimeoutError:
        raise
    except OSError:
        return True


def _refuse_where_it_logs_in(listener: _Listener) -> None:
    with suppress(OSError, BrokerUnavailableError), listener.connected() as connection:
        with listener.secured(connection) as secured:
            code, mechanisms = _mechanisms(secured, listener, "PLAIN")
        if code in (_WELL, _NOT_THIS_MECHANISM) and mechanisms:
            protocol = listener.settings.security_protocol
            raise listener.refused(
                f"it wants a login ({_told(mechanisms)}), and kafka.security_protocol is "
                f"{protocol}",
                f"Set it to {'SASL_SSL' if protocol == 'SSL' else 'SASL_PLAINTEXT'}, with "
                "kafka.sasl_mechanism and what it needs, or name a listener without a login",
            )


def _told(mechanisms: list[str]) -> str:
    return printable(listed(mechanisms, 8)) or "nothing that is known"


def _mechanisms(
    connection: socket.socket, listener: _Listener, name: str
) -> tuple[int | None, list[str]]:
    """The error code for the mechanism of that name, and those that there are.

    No code where no answer comes, or something else.
    """
    body, names = struct.pack(">h", len(name)) + name.encode(), []
    try:
        answer = _ask(connection, listener, _SASL_HANDSHAKE, body) or b""
        code, count = _HANDSHAKE.unpack_from(answer)
        at = _HANDSHAKE.size
        for _ in range(min(count, _MOST_MECHANISMS)):
            (size,) = struct.unpack_from(">H", answer, at)
            at += 2
            names.append(answer[at : at + min(size, _LONGEST_MECHANISM)].decode("ascii", "replace"))
            at += size
    except (OSError, struct.error):
        return None, []
    return code, names


def _send(
    connection: socket.socket, listener: _Listener, api: tuple[int, int], body: bytes
) -> None:
    connection.settimeout(listener.left_s())
    connection.sendall(_REQUEST.pack(_REQUEST.size - _SIZE + len(body), *api, 1, -1) + body)


def _ask(
    connection: socket.socket, listener: _Listener, api: tuple[int, int], body: bytes = b""
) -> bytes | None:
    """What Kafka answers, without its head; None where something else comes, or the end."""
    _send(connection, listener, api, body)
    head = _received(connection, listener, _HEAD.size)
    size, correlation_id = _HEAD.unpack(head or bytes(_HEAD.size))
    if not _SIZE < size < _LARGEST_ANSWER or correlation_id != 1:
        return None
    return _received(connection, listener, size - _SIZE)


def _received(connection: socket.socket, listener: _Listener, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        # What comes in drops has no more time than the rest.
        connection.settimeout(listener.left_s())
        piece = connection.recv(size - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _speaks_tls(listener: _Listener) -> bool:
    """Whether a handshake gets an answer, whosever certificate it shows."""
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        with listener.connected() as connection:
            connection.settimeout(listener.left_s())
            unverified.wrap_socket(connection).close()
    except ssl.SSLError as error:
        # An alert is TLS, too: the broker wants a certificate of the client.
        return "ALERT" in (error.reason or "")
    except (OSError, BrokerError):
        return False
    return True


def _no_tls(error: OSError, listener: _Listener) -> BrokerError:
    """Why the handshake ended: the port has no TLS, or the broker refuses the client."""
    settings = listener.settings
    with suppress(OSError, BrokerError), listener.connected() as connection:
        if _answers(connection, listener):
            protocol = settings.security_protocol
            return listener.refused(
                f"it speaks Kafka without TLS, and kafka.security_protocol is {protocol}",
                "Name a listener with TLS, or set it to "
                + ("SASL_PLAINTEXT" if protocol.startswith("SASL") else "PLAINTEXT"),
            )
    reason = getattr(error, "reason", None) or ""
    if not any(word in reason for word in _OF_CLIENT):
        # A proxy whose broker starts says so, too: others may be tried, and this one again.
        return listener.away(f"it ends the TLS handshake ({_words(error)})")
    if settings.ssl_certfile is None:
        or_else = ", or has no cipher in common with it" if "HANDSHAKE_FAILURE" in reason else ""
        return listener.refused(
            f"it wants a certificate of the client, and there is none{or_else} ({_words(error)})",
            "Set kafka.ssl_certfile and kafka.ssl_keyfile",
        )
    for own in _own(settings):
        if own.ends < datetime.now(UTC):
            return listener.refused(
                f"it refuses the client's certificate, which ended on {own.ends:%F}",
                f"Renew kafka.ssl_certfile {settings.ssl_certfile}",
            )
    return listener.refused(
        f"it refuses the client's certificate ({_words(error)})",
        f"Check that the broker trusts the issuer of kafka.ssl_certfile {settings.ssl_certfile}, "
        "and that it is valid now",
    )


def _not_trusted(error: ssl.SSLCertVerificationError, listener: _Listener) -> BrokerError:
    code, said = error.verify_code, error.verify_message
    if code in _UNKNOWN_ISSUER:
        trusted = listener.settings.ssl_cafile or "the system"
        return listener.refused(
            f"its certificate is issued by nobody whom {trusted} trusts ({said})",
            "Set kafka.ssl_cafile to the certificate of its issuer, as PEM",
        )
    if code == _EXPIRED:
        return listener.refused("its certificate has expired", "Renew the broker's certificate")
    if code == _NOT_YET:
        return listener.refused("its certificate is not valid yet", "Check this machine's clock")
    if code in _OTHER_HOST:
        return listener.refused(
            f"its certificate is of another host ({said})",
            "Name the broker in kafka.bootstrap_servers as its certificate does, or have one made "
            f"for {listener.host}",
        )
    return listener.refused(f"its certificate is refused ({said})")


def _context(settings: KafkaSettings) -> ssl.SSLContext:
    """What kafka-python makes of the settings, with errors that name the setting."""
    # Not `ssl.create_default_context`: it is stricter than the client in newer Pythons.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ssl_cafile is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(str(settings.ssl_cafile))
        except OSError as error:
            raise ConfigError(
                f"no certificate in PEM form can be read ({_words(error)})",
                f"kafka.ssl_cafile {settings.ssl_cafile}",
                "Name the certificate of the CA that issued the broker's",
            ) from error
    if settings.ssl_certfile is not None:
        keyfile = None if settings.ssl_keyfile is None else str(settings.ssl_keyfile)
        try:
            context.load_cert_chain(settings.ssl_certfile, keyfile, password=_no_password)
        except OSError as error:
            # Where a file is missing, or may not be read, OpenSSL does not say which.
            for name in ("ssl_certfile", "ssl_keyfile"):
                if (problem := _unreadable(getattr(settings, name))) is not None:
                    raise ConfigError(f"it cannot be read: {problem}", f"kafka.{name}") from error
            raise ConfigError(
                f"certificate and key cannot be used ({_words(error)})",
                f"kafka.ssl_certfile {settings.ssl_certfile}, kafka.ssl_keyfile",
                "Both are PEM files, the key belongs to the certificate and has no password",
            ) from error
    return context


def _unreadable(file: Path | None) -> str | None:
    """Why a file cannot be read, in the system's words."""
    try:
        if file is not None:
            file.open("rb").close()
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return None


def _no_password() -> str:
    # Without one, OpenSSL would ask at the terminal and wait.
    return ""


def _own(settings: KafkaSettings) -> tuple[Certificate, ...]:
    if settings.ssl_certfile is None:
        return ()
    text = Path(settings.ssl_certfile).read_text(encoding="ascii", errors="replace")
    # The first one, as OpenSSL takes it; a key and its chain may stand beside it.
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find(_PEM_END, begin) + len(_PEM_END)
    return (_described(ssl.PEM_cert_to_DER_cert(text[begin:end]), "kafka.ssl_certfile"),)


def _described(der: bytes | None, owner: str) -> Certificate:
    """What a certificate says; one that TLS takes and x509 does not is described as that."""
    try:
        certificate = x509.load_der_x509_certificate(der or b"")
        subject, issuer = (
            name.rfc4514_string() for name in (certificate.subject, certificate.issuer)
        )
        ends = certificate.not_valid_after_utc
    except ValueError:
        return Certificate(owner, "a certificate that cannot be read", "nobody known", _NO_END)
    return Certificate(owner, subject or "without a subject", issuer or "nobody named", ends)


def _words(error: OSError) -> str:
    """An error of TLS or of a file in a few words, without paths and source lines."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    # Where OpenSSL has no reason, Python says only where in its own source it asked.
    said = re.sub(r"^\[ssl\] | \(_?ssl\.c:\d+\)$", "", str(reason).lower())
    return said.replace("_", " ")
