"""What docs/messages.md shows is run as it stands there."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream.messages.proto_compiler import compile_proto
from nap_stream.messages.reader import open_reader
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import LimitSettings, Settings
from tests.messages.avro_data import FRAME, frame
from tests.messages.chains import datas, one, read
from tests.messages.test_protobuf import PROTO, field
from tests.support.object_server import ObjectServer, answer
from tests.support.schema_registry import basic, framed
from tests.test_readme import snippets

PAGE = "docs/messages.md"
IMAGE = b"image"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "frame.avsc").write_text(json.dumps(FRAME))
    (tmp_path / "frame.desc").write_bytes(compile_proto(PROTO, ()).descriptors)
    (tmp_path / "registry-password").write_text("secret\n")
    (tmp_path / "image-token").write_text("secret\n")
    return tmp_path


def settings_of(folder: Path, example: str, **replaced: str) -> Settings:
    """The settings of an example, with parts of its text replaced."""
    for old, new in replaced.items():
        example = example.replace({"registry": "https://registry:8081"}.get(old, old), new)
    rest = {"kafka": {"topic": "t"}, "model": {"factory": "a:b"}, "log": {"root": "log"}}
    path = folder / "monitor.yaml"
    path.write_text(yaml.safe_dump(rest | {"calibration": str(folder)}) + example)
    return load_settings(path, {})


def reader_of(folder: Path, example: str, **replaced: str) -> Any:
    reader = open_reader(settings_of(folder, example, **replaced).messages, LimitSettings())
    assert reader is not None
    return reader


def example_with(text: str, number: int = 0) -> str:
    return [example for example in snippets(PAGE, "yaml") if text in example][number]


def test_every_example_can_be_loaded(folder: Path) -> None:
    examples = snippets(PAGE, "yaml")
    assert len(examples) == 9
    for example in examples:
        assert settings_of(folder, example).messages.read


def test_json(folder: Path) -> None:
    first, second = snippets(PAGE, "json")[:2]
    found = one(reader_of(folder, example_with("base64")), first)
    assert (found.data, found.key, found.event_time_ms) == (IMAGE, b"north", 1_769_860_800_000)
    many = read(reader_of(folder, example_with("base64", 1)), second)
    assert datas(many) == [IMAGE, IMAGE]
    assert [image.key for image in many] == [b"a", b"b"]


def test_registry(folder: Path) -> None:
    avro = json.dumps({"schema": json.dumps(FRAME)}).encode()
    proto = json.dumps({"schema": PROTO, "schemaType": "PROTOBUF"}).encode()
    server = ObjectServer({"/schemas/ids/1": answer(avro), "/schemas/ids/2": answer(proto)})
    with server.listening():
        reader = reader_of(folder, example_with("confluent_avro"), registry=server.url(""))
        found = one(reader, framed(1, frame(IMAGE)))
        assert (found.data, found.key, found.event_time_ms) == (IMAGE, b"north", 1_500)
        assert basic("nap-stream", "secret") in server.requests[0]
        reader = reader_of(folder, example_with("confluent_protobuf"), registry=server.url(""))
        assert one(reader, framed(2, field(2, field(3, IMAGE)), b"\0")).data == IMAGE


def test_files(folder: Path) -> None:
    assert one(reader_of(folder, example_with("avro_field")), frame(IMAGE)).data == IMAGE
    reader = reader_of(folder, example_with("protobuf_field"))
    assert one(reader, field(2, field(3, IMAGE))).data == IMAGE


def test_references(folder: Path) -> None:
    server = ObjectServer({"/2026/1.jpg": answer(IMAGE)})
    with server.listening():
        here = {"images.example": f"images.example, 127.0.0.1:{server.port}"}
        reader = reader_of(folder, example_with("allow_networks"), **here)
        message = snippets(PAGE, "json")[2]
        asked = message.replace("https://images.example", server.url(""))
        assert one(reader, asked).data == IMAGE
        reader.close()


def test_notifications(folder: Path) -> None:
    reader = reader_of(folder, example_with("s3_event").replace("camera-images", "other"))
    found = one(reader, snippets(PAGE, "json")[3])
    assert (found.status, found.source_uri) == (
        "not_allowed",
        "s3://camera-images/cam 1/2.jpg",
    )
