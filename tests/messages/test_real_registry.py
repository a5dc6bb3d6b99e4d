"""Schemas of a real registry: Apicurio's, by its interface like Confluent's."""

import json

import pytest

from tests.messages.avro_data import FRAME, frame
from tests.messages.chains import chain, one, refused
from tests.support.schema_registry import Registry, framed

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_avro(schema_registry: Registry) -> None:
    number = schema_registry.register("frames-value", json.dumps(FRAME))
    registry = {"url": schema_registry.url}
    reader = chain({"confluent_avro": {"path": "frame.data"}}, registry=registry, wait_s=0)
    assert one(reader, framed(number, frame(b"image"))).data == b"image"
    assert "schema id 4711 is not in" in refused(reader, framed(4711, b"x"))[1]


def test_avro_that_refers_to_another_subject(schema_registry: Registry) -> None:
    body = {"type": "record", "name": "camera.Part", "fields": [{"name": "data", "type": "bytes"}]}
    top = {"type": "record", "name": "Top", "fields": [{"name": "frame", "type": "camera.Part"}]}
    schema_registry.register("part", json.dumps(body))
    reference = {"name": "camera.Part", "subject": "part", "version": 1}
    number = schema_registry.register("top", json.dumps(top), references=[reference])
    registry = {"url": schema_registry.url}
    reader = chain({"confluent_avro": {"path": "frame.data"}}, registry=registry, wait_s=0)
    assert one(reader, framed(number, b"\x06abc")).data == b"abc"


def test_protobuf_that_imports(schema_registry: Registry) -> None:
    body = 'syntax = "proto3"; package camera; message Body { bytes data = 1; }'
    top = (
        'syntax = "proto3"; import "google/protobuf/timestamp.proto"; import "body.proto"; '
        "message Status { string text = 1; } "
        "message Frame { camera.Body body = 1; google.protobuf.Timestamp at = 2; }"
    )
    schema_registry.register("body", body, "PROTOBUF")
    reference = {"name": "body.proto", "subject": "body", "version": 1}
    number = schema_registry.register("frame", top, "PROTOBUF", [reference])
    registry = {"url": schema_registry.url}
    link = {"confluent_protobuf": {"path": "body.data", "message": "Frame"}}
    reader = chain(link, registry=registry, wait_s=0)
    assert one(reader, framed(number, b"\x0a\x05\x0a\x03abc", b"\x02\x02")).data == b"abc"
    status, error = refused(reader, framed(number, b"", b"\0"))
    assert (status, "the message is a Status, not a Frame" in error) == ("bad_message", True)
