"""Tokens for OAUTHBEARER: had, kept, renewed, refused, and not shown."""

import base64
import hashlib
import hmac
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from kafka import KafkaProducer
from kafka.net.sasl import get_sasl_mechanism
from pydantic import ValidationError
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.doctor import _broker
from nap_stream.errors import BrokerError, BrokerUnavailableError, ConfigError
from nap_stream.kafka.client import (
    client_options,
    close_producer,
    connect,
    create_topics,
    open_client,
    producer_options,
)
from nap_stream.kafka.tokens import Token, Tokens, login_words, tokens
from nap_stream.kafka.tokens import _ask as ask_endpoint
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import ApacheKafka
from tests.support.certificates import Authority
from tests.support.http_receiver import Answer, HttpReceiver
from tests.support.object_server import ObjectServer, again_and_again
from tests.support.summaries import settings as settings_of
from tests.support.waiting import PATIENCE_S, wait_until

SECRET = "s3cr&t with=signs"
SENT = base64.b64encode(b"nap:s3cr%26t+with%3Dsigns").decode()
NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000


def oauth(url: str, **changes: Any) -> dict[str, Any]:
    return {"token_endpoint": url, "client_id": "nap", "client_secret": SECRET, **changes}


def settings(url: str, **changes: Any) -> KafkaSettings:
    return KafkaSettings(
        topic="images",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="OAUTHBEARER",
        oauth=oauth(url, **changes),
    )


def granted(**tree: Any) -> Answer:
    return Answer(
        body=json.dumps({"access_token": "abc.def", "token_type": "Bearer", **tree}).encode()
    )


@pytest.fixture
def endpoint() -> Iterator[HttpReceiver]:
    receiver = HttpReceiver()
    with receiver.listening():
        yield receiver


def provider(endpoint: HttpReceiver, clock: ManualClock, **changes: Any) -> Tokens:
    found = tokens(settings(endpoint.url, timeout_s=PATIENCE_S, **changes), clock)
    assert found is not None
    return found


def test_a_token_is_asked_for_once_and_renewed_before_it_ends(endpoint: HttpReceiver) -> None:
    clock = ManualClock(NOW_MS)
    ours = provider(endpoint, clock, scope="kafka images")
    endpoint.answers += [granted(expires_in=3_600), granted(access_token="second", expires_in=60)]
    first = ours.current()
    assert (first.text, first.ends_ms) == ("abc.def", NOW_MS + HOUR_MS)
    (asked,) = endpoint.requests
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["client_credentials"],
        "scope": ["kafka images"],
    }
    sent = base64.b64decode(asked.headers["Authorization"].removeprefix("Basic ")).decode()
    assert sent == "nap:s3cr%26t+with%3Dsigns"
    clock.advance(2_879)
    assert ours.token() == "abc.def"
    clock.advance(1)
    assert ours.token() == "abc.def", "it is good, and nobody waits for the next"
    wait_until(lambda: ours.token() == "second", "the token is renewed")
    assert len(endpoint.requests) == 2


def test_one_that_is_good_bridges_an_endpoint_that_is_away(endpoint: HttpReceiver) -> None:
    clock = ManualClock(NOW_MS)
    ours = provider(endpoint, clock)
    endpoint.answers += [granted(expires_in=100), Answer(503), Answer(503)]
    ours.current()
    clock.advance(90)
    with capture_logs() as logs:
        assert ours.token() == "abc.def"
        wait_until(lambda: bool(logs), "the renewal fails")
        assert ours.token() == "abc.def"
    assert [line["event"] for line in logs] == ["token_not_renewed"]
    assert "abc.def" not in str(logs)
    assert len(endpoint.requests) == 2, "it is left alone for a while"
    clock.advance(10)
    with pytest.raises(BrokerUnavailableError, match="answers HTTP 503"):
        ours.current()
    with pytest.raises(BrokerUnavailableError, match="answers HTTP 503"):
        ours.current()
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_hangs_holds_nobody_up_while_a_token_is_good(
    endpoint: HttpReceiver,
) -> None:
    clock, held = ManualClock(NOW_MS), threading.Event()
    ours = provider(endpoint, clock)
    late = replace(granted(access_token="late", expires_in=100), hold=held)
    endpoint.answers += [granted(expires_in=100), late]
    ours.current()
    clock.advance(90)
    assert [ours.token() for _ in range(100)] == ["abc.def"] * 100
    wait_until(lambda: len(endpoint.requests) == 2, "a new token is asked for, once")
    held.set()
    wait_until(lambda: ours.token() == "late", "the new one comes")


@pytest.mark.parametrize("answer", [Answer(404), Answer(200, body=b"<html>")])
def test_what_has_given_a_token_is_away_where_it_gives_none(
    endpoint: HttpReceiver, answer: Answer
) -> None:
    clock = ManualClock(NOW_MS)
    ours = provider(endpoint, clock)
    endpoint.answers += [granted(expires_in=100), answer, Answer(401)]
    ours.current()
    clock.advance(100)
    with pytest.raises(BrokerUnavailableError):
        ours.current()
    clock.advance(5)
    with pytest.raises(BrokerError, match="refuses client nap") as caught:
        ours.current()
    assert not caught.value.retriable


def test_a_token_that_a_broker_refused_is_dropped_once_a_minute(endpoint: HttpReceiver) -> None:
    clock = ManualClock(NOW_MS)
    ours = provider(endpoint, clock)
    endpoint.answers += [granted(access_token=name, expires_in=3_600) for name in ("a", "b", "c")]
    assert ours.token() == "a"
    assert ours.forget("a")
    assert ours.token() == "b"
    assert ours.forget("a"), "another connection had it too, and there is a newer one"
    assert not ours.forget("b")
    assert ours.token() == "b"
    clock.advance(60)
    assert ours.forget("b")
    assert ours.token() == "c"


def test_a_jwt_says_itself_when_it_ends_and_one_of_no_known_end_is_not_kept(
    endpoint: HttpReceiver,
) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": NOW_MS / 1000 + 5}).encode()).decode()
    clock = ManualClock(NOW_MS)
    ours = provider(endpoint, clock)
    endpoint.answers += [granted(access_token=f"h.{claims.rstrip('=')}.s"), granted(), granted()]
    assert ours.current().ends_ms == NOW_MS + 5_000
    clock.advance(5)
    assert ours.current().words == "with no known end"
    ours.current()
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("expires_in", "claim_s", "ends_s"),
    [
        (float("nan"), None, None),
        (float("inf"), 5, 5),
        (float("-inf"), None, None),
        (60, 5, 5),
        (5, 60, 5),
        (10**400, 60, 60),
        # By this machine's clock it ended before it was had.
        (60, -5, 60),
        (None, None, None),
    ],
)
def test_a_token_ends_when_the_earlier_of_two_that_can_be_says(
    endpoint: HttpReceiver, expires_in: float | None, claim_s: int | None, ends_s: int | None
) -> None:
    claims = {} if claim_s is None else {"exp": NOW_MS / 1000 + claim_s}
    text = f"h.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.s"
    endpoint.answers.append(granted(access_token=text, expires_in=expires_in))
    found = provider(endpoint, ManualClock(NOW_MS)).current().ends_ms
    assert found == (None if ends_s is None else NOW_MS + ends_s * 1_000)


@pytest.mark.parametrize(
    ("answer", "words", "action"),
    [
        (
            Answer(401, body=b'{"error": "invalid_client", "error_description": "wrong"}'),
            "refuses client nap (HTTP 401, invalid_client)",
            "client_id, its secret",
        ),
        (Answer(400, body=b"no JSON"), "refuses client nap (HTTP 400)", "its secret"),
        (
            Answer(400, body=json.dumps({"error": f"not {SECRET}"}).encode()),
            "refuses client nap (HTTP 400)",
            "its secret",
        ),
        (Answer(400, body=json.dumps({"error": SENT}).encode()), "nap (HTTP 400)", "its secret"),
        (
            Answer(400, body=json.dumps({"error": "x", "error_description": SENT}).encode()),
            "nap (HTTP 400, x)",
            "its secret",
        ),
        (Answer(400, body=b'{"error": ["invalid_client"]}'), "nap (HTTP 400)", "its secret"),
        (Answer(404), "answers HTTP 404", "Is it the token endpoint?"),
        (Answer(302, {"Location": "http://127.0.0.1:1/"}), "answers HTTP 302", "endpoint?"),
        (Answer(200, body=b"<html>"), "without a bearer token", "endpoint?"),
        (Answer(200, body=b"[" * 100_000), "without a bearer token", "endpoint?"),
        (granted(access_token="a\x01auth=Bearer b"), "without a bearer token", "endpoint?"),
        (granted(access_token=7), "without a bearer token", "endpoint?"),
        (granted(token_type="mac"), "without a bearer token", "endpoint?"),
        (granted(expires_in=0), "ended already, at 2027-01-15 08:00:00 UTC", "Check the clocks"),
        (granted(expires_in=-1e300), "ended already", "Check the clocks"),
        (Answer(200, body=b" " * 1024, pieces=1025), "more than 1 MiB", "endpoint?"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_token_is_an_error_that_says_so(
    endpoint: HttpReceiver, answer: Answer, words: str, action: str
) -> None:
    endpoint.answers.append(answer)
    with pytest.raises(BrokerError) as caught:
        provider(endpoint, ManualClock(NOW_MS)).current()
    assert words in caught.value.problem
    assert action in caught.value.action
    assert not isinstance(caught.value, BrokerUnavailableError)
    for hidden in (SECRET, quote(SECRET), "czNjcg", SENT, SENT[:8]):
        assert hidden not in str(caught.value)


@pytest.mark.parametrize("head", [b"Content-Length: 1000000\r\n\r\n", b"X: "])
def test_an_answer_that_comes_in_drops_is_given_up_in_time(head: bytes) -> None:
    server = ObjectServer()
    with server.listening():
        server.objects["/token"] = again_and_again(b"HTTP/1.1 200 OK\r\n" + head, b"x", 0.05)
        ours = tokens(settings(server.url("/token"), timeout_s=0.5))
        assert ours is not None
        # The second where this machine stood still, so that no drop came either.
        words = r"does not answer (within 0\.5 s|\(ReadTimeoutError\))"
        with pytest.raises(BrokerUnavailableError, match=words):
            ours.current()


def test_an_answer_that_is_given_up_leaves_no_connection() -> None:
    server, left = ObjectServer(), threading.Event()

    def drops(connection: socket.socket, ended: threading.Event) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        try:
            again_and_again(head, b"x", 0.01)(connection, ended)
        except OSError:
            left.set()

    server.objects["/token"] = drops
    with server.listening():
        chosen = settings(server.url("/token"), timeout_s=0.5).oauth
        assert chosen is not None
        # The error is kept, and with it all that is not closed.
        with pytest.raises(BrokerUnavailableError) as caught:
            ask_endpoint(chosen, SECRET)
        wait_until(left.is_set, "the connection to be closed")
        assert "does not answer" in str(caught.value)


@pytest.mark.parametrize("problem", ["nobody listens", "silence"])
def test_an_endpoint_that_is_away_is_waited_for(endpoint: HttpReceiver, problem: str) -> None:
    held = threading.Event()
    url = endpoint.url if problem == "silence" else "http://127.0.0.1:1/token"
    endpoint.answers.append(Answer(hold=held))
    ours = tokens(settings(url, timeout_s=0.2), ManualClock(NOW_MS))
    assert ours is not None
    with pytest.raises(BrokerUnavailableError, match="does not answer"):
        ours.current()
    held.set()


def test_an_endpoint_whose_certificate_is_not_trusted_is_told(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    receiver = HttpReceiver()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("idp"))
    with receiver.listening(context):
        url = f"https://127.0.0.1:{receiver.port}/token"
        receiver.answers.append(granted(expires_in=60))
        trusting = tokens(settings(url, ca_file=authority.file))
        assert trusting is not None
        assert trusting.token() == "abc.def"
        wary = tokens(settings(url, ca_file=other.file))
        assert wary is not None
        with pytest.raises(BrokerError, match="no TLS that is trusted") as caught:
            wary.current()
        assert "kafka.oauth.ca_file" in caught.value.action


def test_the_secret_is_read_anew_for_each_token(endpoint: HttpReceiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("one\n")
    ours = provider(endpoint, ManualClock(NOW_MS), client_secret=None, client_secret_file=file)
    endpoint.answers += [granted(), granted()]
    for secret in ("one", "two"):
        file.write_text(secret)
        ours.current()
        sent = base64.b64decode(endpoint.requests[-1].headers["Authorization"][6:])
        assert sent == f"nap:{secret}".encode()
    for broken in (lambda: file.write_text(" "), file.unlink):
        broken()
        new = provider(endpoint, ManualClock(NOW_MS), client_secret=None, client_secret_file=file)
        for each, error in ((ours, BrokerUnavailableError), (new, ConfigError)):
            with pytest.raises(error, match="secret") as caught:
                each.current()
            assert str(file) not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"oauth": None}, "OAUTHBEARER needs oauth"),
        ({"oauth": oauth("http://idp.example/token")}, "expected https"),
        ({"oauth": oauth("https://a:b@idp.example/token")}, "without user and password"),
        ({"oauth": oauth("https:///token")}, "not an address"),
        ({"oauth": oauth("https://idp..example/token")}, "not an address"),
        ({"oauth": oauth("https://idp.example:99999/token")}, "not an address"),
        ({"oauth": oauth("https://idp.example/t", client_secret=None)}, "expected one of"),
        ({"sasl_mechanism": "AWS_MSK_IAM"}, "AWS_MSK_IAM needs security_protocol SASL_SSL"),
        ({"security_protocol": "SSL"}, "sasl_mechanism and oauth need .*, and it is SSL"),
        (
            {"security_protocol": "PLAINTEXT", "sasl_mechanism": None, "ssl_cafile": __file__},
            "ssl_cafile need security_protocol SSL or SASL_SSL",
        ),
        (
            {"security_protocol": "SSL", "sasl_mechanism": None, "ssl_keyfile": __file__},
            "ssl_keyfile needs ssl_certfile",
        ),
        ({"bootstrap_servers": "broker:99092"}, "a port is a number from 1 to 65535, got 99092"),
        ({"bootstrap_servers": "kafka://broker:9092"}, "expected host:port"),
        ({"bootstrap_servers": "b\n:9092"}, r"expected host:port, got 'b\\n:9092'"),
        ({"bootstrap_servers": "b\u2003c:9092"}, "expected host:port"),
        ({"bootstrap_servers": "b\0:9092"}, "expected host:port"),
        ({"bootstrap_servers": "b:٩٠٩٢"}, "expected host:port"),
    ],
)
def test_settings_that_are_not_whole_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        KafkaSettings(
            **{
                "topic": "t",
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "OAUTHBEARER",
                **changes,
            }
        )
    assert SECRET not in str(caught.value).replace(repr(SECRET), "")


@dataclass
class Issuer:
    """An identity provider: a token endpoint that knows one client, and its keys (JWKS)."""

    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1"}))
    lifetime_s: int = 3_600
    audience: str = "kafka"
    strange: int = 0
    """So many of the next tokens are for others."""
    issued: int = 0
    url: str = ""

    def answer(self, authorization: str) -> tuple[int, dict[str, Any]]:
        basic = base64.b64encode(f"nap:{quote(SECRET, safe='').replace('%20', '+')}".encode())
        if authorization != f"Basic {basic.decode()}":
            return 401, {"error": "invalid_client"}
        self.issued += 1
        is_strange, self.strange = self.strange > 0, max(0, self.strange - 1)
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "nap",
            "aud": "others" if is_strange else self.audience,
            "scope": "kafka",
            "iat": now,
            "exp": now + self.lifetime_s,
        }
        token = jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key)
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime_s}


def _issuing(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"keys": [issuer.key.as_dict(private=False)]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(*issuer.answer(self.headers["Authorization"]))

        def _send(self, status: int, tree: dict[str, Any]) -> None:
            body = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@dataclass(frozen=True)
class OAuthBroker:
    """Apache Kafka with OAUTHBEARER over TLS, which checks tokens by the issuer's keys."""

    issuer: Issuer
    server: str
    authority: Path

    def settings(self, **changes: Any) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=(self.server,),
            topic="images",
            connect_timeout_s=PATIENCE_S,
            security_protocol="SASL_SSL",
            ssl_cafile=self.authority,
            **{
                "sasl_mechanism": "OAUTHBEARER",
                "oauth": oauth(f"{self.issuer.url}/token"),
                **changes,
            },
        )


@pytest.fixture(scope="module")
def broker(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OAuthBroker]:
    folder, issuer = tmp_path_factory.mktemp("oauth"), Issuer()
    authority = Authority(folder, "authority")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _issuing(issuer))
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    module = "org.apache.kafka.common.security.oauthbearer"
    listener, handler = "listener.name.sasl", f"{module}.OAuthBearerValidatorCallbackHandler"
    lines = [
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms=OAUTHBEARER",
        f"{listener}.oauthbearer.sasl.jaas.config={module}.OAuthBearerLoginModule required ;",
        f"{listener}.oauthbearer.sasl.server.callback.handler.class={handler}",
        f"{listener}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url={issuer.url}/keys",
        f"{listener}.oauthbearer.sasl.oauthbearer.expected.audience=kafka",
        f"{listener}.oauthbearer.sasl.oauthbearer.expected.issuer={issuer.url}",
        # The broker ends a connection whose token has ended.
        f"{listener}.oauthbearer.connections.max.reauth.ms=3600000",
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={authority.issue('broker')}",
    ]
    data = folder / "broker"
    data.mkdir()
    allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={issuer.url}/keys"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAVA_TOOL_OPTIONS", allowed)
            with ApacheKafka(kafka_jars, data, extra="\n".join(lines)) as kafka:
                yield OAuthBroker(issuer, kafka.sasl_bootstrap, authority.file)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.kafka
def test_a_broker_takes_the_token_and_doctor_says_until_when(
    broker: OAuthBroker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), capture_logs() as logs:
        (certificate,) = connect(broker.settings())
        said = login_words(broker.settings())
        found = _broker(settings_of(kafka=broker.settings().model_dump()))
    assert certificate.subject == "CN=broker"
    assert said.startswith("OAUTHBEARER as nap, with a token valid until 20")
    # The token itself tells of whole seconds.
    assert said.endswith(("1 h from when it was had", "59 min 59 s from when it was had"))
    assert "answers; logged in by OAUTHBEARER as nap, with a token valid until 20" in found.detail
    written = caplog.text + str(logs)
    assert SECRET not in written
    assert "eyJ" not in written, "no token is logged"


@pytest.mark.kafka
def test_a_wrong_secret_and_a_token_for_others_are_told_apart(broker: OAuthBroker) -> None:
    wrong = broker.settings(oauth=oauth(f"{broker.issuer.url}/token", client_secret="wrong-one"))
    with pytest.raises(BrokerError, match="refuses client nap") as caught:
        connect(wrong)
    assert "wrong-one" not in str(caught.value)
    broker.issuer.audience = "others"
    try:
        with pytest.raises(BrokerError, match="the broker refused the credentials") as caught:
            connect(broker.settings())
    finally:
        broker.issuer.audience = "kafka"
    assert "audience" in caught.value.action


@pytest.mark.kafka
def test_one_refused_token_is_replaced(broker: OAuthBroker) -> None:
    broker.issuer.strange = 1
    with capture_logs() as logs:
        connect(broker.settings())
    assert "token_refused_by_broker" in {line["event"] for line in logs}
    assert broker.issuer.strange == 0


@pytest.mark.kafka
def test_a_connection_outlives_its_token(broker: OAuthBroker) -> None:
    chosen = broker.settings()
    create_topics(chosen, ["images"], 1)
    before = broker.issuer.issued
    broker.issuer.lifetime_s = 4
    try:
        producer = open_client(KafkaProducer, producer_options(chosen, 2**20))
        deadline = time.monotonic() + PATIENCE_S
        try:
            # The broker ends a connection whose token is over, unless it gets another one.
            while broker.issuer.issued - before < 4:
                producer.send("images", b"x").get(timeout=PATIENCE_S)
                assert time.monotonic() < deadline
        finally:
            close_producer(producer, PATIENCE_S)
    finally:
        broker.issuer.lifetime_s = 3_600


AWS = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "a-session",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


def msk(**changes: Any) -> KafkaSettings:
    given = {"aws_region": "eu-west-1", "sasl_mechanism": "AWS_MSK_IAM", **changes}
    return KafkaSettings(topic="images", security_protocol="SASL_SSL", **given)


def signature_of(url: str) -> str:
    """AWS Signature Version 4 of a presigned address, as its documentation has it."""
    parts = urlsplit(url)
    query = {
        name: value for name, value in parse_qsl(parts.query) if name.startswith(("X-", "Act"))
    }
    query.pop("X-Amz-Signature")
    canonical = "&".join(
        f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in sorted(query.items())
    )
    asked = f"GET\n/\n{canonical}\nhost:{parts.netloc}\n\nhost\n{hashlib.sha256(b'').hexdigest()}"
    scope = query["X-Amz-Credential"].partition("/")[2]
    digest = hashlib.sha256(asked.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{digest}"
    key = f"AWS4{AWS['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def test_what_msk_is_sent_is_signed_with_the_credentials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.DEBUG):
        options = client_options(msk())
        sent = get_sasl_mechanism(options["sasl_mechanism"])(**options).auth_bytes().decode()
    for name in ("botocore.auth", "botocore.parsers", "botocore.endpoint"):
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)
    text = sent.removeprefix("n,,\x01auth=Bearer ").removesuffix("\x01\x01")
    url = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    query = dict(parse_qsl(urlsplit(url).query))
    assert urlsplit(url).netloc == "kafka.eu-west-1.amazonaws.com"
    assert query["Action"] == "kafka-cluster:Connect"
    assert query["X-Amz-Credential"].startswith("AKIDEXAMPLE/")
    assert query["X-Amz-Credential"].endswith("/eu-west-1/kafka-cluster/aws4_request")
    assert query["X-Amz-Expires"] == "900"
    assert query["X-Amz-Security-Token"] == "a-session"
    assert query["X-Amz-Signature"] == signature_of(url)
    for hidden in (AWS["AWS_SECRET_ACCESS_KEY"], text, query["X-Amz-Signature"]):
        assert hidden not in caplog.text + repr(options)
    words = login_words(msk())
    assert words.startswith("AWS_MSK_IAM in eu-west-1, with a signed token valid until ")
    assert "15 min" in words or "14 min" in words


def test_without_aws_credentials_msk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="there are no AWS credentials") as caught:
        client_options(msk())
    assert "AWS_PROFILE" in caught.value.action


@pytest.mark.kafka
def test_a_broker_gets_the_token_of_msk_and_what_it_says_of_it_is_told(
    broker: OAuthBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amazon's brokers alone can take it: this one refuses it, as no JWT."""
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    chosen = broker.settings(sasl_mechanism="AWS_MSK_IAM", oauth=None, aws_region="eu-west-1")
    with pytest.raises(BrokerError, match="the broker refused the credentials") as caught:
        connect(chosen)
    assert "kafka-cluster:Connect" in caught.value.action


def test_a_token_is_not_shown() -> None:
    token = Token("abc.def", NOW_MS, NOW_MS + 60_000)
    assert "abc" not in f"{token!r} {token}"
    assert token.words == "valid until 2027-01-15 08:01:00 UTC, 1 min from when it was had"
