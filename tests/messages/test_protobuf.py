"""Protobuf messages, of a file of descriptors and of registered text, the hostile ones too."""

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from nap_stream.errors import ConfigError
from nap_stream.messages.pieces import Unreadable
from nap_stream.messages.proto_compiler import compile_proto
from nap_stream.messages.protobuf import ProtobufMessage
from nap_stream.messages.reader import MessageReader
from nap_stream.messages.registry import message_indexes
from nap_stream.settings.messages import FieldPaths
from tests.messages.chains import chain, datas, one, read, refused, written

PROTO = """
syntax = "proto3";
package camera;
import "google/protobuf/timestamp.proto";
message Frame {
  message Body { bytes data = 3; string text = 4; repeated float labels = 5; Body inner = 6; }
  string camera = 1;
  Body body = 2;
  int64 at_ms = 3;
  google.protobuf.Timestamp taken = 7;
  repeated Body parts = 9;
  repeated bytes raw = 10;
  map<string, bytes> named = 11;
  Kind kind = 12;
  oneof either { bytes jpeg = 13; string address = 14; }
}
enum Kind { A = 0; }
message Other { bytes data = 1; }
"""


@pytest.fixture(scope="module")
def descriptors() -> bytes:
    return compile_proto(PROTO, ()).descriptors


@pytest.fixture(scope="module")
def frame_class(descriptors: bytes) -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptors).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("camera.Frame"))


def reader_of(folder: Path, descriptors: bytes, *more: Any, **paths: str) -> MessageReader:
    path = written(folder, "frame.desc", descriptors)
    link = {"descriptor_file": path, "message": "camera.Frame", **paths}
    return chain({"protobuf_field": link}, *more)


def test_a_field_its_key_and_its_time(tmp_path: Path, descriptors: bytes, frame_class: Any) -> None:
    reader = reader_of(
        tmp_path, descriptors, path="body.data", key="camera", event_time="taken.seconds",
        event_time_unit="s",
    )  # fmt: skip
    value = frame_class(camera="north", body={"data": b"image"}, taken={"seconds": 3})
    found = one(reader, value.SerializeToString())
    assert (found.data, found.key, found.event_time_ms) == (b"image", b"north", 3_000)


def test_text_and_deeper_fields(tmp_path: Path, descriptors: bytes, frame_class: Any) -> None:
    value = frame_class(body={"inner": {"inner": {"text": "aW1hZ2U="}}}).SerializeToString()
    reader = reader_of(tmp_path, descriptors, "base64", path="body.inner.inner.text")
    assert one(reader, value).data == b"image"


def test_what_is_not_there_is_said(tmp_path: Path, descriptors: bytes, frame_class: Any) -> None:
    reader = reader_of(tmp_path, descriptors, path="body.data")
    assert "no field body" in refused(reader, frame_class(camera="x").SerializeToString())[1]
    empty = frame_class(body={"text": "x"}).SerializeToString()
    assert "no field body.data" in refused(reader, empty)[1]


def test_repeated_fields(tmp_path: Path, descriptors: bytes, frame_class: Any) -> None:
    value = frame_class(parts=[{"data": b"a"}, {"text": "x"}, {"data": b"c"}], raw=[b"x", b"y"])
    reader = reader_of(tmp_path, descriptors, each="parts", path="data")
    assert datas(read(reader, value.SerializeToString())) == [b"a", None, b"c"]
    raw = reader_of(tmp_path, descriptors, each="raw")
    assert datas(read(raw, value.SerializeToString())) == [b"x", b"y"]
    second = reader_of(tmp_path, descriptors, path="raw[1]")
    assert one(second, value.SerializeToString()).data == b"y"
    many = frame_class(raw=[b""] * 21).SerializeToString()
    assert refused(raw, many)[0] == "too_large"
    bomb = refused(reader, b"\x4a\0" * 500_000)
    assert (bomb[0], "more than 10000 times" in bomb[1]) == ("too_large", True)


def test_one_of_two(tmp_path: Path, descriptors: bytes, frame_class: Any) -> None:
    reader = reader_of(tmp_path, descriptors, path="jpeg")
    assert one(reader, frame_class(jpeg=b"image").SerializeToString()).data == b"image"
    assert refused(reader, frame_class(address="x").SerializeToString())[0] == "bad_message"


@pytest.mark.parametrize(
    ("paths", "telling"),
    [
        ({"path": "body.jpg"}, "no field body.jpg; fields are data, text, labels, inner"),
        ({"path": "nothing"}, "no field nothing; fields are camera"),
        ({"path": "body"}, "body is a message: name one of its fields"),
        ({"path": "raw"}, "raw is repeated: name it in each"),
        ({"path": "parts.data"}, "parts is repeated: name it in each"),
        ({"each": "body", "path": "data"}, "body is not repeated"),
        ({"path": "camera.x"}, "camera is no message"),
        ({"path": "kind"}, "an enum or a group"),
        ({"path": "body.labels[0]"}, "repeats numbers"),
        ({"path": ".".join(["body", *["inner"] * 60, "data"])}, "more than 50 steps"),
    ],
)
def test_paths_that_lead_nowhere(
    tmp_path: Path, descriptors: bytes, paths: dict[str, str], telling: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        reader_of(tmp_path, descriptors, **paths)
    assert telling in str(raised.value)


def test_files_that_are_none(tmp_path: Path, descriptors: bytes) -> None:
    for content in (b"\xff" * 100, b"syntax = ", b"\0" * 10):
        with pytest.raises(ConfigError):
            reader_of(tmp_path, content, path="body.data")
    with pytest.raises(ValueError, match=r"no message 'x.Y'; messages are camera.Frame"):
        ProtobufMessage(descriptors, "x.Y", FieldPaths(path="a"))


def field(number: int, data: bytes) -> bytes:
    size, head = len(data), bytes([number << 3 | 2])
    varint = b""
    while size >= 0x80:
        varint += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + varint + bytes([size]) + data


def inside(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = field(6, data)
    return field(2, data)


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xd8\xff\xe0" + b"x" * 50,
        b"\x12",
        b"\x12\xff\xff\xff\xff\x0fabc",  # 4 GiB are said to follow
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01abc",
        b"\x80" * 100,
        b"\x0b" * 10_000,  # groups within groups
        b"\x13" + b"\x13" * 5_000 + b"\x14" * 5_001,
        b"\x07" * 100,  # no wire type
        b"\x00" * 100,  # field number 0
        b"{}",
    ],
    ids=lambda value: value[:8].hex(),
)
def test_hostile_messages(tmp_path: Path, descriptors: bytes, value: bytes) -> None:
    started = time.process_time()
    status, error = refused(reader_of(tmp_path, descriptors, path="body.data"), value)
    assert (status, error.startswith("protobuf_field: ")) == ("bad_message", True)
    assert time.process_time() - started < 10


def test_messages_that_are_nested_deep(tmp_path: Path, descriptors: bytes) -> None:
    reader = reader_of(tmp_path, descriptors, path="body.data")
    for levels in (10, 200, 3_000):
        assert "no field body.data" in refused(reader, inside(levels))[1]


def test_text_that_is_no_text(tmp_path: Path, descriptors: bytes) -> None:
    value = field(1, b"\xff\xfe") + field(2, field(3, b"image"))
    found = one(reader_of(tmp_path, descriptors, path="body.data", key="camera"), value)
    assert (found.data, found.key) == (b"image", b"\xff\xfe")


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"\0x", ((0,), 1)), (b"\2\2x", ((1,), 2)), (b"\4\0\4x", ((0, 2), 3)), (b"\2\0", ((0,), 2))],
)
def test_places_of_messages(data: bytes, expected: tuple[tuple[int, ...], int]) -> None:
    assert message_indexes(data) == expected


@pytest.mark.parametrize("data", [b"", b"\2", b"\x80" * 20, b"\1", b"\xff\xff\x7f", b"\x7e" * 5])
def test_places_that_are_none(data: bytes) -> None:
    with pytest.raises(Unreadable):
        message_indexes(data)


@pytest.mark.parametrize(
    ("text", "references", "telling"),
    [
        ("message {", (), "protoc says"),
        ('syntax = "proto3"; import "gone.proto";', (), "gone.proto"),
        ('syntax = "proto3"; import "/etc/passwd";', (), "protoc says"),
        ('syntax = "proto3";', (("../outside.proto", ""),), "a name that is refused"),
        ('syntax = "proto3";', (("/tmp/outside.proto", ""),), "a name that is refused"),
        ('syntax = "proto3";', (("", ""),), "a name that is refused"),
        ('syntax = "proto3";', (("a", ""), ("a/b", "")), "imports files that cannot be"),
        ('syntax = "proto3"; ' + "message M { " * 5_000, (), "protoc says"),
        ("x" * 2_000_000, (), "more than 1048576 characters"),
        ("\0" * 100, (), "protoc says"),
    ],
    ids=range(10),
)
def test_text_that_is_refused(
    text: str, references: tuple[tuple[str, str], ...], telling: str
) -> None:
    with pytest.raises(ValueError, match=telling):
        compile_proto(text, references)


def test_imports_of_other_schemas() -> None:
    compiled = compile_proto(
        'syntax = "proto3"; package a; import "deep/b.proto"; message Top { b.Body body = 1; }',
        (("deep/b.proto", 'syntax = "proto3"; package b; message Body { bytes data = 1; }'),),
    )
    assert compiled.name_at((0,)) == "a.Top"
    message = ProtobufMessage(compiled.descriptors, "a.Top", FieldPaths(path="body.data"))
    assert message.read(field(1, field(1, b"x")), "link") == {"body": {"data": b"x"}}


def test_places_in_compiled_text() -> None:
    compiled = compile_proto(PROTO, ())
    assert compiled.name_at((0,)) == "camera.Frame"
    assert compiled.name_at((0, 0)) == "camera.Frame.Body"
    assert compiled.name_at((1,)) == "camera.Other"
    for indexes in ((2,), (-1,), (0, 9), (0, 0, 0)):
        with pytest.raises(ValueError, match="no message at"):
            compiled.name_at(indexes)


def test_a_number_in_another_wire_type_is_not_there(tmp_path: Path, descriptors: bytes) -> None:
    value = b"\x15" + struct.pack("<f", 1.0)  # field 2 as a fixed32
    assert "no field body" in refused(reader_of(tmp_path, descriptors, path="body.data"), value)[1]
