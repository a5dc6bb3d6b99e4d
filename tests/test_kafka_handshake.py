"""TLS or a login that fails says how, at once, against a real broker's listeners."""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nap_stream.errors import BrokerError, BrokerUnavailableError, ConfigError, NapStreamError
from nap_stream.kafka.client import connect, endings
from nap_stream.kafka.handshake import greet
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import SASL_PASSWORD, SASL_USER, ApacheKafka
from tests.support.certificates import Authority, self_signed
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

PLAIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
LISTENERS = ("GOOD", "MUTUAL", "EXPIRED", "ELSEWHERE", "SOON", "LOGIN")


@dataclass(frozen=True)
class TlsBroker:
    """A broker with a listener for each kind of certificate, and what clients may have."""

    ports: dict[str, int]
    plain: str
    authority: Path
    client: Path
    stranger: Path
    expired: Path

    def settings(self, listener: str, **changes: Any) -> KafkaSettings:
        server = self.plain if listener == "PLAIN" else f"127.0.0.1:{self.ports[listener]}"
        given: dict[str, Any] = {"security_protocol": "SSL", **changes}
        if given["security_protocol"].endswith("SSL"):
            given = {"ssl_cafile": self.authority, **given}
        return KafkaSettings(bootstrap_servers=(server,), topic="images", **given)


@pytest.fixture(scope="module")
def tls(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority(folder, "authority"), Authority(folder, "other")
    certificates = {
        "GOOD": authority.issue("good"),
        "MUTUAL": authority.issue("mutual"),
        "EXPIRED": authority.issue("expired", days=-1),
        "ELSEWHERE": authority.issue("elsewhere", host="kafka.example"),
        "SOON": authority.issue("soon", days=7.5),
        "LOGIN": authority.issue("login"),
    }
    ports = {name: free_port() for name in LISTENERS}
    protocols = ",".join(f"{name}:{'SASL_SSL' if name == 'LOGIN' else 'SSL'}" for name in LISTENERS)
    own = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    usual = "PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl_port}"
    usual_protocols = "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
    lines = [
        f"listener.security.protocol.map={usual_protocols},{protocols}",
        f"listeners={usual},CONTROLLER://127.0.0.1:{{controller_port}},{own}",
        f"advertised.listeners={usual},{own}",
        "ssl.keystore.type=PEM",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={authority.file}",
        "listener.name.mutual.ssl.client.auth=required",
        f"listener.name.login.plain.sasl.jaas.config={PLAIN_MODULE} required;",
    ]
    lines += [
        f"listener.name.{name.lower()}.ssl.keystore.location={file}"
        for name, file in certificates.items()
    ]
    data = folder / "broker"
    data.mkdir()
    with ApacheKafka(kafka_jars, data, extra="\n".join(lines)) as broker:
        yield TlsBroker(
            ports,
            broker.bootstrap,
            authority.file,
            client=authority.issue("client"),
            stranger=other.issue("stranger"),
            expired=authority.issue("client-of-before", days=-1),
        )


def require_said_at_once(settings: KafkaSettings, words: str) -> NapStreamError:
    """Fail unless `connect` says so, and does not wait until its time is up."""
    begun = time.monotonic()
    with pytest.raises(NapStreamError) as caught:
        connect(settings.model_copy(update={"connect_timeout_s": 3600.0}))
    assert words in caught.value.problem
    assert time.monotonic() - begun < 1800
    assert caught.value.action
    return caught.value


@pytest.mark.kafka
def test_a_certificate_that_is_trusted_lets_in_and_is_told(tls: TlsBroker) -> None:
    (shown,) = connect(tls.settings("GOOD"))
    assert (shown.subject, shown.issuer) == ("CN=good", "CN=authority")
    assert shown.owner == f"127.0.0.1:{tls.ports['GOOD']}"
    assert endings([shown], datetime.now(UTC)) == ()


@pytest.mark.kafka
def test_both_sides_show_a_certificate_where_the_broker_wants_it(tls: TlsBroker) -> None:
    settings = tls.settings("MUTUAL", ssl_certfile=tls.client, ssl_keyfile=tls.client)
    assert [shown.subject for shown in connect(settings)] == ["CN=mutual", "CN=client"]


@pytest.mark.kafka
def test_a_certificate_that_ends_soon_is_a_warning(tls: TlsBroker) -> None:
    with capture_logs() as logs:
        connect(tls.settings("SOON"))
    (warning,) = [each for each in logs if each["event"] == "certificate_ends"]
    assert warning["certificate"].endswith(": in 7 days")


@pytest.mark.kafka
def test_what_is_wrong_with_tls_is_said_at_once(tls: TlsBroker) -> None:
    def said(words: str, listener: str, **changes: Any) -> NapStreamError:
        return require_said_at_once(tls.settings(listener, **changes), words)

    said("issued by nobody whom the system trusts", "GOOD", ssl_cafile=None)
    said("other.pem trusts", "GOOD", ssl_cafile=tls.stranger.with_name("other.pem"))
    said("has expired", "EXPIRED")
    said("of another host (IP address mismatch", "ELSEWHERE")
    error = said("wants a certificate of the client, and there is none", "MUTUAL")
    assert "kafka.ssl_certfile" in error.action
    stranger = {"ssl_certfile": tls.stranger, "ssl_keyfile": tls.stranger}
    said("refuses the client's certificate", "MUTUAL", **stranger)
    assert "to SSL" in said("it speaks TLS", "GOOD", security_protocol="PLAINTEXT").action
    sasl = {
        "sasl_mechanism": "PLAIN",
        "sasl_username": SASL_USER,
        "sasl_password": SASL_PASSWORD,
    }
    error = said("it speaks TLS", "MUTUAL", security_protocol="SASL_PLAINTEXT", **sasl)
    assert "to SASL_SSL" in error.action
    assert "to PLAINTEXT" in said("speaks Kafka without TLS", "PLAIN").action
    said("which ended on", "MUTUAL", ssl_certfile=tls.expired, ssl_keyfile=tls.expired)
    error = said("speaks Kafka without TLS", "PLAIN", security_protocol="SASL_SSL", **sasl)
    assert "to SASL_PLAINTEXT" in error.action
    error = said("it wants a login (PLAIN), and kafka.security_protocol is SSL", "LOGIN")
    assert "to SASL_SSL" in error.action


@pytest.mark.kafka
def test_one_broker_that_answers_is_enough(tls: TlsBroker) -> None:
    good = tls.settings("GOOD").bootstrap_servers[0]
    expired = tls.settings("EXPIRED").bootstrap_servers[0]
    settings = tls.settings("GOOD")
    one = settings.model_copy(update={"bootstrap_servers": ("127.0.0.1:1", expired, good)})
    assert [shown.owner for shown in greet(one, PATIENCE_S)] == [good]
    none = settings.model_copy(update={"bootstrap_servers": ("127.0.0.1:1", expired)})
    with pytest.raises(BrokerUnavailableError, match=r"connection refused; .* has expired"):
        greet(none, PATIENCE_S)
    refused = settings.model_copy(update={"bootstrap_servers": (expired, expired)})
    with pytest.raises(BrokerError, match="has expired") as caught:
        greet(refused, PATIENCE_S)
    assert not caught.value.retriable


def login(server: str, **changes: Any) -> KafkaSettings:
    """To log in at a listener without TLS, but for the changes."""
    given = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_username": SASL_USER,
        "sasl_password": SASL_PASSWORD,
        **changes,
    }
    return KafkaSettings(bootstrap_servers=(server,), topic="images", **given)


@pytest.mark.kafka
def test_a_mechanism_that_is_switched_off_is_no_wrong_password(apache_kafka: ApacheKafka) -> None:
    settings = login(apache_kafka.sasl_bootstrap, sasl_mechanism="SCRAM-SHA-512")
    error = require_said_at_once(settings, "has not switched on SCRAM-SHA-512, but PLAIN")
    assert SASL_PASSWORD not in str(error).replace("SCRAM", "")


@pytest.mark.kafka
def test_who_may_log_in_is_asked_before_the_client_is(apache_kafka: ApacheKafka) -> None:
    """A client would say of the one that nobody answers, and of the other that it is refused."""
    settings = KafkaSettings(bootstrap_servers=(apache_kafka.sasl_bootstrap,), topic="images")
    error = require_said_at_once(settings, "it wants a login (PLAIN), and")
    assert "Set it to SASL_PLAINTEXT" in error.action
    error = require_said_at_once(login(apache_kafka.bootstrap), "it takes no login, and")
    assert "set it to PLAINTEXT" in error.action
    assert greet(login(apache_kafka.sasl_bootstrap), 30) == ()


def test_each_broker_lets_in_where_no_login_is_set(broker: str) -> None:
    """The embedded one says of `SaslHandshake` what one says that wants a login."""
    settings = KafkaSettings(bootstrap_servers=(broker,), topic="images")
    assert greet(settings, PATIENCE_S) == ()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files of certificates, good and bad."""
    made = {
        "good": self_signed(tmp_path, "good"),
        "other": self_signed(tmp_path, "other"),
        "text": tmp_path / "text.pem",
        "empty": tmp_path / "empty.pem",
        "folder": tmp_path / "folder",
    }
    made["text"].write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    made["empty"].write_bytes(b"")
    made["folder"].mkdir()
    return made


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"ssl_cafile": "text"}, "kafka.ssl_cafile"),
        ({"ssl_cafile": "empty"}, "kafka.ssl_cafile"),
        ({"ssl_cafile": "folder"}, "kafka.ssl_cafile"),
        ({"ssl_certfile": "text"}, "kafka.ssl_certfile"),
        ({"ssl_certfile": "good", "ssl_keyfile": "other"}, "kafka.ssl_certfile"),
        ({"ssl_certfile": "good", "ssl_keyfile": "empty"}, "kafka.ssl_certfile"),
        ({"ssl_certfile": "folder", "ssl_keyfile": "good"}, "kafka.ssl_certfile"),
        ({"ssl_certfile": "good", "ssl_keyfile": "folder"}, "kafka.ssl_keyfile"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_is_named(
    files: dict[str, Path], changes: dict[str, str], setting: str
) -> None:
    settings = KafkaSettings(
        bootstrap_servers=("127.0.0.1:1",),
        topic="images",
        security_protocol="SSL",
        **{name: files[file] for name, file in changes.items()},
    )
    with pytest.raises(ConfigError) as caught:
        connect(settings)
    assert caught.value.where.startswith(setting)
    assert "ssl.c" not in caught.value.problem


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 64, None])
def test_what_is_no_broker_is_told_within_the_time(protocol: Any, answer: bytes | None) -> None:
    """A port that hangs up, one of a web server, one of something else, and one that is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = threading.Thread(target=_serve, args=(server, answer), daemon=True)
        serving.start()
        settings = KafkaSettings(
            bootstrap_servers=(f"127.0.0.1:{server.getsockname()[1]}",),
            topic="images",
            security_protocol=protocol,
        )
        with pytest.raises(BrokerUnavailableError) as caught:
            greet(settings, 0.5)
        server.shutdown(socket.SHUT_RDWR)
        serving.join(PATIENCE_S)
    assert "127.0.0.1:" in caught.value.problem


_WELL = struct.pack(">iihi", 10, 1, 0, 0)
"""Kafka's answer to ApiVersions, or to SaslHandshake where there are no mechanisms."""
_METADATA, _SASL_HANDSHAKE, _API_VERSIONS = 3, 17, 18


def _mechanisms(*names: bytes, code: int = 33) -> bytes:
    """Kafka's answer to SaslHandshake."""
    body = struct.pack(">hi", code, len(names))
    body += b"".join(struct.pack(">H", len(name)) + name for name in names)
    return struct.pack(">ii", len(body) + 4, 1) + body


@contextmanager
def answering(answers: Mapping[int, bytes | None], drop_s: float = 0.0) -> Iterator[KafkaSettings]:
    """A server that answers requests by their API key: nothing for None, and hangs up without.

    Where ``drop_s`` is not 0, each byte takes that many seconds.
    """

    def serve() -> None:
        with ExitStack() as kept, suppress(OSError):
            while True:
                connection = kept.enter_context(server.accept()[0])
                requests = kept.enter_context(connection.makefile("rb"))
                with suppress(OSError):
                    while len(head := requests.read(8)) == 8:
                        size, key, _ = struct.unpack(">ihh", head)
                        requests.read(size - 4)
                        if key not in answers:
                            connection.shutdown(socket.SHUT_RDWR)
                        elif (answer := answers[key]) is None:
                            break
                        else:
                            size = 1 if drop_s else len(answer)
                            for at in range(0, len(answer), size):
                                time.sleep(drop_s)
                                connection.sendall(answer[at : at + size])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield KafkaSettings(
            bootstrap_servers=(f"127.0.0.1:{server.getsockname()[1]}",), topic="images"
        )
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)


def as_login(settings: KafkaSettings) -> KafkaSettings:
    return login(settings.bootstrap_servers[0])


@pytest.mark.parametrize(
    "said",
    [
        b"\xff" * 40,
        struct.pack(">iihi", 10, 1, 0, 2**31 - 1),
        struct.pack(">ii", 2**19, 1),
        None,
    ],
)
def test_what_does_not_tell_who_may_log_in_is_left_to_the_client(said: bytes | None) -> None:
    with answering({_API_VERSIONS: _WELL, _SASL_HANDSHAKE: said}) as settings:
        assert greet(settings, 0.5) == ()
        assert greet(as_login(settings), 0.5) == ()


@pytest.mark.parametrize("login_is", [{}, {_SASL_HANDSHAKE: _mechanisms(b"PLAIN")}])
@pytest.mark.parametrize("answer", [_WELL, b"\xff" * 40])
def test_a_broker_that_answers_strangers_wants_no_login(
    answer: bytes, login_is: Mapping[int, bytes]
) -> None:
    """Whatever it says of logins: those that a proxy passes on, or that a certificate spares."""
    with answering({_API_VERSIONS: _WELL, _METADATA: answer, **login_is}) as settings:
        assert greet(settings, PATIENCE_S) == ()


def test_a_broker_that_stalls_is_away_and_never_refused() -> None:
    answers = {_API_VERSIONS: _WELL, _SASL_HANDSHAKE: _mechanisms(b"PLAIN"), _METADATA: None}
    with (
        answering(answers) as settings,
        pytest.raises(BrokerUnavailableError, match="does not answer") as caught,
    ):
        greet(settings, 0.3)
    assert caught.value.retriable


def test_a_listener_that_hangs_up_on_strangers_wants_a_login_only_if_it_says_so() -> None:
    for code in (0, 33):
        answers = {_API_VERSIONS: _WELL, _SASL_HANDSHAKE: _mechanisms(b"SCRAM-X", code=code)}
        with (
            answering(answers) as settings,
            pytest.raises(BrokerError, match=r"it wants a login \(SCRAM-X\)") as caught,
        ):
            greet(settings, PATIENCE_S)
        assert not caught.value.retriable
    for answer in (_mechanisms(b"PLAIN", code=34), _mechanisms()):
        with answering({_API_VERSIONS: _WELL, _SASL_HANDSHAKE: answer}) as settings:
            assert greet(settings, PATIENCE_S) == ()


def test_names_of_mechanisms_from_anybody_are_cut() -> None:
    long = _mechanisms(*[b"\x1b" * 60_000] * 8)
    many = _mechanisms(*[b"A"] * 200_000)
    for answer, length, end in ((long, 1_500, r"\x1b"), (many, 200, "and 24 more")):
        with answering({_API_VERSIONS: _WELL, _SASL_HANDSHAKE: answer}) as settings:
            for each in (settings, as_login(settings)):
                with pytest.raises(BrokerError) as caught:
                    greet(each, PATIENCE_S)
                assert end in caught.value.problem
                assert len(caught.value.problem) < length
                assert caught.value.problem.isprintable()


def test_answers_in_drops_have_one_time_for_all() -> None:
    """Each head and each body would come within the time."""
    answers = {_API_VERSIONS: _WELL, _METADATA: _WELL}
    with (
        answering(answers, drop_s=0.05) as settings,
        pytest.raises(BrokerUnavailableError, match="does not answer"),
    ):
        greet(settings, 0.6)


def test_a_name_that_no_host_can_have_is_told() -> None:
    settings = KafkaSettings(bootstrap_servers=(f"{'h' * 70}:9092", "a..b:9092"), topic="images")
    with pytest.raises(BrokerUnavailableError, match=r"no name of a host .*; a..b:9092: no name"):
        greet(settings, 5)


def _serve(server: socket.socket, answer: bytes | None) -> None:
    with ExitStack() as kept, suppress(OSError):
        while True:
            connection = kept.enter_context(server.accept()[0])
            if answer is not None:
                connection.recv(1000)
                connection.sendall(answer)
                connection.close()


def test_nobody_there_is_told_of_each_broker() -> None:
    settings = KafkaSettings(
        bootstrap_servers=("127.0.0.1:1", "no-such-host.invalid:9092"), topic="images"
    )
    with pytest.raises(BrokerUnavailableError) as caught:
        greet(settings, PATIENCE_S)
    assert "127.0.0.1:1: connection refused; no-such-host.invalid:9092: " in caught.value.problem
