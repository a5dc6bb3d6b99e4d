"""The webhook against a real HTTP server, and the shape that it sends."""

import ipaddress
import re
import socketserver
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from urllib3.exceptions import HTTPError, SSLError

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.webhook import NOT_SHOWN, WebhookAlertSink, alertmanager_alerts
from nap_stream.clock import ManualClock
from nap_stream.errors import AlertDeliveryError, AlertRefusedError, ConfigError
from nap_stream.settings.schema import AlertSettings, WebhookSettings
from tests.alert.samples import ALERTS, event_tree
from tests.support.http_receiver import Answer, HttpReceiver

NOON_MS = 1_767_268_800_000
NOON = "2026-01-01T12:00:00.000Z"
MONITOR = "ood-fraction"


def drift(state: str = "firing", **data: Any) -> AlertEvent:
    tree = {
        "monitor": MONITOR,
        "topic": "images",
        "key": None,
        "state": state,
        "severity": "warning",
        "reason": "began",
        "summary": "12% of the last 1000 images are out of distribution",
        "firing_since": "2026-01-01T11:00:00.000Z",
        "onset": "2026-01-01T10:58:00.000Z",
        "previous_severity": None,
        **data,
    }
    event = {
        "id": "0123456789abcdef",
        "type": f"io.nap-stream.drift.{state}",
        "time": "2026-01-01T11:30:00.000Z",
        "data": tree,
    }
    return AlertEvent(MONITOR if tree["key"] is None else f"{MONITOR}/{tree['key']}", event)


def gap(base_offset: int = 100) -> AlertEvent:
    data = {
        "monitor": MONITOR,
        "topic": "images",
        "partition": 3,
        "base_offset": base_offset,
        "end_offset": 250,
        "offsets": 250 - base_offset,
        "reason": "the broker has deleted them",
        "segment": "topic=images/partition=3/00000000000000000100.parquet",
    }
    return AlertEvent(MONITOR, {"id": "feed", "type": "io.nap-stream.gap", "data": data})


def shape(alert: AlertEvent, **settings: Any) -> list[dict[str, Any]]:
    return alertmanager_alerts(alert, AlertSettings(**settings), NOON_MS)


class TestShape:
    def test_a_firing_alert_lasts_two_repeat_intervals_unless_repeated(self) -> None:
        (sent,) = shape(drift(), repeat_interval_s=3_600, labels={"team": "vision"})

        assert sent["labels"] == {
            "alertname": "NapStreamDrift",
            "monitor": MONITOR,
            "topic": "images",
            "severity": "warning",
            "team": "vision",
        }
        assert sent["startsAt"] == "2026-01-01T11:00:00.000Z"
        assert sent["endsAt"] == "2026-01-01T14:00:00.000Z"
        assert sent["annotations"]["summary"].startswith("12% of")
        assert sent["annotations"]["onset"] == "2026-01-01T10:58:00.000Z"
        assert sent["annotations"]["id"] == "0123456789abcdef"
        assert "generatorURL" not in sent
        assert "runbook_url" not in sent["annotations"]

    def test_firing_repeated_and_resolved_are_one_alert(self) -> None:
        (began,) = shape(drift())
        (repeated,) = shape(drift(reason="repeated", repeat=1, onset=None, summary="still 14%"))
        (resolved,) = shape(drift("resolved", reason="ended", summary="back to 5%"))

        assert began["labels"] == repeated["labels"] == resolved["labels"]
        assert resolved["startsAt"] == began["startsAt"]
        assert resolved["endsAt"] == "2026-01-01T11:30:00.000Z"

    def test_an_escalation_ends_the_alert_of_the_former_severity(self) -> None:
        escalated = drift(reason="escalated", severity="critical", previous_severity="warning")

        former, new = shape(escalated)

        assert former["labels"] == shape(drift())[0]["labels"]
        assert (former["endsAt"], former["startsAt"]) == (NOON, "2026-01-01T11:00:00.000Z")
        assert new["labels"] == former["labels"] | {"severity": "critical"}
        assert new["endsAt"] > NOON
        (resolved,) = shape(drift("resolved", severity="critical", previous_severity="critical"))
        assert resolved["labels"] == new["labels"]

    @pytest.mark.parametrize(
        ("since", "time", "starts", "ends"),
        [
            ("2026-01-01T13:00:00.000Z", "2026-01-01T14:00:00.000Z", NOON, NOON),
            (
                "2026-01-01T11:00:00.000Z",
                "2026-01-01T10:00:00.000Z",
                "2026-01-01T11:00:00.000Z",
                "2026-01-01T11:00:00.000Z",
            ),
            ("yesterday", None, NOON, NOON),
            ("2026-01-01T11:00:00", "9999-12-31T23:59:59Z", NOON, NOON),
        ],
        ids=["ahead-of-the-clock", "ends-before-it-starts", "unreadable", "no-zone"],
    )
    def test_what_is_over_ends_now_at_the_latest_and_not_before_it_starts(
        self, since: str, time: str | None, starts: str, ends: str
    ) -> None:
        event = dict(drift("resolved", firing_since=since).event) | {"time": time}

        (sent,) = shape(AlertEvent(MONITOR, event))

        assert (sent["startsAt"], sent["endsAt"]) == (starts, ends)

    def test_each_key_is_an_alert_of_its_own_also_an_empty_one(self) -> None:
        labels = [shape(drift(key=key))[0]["labels"].get("key") for key in (None, "", "cam-7")]

        assert labels == [None, '""', "cam-7"]
        assert shape(drift(key="cam-7"))[0]["labels"]["monitor"] == MONITOR

    def test_the_description_says_more_than_the_summary(self) -> None:
        detectors = [{"name": "ood-window", "active": True, "words": "12% in 1,000 records"}]

        shown = shape(drift(detectors=detectors))[0]["annotations"]

        assert "\n  ood-window: 12% in 1,000 records" in shown["description"]
        assert shown["summary"] not in shown["description"]

    def test_links_come_from_the_event_or_the_settings(self) -> None:
        (sent,) = shape(drift(dashboard_url="http://event/d"), runbook_url="http://settings/r")

        assert sent["generatorURL"] == "http://event/d"
        assert sent["annotations"]["dashboard_url"] == "http://event/d"
        assert sent["annotations"]["runbook_url"] == "http://settings/r"

    def test_own_labels_are_not_overwritten(self) -> None:
        settings = AlertSettings.model_construct(labels={"topic": "x"}, repeat_interval_s=1.0)

        (sent,) = alertmanager_alerts(drift(), settings, NOON_MS)

        assert sent["labels"]["topic"] == "images"

    def test_the_monitor_s_own_events_keep_their_labels_from_beginning_to_end(self) -> None:
        sent = {
            name: shape(AlertEvent("unused", event_tree(alert))) for name, alert in ALERTS.items()
        }
        severities = {name: [a["labels"]["severity"] for a in sent[name]] for name in sent}

        assert severities == {
            "began": ["warning"],
            "key": ["critical"],
            "escalated": ["warning", "critical"],
            "shifted": ["warning"],
            "ended": ["warning"],
        }
        same = sent["began"][0]["labels"] | {"severity": None}
        for name, alerts in sent.items():
            key = {"key": "camera-7"} if name == "key" else {}
            assert all(a["labels"] | {"severity": None} == same | key for a in alerts)
        for alert in (each for alerts in sent.values() for each in alerts):
            assert all(isinstance(text, str) and text for text in alert["annotations"].values())
            assert alert["startsAt"] <= alert["endsAt"]

    def test_each_gap_is_an_alert_of_its_own(self) -> None:
        (sent,), (other,) = shape(gap(), repeat_interval_s=3_600), shape(gap(200))

        assert sent["labels"] == {
            "alertname": "NapStreamGap",
            "monitor": MONITOR,
            "topic": "images",
            "severity": "warning",
            "partition": "3",
            "base_offset": "100",
        }
        assert other["labels"] != sent["labels"]
        assert (sent["startsAt"], sent["endsAt"]) == (NOON, "2026-01-01T14:00:00.000Z")
        assert "partition 3 offsets [100, 250)" in sent["annotations"]["summary"]
        assert "the broker has deleted them" in sent["annotations"]["description"]

    def test_an_event_without_data_still_makes_an_alert_of_strings(self) -> None:
        bare = AlertEvent(MONITOR, {"id": "1", "type": "io.nap-stream.drift.firing"})

        (sent,) = shape(bare)

        assert sent["labels"]["monitor"] == MONITOR
        texts = {**sent["labels"], **sent["annotations"]}
        assert all(isinstance(value, str) for value in texts.values())


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
    return WebhookAlertSink(AlertSettings(), WebhookSettings(url=url, **webhook), clock)


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

    assert "x" not in refused(sink_to(receiver.url, Fleeting()), r"answered 400\. Check")


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
    with receiver.listening():
        pass  # now it has a port on which nobody listens
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

    text = refused(sink_to("http://host/", clock, bearer_token_file=file), re.escape(NOT_SHOWN))

    assert "s3cret" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "content", [b"", b"two words", b"two\nlines", b"\xff\xfe", b"x" * 10_000, None]
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


def self_signed(folder: Path, name: str) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


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
