"""JSON, base64, data URIs and notifications, the hostile ones too."""

import base64
import json
import tracemalloc
from typing import Any

import pytest

from nap_stream.messages.pieces import Piece, Reference
from nap_stream.messages.text_links import S3EventLink, data_of_uri
from tests.messages.chains import LIMITS, chain, datas, one, read, refused

JPEG = bytes(range(256)) + b"\xff\xd8\xff\xe0"
B64 = base64.b64encode(JPEG).decode()


@pytest.mark.parametrize(
    "text",
    [
        B64,
        base64.urlsafe_b64encode(JPEG).decode(),
        B64.rstrip("="),
        "\n".join(B64[start : start + 76] for start in range(0, len(B64), 76)),
        f"  {B64}\r\n",
        f"data:image/jpeg;base64,{B64}",
        f"DATA:image/png;charset=x;BASE64,{B64}",
        f"data:;base64,{B64}",
        f"data:application/octet-stream;base64,{B64}",
        "data:image/jpeg;base64," + B64.replace("+", "%2B").replace("/", "%2F"),
        "data:image/jpeg," + "".join(f"%{byte:02X}" for byte in JPEG),
    ],
)
def test_base64_in_its_forms(text: str) -> None:
    assert one(chain("base64"), text).data == JPEG


@pytest.mark.parametrize(
    ("text", "status", "telling"),
    [
        (JPEG[256:] + b"rest", "bad_message", "It is a JPEG already"),
        (b"AAAA\0AAA", "bad_message", "byte 00 at 4"),
        ("AAAAé", "bad_message", "byte c3 at 4"),
        ("AAAAA", "bad_message", "cut off after 5"),
        ("AA=A", "bad_message", "byte 3d"),
        ("   \n", "empty", "no text"),
        ("====", "empty", "no text"),
        ("QUJD====QUJD", "bad_message", "byte 3d at 4"),
        ("A" * 200_000, "too_large", "limits.max_image_bytes = 100000"),
        ("A" * 2_000_000, "too_large", "limits.max_image_bytes = 100000"),
        ("data:text/html;base64,AAAA", "unsupported", "text/html"),
        ("data:TEXT/plain,hello", "unsupported", "text/plain"),
        ("data:image/png;base64", "bad_message", "no data URI"),
        ("data:image/png,", "empty", "no data"),
        ("data:image/png,%00" + "%01" * 100_001, "too_large", ""),
    ],
)
def test_what_is_no_base64(text: bytes | str, status: str, telling: str) -> None:
    found = refused(chain("base64"), text)
    assert (found[0], telling in found[1]) == (status, True)


@pytest.mark.parametrize("shift", range(4))
def test_a_data_uri_of_escapes_alone_is_decoded_in_parts(shift: int) -> None:
    """At once, each of them would be an object of 33 bytes and more."""
    escapes = 100_000
    value = b"data:image/png," + b"a" * shift + b"%42" * escapes
    tracemalloc.start()
    try:
        found = data_of_uri(value, "data_uri", 2**20)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(value)
    finally:
        tracemalloc.stop()
    assert found == b"a" * shift + b"B" * escapes


def test_a_data_uri_must_be_one() -> None:
    assert one(chain("data_uri"), f"data:image/jpeg;base64,{B64}").data == JPEG
    assert "no data URI" in refused(chain("data_uri"), B64)[1]


def test_a_field_of_a_document() -> None:
    reader = chain({"json_field": {"path": "frame.data"}}, "base64")
    assert one(reader, json.dumps({"frame": {"data": B64}})).data == JPEG
    # As Python, .NET and Java write them.
    assert one(reader, json.dumps({"frame": {"data": B64}}).encode("utf-16")).data == JPEG
    assert one(reader, b"\xef\xbb\xbf" + json.dumps({"frame": {"data": B64}}).encode()).data == JPEG


@pytest.mark.parametrize(
    "path", ["$.frame.parts[1]", "frame.parts[1]", '["frame"].parts[1]', '$["frame"]["parts"][1]']
)
def test_paths(path: str) -> None:
    reader = chain({"json_field": {"path": path}}, "base64")
    assert one(reader, json.dumps({"frame": {"parts": ["x", B64]}})).data == JPEG


def test_a_name_with_dots_and_brackets() -> None:
    reader = chain({"json_field": {"path": '["a.b[0]"]'}}, "base64")
    assert one(reader, json.dumps({"a.b[0]": B64})).data == JPEG


def test_key_and_event_time_of_fields() -> None:
    link = {"path": "image", "key": "camera.id", "event_time": "at"}
    reader = chain({"json_field": link}, "base64")
    document: dict[str, Any] = {"image": B64, "camera": {"id": 12}, "at": "2026-01-31T12:00:00Z"}
    found = one(reader, json.dumps(document))
    assert (found.has_key, found.key, found.event_time_ms) == (True, b"12", 1_769_860_800_000)
    found = one(reader, json.dumps(document | {"camera": {"id": None}, "at": "yesterday"}))
    assert (found.has_key, found.key, found.event_time_ms) == (True, None, None)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("ms", 1_500, 1_500),
        ("s", 1.5, 1_500),
        ("us", 1_500_999, 1_500),
        ("ns", 1_500_999_999, 1_500),
        ("s", float("nan"), None),
        ("s", float("inf"), None),
        ("ms", True, None),
        ("ms", [], None),
        ("ms", "1970-01-01T00:00:01.500", 1_500),
        ("ms", "1970-01-01T01:00:01+01:00", 1_000),
    ],
)
def test_units_of_event_times(unit: str, value: Any, expected: int | None) -> None:
    link = {"path": "i", "event_time": "t", "event_time_unit": unit}
    found = one(chain({"json_field": link}, "base64"), json.dumps({"i": B64, "t": value}))
    assert found.event_time_ms == expected
    assert found.data == JPEG


def test_an_array_of_images_and_a_bad_one_among_them() -> None:
    link = {"each": "frames", "path": "data", "key": "camera"}
    frames = [
        {"data": B64, "camera": "a"},
        {"camera": "b"},
        {"data": None, "camera": "c"},
        {"data": "!", "camera": "d"},
        7,
        {"data": B64, "camera": "e"},
    ]
    found = read(chain({"json_field": link}, "base64"), json.dumps({"frames": frames}))
    statuses = [image.status.value for image in found]
    assert statuses == ["ok", "bad_message", "tombstone", "bad_message", "bad_message", "ok"]
    assert [found[0].key, found[3].key, found[5].key] == [b"a", b"d", b"e"]
    assert datas(found) == [JPEG, None, None, None, None, JPEG]


def test_an_array_of_texts() -> None:
    found = read(chain({"json_field": {"each": "$"}}, "base64"), json.dumps([B64, B64]))
    assert datas(found) == [JPEG, JPEG]


@pytest.mark.parametrize(
    ("document", "status", "telling"),
    [
        ({"frame": {"jpg": 1, "id": 2}}, "bad_message", "no field frame.data; fields are jpg, id"),
        ({}, "bad_message", "no field frame; fields are none"),
        ({"frame": [{}]}, "bad_message", "frame is an array: name it in each"),
        ({"frame": "x"}, "bad_message", "no field frame.data: frame is text"),
        ({"frame": {"data": None}}, "tombstone", "frame.data is null"),
        ({"frame": {"data": [1]}}, "bad_message", "frame.data is an array"),
        ({"frame": {"data": 12}}, "bad_message", "got a number, expected text"),
        ({"frame": {"data": {}}}, "bad_message", "got an object, expected text"),
        ({"frame": {"data": False}}, "bad_message", "got true or false, expected text"),
        ([1], "bad_message", "it is an array"),
        (3, "bad_message", "it is a number"),
        ({"frame": {f"\x1b[31m{n}": n for n in range(30)}}, "bad_message", "and 20 more"),
    ],
)
def test_documents_without_the_field(document: Any, status: str, telling: str) -> None:
    found = refused(chain({"json_field": {"path": "frame.data"}}, "base64"), json.dumps(document))
    assert found[0] == status
    assert telling in found[1]


@pytest.mark.parametrize(
    ("value", "telling"),
    [
        (b"\xff\xd8\xff\xe0rest", "it begins with ff d8 ff e0"),
        (b"\0\0\0\0\7" + b'{"a": 1}', "set confluent: true"),
        (b"[" * 50_000, "nested too deep"),
        (b'{"a":' * 50_000, "nested too deep"),
        (b"[" + b"[]," * 200_000 + b"0]", "more than 100000 values"),
        (b"9" * 10_000, "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": "x', "not JSON"),
        (b"\0" * 100, "not JSON"),
        (b"{} {}", "not JSON"),
    ],
)
def test_what_is_no_document(value: bytes, telling: str) -> None:
    status, error = refused(chain({"json_field": {"path": "a"}}, "base64"), value)
    assert (status, telling in error) == ("bad_message", True)
    assert error.startswith("json_field: ")


def test_lone_surrogates_and_repeated_names() -> None:
    link = {"json_field": {"path": "a", "key": "k"}}
    found = one(chain(link, "base64"), '{"a": "x", "a": "' + B64 + '", "k": "\\ud800"}')
    assert (found.data, found.key) == (JPEG, b"\\ud800")
    assert "byte" in refused(chain(link, "base64"), '{"a": "\\ud800", "k": "k"}')[1]


def test_framing_before_json() -> None:
    reader = chain({"json_field": {"path": "a", "confluent": True}}, "base64")
    document = json.dumps({"a": B64}).encode()
    assert one(reader, b"\0\0\0\0\x07" + document).data == JPEG
    assert "no schema registry's framing" in refused(reader, document)[1]
    assert "too short" in refused(reader, b"\0")[1]


def test_a_document_of_many_values_takes_little_memory() -> None:
    reader = chain({"json_field": {"path": "a"}}, "base64")
    bomb = b"[" + b"{}," * 3_000_000 + b"{}]"
    tracemalloc.start()
    try:
        refused(reader, bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_key_that_is_too_large_is_left_out() -> None:
    reader = chain({"json_field": {"path": "a", "key": "k"}}, "base64")
    found = one(reader, json.dumps({"a": B64, "k": "k" * 101}))
    assert (found.status, found.key, found.data) == ("too_large", None, None)


def test_nulls_and_nothing() -> None:
    reader = chain("base64")
    assert refused(reader, None)[0] == "tombstone"
    assert refused(reader, b"")[0] == "empty"


def s3_record(key: str = "a.jpg", **changes: Any) -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "images"}, "object": {"key": key, "size": 3}},
    } | changes


def references(tree: Any) -> list[Any]:
    link = S3EventLink(LIMITS)
    return [piece.value for piece in link(Piece(json.dumps(tree).encode()))]


def test_keys_of_notifications_are_url_encoded() -> None:
    tree = {"Records": [s3_record("cam+1%2F2026%2Fa%2Bb%25c+%C3%A9.jpg")]}
    assert references(tree) == [Reference("images", "cam 1/2026/a+b%c é.jpg", None, 3)]


def test_notifications_in_their_forms() -> None:
    versioned = s3_record()
    versioned["s3"]["object"]["versionId"] = "v1"
    assert references({"Records": [versioned]}) == [Reference("images", "a.jpg", "v1", 3)]
    minio = {"EventName": "s3:ObjectCreated:Put", "Key": "images/a.jpg",
             "Records": [s3_record(eventName="s3:ObjectCreated:Put")]}  # fmt: skip
    assert references(minio) == [Reference("images", "a.jpg", None, 3)]
    detail = {"bucket": {"name": "images"}, "object": {"key": "a+b.jpg", "version-id": "v2"}}
    bridge = {"detail-type": "Object Created", "detail": detail}
    assert references(bridge) == [Reference("images", "a+b.jpg", "v2", None)]
    sns = {"Type": "Notification", "Message": json.dumps({"Records": [s3_record()]})}
    assert references(sns) == [Reference("images", "a.jpg", None, 3)]


def test_a_record_that_names_nothing_spoils_only_its_own_row() -> None:
    bad: list[Any] = [
        None,
        {},
        {"s3": {"bucket": "x"}},
        s3_record(key=""),
        {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": 3}, "object": {"key": []}}},
        s3_record(eventName="s3:ObjectRemoved:Delete"),
        s3_record(eventName=None),
    ]
    found = references({"Records": [s3_record(), *bad, s3_record("z.jpg")]})
    assert (found[0].key, found[-1].key) == ("a.jpg", "z.jpg")
    statuses = [each.status.value for each in found[1:-1]]
    assert statuses == ["bad_message"] * 5 + ["tombstone"] * 2


@pytest.mark.parametrize(
    ("tree", "status", "telling"),
    [
        ({"Records": []}, "empty", "Records is empty"),
        ({"Service": "Amazon S3", "Event": "s3:TestEvent"}, "empty", "test notification"),
        ({"a": 1}, "bad_message", "no Records and no detail; fields are a"),
        ([], "bad_message", "got an array"),
        ({"Records": [s3_record()] * 21}, "too_large", "21 records"),
        ({"Type": "Notification", "Message": "hello"}, "bad_message", "not JSON"),
    ],
)
def test_what_is_no_notification(tree: Any, status: str, telling: str) -> None:
    reader = chain("s3_event", {"fetch": {"allow_buckets": ["images"]}})
    found = refused(reader, json.dumps(tree))
    assert (found[0], telling in found[1]) == (status, True)


def test_a_large_base64_is_refused_at_once() -> None:
    reader = chain("base64")
    value = b"A" * 40_000_000
    assert refused(reader, value)[0] == "too_large"
