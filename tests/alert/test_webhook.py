"""The webhook against a real HTTP server."""

import html
import json
import re
import socketserver
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import HTTPError, SSLError

from nap_stream.alert.webhook import (
    MAX_ANSWER_BYTES,
    NOT_SHOWN,
    SHOWN_ANSWER,
    WebhookAlertSink,
    alertmanager_alerts,
    excerpt,
)
from nap_stream.clock import ManualClock
from nap_stream.errors import AlertDeliveryError, AlertRefusedError, ConfigError
from nap_stream.settings.alerts import AlertSettings, WebhookSettings
from tests.alert.test_alertmanager import NOON_MS, drift
from tests.support.certificates import self_signed
from tests.support.http_receiver import Answer, HttpReceiver
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    receiver = HttpReceiver()
    with receiver.listening():
        yield receiver


class Clock(ManualClock):
    """Keeps its pauses, and calls ``meanwhile`` in each."""

    def __init__(self) -> None:
        super().__init__(NOON_MS)
        self.pauses: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        super().sleep(seconds)
        self.meanwhile()

    @property
    def slept_s(self) -> float:
        return sum(self.pauses)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def sink_to(url: str, clock: Clock, **webhook: Any) -> WebhookAlertSink:
    given = {"timeout_s": PATIENCE_S, **webhook}
    return WebhookAlertSink(AlertSettings(), WebhookSettings(url=url, **given), clock)


def refused(sink: WebhookAlertSink, match: str) -> str:
    with pytest.raises(AlertDeliveryError, match=match) as caught:
        sink.publish(drift())
    return str(caught.value)


def test_an_alert_is_posted_as_a_list_of_json(receiver: HttpReceiver, clock: Clock) -> None:
    sink = sink_to(receiver.url, clock)
    alert = drift(key="naïve \ud800")  # a lone surrogate, as no UTF-8 has
    sink.publish(alert)
    sink.close()

    (request,) = receiver.requests
    assert request.path == "/api/v2/alerts"
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers
    assert request.tree == alertmanager_alerts(alert, AlertSettings(), NOON_MS)


def test_an_escalation_is_one_request(receiver: HttpReceiver, clock: Clock) -> None:
    sink_to(receiver.url, clock).publish(drift(severity="critical", previous_severity="warning"))

    (request,) = receiver.requests
    assert [alert["labels"]["severity"] for alert in request.tree] == ["warning", "critical"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again_with_growing_pauses(
    receiver: HttpReceiver, clock: Clock, status: int
) -> None:
    receiver.answers.extend([Answer(status)] * 3)

    sink_to(receiver.url, clock).publish(drift())

    assert len(receiver.requests) == 4
    assert clock.slept_s == 0.5 + 1 + 2


def test_after_the_last_attempt_it_is_an_error(receiver: HttpReceiver, clock: Clock) -> None:
    receiver.answers.extend([Answer(502, body=b"no \x1b[31mupstream\r\n")] * 2)
    sink = sink_to(receiver.url, clock, attempts=2)

    text = refused(sink, "answered 502 no")

    assert "answered 502 no [31mupstream" in text
    assert len(receiver.requests) == 2
    sink.publish(drift())
    assert len(receiver.requests) == 3


@pytest.mark.parametrize(
    ("value", "pause_s"),
    [
        ("7", 7),
        ("86400", 30),
        ("9" * 400, 30),
        ("Thu, 01 Jan 2026 12:00:09 GMT", 9),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("soon", 0.5),
        ("-5", 0.5),
    ],
)
def test_retry_after_is_kept_to_within_bounds(
    receiver: HttpReceiver, clock: Clock, value: str, pause_s: float
) -> None:
    receiver.answers.append(Answer(429, {"Retry-After": value}))

    sink_to(receiver.url, clock).publish(drift())

    assert len(receiver.requests) == 2
    assert clock.slept_s == pytest.approx(pause_s)


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "/api/v2/alerts"), (401, "bearer_token_file"), (404, "/api/v2/alerts"), (422, "Ask")],
)
def test_a_refusal_is_not_tried_again_and_shows_what_was_said(
    receiver: HttpReceiver, clock: Clock, status: int, hint: str
) -> None:
    receiver.answers.append(Answer(status, body=b"start time must be before end time"))

    text = refused(sink_to(receiver.url, clock), f"answered {status} start time must be")

    assert hint in text
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(400, True), (413, True), (422, True), (401, False), (403, False), (404, False)],
)
def test_only_what_is_wrong_with_the_alert_itself_is_final(
    receiver: HttpReceiver, clock: Clock, status: int, is_final: bool
) -> None:
    receiver.answers.append(Answer(status))

    with pytest.raises(AlertDeliveryError) as caught:
        sink_to(receiver.url, clock).publish(drift())

    assert isinstance(caught.value, AlertRefusedError) is is_final
    assert caught.value.retriable is not is_final


def test_a_huge_answer_is_not_read_to_its_end(receiver: HttpReceiver, clock: Clock) -> None:
    for status in (400, 200):
        receiver.answers.append(Answer(status, body=b"x" * 2**20, pieces=1_000))
    sink = sink_to(receiver.url, clock)

    assert refused(sink, "answered 400").count("x") == 200
    sink.publish(drift())


def test_an_answer_that_trickles_in_is_not_waited_for(receiver: HttpReceiver) -> None:
    class Fleeting(Clock):
        def monotonic(self) -> float:
            self.advance(20)
            return super().monotonic()

    receiver.answers.append(Answer(400, body=b"x" * 1_000, pieces=10))

    assert "x" not in refused(
        sink_to(receiver.url, Fleeting(), timeout_s=10), r"answered 400\. Check"
    )


def test_a_redirect_is_not_followed(receiver: HttpReceiver, clock: Clock) -> None:
    receiver.answers.append(Answer(307, {"Location": receiver.url + "/moved"}))

    refused(sink_to(receiver.url, clock), "redirect to '.*moved', which is not followed")

    assert len(receiver.requests) == 1


@pytest.mark.parametrize("address", ["/services/T01/hush-hush-hush", "/api/v2/alerts?key=hush"])
def test_the_path_of_an_address_is_not_shown_where_an_answer_quotes_it(
    receiver: HttpReceiver, clock: Clock, address: str
) -> None:
    url = receiver.url.removesuffix("/api/v2/alerts") + address
    receiver.answers.append(Answer(404, body=f"<pre>Cannot POST {address}</pre>".encode()))
    receiver.answers.append(Answer(308, {"Location": f"https://host{address}/"}))
    sink = sink_to(url, clock)

    texts = [refused(sink, "answered 404"), refused(sink, "a redirect to")]

    assert all(NOT_SHOWN in text and "hush" not in text for text in texts)
    assert [request.path for request in receiver.requests] == [address] * 2


def test_that_of_alertmanager_is_no_secret(receiver: HttpReceiver, clock: Clock) -> None:
    receiver.answers.append(Answer(404, body=b"Cannot POST /api/v2/alerts"))

    refused(sink_to(receiver.url, clock), "answered 404 Cannot POST /api/v2/alerts")


def test_an_answer_that_does_not_come_in_time_is_an_error(
    receiver: HttpReceiver, clock: Clock
) -> None:
    go_on = threading.Event()
    receiver.answers.append(Answer(hold=go_on))
    sink = sink_to(receiver.url, clock, timeout_s=0.1, attempts=1)
    try:
        refused(sink, "no answer: ReadTimeoutError")
    finally:
        go_on.set()


def test_an_endpoint_that_comes_back_gets_the_alert(clock: Clock) -> None:
    receiver = HttpReceiver()
    receiver.port = free_port()
    sink = sink_to(receiver.url + "?secret=hush", clock, attempts=3)

    text = refused(sink, "no answer: NewConnectionError.*refused")
    assert f"127.0.0.1:{receiver.port}" in text
    assert "hush" not in text
    with receiver.listening():
        sink.publish(drift())
    assert len(receiver.requests) == 1


def test_the_token_is_read_each_time_and_is_in_the_header_alone(
    receiver: HttpReceiver, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text("first-token\n")
    sink = sink_to(receiver.url, clock, bearer_token_file=file)
    with caplog.at_level("DEBUG"):
        sink.publish(drift())
        file.write_text("second-token\n")
        receiver.answers.append(Answer(403, body=b"who is second-token?"))
        text = refused(sink, "answered 403")

    said = [request.headers["Authorization"] for request in receiver.requests]
    assert said == ["Bearer first-token", "Bearer second-token"]
    assert not any(b"-token" in request.body for request in receiver.requests)
    for shown in (text, repr(sink), caplog.text):
        assert "first-token" not in shown
        assert "second-token" not in shown
    assert f"answered 403 {NOT_SHOWN}" in text


def test_a_token_longer_than_what_is_read_of_an_answer_is_not_shown(
    receiver: HttpReceiver, clock: Clock, tmp_path: Path
) -> None:
    token = "".join(f"{number:05x}" for number in range(1_500))
    file = tmp_path / "token"
    file.write_text(token)
    receiver.answers.append(Answer(403, body=f"who is {token}?".encode()))

    text = refused(sink_to(receiver.url, clock, bearer_token_file=file), "answered 403")

    assert NOT_SHOWN in text
    assert token[:12] not in text


class Echo(socketserver.StreamRequestHandler):
    """Answers with the Authorization header where the status line should be."""

    timeout = 30

    def handle(self) -> None:
        lines = iter(self.rfile.readline, b"\r\n")
        (header,) = [line for line in lines if line.startswith(b"Authorization")]
        self.wfile.write(header + b"\r\n")


@pytest.mark.parametrize("token", ["s3cret-token", "it's\\a\"token"])
def test_a_status_line_that_echoes_the_token_is_shown_without_it(
    clock: Clock, tmp_path: Path, token: str
) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    with socketserver.TCPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            with pytest.raises(AlertDeliveryError, match="no answer") as caught:
                sink_to(url, clock, bearer_token_file=file, attempts=1).publish(drift())
        finally:
            server.shutdown()
            thread.join()

    told = "".join(traceback.format_exception(caught.value))
    assert NOT_SHOWN in str(caught.value)
    assert token not in told
    assert repr(token)[1:-1] not in told


@pytest.mark.parametrize("kind", [SSLError, HTTPError])
def test_no_error_of_the_connection_shows_the_token(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[HTTPError]
) -> None:
    def fail(*_: object, headers: dict[str, str], **__: object) -> None:
        raise kind(f"{headers['Authorization']} is odd, {'x' * 10_000}")

    file = tmp_path / "token"
    file.write_text("s3cret-token")
    monkeypatch.setattr(urllib3.PoolManager, "request", fail)

    text = refused(sink_to("https://host/", clock, bearer_token_file=file), re.escape(NOT_SHOWN))

    assert "s3cret" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "content", [b"", b"two words", b"two\nlines", b"\xff\xfe", b"x" * 100_000, None]
)
def test_a_file_without_a_token_is_told_without_its_content(
    receiver: HttpReceiver, clock: Clock, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    sink = sink_to(receiver.url, clock, bearer_token_file=file)

    text = refused(sink, "bearer_token_file")

    assert not content or content.decode(errors="replace") not in text
    assert receiver.requests == []


def test_close_ends_the_pauses_and_what_comes_after(receiver: HttpReceiver, clock: Clock) -> None:
    receiver.answers.append(Answer(503, {"Retry-After": "30"}))
    sink = sink_to(receiver.url, clock)
    clock.meanwhile = sink.close

    refused(sink, "closed")
    refused(sink, "closed")

    assert len(clock.pauses) == 1
    assert len(receiver.requests) == 1


def test_tls_trusts_the_given_certificates_alone(clock: Clock, tmp_path: Path) -> None:
    ours, others = self_signed(tmp_path, "ours"), self_signed(tmp_path, "others")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours)
    receiver = HttpReceiver()
    with receiver.listening(context):
        url = receiver.url.replace("http:", "https:")
        sink_to(url, clock, ca_file=ours).publish(drift())
        refused(sink_to(url, clock, ca_file=others), "no TLS connection.*ca_file")
        refused(sink_to(url, clock), "no TLS connection")

    assert len(receiver.requests) == 1
    assert clock.pauses == []


def test_settings_that_can_never_work_are_refused_at_once(clock: Clock, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(ConfigError, match="certificates cannot be read"):
        sink_to("https://localhost/", clock, ca_file=empty)


TOKEN = "ab/cd+ef==\\gh'ij\"kl&mn<op>%2Fqr%" + "0123456789" * 3
FORMS = {
    "plain": TOKEN,
    "repr": repr(TOKEN),
    "json": json.dumps({"error": TOKEN}),
    "json of PHP": json.dumps(TOKEN).replace("/", "\\/"),
    "json of .NET": json.dumps(TOKEN).replace("+", "\\u002B").replace("<", "\\u003c"),
    "quote": quote(TOKEN),
    "quote_plus": quote_plus(TOKEN),
    "quote in lower case": quote(TOKEN, safe="").replace("%2F", "%2f"),
    "quote in JSON": json.dumps(quote(TOKEN, safe="")),
    "JSON in quote": quote(json.dumps(TOKEN), safe=""),
    "HTML": html.escape(TOKEN),
    "wrapped": "\r\n ".join(TOKEN[start : start + 7] for start in range(0, len(TOKEN), 7)),
    "UTF-16": "\0".join(TOKEN),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_answer_with_the_token_in_any_form_is_not_shown(form: str) -> None:
    answer = f"who is {form}?".encode()
    assert excerpt(answer, TOKEN) == NOT_SHOWN
    assert excerpt(answer, "another-token").startswith("who is ")


def test_a_token_longer_than_what_is_read_is_not_shown() -> None:
    token = "".join(f"{number:05x}" for number in range(1_500))
    assert len(token) > MAX_ANSWER_BYTES
    assert excerpt(f"Bearer {token}".encode()[:MAX_ANSWER_BYTES], token) == NOT_SHOWN
    assert excerpt(f"Bearer …{token[-40:]}".encode(), token) == NOT_SHOWN


@pytest.mark.parametrize("token", ["k", "s3cret", "s3cret-12chr"])
def test_a_short_token_counts_whole(token: str) -> None:
    assert excerpt(f"who is {token}?".encode(), token) == NOT_SHOWN
    other = f"who is {token[:-1]}?"
    assert excerpt(other.encode(), token) == other


@given(
    token=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    before=st.text(),
    after=st.text(),
)
def test_no_surroundings_hide_a_token_from_the_search(token: str, before: str, after: str) -> None:
    answer = (before + token + after).encode(errors="replace")
    assert excerpt(answer, token) == NOT_SHOWN


def test_the_beginning_is_shown_on_one_line() -> None:
    assert excerpt(b"no \x1b[31m\r\n  such\xff route", None) == "no [31m such\ufffd route"
    assert excerpt(b"x" * 1_000, "s3cret") == "x" * SHOWN_ANSWER
    assert excerpt(b"no such route", None, "") == "no such route"


def test_each_secret_counts() -> None:
    assert excerpt(b"who is s3cret?", None, "other", "s3cret") == NOT_SHOWN
