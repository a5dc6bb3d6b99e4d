"""Avro data, of schemas and of data that are made to harm too."""

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fastavro import writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

from nap_stream.errors import ConfigError
from nap_stream.messages import avro
from nap_stream.messages.avro import avro_schema, schema_tree
from nap_stream.messages.reader import MessageReader
from nap_stream.settings.messages import FieldPaths
from tests.messages.avro_data import FRAME, datum, frame
from tests.messages.chains import chain, datas, one, read, refused, written

PATHS = {"path": "frame.data", "key": "camera", "event_time": "at"}


def reader_of(folder: Path, schema: Any, *more: Any, **paths: str) -> MessageReader:
    path = written(folder, "schema.avsc", json.dumps(schema).encode())
    return chain({"avro_field": {"schema_file": path, **paths}}, *more)


def test_a_field_its_key_and_its_time(tmp_path: Path) -> None:
    found = one(reader_of(tmp_path, FRAME, **PATHS), frame(b"image"))
    assert (found.data, found.key, found.event_time_ms) == (b"image", b"north", 1_500)


def test_text_goes_on_to_base64_and_to_nothing_else(tmp_path: Path) -> None:
    assert one(reader_of(tmp_path, FRAME, "base64", **PATHS), frame("aW1hZ2U=")).data == b"image"
    schema = {"type": "record", "name": "R", "fields": [{"name": "data", "type": "string"}]}
    reader = reader_of(tmp_path, schema, path="data")
    status, error = refused(reader, datum(schema, {"data": "aW1hZ2U="}))
    assert status == "bad_message"
    assert "base64 or fetch may be missing" in error


def test_branches_that_are_null(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, FRAME, **PATHS)
    found = one(reader, frame(None, camera=None))
    assert (found.status, found.has_key, found.key) == ("tombstone", False, None)
    assert "no field frame.data: frame is null" in refused(reader, frame(b"", frame=None))[1]


def test_an_array_of_records(tmp_path: Path) -> None:
    many = {"type": "record", "name": "Many", "fields": [
        {"name": "frames", "type": {"type": "array", "items": FRAME}}]}  # fmt: skip
    one_frame = {"labels": [], "camera": "c", "at": 1, "price": b"", "frame": None}
    body = {"frame": {"data": b"x", "size": {}}}
    value = datum(many, {"frames": [one_frame | body, one_frame, one_frame | body]})
    found = read(reader_of(tmp_path, many, each="frames", **PATHS), value)
    assert datas(found) == [b"x", None, b"x"]
    few = reader_of(tmp_path, many, each="frames", path="frame.data")
    assert refused(few, datum(many, {"frames": [one_frame] * 21}))[0] == "too_large"
    assert refused(few, datum(many, {"frames": []}))[0] == "empty"


def test_the_datum_itself(tmp_path: Path) -> None:
    assert one(reader_of(tmp_path, "bytes", path="$"), datum("bytes", b"image")).data == b"image"
    fixed = {"type": "fixed", "name": "F", "size": 3}
    assert one(reader_of(tmp_path, fixed, path="$"), b"abc").data == b"abc"


def test_a_map(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, {"type": "map", "values": "bytes"}, path="front")
    schema = {"type": "map", "values": "bytes"}
    assert one(reader, datum(schema, {"rear": b"r", "front": b"f"})).data == b"f"
    assert "no field front; fields are rear" in refused(reader, datum(schema, {"rear": b""}))[1]


def test_one_type_used_twice_and_names_of_namespaces(tmp_path: Path) -> None:
    body = {"type": "record", "name": "Body", "fields": [{"name": "data", "type": "bytes"}]}
    schema = {"type": "record", "name": "a.b.Two", "fields": [
        {"name": "left", "type": body},
        {"name": "right", "type": "Body"},
        {"name": "third", "type": ["null", "a.b.Body"]}]}  # fmt: skip
    value = datum(schema, {"left": {"data": b"l"}, "right": {"data": b"r"}, "third": None})
    assert one(reader_of(tmp_path, schema, path="right.data"), value).data == b"r"
    assert "third is null" in refused(reader_of(tmp_path, schema, path="third.data"), value)[1]


def nested(levels: int, leaf: Any) -> Any:
    """Records of two fields each of the type below: 2 to the power of ``levels`` leaves."""
    schema = leaf
    for level in range(levels):
        other = f"L{level - 1}" if level else leaf
        fields = [{"name": "a", "type": schema}, {"name": "b", "type": other}]
        schema = {"type": "record", "name": f"L{level}", "fields": fields}
    return schema


LINKED = {"type": "record", "name": "N", "fields": [
    {"name": "data", "type": "bytes"}, {"name": "next", "type": ["null", "N"]}]}  # fmt: skip
EMPTY_RECORD = {"type": "record", "name": "E", "fields": []}


SYMBOLS = {"type": "enum", "name": "S", "symbols": [f"s{number}" for number in range(40_000)]}
"""Looked at a thousand times, they take ten seconds."""
MANY_SYMBOLS = {"type": "record", "name": "R", "fields": [
    {"name": "data", "type": "bytes"},
    {"name": "first", "type": SYMBOLS},
    *({"name": f"more{number}", "type": "S"} for number in range(1_000))]}  # fmt: skip


def deep(levels: int) -> Any:
    schema: Any = "bytes"
    for level in range(levels):
        schema = {"type": "record", "name": f"D{level}", "fields": [{"name": "d", "type": schema}]}
    return schema


@pytest.mark.parametrize(
    ("schema", "telling"),
    [
        (LINKED, "within itself"),
        (
            {
                "type": "record",
                "name": "A",
                "fields": [
                    {"name": "data", "type": "bytes"},
                    {"name": "b", "type": {"type": "array", "items": "A"}},
                ],
            },
            "within itself",
        ),
        ({"type": "array", "items": "null"}, "takes no bytes"),
        ({"type": "array", "items": EMPTY_RECORD}, "takes no bytes"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "takes no bytes"),
        ({"type": "array", "items": {"type": "null"}}, "takes no bytes"),
        (nested(20, "null"), "more than 10000 parts"),
        (nested(20, "bytes"), "more than 10000 parts"),
        (MANY_SYMBOLS, "enums of more than 100000 symbols"),
        (deep(100), "nested deeper than 64"),
        ({"type": "record", "name": "A", "fields": [{"name": "x", "type": "Gone"}]}, "'Gone'"),
        ({"type": "record", "name": "A"}, "a record without fields"),
        ({"type": "record", "fields": []}, "without a name"),
        ({"type": "record", "name": "A", "fields": [3]}, "a record without fields"),
        ({"type": "fixed", "name": "F", "size": "x"}, "without a size"),
        ({"type": "fixed", "name": "F", "size": -1}, "without a size"),
        ({"type": {"type": {"type": "gone"}}}, "'gone'"),
        ([], "expected a schema|union"),
        (7, "expected a schema"),
        ({}, "expected a schema"),
        (None, "expected a schema"),
        (
            {"type": "record", "name": "A", "fields": [{"name": "x", "type": "bytes"}]},
            "no field data; fields are x",
        ),
    ],
)
def test_schemas_that_are_refused(schema: Any, telling: str) -> None:
    with pytest.raises(ValueError, match=telling):
        avro_schema(schema, FieldPaths(path="data"))


def test_a_schema_that_is_nested_deep_as_text() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        schema_tree('{"type":' * 50_000)


def test_fastavro_alone_would_take_the_process_with_it() -> None:
    """What the refusal of types within themselves is for; mend it there, and it may go."""
    program = (
        "import io, fastavro\n"
        "s = fastavro.parse_schema({'type': 'record', 'name': 'N', 'fields':"
        " [{'name': 'next', 'type': ['null', 'N']}]})\n"
        "fastavro.schemaless_reader(io.BytesIO(b'\\2' * 1_000_000), s)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode < 0


def test_a_schema_that_is_refused_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"within itself") as raised:
        reader_of(tmp_path, LINKED, path="data")
    assert "schema.avsc" in str(raised.value)


VARINT_MAX = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"
VARINT_MIN = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xd8\xff\xe0" + b"x" * 50,
        b"\0",
        VARINT_MAX + b"\0\0\0\0" * 100,  # 2^63 - 1 labels
        VARINT_MIN + b"\0\0\0\0" * 100,  # a block of -2^63 labels, and its size
        b"\1\0" * 100,
        b"\0\x04",  # a branch of the union that is not there
        b"\0\x01",
        b"\0\x02" + VARINT_MAX + b"x",  # text of 2^63 - 1 bytes
        b"\0\x02" + VARINT_MIN + b"x",
        b"\0\0" + b"\x80" * 1_000,  # a number that never ends
        b"Obj\x01" + b"x" * 100,
    ],
    ids=lambda value: value[:12].hex(),
)
def test_data_that_are_not_of_the_schema(tmp_path: Path, value: bytes) -> None:
    started = time.process_time()
    status, error = refused(reader_of(tmp_path, FRAME, **PATHS), value)
    assert status == "bad_message"
    assert "not a datum of the schema" in error or "come after the datum" in error
    assert time.process_time() - started < 10


def test_cut_off_and_followed_data(tmp_path: Path) -> None:
    reader, value = reader_of(tmp_path, FRAME, **PATHS), frame(b"image" * 10)
    for end in range(1, len(value)):
        assert refused(reader, value[:end])[0] == "bad_message"
    assert "1 bytes come after the datum" in refused(reader, value + b"x")[1]


def test_an_object_container_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "frames.avro"
    with path.open("wb") as file:
        writer(file, {"type": "record", "name": "R", "fields": []}, [{}])
    assert "container file" in refused(reader_of(tmp_path, FRAME, **PATHS), path.read_bytes())[1]


def test_single_object_encoding(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, FRAME, **PATHS)
    # The schema "int" of the specification: 7275d51a3f395c8f, little-endian.
    ints = reader_of(tmp_path, "int", path="$")
    status, error = refused(ints, bytes.fromhex("c301 8f5c393f1ad57572 02"))
    assert (status, "a number and not bytes" in error) == ("bad_message", True)
    mark = b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(FRAME), "CRC-64-AVRO"))
    assert one(reader, mark + frame(b"image")).data == b"image"
    other = b"\xc3\x01" + bytes(8) + frame(b"image")
    assert "single-object encoding, of another schema" in refused(reader, other)[1]


def test_what_no_path_needs_takes_no_memory(tmp_path: Path) -> None:
    schema = {"type": "record", "name": "R", "fields": [
        {"name": "points", "type": {"type": "array", "items": {
            "type": "record", "name": "P", "fields": [{"name": "on", "type": "boolean"}]}}},
        {"name": "data", "type": "bytes"}]}  # fmt: skip
    reader = reader_of(tmp_path, schema, path="data")
    value = datum(schema, {"points": [{"on": True}] * 50_000, "data": b"x"})
    one(reader, datum(schema, {"points": [], "data": b"x"}))
    tracemalloc.start()
    try:
        assert one(reader, value).data == b"x"
        assert tracemalloc.get_traced_memory()[1] < 4 * len(value)
    finally:
        tracemalloc.stop()


def test_data_of_very_many_values_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(avro, "MAX_READS", 10_000)
    schema = {"type": "array", "items": "bytes"}
    value = b"\x80\x89\x7a" + b"\0" * 100_000 + b"\0"  # a million empty images
    status, error = refused(reader_of(tmp_path, schema, each="$"), value)
    assert (status, "more than 10000 values" in error) == ("bad_message", True)
