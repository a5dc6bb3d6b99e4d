"""Schemas of a stand-in for a registry, a server that answers as registries do, or does not.

`test_real_registry` has a real one.
"""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nap_stream.clock import Clock, ManualClock
from nap_stream.messages.reader import MessageReader
from tests.messages.avro_data import FRAME, frame
from tests.messages.chains import chain, one, refused
from tests.support.object_server import ObjectServer, Write, again_and_again, answer, raw, silence
from tests.support.schema_registry import basic, framed
from tests.support.waiting import PATIENCE_S, wait_until

AVRO = {"path": "frame.data"}
PROTO = 'syntax = "proto3"; message Other { string a = 1; } message Frame { bytes image = 2; }'


def registered(schema: Any, **more: Any) -> Write:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return answer(json.dumps({"schema": text, **more}).encode())


@pytest.fixture
def stand_in() -> Iterator[ObjectServer]:
    server = ObjectServer({"/schemas/ids/7": registered(FRAME)})
    with server.listening():
        yield server


def reader_of(
    server: ObjectServer,
    link: str = "confluent_avro",
    wait_s: float | None = 0,
    clock: Clock | None = None,
    **changes: Any,
) -> MessageReader:
    paths = AVRO if link == "confluent_avro" else {"path": "image"}
    registry = {"url": server.url(""), "timeout_s": PATIENCE_S, **changes}
    return chain({link: paths}, registry=registry, wait_s=wait_s, clock=clock)


def test_a_schema_is_asked_for_once(stand_in: ObjectServer) -> None:
    reader = reader_of(stand_in)
    for _ in range(5):
        assert one(reader, framed(7, frame(b"image"))).data == b"image"
    assert len(stand_in.requests) == 1


def test_threads_ask_for_a_schema_once(stand_in: ObjectServer) -> None:
    reader, found = reader_of(stand_in), list[Any]()
    threads = [
        threading.Thread(target=lambda: found.append(one(reader, framed(7, frame(b"i"))).data))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (found, len(stand_in.requests)) == ([b"i"] * 8, 1)


def test_an_id_that_is_not_known_is_asked_for_once_in_a_while(stand_in: ObjectServer) -> None:
    reader = reader_of(stand_in, wait_s=None)
    for _ in range(3):
        status, error = refused(reader, framed(99, b"x"))
        told = "confluent_avro: schema id 99 is not in the schema registry"
        assert (status, told in error) == ("bad_message", True)
    assert len(stand_in.requests) == 1


def test_who_asks_is_told_as_the_settings_say(stand_in: ObjectServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("TOKEN\n")
    one(reader_of(stand_in, username="u", password="p:w"), framed(7, frame(b"")))
    one(reader_of(stand_in, bearer_token_file=token), framed(7, frame(b"")))
    assert f"authorization: {basic('u', 'p:w')}\r\n" in stand_in.requests[0]
    assert "Authorization: Bearer TOKEN\r\n" in stand_in.requests[1]


@pytest.mark.parametrize(
    ("script", "telling"),
    [
        (answer(b"", 500), "answers 500"),
        (answer(b"", 503), "answers 503"),
        (answer(b"", 401), "check messages.registry's credentials"),
        (answer(b"", 403), "check messages.registry's credentials"),
        (answer(b"", 302, "Location: http://169.254.169.254/"), "answers 302"),
        (answer(b"<html>a login</html>"), "answers no schema"),
        (answer(b"[" * 50_000), "answers no schema"),
        (answer(b"[]"), "answers no schema"),
        (answer(b'{"schema": 3}'), "answers no schema"),
        (answer(b"half", length=8), "breaks off"),
        (raw(b"no HTTP"), "does not answer"),
        (silence, "does not answer"),
    ],
    ids=range(12),
)
def test_a_registry_that_is_away(stand_in: ObjectServer, script: Write, telling: str) -> None:
    stand_in.objects["/schemas/ids/8"] = script
    reader = reader_of(stand_in, timeout_s=0.5 if script is silence else PATIENCE_S)
    status, error = refused(reader, framed(8, frame(b"image")))
    assert (status, telling in error) == ("fetch_failed", True)
    # One that never answers is left, though it has not read the request yet.
    wait_until(lambda: bool(stand_in.requests), "the request")
    assert len(stand_in.requests) == 1


def test_an_answer_that_does_not_end_is_left_in_time(stand_in: ObjectServer) -> None:
    """Its time is over when its beginning has come, however slow this machine is."""
    clock, dawdles = ManualClock(), again_and_again(b"", b"x", 0.02)

    def in_time(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        clock.advance(PATIENCE_S)
        dawdles(connection, ended)

    stand_in.objects["/schemas/ids/8"] = in_time
    status, error = refused(reader_of(stand_in, clock=clock), framed(8, frame(b"image")))
    assert (status, "in time" in error) == ("fetch_failed", True)


def test_an_outage_is_waited_for(stand_in: ObjectServer) -> None:
    stand_in.objects["/schemas/ids/8"] = [answer(b"", 503), registered(FRAME)]
    reader = reader_of(stand_in, wait_s=None)
    assert one(reader, framed(8, frame(b"image"))).data == b"image"


LINKED = {"type": "record", "name": "N", "fields": [{"name": "n", "type": ["null", "N"]}]}


@pytest.mark.parametrize(
    ("script", "telling"),
    [
        (registered(LINKED), "within itself"),
        (registered({"type": "array", "items": "null"}), "takes no bytes"),
        (registered("not json"), "cannot be used"),
        (registered('{"type":' * 20_000), "nested too deep"),
        (registered(PROTO, schemaType="PROTOBUF"), "it is one of PROTOBUF"),
        (registered("{}", schemaType="JSON"), "it is one of JSON"),
        (registered({"type": "record", "name": "R", "fields": []}), "no field frame"),
        (answer(b'{"schema": "' + b"x" * 3_000_000 + b'"}'), "over 2097152 bytes"),
        (registered("x" * 1_500_000), "more than 1048576"),
        (registered(FRAME, references=[{"name": "a", "subject": "gone", "version": 1}]),
         "a schema that it refers to"),
        (registered(FRAME, references=[{"name": "a", "subject": "loop", "version": 1}]),
         "refers to itself"),
        (registered(FRAME, references=[{"name": "a", "subject": "../..", "version": "/x"}]),
         "a schema that it refers to"),
        (registered(FRAME, references="x"), ""),
    ],
    ids=range(13),
)  # fmt: skip
def test_hostile_schemas(stand_in: ObjectServer, script: Write, telling: str) -> None:
    stand_in.objects["/schemas/ids/8"] = script
    loop = [{"name": "a", "subject": "loop", "version": 1}]
    stand_in.objects["/subjects/loop/versions/1"] = registered(FRAME, references=loop)
    reader = reader_of(stand_in, wait_s=None)
    found = one(reader, framed(8, frame(b"image")))
    assert found.status == ("bad_message" if telling else "ok")
    assert telling in (found.error or "")


def test_named_types_of_other_subjects(stand_in: ObjectServer) -> None:
    body = {"type": "record", "name": "camera.Body", "fields": [{"name": "data", "type": "bytes"}]}
    top = {"type": "record", "name": "Top", "fields": [{"name": "frame", "type": "camera.Body"}]}
    reference = {"name": "camera.Body", "subject": "camera/body", "version": 3}
    stand_in.objects["/schemas/ids/9"] = registered(top, references=[reference])
    stand_in.objects["/subjects/camera%2Fbody/versions/3"] = registered(body)
    assert one(reader_of(stand_in), framed(9, b"\x06abc")).data == b"abc"


def test_protobuf_by_its_place_in_the_schema(stand_in: ObjectServer) -> None:
    stand_in.objects["/schemas/ids/5"] = registered(PROTO, schemaType="PROTOBUF")
    reader = reader_of(stand_in, "confluent_protobuf")
    assert one(reader, framed(5, b"\x12\x03abc", b"\x02\x02")).data == b"abc"
    assert "no field image; fields are a" in refused(reader, framed(5, b"\x12\x03abc", b"\0"))[1]
    assert "no message at [7]" in refused(reader, framed(5, b"", b"\x02\x0e"))[1]
    assert "cut off" in refused(reader, framed(5, b""))[1]
    assert "it is one of AVRO" in refused(reader, framed(7, b"", b"\0"))[1]


@pytest.mark.parametrize(
    ("value", "telling"),
    [
        (b"\xff\xd8\xff\xe0", "too short"),
        (b"\xff\xd8\xff\xe0image", "no schema registry's framing, which begins with 00"),
        (b"\0\0\0\0\7", "not a datum of the schema"),
        (b"\0\0\0", "too short"),
        (framed(7, framed(7, frame(b"x"))), "not a datum|come after"),
    ],
    ids=range(5),
)
def test_messages_without_framing(stand_in: ObjectServer, value: bytes, telling: str) -> None:
    status, error = refused(reader_of(stand_in), value)
    assert status == "bad_message"
    assert any(part in error for part in telling.split("|"))
