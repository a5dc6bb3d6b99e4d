"""Any bytes at all: at least one row comes of them, and no exception."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_stream.messages.proto_compiler import compile_proto
from nap_stream.messages.reader import MessageReader
from nap_stream.records import Status
from tests.messages.avro_data import FRAME, frame
from tests.messages.chains import LIMITS, chain, read
from tests.messages.test_protobuf import PROTO, field

SEEDS = (
    json.dumps({"frames": [{"data": "aW1hZ2U=", "at": 1, "key": "k"}]}).encode(),
    json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": {
        "bucket": {"name": "b"}, "object": {"key": "a+b", "size": 1}}}]}).encode(),
    frame(b"image"),
    field(1, b"key") + field(2, field(3, b"image")) + field(9, field(3, b"part")),
    b"data:image/png;base64,aW1hZ2U=",
)  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[MessageReader]:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "f.avsc").write_text(json.dumps(FRAME))
    (folder / "f.desc").write_bytes(compile_proto(PROTO, ()).descriptors)
    avro = {"schema_file": folder / "f.avsc", "path": "frame.data", "key": "camera"}
    proto = {"descriptor_file": folder / "f.desc", "message": "camera.Frame"}
    json_field = {"each": "frames", "path": "data", "key": "key", "event_time": "at"}
    fetch = {"fetch": {"allow_buckets": ["nothing-of-this"]}}
    return [
        chain("base64"),
        chain("data_uri"),
        chain({"json_field": json_field}, "base64"),
        chain({"json_field": {"path": "$"}}, "s3_event", fetch),
        chain("s3_event", fetch),
        chain({"avro_field": {**avro, "event_time": "at"}}),
        chain({"protobuf_field": {**proto, "path": "body.data", "key": "camera"}}),
        chain({"protobuf_field": {**proto, "each": "parts", "path": "data"}}),
        chain(fetch),
    ]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good message with some of its bytes replaced, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(st.binary(max_size=8) | st.just(bytes(data[start:end]) * 2))
    return bytes(data)


@settings(max_examples=75)
@given(value=st.binary(max_size=200) | mutated())
def test_any_bytes_give_rows(readers: list[MessageReader], value: bytes) -> None:
    for reader in readers:
        found = read(reader, value)
        assert 1 <= len(found) <= LIMITS.max_images_per_message
        for image in found:
            assert (image.data is None) == (image.status is not Status.OK)
            assert (image.error is None) == (image.status is Status.OK)
            assert image.error is None or image.error.isprintable()
