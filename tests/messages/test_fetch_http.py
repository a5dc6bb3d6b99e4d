"""References over HTTP: what is allowed, what is not, and servers that are out to harm."""

import gzip
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nap_stream.clock import Clock, ManualClock
from nap_stream.errors import ConfigError
from nap_stream.messages.addresses import AllowedHosts
from nap_stream.messages.reader import MessageReader
from nap_stream.settings.messages import FetchSettings
from nap_stream.settings.schema import LimitSettings
from tests.messages.chains import chain, one, read, refused
from tests.support.certificates import self_signed
from tests.support.object_server import (
    ObjectServer,
    Write,
    again_and_again,
    answer,
    raw,
    silence,
)
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until

IMAGE = b"\xff\xd8\xff the bytes of an image"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    server = ObjectServer({"/a.jpg": answer(IMAGE)})
    with server.listening():
        yield server


def resolved(*addresses: str) -> Any:
    """A resolver that knows one name, and counts how often it is asked."""

    def resolve(host: str, _: int) -> Sequence[str]:
        resolve.asked += 1  # type: ignore[attr-defined]
        if host != "images.example":
            raise OSError("unknown")
        return addresses

    resolve.asked = 0  # type: ignore[attr-defined]
    return resolve


@contextmanager
def fetching(
    server: ObjectServer,
    *hosts: str,
    networks: Sequence[str] = LOOPBACK,
    resolve: Any = None,
    wait_s: float | None = 0,
    clock: Clock | None = None,
    **changes: Any,
) -> Iterator[MessageReader]:
    settings = {
        "allow_hosts": hosts or (f"images.example:{server.port}",),
        "allow_networks": networks,
        "attempts": 2,
        "backoff_s": 0.01,
        "timeout_s": PATIENCE_S,
    }
    reader = chain(
        {"fetch": settings | changes},
        resolve=resolve or resolved("127.0.0.1"),
        wait_s=wait_s,
        clock=clock,
    )
    try:
        yield reader
    finally:
        reader.close()


def url(server: ObjectServer, path: str = "/a.jpg") -> str:
    return server.url(path, "images.example")


def test_an_object_and_what_is_told_of_it(server: ObjectServer) -> None:
    server.objects["/a%20b.jpg?sig=SECRET&x=1"] = answer(IMAGE)
    reference = f"http://user:PASS%40@images.example:{server.port}/a%20b.jpg?sig=SECRET&x=1#frag"
    with fetching(server) as reader:
        found = one(reader, reference)
    assert found.data == IMAGE
    assert found.source_uri == f"http://images.example:{server.port}/a%20b.jpg?…"
    (head,) = server.requests
    assert f"Host: images.example:{server.port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert "Authorization: Basic dXNlcjpQQVNTQA==\r\n" in head


def test_secrets_are_in_no_error(server: ObjectServer) -> None:
    for host in ("images.example", "evil.example"):
        reference = f"http://user:PASS@{host}:{server.port}/gone.jpg?sig=SECRET#SECRET"
        with fetching(server) as reader:
            found = one(reader, reference)
        assert found.error is not None
        assert "/gone.jpg" in found.error
        told = found.error + str(found.source_uri)
        assert "SECRET" not in told
        assert "PASS" not in told


def test_one_connection_serves_many(server: ObjectServer) -> None:
    resolve = resolved("127.0.0.1")
    with fetching(server, resolve=resolve) as reader:
        for _ in range(5):
            assert one(reader, url(server)).data == IMAGE
    assert (server.connections, resolve.asked) == (1, 1)


def test_a_kept_connection_that_was_closed_is_made_anew(server: ObjectServer) -> None:
    closing = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
    server.objects["/closing.jpg"] = closing
    with fetching(server, attempts=1) as reader:
        assert one(reader, url(server, "/closing.jpg")).data == b"abc"
        assert one(reader, url(server)).data == IMAGE
    assert server.connections == 2


def test_an_object_that_is_missing(server: ObjectServer) -> None:
    server.objects["/gone.jpg"] = answer(status=410)
    with fetching(server) as reader:
        for path in ("/none.jpg", "/gone.jpg"):
            found = one(reader, url(server, path))
            assert found.status == "missing"
            assert found.source_uri == url(server, path)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("hosts", "asked"),
    [
        (("images.example",), "http://images.example:{port}/a.jpg"),  # another port than 80
        (("other.example:{port}",), "http://images.example:{port}/a.jpg"),
        (("images.example:{port}",), "http://127.0.0.1:{port}/a.jpg"),
        (("images.example:{port}",), "http://2130706433:{port}/a.jpg"),
        (("images.example:{port}",), "http://0x7f.1:{port}/a.jpg"),
        (("images.example:{port}",), "http://[::ffff:127.0.0.1]:{port}/a.jpg"),
        (("images.example:{port}",), "http://images.example.evil.example:{port}/a.jpg"),
        (("images.example:{port}",), "http://evil.images.example:{port}/a.jpg"),
        (("images.example:{port}",), "http://images.example:{port}@evil.example/a.jpg"),
        (("images.example:{port}",), "http://evil.example#@images.example:{port}/a.jpg"),
        (("images.example:{port}",), "http://evil.example\\@images.example:{port}/a.jpg"),
        (("images.example:{port}",), "http://evil.example/images.example:{port}/a.jpg"),
        (("images.example:{port}",), "https://images.example/a.jpg"),
        (("images.example:{port}",), "http://localhost:{port}/a.jpg"),
        (("images.example:{port}",), "http://169.254.169.254/latest/meta-data/"),
    ],
)
def test_hosts_that_are_not_named(server: ObjectServer, hosts: tuple[str, ...], asked: str) -> None:
    named = [host.format(port=server.port) for host in hosts]
    with fetching(server, *named) as reader:
        status, error = refused(reader, asked.format(port=server.port))
    assert status in ("not_allowed", "fetch_failed")
    assert "allow_hosts" in error or "not an address" in error
    assert server.connections == 0


def test_names_are_compared_as_names(server: ObjectServer) -> None:
    with fetching(server) as reader:
        for name in ("IMAGES.Example", "images.example."):
            assert one(reader, f"HTTP://{name}:{server.port}/a.jpg").data == IMAGE


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "64:ff9b:1::7f00:1",
        "::127.0.0.1",
        "::a9fe:a9fe",
        "::ffff:0:127.0.0.1",
        "fec0::1",
        "5f00::1",
        "no address",
    ],
)
def test_names_that_lead_to_addresses_that_are_not_public(
    server: ObjectServer, address: str
) -> None:
    with fetching(server, networks=(), resolve=resolved(address)) as reader:
        status, error = refused(reader, url(server))
    assert (status, "not public" in error) == ("not_allowed", True)
    assert server.connections == 0


def test_public_addresses_are_left_of_those_of_a_name() -> None:
    found = resolved("10.0.0.1", "8.8.8.8", "169.254.169.254", "2606:4700::1111")
    hosts = AllowedHosts(("images.example",), (), found)
    assert hosts.addresses("images.example", 80) == ["8.8.8.8", "2606:4700::1111"]


def test_a_network_of_everything_does_not_mean_metadata() -> None:
    settings = FetchSettings.model_validate(
        {"allow_hosts": ["images.example"], "allow_networks": ["0.0.0.0/0", "::/0"]}
    )
    found = resolved("169.254.169.254", "169.254.1.1", "fe80::1", "168.63.129.16", "10.0.0.1")
    hosts = AllowedHosts(settings.allow_hosts, settings.allow_networks, found)
    assert hosts.addresses("images.example", 80) == ["10.0.0.1"]


def test_an_address_that_is_named_stands_for_itself(server: ObjectServer) -> None:
    with fetching(server, f"127.0.0.1:{server.port}", networks=()) as reader:
        assert one(reader, server.url("/a.jpg")).data == IMAGE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/latest/meta-data/", "/a.jpg", "file:///etc/passwd"]
)
def test_redirects_are_not_followed(server: ObjectServer, status: int, place: str) -> None:
    server.objects["/moved.jpg"] = answer(b"", status, f"Location: {place}")
    with fetching(server) as reader:
        found = refused(reader, url(server, "/moved.jpg"))
    assert (found[0], "a redirect, which is not followed" in found[1]) == ("fetch_failed", True)
    assert len(server.requests) == 1


def bomb(coding: str) -> Write:
    return answer(gzip.compress(bytes(10_000_000)), 200, f"Content-Encoding: {coding}")


@pytest.mark.parametrize(
    ("script", "status", "telling"),
    [
        (answer(bytes(100_001)), "too_large", "100001 bytes"),
        (answer(b"", length=10**15), "too_large", "1000000000000000 bytes"),
        (
            again_and_again(b"HTTP/1.1 200 OK\r\n\r\n", bytes(10_000)),
            "fetch_failed",
            "does not say how long",
        ),
        (again_and_again(CHUNKED, b"3e8\r\n" + bytes(1_000) + b"\r\n"), "too_large", "more than"),
        (bomb("gzip"), "fetch_failed", "content-encoding 'gzip'"),
        (bomb("br, gzip"), "fetch_failed", "content-encoding 'br, gzip'"),
        (answer(b"half", length=8), "fetch_failed", "in 2 attempts"),
        (raw(CHUNKED + b"5\r\nab"), "fetch_failed", "in 2 attempts"),
        (raw(CHUNKED + b"zzzz\r\n"), "fetch_failed", "in 2 attempts"),
        (raw(CHUNKED + b"5;" + b"e" * 100_000), "fetch_failed", "in 2 attempts"),
        (raw(CHUNKED + b"-5\r\nabcde"), "fetch_failed", "in 2 attempts"),
        (raw(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\nx"), "fetch_failed", "how long it is"),
        (raw(OK + b"Content-Length: -5\r\n\r\nabcde"), "fetch_failed", "how long it is"),
        (raw(OK + b"Content-Length: many\r\n\r\nabcde"), "fetch_failed", "how long it is"),
        (raw(OK + b"Content-Length: 5\r\n"), "fetch_failed", "in 2 attempts"),
        (raw(OK + b"A: b\r\n" * 200 + b"\r\n"), "fetch_failed", "does not answer"),
        (raw(OK + b"A: " + b"b" * 100_000), "fetch_failed", "does not answer"),
        (raw(b"HTTP/9.9 200 OK\r\n\r\n"), "fetch_failed", "does not answer"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "fetch_failed", "does not answer"),
        (answer(b"x", 403), "fetch_failed", "answers 403"),
        (answer(b"x", 401), "fetch_failed", "answers 401"),
        (answer(b"x", 204), "fetch_failed", "answers 204"),
        (answer(b"x", 206), "fetch_failed", "answers 206"),
    ],
    ids=range(23),
)
def test_answers_that_are_no_object(
    server: ObjectServer, script: Write, status: str, telling: str
) -> None:
    server.objects["/x.jpg"] = script
    with fetching(server) as reader:
        found = refused(reader, url(server, "/x.jpg"))
    assert (found[0], telling in found[1]) == (status, True)


@pytest.mark.parametrize(
    ("script", "telling"),
    [
        (silence, "in time"),
        (again_and_again(b"", b"H", 0.05), "does not answer"),
        (again_and_again(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05), ""),
        (again_and_again(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", 0.01), ""),
        (again_and_again(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x", 0.05), ""),
        (again_and_again(CHUNKED + b"400\r\n", b"x", 0.05), ""),
        (again_and_again(CHUNKED + b"0\r\n", b"T: x\r\n", 0.01), ""),
        (again_and_again(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), ""),
    ],
    ids=["silent", "status", "header", "headers", "body", "chunk", "trailers", "continue"],
)
def test_servers_that_dawdle_are_left_in_time(
    server: ObjectServer, script: Write, telling: str
) -> None:
    server.objects["/x.jpg"] = script
    with fetching(server, attempts=1, timeout_s=0.6) as reader:
        found = refused(reader, url(server, "/x.jpg"))
    assert (found[0], telling in found[1]) == ("fetch_failed", True)


@pytest.mark.parametrize(
    ("head", "part"),
    [(b"HTTP/1.1 200 OK\r\nX: ", b"x"), (CHUNKED + b"0\r\n", b"T: x\r\n")],
    ids=["header", "trailers"],
)
def test_an_answer_that_has_begun_and_does_not_end_is_told_from_none(
    server: ObjectServer, head: bytes, part: bytes
) -> None:
    """Its time is over when its beginning has come, however slow this machine is."""
    clock, dawdles = ManualClock(), again_and_again(b"", part, 0.01)

    def in_time(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(head + part)
        clock.advance(PATIENCE_S)
        dawdles(connection, ended)

    server.objects["/x.jpg"] = in_time
    with fetching(server, attempts=1, clock=clock) as reader:
        found = refused(reader, url(server, "/x.jpg"))
    assert (found[0], "takes longer" in found[1]) == ("fetch_failed", True)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408, 425])
def test_what_may_pass_is_tried_again(server: ObjectServer, status: int) -> None:
    server.objects["/x.jpg"] = [answer(b"", status), answer(IMAGE)]
    with fetching(server) as reader:
        assert one(reader, url(server, "/x.jpg")).data == IMAGE
    assert len(server.requests) == 2


def test_a_broken_answer_is_tried_again(server: ObjectServer) -> None:
    server.objects["/x.jpg"] = [answer(b"half", length=8), answer(IMAGE)]
    with fetching(server) as reader:
        assert one(reader, url(server, "/x.jpg")).data == IMAGE


def test_an_outage_is_waited_for() -> None:
    """And said: not one row of failures comes of it."""
    down = ObjectServer({"/a.jpg": answer(IMAGE)}, port=free_port())
    results: list[Any] = []
    with fetching(down, wait_s=None) as reader:
        thread = threading.Thread(target=lambda: results.append(one(reader, url(down))))
        thread.start()
        wait_until(lambda: reader.waiting_for is not None, "what the reader waits for")
        assert f"http://images.example:{down.port}: it cannot be reached" in str(reader.waiting_for)
        with down.listening():
            thread.join(PATIENCE_S)
        assert reader.waiting_for is None
    assert results[0].data == IMAGE


def test_an_outage_is_waited_for_so_long(server: ObjectServer) -> None:
    clock, away = ManualClock(), answer(b"", 503)

    def a_while_later(connection: socket.socket, ended: threading.Event) -> None:
        clock.advance(0.15)
        away(connection, ended)

    server.objects["/x.jpg"] = a_while_later
    with fetching(server, wait_s=0.2, attempts=1, clock=clock) as reader:
        found = refused(reader, url(server, "/x.jpg"))
        assert reader.waiting_for is None
    assert (found[0], "answers 503" in found[1]) == ("fetch_failed", True)
    assert len(server.requests) == 2


def test_a_name_that_is_not_known_is_an_outage(server: ObjectServer) -> None:
    with fetching(server, f"gone.example:{server.port}") as reader:
        found = refused(reader, f"http://gone.example:{server.port}/a.jpg")
    assert (found[0], "name is not known" in found[1]) == ("fetch_failed", True)


@pytest.mark.parametrize(
    ("value", "telling"),
    [
        ("file:///etc/passwd", "got file://…"),
        ("gopher://x/", "got gopher://…"),
        ("gs3://bucket/key", "got gs3://…"),
        ("ftp://user:SECRET@x/", "got ftp://…"),
        ("/etc/passwd", "expected s3://"),
        (b"\xff\xd8\xff\xe0image", "bytes that are no text"),
        ("http://", "not an address"),
        ("http://[::1", "not an address"),
        ("http://images.example:99999999/", "not an address"),
        ("http://images.example:0/", "allow_hosts"),
        ("http://images.example:{port}/a\r\nX: y", "answers 404"),
        ("http://images.example:{port}/a b\0c", "answers 404"),
        ("http://images.example:{port}/" + "é" * 3, "answers 404"),
        ("http://" + "a" * 9_000, "9007 characters"),
        ("http://a@b@c/", "allow_hosts"),
        ("s3://", "not an object's address"),
        ("s3://bucket", "not an object's address"),
        ("GS://bucket", "not an object's address, gs://bucket/key"),
        ("az://container/", "not an object's address, az://container/key"),
    ],
    ids=range(19),
)
def test_references_that_are_none(server: ObjectServer, value: bytes | str, telling: str) -> None:
    text = value.replace("{port}", str(server.port)) if isinstance(value, str) else value
    with fetching(server) as reader:
        status, error = refused(reader, text)
    assert telling in error
    assert "SECRET" not in error
    assert status in ("bad_message", "fetch_failed", "not_allowed", "missing")
    # Nothing of a reference becomes a header.
    assert not any("\r\nX: y" in head for head in server.requests)


def test_a_message_of_many_references_is_bounded(server: ObjectServer) -> None:
    """A few bytes each, they could bring gigabytes."""
    server.objects["/large.jpg"] = answer(bytes(50_000))
    fetch = {"allow_hosts": [f"127.0.0.1:{server.port}"], "timeout_s": PATIENCE_S}
    limits = LimitSettings(max_message_bytes=120_000)
    reader = chain({"json_field": {"each": "$"}}, {"fetch": fetch}, limits=limits)
    found = read(reader, json.dumps([server.url("/large.jpg")] * 6))
    reader.close()
    assert [image.status.value for image in found] == ["ok"] * 3 + ["too_large"] * 3
    assert "limits.max_message_bytes = 120000 together" in str(found[3].error)
    assert len(server.requests) == 3


def test_many_threads_fetch_at_once(server: ObjectServer) -> None:
    found: list[Any] = []
    with fetching(server) as reader:
        threads = [
            threading.Thread(target=lambda: found.append(one(reader, url(server)).data))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert found == [IMAGE] * 16


def test_tls_is_for_the_name_and_not_for_the_address(tmp_path: Path) -> None:
    """The name is told and checked, though the address is what is connected to."""
    server = ObjectServer({"/a.jpg": answer(IMAGE)})
    ours = self_signed(tmp_path, "ours", "images.example")
    theirs = self_signed(tmp_path, "theirs", "evil.example")
    told: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours)
    context.sni_callback = lambda _socket, name, _context: told.append(name)
    with server.listening(context):
        reference = server.url("/a.jpg", "images.example", "https")
        with fetching(server, ca_file=ours) as reader:
            assert one(reader, reference).data == IMAGE
            assert one(reader, reference).data == IMAGE
        assert (told, server.connections) == (["images.example"], 1)
        for trusted in (None, theirs):
            with fetching(server, ca_file=trusted) as reader:
                status, error = refused(reader, reference)
            assert (status, "its certificate is not trusted" in error) == ("fetch_failed", True)
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.load_cert_chain(theirs)
    with server.listening(other), fetching(server, ca_file=theirs) as reader:
        assert "not trusted" in refused(reader, reference)[1]


def test_a_token_goes_to_its_host_alone_and_over_tls_alone(tmp_path: Path) -> None:
    server = ObjectServer({"/a.jpg": [answer(IMAGE), *[answer(b"", 401)] * 2, answer(IMAGE)]})
    ours, token = self_signed(tmp_path, "ours", "images.example"), tmp_path / "token"
    token.write_text("FIRST\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours)
    with server.listening(context):
        place = f"images.example:{server.port}"
        hosts, files = (place, f"127.0.0.1:{server.port}"), {place.upper(): token}
        reference = f"https://user:PASS@{place}/a.jpg"
        with fetching(server, *hosts, ca_file=ours, bearer_token_files=files) as reader:
            assert one(reader, reference).data == IMAGE
            status, error = refused(reader, reference)
            assert (status, "check its file of bearer_token_files" in error) == (
                "fetch_failed",
                True,
            )
            token.write_text("SECOND")
            assert one(reader, reference).data == IMAGE
            status, error = refused(reader, f"http://{place}/a.jpg")
            assert (status, "over https alone" in error) == ("not_allowed", True)
            token.unlink()
            assert "the secret cannot be read" in refused(reader, reference)[1]
    sent = [line for head in server.requests for line in head.split("\r\n") if "Auth" in line]
    assert (sent[0], sent[-1]) == ("Authorization: Bearer FIRST", "Authorization: Bearer SECOND")
    with server.listening(), fetching(server, *hosts, bearer_token_files=files) as reader:
        token.write_text("THIRD")
        assert one(reader, server.url("/a.jpg")).data == IMAGE
    assert "THIRD" not in "".join(server.requests)


def test_a_token_of_a_host_that_is_not_allowed_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    files = {"b.example": tmp_path / "token"}
    with pytest.raises(ValueError, match=r"'b\.example' is not in allow_hosts"):
        chain({"fetch": {"allow_hosts": ["a.example"], "bearer_token_files": files}})


def test_a_handshake_that_dawdles_is_left_in_time() -> None:
    server = ObjectServer({"/a.jpg": answer(IMAGE)})
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    with listener, fetching(server, attempts=1, timeout_s=0.6) as reader:
        found = refused(reader, server.url("/a.jpg", "images.example", "https"))
    assert found[0] == "fetch_failed"


def test_certificates_that_are_none_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="certificates cannot be read"):
        chain({"fetch": {"allow_hosts": ["a.example"], "ca_file": tmp_path / "none.pem"}})
